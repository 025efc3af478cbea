import hypothesis.strategies as st
import pytest
import reference
import torch
from hypothesis import given

from raymerge.errors import MergeInputError
from raymerge.methods.ties import TiesStatistic, ties, ties_statistic


def merge(flat: torch.Tensor, keep: float) -> torch.Tensor:
    return ties(flat, statistic=ties_statistic(lambda: [flat], keep=keep), keep=keep)


def test_by_hand_without_trimming():
    tasks = torch.tensor(
        [
            [3.0, 1.0, -2.0, 0.0, 0.0],
            [1.0, -4.0, -6.0, 0.0, 2.0],
            [-1.0, 1.0, 9.0, 0.0, 0.0],
        ]
    )
    # column sums 3, -2, 1, 0, 2: agreeing means (3 + 1) / 2, -4 / 1, 9 / 1, none, 2 / 1 (zeros do not count)
    assert merge(tasks, 1.0).tolist() == [2.0, -4.0, 9.0, 0.0, 2.0]


def test_trimming_keeps_one_more_than_the_fraction_and_all_ties():
    tasks = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]])
    assert merge(tasks, 0.2).tolist() == [0, 0, 0, 0, 0, 0, 0, 8, 9, 10]
    tasks = torch.tensor([[1.0, -8.0, 3.0, 4.0, 5.0, 6.0, 8.0, 8.0, 9.0, 10.0]])
    assert merge(tasks, 0.2).tolist() == [0, -8, 0, 0, 0, 0, 8, 8, 9, 10]
    assert merge(tasks, 0.05).tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 0, 10], "int(10 * 0.05) = 0: one entry"


def test_unused_parameters_count():
    used, unused = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.zeros(1, 6)
    assert ties_statistic(lambda: [used], keep=0.25).thresholds.tolist() == [3.0]
    assert ties_statistic(lambda: [unused, used], keep=0.25).thresholds.tolist() == [2.0]
    assert ties_statistic(lambda: [unused, used], keep=0.5).thresholds.tolist() == [0.0]


def test_every_task_has_its_own_threshold():
    tasks = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [50.0, 40.0, 30.0, 20.0, 10.0]])
    assert ties_statistic(lambda: [tasks], keep=0.4).thresholds.tolist() == [3.0, 30.0]


def test_the_threshold_covers_all_tensors():
    tensors = [torch.tensor([[1.0, 2.0]]), torch.tensor([[[30.0], [40.0]]])]
    statistic = ties_statistic(lambda: iter(tensors), keep=0.25)
    assert statistic.thresholds.tolist() == [30.0]
    assert ties(tensors[0], statistic=statistic, keep=0.25).tolist() == [0.0, 0.0]
    assert ties(tensors[1], statistic=statistic, keep=0.25).tolist() == [[30.0], [40.0]]


@pytest.mark.parametrize(
    ("others", "majority", "expected"),
    [([1.0, 2.0, -3.0], 1, 5.0), ([1.0, -2.0, -3.0], -1, -5.0), ([1.0, -3.0], 0, -5.0)],
)
def test_an_entry_without_elected_sign_takes_the_majority(others, majority, expected):
    tied = torch.tensor([[5.0], [-5.0]])  # sums to zero
    rest = torch.tensor([others, [0.0] * len(others)])
    statistic = ties_statistic(lambda: [rest, tied], keep=1.0)
    assert statistic == TiesStatistic(None, majority)
    assert ties(tied, statistic=statistic, keep=1.0).tolist() == [expected]


def test_majority_is_elected_after_trimming():
    tasks = torch.tensor([[1.0, 1.0, 1.0, -9.0, -8.0]])
    assert ties_statistic(lambda: [tasks], keep=1.0).majority_sign == 1
    assert ties_statistic(lambda: [tasks], keep=0.2).majority_sign == -1


def test_majority_counts_entries_not_magnitudes():
    assert ties_statistic(lambda: [torch.tensor([[1.0, 1.0, -100.0]])], keep=1.0).majority_sign == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
def test_keep_just_below_one_keeps_everything(size):
    tasks = torch.arange(1.0, size + 1).reshape(1, size)
    assert torch.equal(merge(tasks, 1 - 2**-53), tasks[0])


@given(
    tasks=st.lists(st.lists(st.integers(-4, 4).map(float), min_size=9, max_size=9), min_size=1, max_size=4),
    keep=st.sampled_from([0.05, 0.1, 0.2, 1 / 3, 0.5, 0.8, 0.95, 1.0]),
)
def test_agrees_with_the_reference(tasks, keep):  # small integers: ties and cancelling columns everywhere
    flat = torch.tensor(tasks, dtype=torch.float64)
    torch.testing.assert_close(merge(flat, keep), reference.ties(flat, keep))


@pytest.mark.parametrize("keep", [0.02, 0.2, 0.7, 1.0])
def test_agrees_with_the_reference_tensor_by_tensor(keep):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(5, *shape, generator=generator) for shape in [(8, 6), (6,), (), (2, 3, 1, 2)]]
    flat = torch.cat([tensor.reshape(5, -1) for tensor in tensors], dim=1)
    statistic = ties_statistic(lambda: iter(tensors), keep=keep)
    merged = torch.cat([ties(tensor, statistic=statistic, keep=keep).reshape(-1) for tensor in tensors])
    torch.testing.assert_close(merged.double(), reference.ties(flat, keep), rtol=2e-6, atol=0)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5, 20.0, float("nan")])
def test_keep_out_of_range(keep):
    with pytest.raises(MergeInputError, match="expected a fraction 0 < keep <= 1"):
        ties_statistic(lambda: [torch.ones(1, 2)], keep=keep)
