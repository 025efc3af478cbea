import hypothesis.strategies as st
import pytest
import reference
import torch
from hypothesis import given

from raymerge.errors import MergeInputError
from raymerge.methods.iso_c import iso_c, iso_c_factorise
from raymerge.methods.iso_cts import iso_cts, iso_cts_factorise, subspace_sizes

# (tasks, rows, cols): square, tall, wide, not divisible, more tasks than values, one task, vectors
SHAPES = [(3, 12, 12), (3, 20, 12), (3, 12, 20), (5, 13, 17), (8, 5, 7), (1, 7, 5), (2, 1, 6), (2, 6, 1), (2, 40, 40)]
FRACTIONS = [0.0, 0.1, 0.25, 0.5, 0.8, 0.9, 1.0]


def merge(task_matrices: torch.Tensor, fraction: float) -> torch.Tensor:
    return iso_cts(iso_cts_factorise(task_matrices), common_space_fraction=fraction)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("num_values", "common_by_tasks", "per_task_by_tasks"),
    [  # fraction 0.8 with 8, 14 and 20 tasks
        (768, (616, 614, 608), (19, 11, 8)),
        (512, (408, 414, 412), (13, 7, 5)),
        (1024, (816, 814, 824), (26, 15, 10)),
        (50, (42, 36, 50), (1, 1, 0)),
        (197, (157, 155, 157), (5, 3, 2)),
        (257, (209, 201, 197), (6, 4, 3)),
        (77, (61, 63, 57), (2, 1, 1)),
    ],
)
def test_published_sizes(num_values, common_by_tasks, per_task_by_tasks):
    sizes = [subspace_sizes(num_values, num_tasks, 0.8) for num_tasks in (8, 14, 20)]
    assert sizes == list(zip(common_by_tasks, per_task_by_tasks, strict=True))


def test_published_sizes_of_every_fraction():
    sizes = [subspace_sizes(768, 20, fraction / 10)[0] for fraction in range(11)]
    assert sizes == [8, 68, 148, 228, 308, 388, 468, 528, 608, 688, 768]


def test_sizes_where_rounding_asks_for_more_than_there_is():
    assert subspace_sizes(768, 14, 0.0) == (12, 54), "unclamped: 55 * 14 = 770"
    assert subspace_sizes(77, 20, 0.1) == (17, 3), "unclamped: 4 * 20 = 80"
    assert subspace_sizes(3, 5, 0.0) == (3, 0)


@given(st.integers(1, 300), st.integers(1, 40), st.floats(0, 1))
def test_sizes_always_fit(num_values, num_tasks, fraction):
    num_common, num_per_task = subspace_sizes(num_values, num_tasks, fraction)
    assert num_common >= 0
    assert num_per_task >= 0
    assert num_common + num_per_task * num_tasks == num_values
    assert (num_common, num_per_task) == reference.iso_cts_sizes(num_values, num_tasks, fraction)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_fraction_out_of_range(fraction):
    with pytest.raises(MergeInputError, match="expected 0 to 1"):
        subspace_sizes(10, 2, fraction)


def test_by_hand():
    # sum = diag(11, 4, 2, 1): common e1 e2 with 11, 4. What is left of task 1 is diag(0, 0, 2, 0), of task 2
    # diag(0, 0, 0, 1): the mean of 11, 4, 2, 1 is 4.5
    tasks = torch.stack([torch.diag(torch.tensor(d)) for d in ([9.0, 1.0, 2.0, 0.0], [2.0, 3.0, 0.0, 1.0])])
    torch.testing.assert_close(merge(tasks, 0.5), 4.5 * torch.eye(4))


def test_the_mean_takes_what_the_tasks_have_left():
    # sum = diag(12, 6, 0), common space e1: strongest left of task 1 is 5 at e2, of task 2 it is -3 at e3
    tasks = torch.stack([torch.diag(torch.tensor(d)) for d in ([6.0, 5.0, 3.0], [6.0, 1.0, -3.0])])
    expected = (12 + 5 + 3) / 3 * torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    torch.testing.assert_close(merge(tasks, 0.4), expected)


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_reference(shape, fraction, dtype):
    tasks = random(*shape, dtype=dtype)
    expected = reference.iso_cts(tasks, fraction)
    error = torch.linalg.matrix_norm(merge(tasks, fraction).double() - expected) / torch.linalg.matrix_norm(expected)
    assert error <= (2e-7 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fraction_one_is_iso_c_to_the_bit(shape, dtype):
    tasks = random(*shape, dtype=dtype)
    assert torch.equal(merge(tasks, 1.0), iso_c(iso_c_factorise(tasks)))


def test_fractions_share_their_factors():
    tasks = random(3, 9, 12)
    factors = iso_cts_factorise(tasks)
    shared = [iso_cts(factors, common_space_fraction=fraction) for fraction in FRACTIONS]
    assert all(torch.equal(a, merge(tasks, fraction)) for a, fraction in zip(shared, FRACTIONS, strict=True))


@pytest.mark.parametrize("shape", [(3, 10, 10), (3, 15, 10), (3, 10, 15)])
def test_spectrum_is_flat(shape):
    values = torch.linalg.svdvals(merge(random(*shape), 0.5))
    torch.testing.assert_close(values, values.mean().expand(10))


def test_what_is_left_of_a_low_rank_sum_is_no_direction():
    # every task lies in the common space: nothing but rounding is left of it, and no task-specific direction
    left, right = random(12, 2, seed=1), random(2, 9, seed=2)
    tasks = torch.stack([left @ torch.diag(torch.tensor(d).double()) @ right for d in ([1.0, 2.0], [2.0, 1.0])])
    merged = merge(tasks, 0.5)
    torch.testing.assert_close(merged, merge(tasks, 1.0))
    assert int(torch.linalg.matrix_rank(merged)) == 2
