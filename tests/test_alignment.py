import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.alignment import alignment_profile, effective_rank
from raymerge.metrics import pearson


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# --- effective rank --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("singular_values", "epsilon", "expected"),
    [
        # squares 16, 8, 1 of 25: the residual of k = 2 is sqrt(1 / 25) = 0.2, of k = 1 sqrt(9 / 25) = 0.6
        (values(4.0, 8**0.5, 1.0), 0.2000001, 2),
        (values(4.0, 8**0.5, 1.0), 0.1999999, 3),
        (values(4.0, 8**0.5, 1.0), 0.6000001, 1),
        (values(4.0, 8**0.5, 1.0), 0.5999999, 2),
        (values(1.0, 0.0, 0.0), 0.05, 1),
        (values(1.0, 1e-9), 0.05, 1),
        (values(0.0, 0.0), 0.05, 0),
        (values(), 0.05, 0),
    ],
)
def test_rank_of_the_paper(singular_values, epsilon, expected):
    assert effective_rank(singular_values, "paper", epsilon) == expected


@pytest.mark.parametrize(
    ("singular_values", "epsilon", "expected"),
    [
        # roots of the shares 9/25, 24/25, 1: 0.6, 0.98, 1; the position of the first above 0.95 counts from 0
        (values(3.0, 15**0.5, 1.0), 0.05, 1),
        (values(3.0, 15**0.5, 1.0), 0.4000001, 0),
        (values(3.0, 15**0.5, 1.0), 0.01, 2),
        (values(1.0, 0.0), 0.05, 0),
        (values(0.0, 0.0), 0.05, 0),
    ],
)
def test_rank_of_the_released_code(singular_values, epsilon, expected):
    assert effective_rank(singular_values, "released_code", epsilon) == expected


def test_ranks_of_a_flat_spectrum():  # as measured on the published code: 693 of 768, against 767 by Eq. 6
    assert effective_rank(torch.ones(768).double(), "released_code") == 693
    assert effective_rank(torch.ones(768).double(), "paper") == 767


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.floats(0.01, 0.9))
def test_the_rank_of_the_paper_is_the_smallest_that_suffices(numbers, epsilon):
    s = torch.tensor(sorted(numbers, reverse=True), dtype=torch.float64)
    k = effective_rank(s, "paper", epsilon)
    residual = [math.sqrt(float(s[i:].square().sum() / s.square().sum())) for i in range(len(s) + 1)]
    assert residual[k] <= epsilon * (1 + 1e-9)
    assert k == 0 or residual[k - 1] > epsilon * (1 - 1e-9)


def test_the_rank_of_the_released_code_agrees_with_its_own_words():
    for seed in range(20):
        s = torch.linalg.svdvals(random(9, 12, seed=seed))
        ratio = torch.sqrt(torch.cumsum(s**2, 0) / torch.sum(s**2))
        assert effective_rank(s, "released_code") == int(torch.argmax((ratio > 0.95).int()))


# --- alignment -------------------------------------------------------------------------------------------------------


def test_alignment_by_hand():
    # rows of norm 3 and 4; the first direction is the second row's, so k = 1 keeps 4 of 5
    source = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]).double()
    basis = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    torch.testing.assert_close(alignment_profile(source, basis), values(0.0, 0.8, 1.0))
    turned = torch.tensor([[1.0], [1.0]]).double() / 2**0.5  # ||(3, 4) / sqrt 2|| = 5 / sqrt 2, of 5
    torch.testing.assert_close(alignment_profile(source, turned), values(0.0, 0.5**0.5))


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_alignment_is_the_norm_of_the_projection(shape):
    source, target = random(*shape), random(*shape, seed=1)
    u = torch.linalg.svd(target, full_matrices=False)[0]
    profile = alignment_profile(source, u)
    assert len(profile) == min(shape) + 1
    for k in range(min(shape) + 1):
        projected = u[:, :k] @ u[:, :k].mT @ source
        expected = torch.linalg.matrix_norm(projected) / torch.linalg.matrix_norm(source)
        torch.testing.assert_close(profile[k], expected)


def test_a_matrix_is_aligned_with_itself_as_its_spectrum_says():
    matrix = random(5, 7)
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    expected = (s.square().cumsum(dim=0) / s.square().sum()).sqrt()
    torch.testing.assert_close(alignment_profile(matrix, u)[1:], expected)


def test_several_sources_at_once_and_their_scale():
    sources, u = random(3, 6, 8), torch.linalg.qr(random(6, 6, seed=2))[0]
    together = alignment_profile(sources, u)
    for i in range(3):
        torch.testing.assert_close(together[i], alignment_profile(-7 * sources[i], u))
    assert alignment_profile(torch.zeros(2, 2).double(), torch.eye(2).double()).isnan().all()
    assert (together.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(together[:, -1], torch.ones(3).double())


# --- correlation -----------------------------------------------------------------------------------------------------


def test_pearson_by_hand():
    # deviations (-1, 0, 1) and (-2, 1, 1): 3 / sqrt(2 * 6)
    assert pearson([1.0, 2.0, 3.0], [0.0, 3.0, 3.0]) == pytest.approx(3 / 12**0.5)
    assert pearson([1.0, 2.0, 3.0], [3.0, 5.0, 7.0]) == pytest.approx(1.0)
    assert pearson([1.0, 2.0, 3.0], [-3.0, -5.0, -7.0]) == pytest.approx(-1.0)


def test_pearson_of_what_does_not_vary():
    assert math.isnan(pearson([], []))
    assert math.isnan(pearson([1.0], [2.0]))
    assert math.isnan(pearson([1.0, 1.0], [2.0, 3.0]))
    with pytest.raises(ValueError, match="zip"):
        pearson([1.0, 2.0], [1.0, 2.0, 3.0])


def test_pearson_agrees_with_numpy():
    numpy = pytest.importorskip("numpy")
    xs, ys = random(2, 20).tolist()
    assert pearson(xs, ys) == pytest.approx(numpy.corrcoef(xs, ys)[0, 1])
