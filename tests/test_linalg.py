import numpy as np
import pytest
import torch

from raymerge.errors import MergeInputError
from raymerge.linalg import (
    MAX_POLAR_ERROR,
    Uncertified,
    check_polar_error,
    check_task_matrices,
    check_task_tensors,
    compact_svd,
    conditioning,
    eigh,
    polar_amplification,
    polar_factor,
)

SHAPES = [(6, 6), (9, 4), (4, 9), (1, 5), (5, 1), (1, 1)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_compact_svd_of_full_rank(shape):
    matrix = random(*shape)
    u, s, vh = compact_svd(matrix)
    torch.testing.assert_close(u @ torch.diag(s) @ vh, matrix)
    torch.testing.assert_close(s, torch.from_numpy(np.linalg.svd(matrix.numpy(), compute_uv=False)))
    torch.testing.assert_close(u.mT @ u, torch.eye(min(shape), dtype=torch.float64))
    torch.testing.assert_close(vh @ vh.mT, torch.eye(min(shape), dtype=torch.float64))


def test_compact_svd_leaves_null_directions_out():
    u, s, vh = compact_svd(torch.diag(torch.tensor([3.0, 0.0, 2.0])))
    torch.testing.assert_close(s, torch.tensor([3.0, 2.0], dtype=torch.float64))
    assert u.shape == (3, 2)
    assert vh.shape == (2, 3)
    assert [len(s) for _, s, _ in [compact_svd(torch.zeros(3, 2)), compact_svd(random(7, 2) @ random(2, 5))]] == [0, 2]
    assert len(compact_svd(torch.diag(torch.tensor([1.0, 1e-14], dtype=torch.float64)))[1]) == 2


def test_compact_svd_computes_in_float64():
    # 1e-9 is lost next to 1 in float32, yet given exactly by the input
    s = compact_svd(torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float32)))[1]
    assert s.dtype == torch.float64
    assert float(s[1]) == pytest.approx(1e-9, rel=1e-6)


def test_compact_svd_compares_with_the_given_scale():
    noise = 1e-15 * random(4, 4)
    assert len(compact_svd(noise)[1]) == 4
    assert len(compact_svd(noise, scale=100.0)[1]) == 0
    assert len(compact_svd(torch.zeros(2, 2), scale=0.0)[1]) == 0


@pytest.mark.parametrize("tolerance", [0.0, 1e-7])
def test_well_conditioned_noise_is_noise(tolerance):
    noise = 1e-15 * (random(100, 120) + 20 * torch.eye(100, 120, dtype=torch.float64))
    assert len(compact_svd(noise, tolerance=tolerance)[1]) == 100
    assert len(compact_svd(noise, scale=100.0, tolerance=tolerance)[1]) == 0


def test_an_eigendecomposition_that_fails_is_no_answer(monkeypatch):
    def fails(matrix):
        raise torch.linalg.LinAlgError

    matrix = random(80, 90)
    expected, _ = polar_factor(matrix)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(Uncertified, match="eigendecomposition failed"):
        eigh(matrix @ matrix.mT)
    torch.testing.assert_close(polar_factor(matrix, tolerance=1e-7)[0], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_factor_agrees_with_the_gram_matrix(shape):  # X (X^T X)^(-1/2), by eigenvalues instead of an SVD
    matrix = random(*shape, seed=1)
    tall = matrix if shape[0] >= shape[1] else matrix.mT
    values, vectors = torch.linalg.eigh(tall.mT @ tall)
    expected = tall @ vectors @ torch.diag(values.rsqrt()) @ vectors.mT
    isometry, singular_values = polar_factor(matrix)
    torch.testing.assert_close(isometry, expected if shape[0] >= shape[1] else expected.mT)
    torch.testing.assert_close(singular_values, values.flip(0).sqrt())


def test_polar_factor_of_two_equal_columns():  # [e e] = e [1 1]: the isometry is e [1 1] / sqrt(2)
    isometry, singular_values = polar_factor(torch.tensor([[3.0, 3.0], [0.0, 0.0], [4.0, 4.0]], dtype=torch.float64))
    expected = torch.tensor([[0.6, 0.6], [0.0, 0.0], [0.8, 0.8]], dtype=torch.float64) / 2**0.5
    torch.testing.assert_close(isometry, expected)
    torch.testing.assert_close(singular_values, torch.tensor([50**0.5], dtype=torch.float64))


@pytest.mark.parametrize(("size", "smallest"), [(12, 1e-3), (15, 0.05), (40, 0.3)])
def test_polar_amplification_is_what_random_errors_do(size, smallest):
    u, _, vh = torch.linalg.svd(random(size, 12), full_matrices=False)
    vectors = u @ torch.diag(torch.linspace(1.5, smallest, 12, dtype=torch.float64)) @ vh
    exact, singular_values = polar_factor(vectors)
    generator, error = torch.Generator().manual_seed(0), 1e-7
    squares = []
    for _ in range(400):
        noise = torch.randn(size, 12, generator=generator, dtype=torch.float64) * error / size**0.5
        squares.append(torch.linalg.matrix_norm(polar_factor(vectors + noise)[0] - exact).square() / 12)
    found = float(torch.stack(squares).mean().sqrt()) / error
    assert found == pytest.approx(polar_amplification(singular_values, size), rel=0.1)


def test_polar_amplification_by_hand():
    values = torch.tensor([2.0, 1.0], dtype=torch.float64)
    # twice 1 / (2 + 1)^2 for either of two entries, and 1 / 2^2 + 1 / 1^2 in each dimension outside; over 2 size
    assert polar_amplification(values, 2) == pytest.approx((2 * (2 / 9) / 4) ** 0.5)
    assert polar_amplification(values, 5) == pytest.approx((4 / 9 + 3 * 5 / 4) ** 0.5 / 10**0.5)


def test_polar_factors_of_doubtful_vectors_are_refused():
    values = torch.tensor([2.0, 1.0], dtype=torch.float64)
    limit = MAX_POLAR_ERROR / (2 / 9 * 2) ** 0.5 * 2  # two square factors: each off by sqrt(2 * 2/9) / 2
    limit /= 2**0.5
    check_polar_error(torch.tensor([0.99 * limit] * 3).double(), (values, 2), (values, 2))
    with pytest.raises(Uncertified, match="nearly depend on each other: the error may be 5e-05"):
        check_polar_error(torch.tensor([1.01 * limit] * 3).double(), (values, 2), (values, 2))
    with pytest.raises(Uncertified):
        check_polar_error(torch.tensor([float("inf")]).double(), (values, 2))
    check_polar_error(torch.zeros(3).double(), (torch.zeros(2).double(), 5))  # full decompositions need no certificate


def test_conditioning():
    assert conditioning(torch.tensor([4.0, 2.0], dtype=torch.float64), size=2) == 0.5
    assert conditioning(torch.tensor([4.0, 2.0], dtype=torch.float64), size=3) == 0
    assert conditioning(torch.zeros(0, dtype=torch.float64), size=3) == 1


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_svd_is_tried_once_more(shape, monkeypatch):
    svd, calls = torch.linalg.svd, []

    def fails_once(matrix, full_matrices):
        calls.append(matrix)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError
        return svd(matrix, full_matrices=full_matrices)

    matrix = random(*shape, seed=2)
    expected, _ = polar_factor(matrix)
    monkeypatch.setattr(torch.linalg, "svd", fails_once)
    u, s, vh = compact_svd(matrix)
    assert len(calls) == 2
    torch.testing.assert_close(u @ torch.diag(s) @ vh, matrix)
    torch.testing.assert_close(u @ vh, expected)


def test_svd_that_never_converges(monkeypatch):
    def fails(matrix, full_matrices):
        raise torch.linalg.LinAlgError

    monkeypatch.setattr(torch.linalg, "svd", fails)
    with pytest.raises(MergeInputError, match="SVD of a 2 x 3 matrix did not converge"):
        compact_svd(random(2, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_located(value):
    tensors = torch.zeros(3, 2, 4)
    tensors[1, 0, 2] = value
    with pytest.raises(MergeInputError, match=rf"task tensor 1 of 3 has {value} at \(0, 2\)"):
        check_task_matrices(tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (torch.zeros(0, 2, 4), r"shape \(0, 2, 4\) hold no task"),
        (torch.tensor(1.0), r"shape \(\) hold no task"),
        (torch.zeros(3, 2, dtype=torch.int64), "are torch.int64, expected floating point"),
    ],
)
def test_unusable_task_tensors(tensors, message):
    with pytest.raises(MergeInputError, match=message):
        check_task_tensors(tensors)


@pytest.mark.parametrize("shape", [(3, 4), (3, 0, 4), (3, 4, 0), (2, 2, 2, 2)])
def test_unusable_task_matrices(shape):
    with pytest.raises(MergeInputError, match="expected \\(tasks, rows, cols\\)"):
        check_task_matrices(torch.zeros(*shape))


def test_usable_task_tensors():
    for shape in [(1,), (2, 3), (2, 3, 4, 5, 6), (2, 0)]:
        check_task_tensors(torch.zeros(*shape))
    check_task_matrices(torch.zeros(1, 1, 1))
