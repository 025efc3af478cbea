import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.methods.iso_c import iso_c, iso_c_factorise
from raymerge.methods.spectrum_interpolation import spectrum_interpolation, spectrum_interpolation_factorise


def merge(task_matrices: torch.Tensor, beta: float) -> torch.Tensor:
    return spectrum_interpolation(spectrum_interpolation_factorise(task_matrices), beta=beta)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_by_hand():  # sum = diag(4, 2), mean 3: a quarter of the way is diag(3.75, 2.25)
    task_matrices = torch.stack([torch.diag(torch.tensor(d)) for d in ([4.0, 0.0], [0.0, 2.0])])
    torch.testing.assert_close(merge(task_matrices, 0.25), torch.diag(torch.tensor([3.75, 2.25])))


def test_the_ends_are_task_arithmetic_and_iso_c():
    tasks = random(3, 9, 6, dtype=torch.float32)
    torch.testing.assert_close(merge(tasks, 0), tasks.sum(dim=0))
    assert torch.equal(merge(tasks, 1), iso_c(iso_c_factorise(tasks)))


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 20, 12), (3, 12, 20), (1, 7, 5), (2, 1, 6), (2, 80, 90)])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_reference(shape, beta, dtype):
    tasks = random(*shape, dtype=dtype)
    expected = reference.spectrum_interpolation(tasks, beta)
    error = torch.linalg.matrix_norm(merge(tasks, beta).double() - expected) / torch.linalg.matrix_norm(expected)
    assert error <= (2e-7 if dtype == torch.float32 else 1e-11)


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 1), st.integers(0, 100))
def test_the_nuclear_norm_stays_and_the_spread_shrinks(beta, seed):
    tasks = random(2, 6, 8, seed=seed)
    s, s_beta = torch.linalg.svdvals(tasks.sum(dim=0)), torch.linalg.svdvals(merge(tasks, beta))
    torch.testing.assert_close(s_beta.sum(), s.sum())
    torch.testing.assert_close(s_beta.std(), (1 - beta) * s.std())
