import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from raymerge.errors import MergeInputError
from raymerge.methods import _order_statistic
from raymerge.methods._order_statistic import kth_smallest_magnitude

NUM_TASKS = 2

# few distinct values, so that ties, signed zeros and subnormals are common; and neighbours in the last bits
TRICKY = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001192092896, 1e-45, -2e-45, 1.1754944e-38, 3.4e38, 65536.0, 2.5])
FLOAT32 = st.one_of(TRICKY, st.floats(width=32, allow_nan=False, allow_infinity=False))
FLOAT64 = st.one_of(TRICKY, st.floats(allow_nan=False, allow_infinity=False), st.just(1.0 + 2**-52), st.just(5e-324))


def select(tensors, rank):
    return kth_smallest_magnitude(lambda: iter(tensors), lambda num_entries: rank)


@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_agrees_with_kthvalue(data, dtype):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    values = FLOAT32 if dtype == torch.float32 else FLOAT64
    tensors = [
        torch.tensor(
            data.draw(st.lists(values, min_size=NUM_TASKS * size, max_size=NUM_TASKS * size)), dtype=dtype
        ).reshape(NUM_TASKS, size)
        for size in sizes
    ]
    rank = data.draw(st.integers(1, sum(sizes)))
    expected = torch.cat(tensors, dim=1).abs().kthvalue(rank, dim=1).values
    assert torch.equal(select(tensors, rank), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_rank_of_random_values(dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, *shape, generator=generator).to(dtype) for shape in [(4, 5), (7,), (), (2, 1, 3)]]
    flat = torch.cat([tensor.reshape(3, -1) for tensor in tensors], dim=1)
    for rank in range(1, flat.shape[1] + 1):
        expected = flat.abs().to(torch.promote_types(dtype, torch.float32)).kthvalue(rank, dim=1).values
        assert torch.equal(select(tensors, rank), expected)


def test_mixed_precision_keeps_the_finest():
    tensors = [torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0 + 1e-12]], dtype=torch.float64)]
    assert select(tensors, 2).tolist() == [1.0 + 1e-12]


def test_long_vectors_are_cut_in_chunks(monkeypatch):
    monkeypatch.setattr(_order_statistic, "_CHUNK", 7)
    values = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    values[:, 14:35] = 0  # whole chunks of zeros
    for rank in (1, 20, 21, 22, 60, 100):
        assert torch.equal(select([values], rank), values.abs().kthvalue(rank, dim=1).values)


def test_rank_may_depend_on_the_number_of_entries():
    tensors = [torch.tensor([[3.0, -1.0]]), torch.tensor([[2.0, 5.0]])]
    assert kth_smallest_magnitude(lambda: tensors, lambda n: n - 1).tolist() == [3.0]


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_does_not_exist(rank):
    with pytest.raises(ValueError, match=f"rank {rank} of 2 entries"):
        select([torch.ones(1, 2)], rank)


def test_unusable_input():
    with pytest.raises(MergeInputError, match="no task tensors"):
        select([], 1)
    with pytest.raises(MergeInputError, match="expected finite"):
        select([torch.ones(2, 2), torch.tensor([[1.0], [float("nan")]])], 1)


def test_two_passes_for_float32():
    started = []

    def passes():
        started.append(True)
        return [torch.ones(1, 2)]

    kth_smallest_magnitude(passes, lambda n: n)
    assert len(started) == 2
