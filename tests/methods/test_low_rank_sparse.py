"""Low rank plus sparse: cases by hand, properties, and one full SVD per iteration as the reference."""

import pytest
import reference
import torch
from random_tasks import decaying, gaussian
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.methods._low_rank_sparse import ROOT_FLOOR, decompose

DEFAULTS = {"sparsity": 0.1, "rank_ratio": 0.75, "num_iters": 10, "prune_level": "row"}
ONES = torch.ones(1, 1)


def moments_of(size: int, seed: int = 0) -> Tensor:
    return torch.randn(1, size, generator=torch.Generator().manual_seed(seed)).exp()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.matrix_norm(found - expected) / torch.linalg.matrix_norm(expected))


@pytest.mark.parametrize("prune_level", ["row", "element"])
@pytest.mark.parametrize("make", [gaussian, decaying])
@pytest.mark.parametrize("shape", [(24, 24), (40, 15), (15, 40), (1, 9), (9, 1), (70, 90), (90, 70), (200, 180)])
def test_agrees_with_full_decompositions(shape, make, prune_level):
    matrix, moments = make(1, *shape)[0], moments_of(shape[1])
    found = decompose(matrix, moments, **DEFAULTS | {"prune_level": prune_level})
    expected = reference.low_rank_plus_sparse(matrix, moments, 0.1, 0.75, 10, prune_level)
    assert found.dtype == torch.float64
    assert relative_error(found, expected) <= 1e-9


@pytest.mark.parametrize(
    ("sparsity", "rank_ratio", "num_iters"),
    [(0.0, 0.5, 1), (0.5, 0.2, 3), (0.3, 0.9, 20), (0.1, 1.0, 4), (0.4, 0.0, 2)],
)
def test_every_parameter_matters_as_in_the_reference(sparsity, rank_ratio, num_iters):
    matrix, moments = decaying(1, 80, 66)[0], moments_of(66)
    setting = {"sparsity": sparsity, "rank_ratio": rank_ratio, "num_iters": num_iters, "prune_level": "row"}
    expected = reference.low_rank_plus_sparse(matrix, moments, *setting.values())
    found = decompose(matrix, moments, **setting)
    assert relative_error(found, expected) <= 1e-9
    assert relative_error(found, decompose(matrix, moments, **DEFAULTS)) > 1e-4


def test_one_rank_by_hand():
    # rank floor(1 * 1 * 4 / 4) = 1 and nothing sparse: the stronger direction of diag(3, 2) in each metric
    setting = {"sparsity": 0.0, "rank_ratio": 1.0, "num_iters": 1, "prune_level": "row"}
    matrix = torch.diag(torch.tensor([3.0, 2.0]))
    plain = decompose(matrix, torch.ones(1, 2), **setting)
    torch.testing.assert_close(plain, torch.diag(torch.tensor([3.0, 0.0])).double())
    # inputs of root moments 1 and 4 make the second direction, 2 * 4, the stronger; it comes back unscaled
    scaled = decompose(matrix, torch.tensor([[1.0, 16.0]]), **setting)
    torch.testing.assert_close(scaled, torch.diag(torch.tensor([0.0, 2.0])).double())


def test_sparse_alone_by_hand():
    # keep floor(0.5 * 4) = 2 entries of each row, or floor(0.5 * 8) = 4 of all
    setting = {"sparsity": 0.5, "rank_ratio": 0.0, "num_iters": 1}
    matrix = torch.tensor([[5.0, -8.0, 6.0, 7.0], [1.0, -2.0, 3.0, 4.0]])
    by_row = decompose(matrix, torch.ones(1, 4), **setting, prune_level="row")
    assert by_row.tolist() == [[0, -8, 0, 7], [0, 0, 3, 4]]
    by_element = decompose(matrix, torch.ones(1, 4), **setting, prune_level="element")
    assert by_element.tolist() == [[5, -8, 6, 7], [0, 0, 0, 0]]
    # a strong input makes its entries large
    weighted = decompose(matrix, torch.tensor([[100.0, 1.0, 1.0, 1.0]]), **setting, prune_level="row")
    assert weighted.tolist() == [[5, -8, 0, 0], [1, 0, 0, 4]]


def test_inputs_along_rows():
    """As of `visual.proj`, which multiplies from the right: outputs are its columns."""
    matrix, moments = decaying(1, 30, 20)[0], moments_of(30)
    found = decompose(matrix, moments.T, **DEFAULTS)
    torch.testing.assert_close(found, decompose(matrix.T.contiguous(), moments, **DEFAULTS).T, rtol=0, atol=1e-12)


def test_a_sparse_outlier_is_taken_from_the_low_rank_part():
    generator = torch.Generator().manual_seed(0)
    low_rank = (
        torch.randn(40, 3, generator=generator, dtype=torch.float64) @ torch.randn(3, 30, generator=generator).double()
    )
    outliers = torch.zeros(40, 30, dtype=torch.float64)
    outliers[torch.arange(40), torch.arange(40) % 30] = 50.0
    # rank floor(0.75 * 0.24 * 1200 / 70) = 3, and floor(0.25 * 0.24 * 30) = 1 entry a row
    found = decompose(
        low_rank + outliers, torch.ones(1, 30), sparsity=0.76, rank_ratio=0.75, num_iters=200, prune_level="row"
    )
    torch.testing.assert_close(found, low_rank + outliers, rtol=0, atol=1e-6)


def test_uniform_moments_are_no_scaling():
    matrix = decaying(1, 50, 70)[0]
    torch.testing.assert_close(
        decompose(matrix, torch.full((1, 70), 0.04), **DEFAULTS), decompose(matrix, torch.ones(1, 70), **DEFAULTS)
    )


def test_more_numbers_approximate_better():
    matrix, moments = decaying(1, 60, 60)[0], moments_of(60)
    errors = [relative_error(decompose(matrix, moments, **DEFAULTS | {"sparsity": s}), matrix) for s in (0.8, 0.5, 0.1)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.2


def test_an_input_that_is_always_zero():
    matrix, moments = decaying(1, 30, 20)[0], moments_of(20)
    moments[0, 3] = 0
    found = decompose(matrix, moments, **DEFAULTS)
    assert torch.isfinite(found).all()
    floored = moments.clone()
    floored[0, 3] = ROOT_FLOOR**2 * float(moments.max())
    torch.testing.assert_close(found, decompose(matrix, floored, **DEFAULTS), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "bad", [torch.zeros(1, 4), torch.tensor([[1.0, -1, 1, 1]]), torch.tensor([[1.0, torch.nan, 1, 1]])]
)
def test_unusable_moments(bad):
    with pytest.raises(MergeInputError, match="raymerge stats"):
        decompose(torch.ones(3, 4), bad, **DEFAULTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.5}, "sparsity is 1.5, expected 0 to 1"),
        ({"rank_ratio": -0.1}, "rank_ratio is -0.1, expected 0 to 1"),
        ({"num_iters": 2.5}, "num_iters is 2.5, expected a whole number"),
        ({"num_iters": 0}, "num_iters is 0, expected a whole number"),
        ({"prune_level": "column"}, "prune_level is 'column', expected 'row' or 'element'"),
    ],
)
def test_parameters_out_of_range(change, message):
    with pytest.raises(MergeInputError, match=message):
        decompose(torch.ones(3, 4), torch.ones(1, 4), **DEFAULTS | change)
