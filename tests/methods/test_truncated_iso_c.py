import pytest
import reference
import torch

from raymerge.methods.iso_c import iso_c, iso_c_factorise
from raymerge.methods.truncated_iso_c import num_kept, truncated_iso_c, truncated_iso_c_factorise


def merge(task_matrices: torch.Tensor, rank_fraction: float) -> torch.Tensor:
    return truncated_iso_c(truncated_iso_c_factorise(task_matrices), rank_fraction=rank_fraction)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_by_hand():  # sum = diag(1, 5, 3, 0): the two strongest directions, scaled to the mean of four, 9 / 4
    tasks = torch.diag(torch.tensor([1.0, 5.0, 3.0, 0.0])).expand(1, 4, 4)
    torch.testing.assert_close(merge(tasks, 0.5), torch.diag(torch.tensor([0.0, 2.25, 2.25, 0.0])))


@pytest.mark.parametrize(
    ("num_values", "fraction", "expected"),
    [(768, 0.1, 76), (768, 1.0, 768), (768, 0.0, 0), (100, 0.29, 29), (10, 0.7, 7), (10, 0.69, 6), (5, 0.5, 2)],
)
def test_number_of_directions(num_values, fraction, expected):
    assert num_kept(num_values, fraction) == expected


def test_all_of_it_is_iso_c_and_none_of_it_is_zero():
    tasks = random(3, 9, 6, dtype=torch.float32)
    torch.testing.assert_close(merge(tasks, 1), iso_c(iso_c_factorise(tasks)))
    assert torch.equal(merge(tasks, 0), torch.zeros(9, 6))


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 20, 12), (3, 12, 20), (1, 7, 5), (2, 80, 90)])
@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_reference(shape, fraction, dtype):
    tasks = random(*shape, dtype=dtype)
    expected = reference.truncated_iso_c(tasks, fraction)
    error = torch.linalg.matrix_norm(merge(tasks, fraction).double() - expected) / torch.linalg.matrix_norm(expected)
    assert error <= (1e-6 if dtype == torch.float32 else 1e-11)


def test_the_spectrum_is_flat_up_to_k_and_zero_beyond():
    tasks = random(3, 8, 10)
    values = torch.linalg.svdvals(merge(tasks, 0.4))
    mean = torch.linalg.svdvals(tasks.sum(dim=0)).mean()
    torch.testing.assert_close(values, torch.tensor([1.0] * 3 + [0.0] * 5).double() * mean)
