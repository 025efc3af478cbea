import pytest
import reference
import torch

from raymerge.linalg import ILL_CONDITIONED
from raymerge.methods.iso_c import iso_c, iso_c_factorise

SHAPES = [(3, 12, 12), (3, 20, 12), (3, 12, 20), (1, 7, 5), (8, 3, 5), (2, 1, 6), (2, 6, 1), (4, 40, 40)]


def merge(task_matrices: torch.Tensor) -> torch.Tensor:
    return iso_c(iso_c_factorise(task_matrices))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_by_hand():  # sum = diag(4, 2): U = Vh = I, isotropic factor 3
    task_matrices = torch.stack([torch.diag(torch.tensor(d)) for d in ([4.0, 0.0], [0.0, 2.0])])
    torch.testing.assert_close(merge(task_matrices), 3.0 * torch.eye(2))


def test_agrees_with_polar_factor(task_matrices):  # reference by eigh, no SVD
    d = task_matrices.sum(0)
    evals, q = torch.linalg.eigh(d.mT @ d)
    expected = evals.sqrt().mean() * (d @ q @ torch.diag(evals.rsqrt()) @ q.mT)
    torch.testing.assert_close(merge(task_matrices), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_reference(shape, dtype):
    tasks = random(*shape, dtype=dtype)
    expected = reference.iso_c(tasks)
    error = torch.linalg.matrix_norm(merge(tasks).double() - expected) / torch.linalg.matrix_norm(expected)
    assert error <= (2e-7 if dtype == torch.float32 else 1e-11)


def test_agrees_with_the_reference_where_float32_would_not():
    left, right = (torch.linalg.qr(random(24, 24, seed=seed))[0] for seed in (1, 2))
    tasks = torch.stack(
        [left @ torch.diag(torch.logspace(0, -5.5, 24).double()) @ right, 1e-8 * random(24, 24)]
    ).float()
    factors = iso_c_factorise(tasks)
    assert ILL_CONDITIONED < factors.conditioning < 1e-5
    expected = reference.iso_c(tasks)
    error = torch.linalg.matrix_norm(iso_c(factors).double() - expected) / torch.linalg.matrix_norm(expected)
    assert error <= 2e-7
    u, s, vh = torch.linalg.svd(tasks.sum(dim=0), full_matrices=False)
    naive = torch.linalg.matrix_norm((s.mean() * u @ vh).double() - expected) / torch.linalg.matrix_norm(expected)
    assert naive > 1e-4, "or the case is too easy to show anything"


def test_spectrum_is_flat_at_the_mean():
    tasks = random(3, 9, 6)
    values = torch.linalg.svdvals(merge(tasks))
    torch.testing.assert_close(values, torch.linalg.svdvals(tasks.sum(0)).mean().expand(6))


def test_the_mean_runs_over_null_directions_too():  # sum = diag(6, 0, 0): one direction, factor 6 / 3
    factors = iso_c_factorise(torch.diag(torch.tensor([6.0, 0.0, 0.0])).expand(1, 3, 3))
    torch.testing.assert_close(iso_c(factors), torch.diag(torch.tensor([2.0, 0.0, 0.0])))
    assert factors.conditioning == 0


def test_conditioning():
    assert iso_c_factorise(torch.diag(torch.tensor([8.0, 2.0])).expand(1, 2, 2)).conditioning == pytest.approx(0.25)
