import pytest
import reference
import torch

from raymerge.methods.tsv_m import tsv_factorise, tsv_m

# (tasks, rows, cols): square, tall, wide, not divisible, one value per task, one task
SHAPES = [(4, 12, 12), (4, 20, 12), (4, 12, 20), (5, 13, 17), (6, 6, 9), (1, 7, 5), (2, 1, 2), (2, 40, 40)]


def merge(task_matrices: torch.Tensor) -> torch.Tensor:
    return tsv_m(tsv_factorise(task_matrices))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_by_hand():  # each task keeps its strongest direction; the kept ones are orthogonal already
    tasks = torch.stack([torch.diag(torch.tensor(d)) for d in ([5.0, 1.0], [2.0, 3.0])])
    torch.testing.assert_close(merge(tasks), torch.diag(torch.tensor([5.0, 3.0])))


def test_whitening_by_hand():
    # left vectors e1 and (cos a, sin a) with a = 60 degrees: whitened, they turn away from each other by 15 degrees
    # each, to -15 and 75; right vectors e1 and e2 stay
    cos, sin = 0.5, 3**0.5 / 2
    tasks = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[0.0, 3 * cos], [0.0, 3 * sin]]], dtype=torch.float64)
    angles = torch.deg2rad(torch.tensor([-15.0, 75.0], dtype=torch.float64))
    expected = torch.stack([angles.cos(), angles.sin()]) * torch.tensor([2.0, 3.0])
    torch.testing.assert_close(merge(tasks), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_reference(shape, dtype):
    tasks = random(*shape, dtype=dtype)
    expected = reference.tsv_m(tasks)
    error = torch.linalg.matrix_norm(merge(tasks).double() - expected) / torch.linalg.matrix_norm(expected).clamp(1e-30)
    assert error <= (2e-7 if dtype == torch.float32 else 1e-11)


def test_one_task_is_itself():
    tasks = random(1, 6, 4)
    torch.testing.assert_close(merge(tasks), tasks[0])


def test_more_tasks_than_values_is_zero():
    assert torch.equal(merge(random(5, 4, 9)), torch.zeros(4, 9, dtype=torch.float64))
    assert merge(random(4, 4, 9)).any()


def test_identical_tasks_share_their_directions():
    task = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    factors = tsv_factorise(torch.stack([task, task]))
    torch.testing.assert_close(tsv_m(factors), torch.diag(torch.tensor([4.0, 3.0, 0.0, 0.0], dtype=torch.float64)))
    assert factors.conditioning == 0


def test_conditioning_is_that_of_the_bases():
    # columns at 60 degrees: singular values sqrt(1 +- cos 60)
    tasks = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[0.0, 1.5], [0.0, 1.5 * 3**0.5]]], dtype=torch.float64)
    assert tsv_factorise(tasks).conditioning == pytest.approx((0.5 / 1.5) ** 0.5)
    assert tsv_factorise(tasks.mT).conditioning == pytest.approx((0.5 / 1.5) ** 0.5)
