"""Leading eigenspaces and triplets against full float64 decompositions."""

import pytest
import torch
from random_tasks import decaying, gaussian, orthonormal
from torch import Tensor

from raymerge import linalg_leading, notes
from raymerge.linalg import Uncertified
from raymerge.linalg_leading import leading_eigenspaces, leading_triplets

MAX_ERROR = linalg_leading.MAX_ERROR[torch.float32]


def sine(basis: Tensor, true: Tensor) -> Tensor:
    """RMS sine of the angles between orthonormal bases, per matrix."""
    rest = basis.double() - true @ (true.mT @ basis.double())
    return (rest.square().sum((1, 2)) / basis.shape[-1]).sqrt()


def true_space(matrices: Tensor, count: int) -> Tensor:
    return torch.linalg.eigh(matrices.double())[1][..., -count:]


def with_spectrum(values: list[float], size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """One symmetric matrix with the given leading eigenvalues and zeros."""
    q = orthonormal(size, len(values), torch.Generator().manual_seed(seed))
    return ((q * torch.tensor(values, dtype=torch.float64)) @ q.mT).to(dtype)[None]


@pytest.mark.parametrize("make", [gaussian, decaying])
@pytest.mark.parametrize(("rows", "count"), [(220, 5), (220, 30), (300, 40), (120, 10), (220, 220), (70, 1)])
def test_spaces_are_those_of_a_full_decomposition(make, rows, count):
    tasks = make(4, rows, 330)
    found = leading_eigenspaces(tasks @ tasks.mT, count)
    true = true_space(tasks.double() @ tasks.double().mT, count)
    torch.testing.assert_close(found.basis.mT @ found.basis, torch.eye(count).expand(4, -1, -1), rtol=0, atol=1e-5)
    error = sine(found.basis, true)
    assert (error <= MAX_ERROR).all()
    assert (error <= 3 * found.error + 1e-7).all(), "the estimate is no promise that is not kept"
    assert (found.error <= MAX_ERROR).all()


@pytest.mark.parametrize("make", [gaussian, decaying])
@pytest.mark.parametrize(("rows", "count"), [(220, 5), (300, 40)])
def test_spaces_in_float64(make, rows, count):
    tasks = make(3, rows, 330).double()
    found = leading_eigenspaces(tasks @ tasks.mT, count)
    assert (sine(found.basis, true_space(tasks @ tasks.mT, count)) <= 1e-8).all()


@pytest.mark.parametrize("make", [gaussian, decaying])
def test_iteration_agrees_with_the_full_decomposition_of_the_same_matrix(make, monkeypatch):
    tasks = make(3, 260, 260, seed=3)
    matrices = tasks @ tasks.mT
    full = []
    monkeypatch.setattr(linalg_leading, "_full", lambda *args: full.append(args))
    found = leading_eigenspaces(matrices, 12)
    assert not full, "or this test shows nothing about the iteration"
    assert (sine(found.basis, true_space(matrices, 12)) <= 5e-6).all()


def test_the_same_input_gives_the_same_bits():
    tasks = decaying(2, 240, 240)
    matrices = tasks @ tasks.mT
    first, second = (leading_eigenspaces(matrices, 10) for _ in range(2))
    assert torch.equal(first.basis, second.basis)


def test_a_tie_at_the_cut_is_no_known_space():
    tied = with_spectrum([5.0, 4.0, 3.0, 3.0, 2.0], 220)
    assert float(leading_eigenspaces(tied, 3).error) > MAX_ERROR
    assert float(leading_eigenspaces(tied, 2).error) < 1e-5
    assert float(leading_eigenspaces(tied, 4).error) < 1e-5, "a tie within the space does no harm"


def test_multiplicity_beyond_any_block_is_found():
    """40 times the same eigenvalue: an iteration on single vectors would miss most of them."""
    matrices = with_spectrum([2.0] * 40 + [1.0] * 200, 240)
    found = leading_eigenspaces(matrices, 40)
    assert float(found.error) < 1e-5
    assert float(sine(found.basis, true_space(matrices, 40))) < 1e-5


def test_rounding_of_what_was_subtracted_counts():
    tasks = decaying(1, 220, 220)
    matrices = tasks @ tasks.mT
    energy = matrices.diagonal(dim1=1, dim2=2).sum(-1).double()
    errors = [float(leading_eigenspaces(matrices, 8, factor * energy).error) for factor in (1, 1e4)]
    assert errors[1] > 100 * errors[0]


def test_a_zero_matrix_has_no_known_space():
    assert float(leading_eigenspaces(torch.zeros(1, 220, 220), 3).error) > MAX_ERROR
    assert float(leading_eigenspaces(torch.zeros(1, 5, 5), 3).error) > MAX_ERROR


@pytest.mark.parametrize("make", [gaussian, decaying])
@pytest.mark.parametrize(
    ("rows", "cols", "count"), [(220, 220, 11), (260, 210, 11), (210, 320, 35), (80, 90, 8), (90, 80, 80)]
)
def test_triplets(make, rows, cols, count):
    tasks = make(3, rows, cols)
    found = leading_triplets(tasks, count)
    u, s, vh = torch.linalg.svd(tasks.double(), full_matrices=False)
    expected = (u[..., :count] * s[:, None, :count]) @ vh[:, :count]
    part = (found.u.double() * found.s[:, None, :]) @ found.vh.double()
    error = torch.linalg.matrix_norm(part - expected) / torch.linalg.matrix_norm(expected)
    assert (error <= 2e-5).all()
    torch.testing.assert_close(found.s, s[:, :count], rtol=2e-6, atol=0)
    for basis in (found.u.mT, found.vh):
        torch.testing.assert_close(basis @ basis.mT, torch.eye(count).expand(3, -1, -1), rtol=0, atol=2e-6)


def test_a_task_that_ties_is_decomposed_in_full_and_said_so():
    tasks = decaying(3, 220, 230)
    u, s, vh = torch.linalg.svd(tasks[1].double(), full_matrices=False)
    s[7] = s[6] * (1 - 1e-7)  # a tie for float32, none for float64
    tasks[1] = ((u * s) @ vh).float()
    with notes.collected() as said:
        found = leading_triplets(tasks, 7)
    assert len(said) == 1
    assert said[0].startswith("1 of 3 tasks were decomposed in full")
    u, s, vh = torch.linalg.svd(tasks[1].double(), full_matrices=False)
    part = (found.u[1].double() * found.s[1]) @ found.vh[1].double()
    torch.testing.assert_close(part, (u[:, :7] * s[:7]) @ vh[:7], rtol=0, atol=1e-6)


def test_a_tie_at_an_inner_cut_counts():
    tasks = decaying(2, 220, 230)
    u, s, vh = torch.linalg.svd(tasks[1].double(), full_matrices=False)
    s[7] = s[6] * (1 - 1e-7)
    tasks[1] = ((u * s) @ vh).float()
    assert float(leading_triplets(tasks, 20).error[1]) < 1e-5, "within the space a tie does no harm"
    assert float(leading_triplets(tasks, 20, [9, 20]).error[1]) < 1e-5
    with notes.collected() as said:
        found = leading_triplets(tasks, 20, [7, 20])
    assert said[0].startswith("1 of 2 tasks were decomposed in full")
    u, s, vh = torch.linalg.svd(tasks[1].double(), full_matrices=False)
    part = (found.u[1, :, :7].double() * found.s[1, :7]) @ found.vh[1, :7].double()
    torch.testing.assert_close(part, (u[:, :7] * s[:7]) @ vh[:7], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("size", [80, 220])
def test_a_task_with_too_few_directions_is_refused(rank, size):
    tasks = decaying(2, size, size + 10)
    u, s, vh = torch.linalg.svd(tasks[0].double(), full_matrices=False)
    tasks[0] = ((u[:, :rank] * s[:rank]) @ vh[:rank]).float()
    with pytest.raises(Uncertified, match="fewer directions" if rank else "a task matrix is zero"):
        leading_triplets(tasks, 5)
