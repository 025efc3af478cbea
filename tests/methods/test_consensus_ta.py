import pytest
import reference
import torch

from raymerge.errors import MergeInputError
from raymerge.methods.consensus_ta import consensus_ta, tall_mask, tall_mask_update

# entries: both agree | conflict | only the first moved | nobody moved
TASKS = torch.tensor([[1.0, 3.0, 2.0, 0.0], [1.0, -1.0, 0.0, 0.0]])  # sum: 2, 2, 2, 0


def test_masks_by_hand():
    total = TASKS.sum(dim=0)
    # |tau_1| = 1 3 2 0 against lambda * |sum - tau_1| = lambda * (1 1 0 0)
    assert tall_mask(TASKS[0], total, 0.5).tolist() == [True, True, True, False]
    # |tau_2| = 1 1 0 0 against lambda * (1 3 2 0)
    assert tall_mask(TASKS[1], total, 0.5).tolist() == [True, False, False, False]
    assert tall_mask(TASKS[1], total, 0.3).tolist() == [True, True, False, False]


def test_the_comparison_is_strict():
    assert tall_mask(torch.tensor([1.0, 1.5]), torch.tensor([3.0, 3.5]), 0.5).tolist() == [False, True]


def test_consensus_by_hand():
    def merged(min_tasks):
        return consensus_ta(TASKS, mask_lambda=0.5, min_tasks=min_tasks).tolist()

    assert merged(0) == [2.0, 2.0, 2.0, 0.0]
    assert merged(1) == [2.0, 2.0, 2.0, 0.0]
    assert merged(2) == [2.0, 0.0, 0.0, 0.0]
    assert merged(3) == [0.0, 0.0, 0.0, 0.0]


def test_every_task_has_its_own_lambda():
    assert consensus_ta(TASKS, mask_lambda=[0.5, 0.3], min_tasks=2).tolist() == [2.0, 2.0, 0.0, 0.0]
    assert consensus_ta(TASKS, mask_lambda=(0.3, 0.5), min_tasks=2).tolist() == [2.0, 0.0, 0.0, 0.0]
    assert torch.equal(
        consensus_ta(TASKS, mask_lambda=(0.4, 0.4), min_tasks=2), consensus_ta(TASKS, mask_lambda=0.4, min_tasks=2)
    )


def test_task_update_is_the_sum_under_the_mask():
    assert tall_mask_update(TASKS, 0, mask_lambda=0.5).tolist() == [2.0, 2.0, 2.0, 0.0]
    assert tall_mask_update(TASKS, 1, mask_lambda=0.5, min_tasks=2).tolist() == [2.0, 0.0, 0.0, 0.0]
    assert tall_mask_update(TASKS, 1, mask_lambda=[0.5, 0.3]).tolist() == [2.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(), (9,), (6, 5), (2, 3, 2, 2)])
@pytest.mark.parametrize("min_tasks", [0, 1, 2, 3, 4])
def test_agrees_with_the_published_form(shape, min_tasks):  # which compares weights, not task vectors
    generator = torch.Generator().manual_seed(min_tasks)
    zero_shot = torch.randn(shape, generator=generator, dtype=torch.float64)
    experts = zero_shot + torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    lambdas = [0.2, 0.6, 0.4]
    torch.testing.assert_close(
        consensus_ta(experts - zero_shot, mask_lambda=lambdas, min_tasks=min_tasks),
        reference.consensus_ta(zero_shot, experts, lambdas, min_tasks),
    )
    for task, mask in enumerate(reference.tall_masks(zero_shot, experts, lambdas)):
        update = tall_mask_update(experts - zero_shot, task, mask_lambda=lambdas)
        torch.testing.assert_close(update, mask * (experts - zero_shot).sum(dim=0))


@pytest.mark.parametrize("mask_lambda", [[0.4], [0.4, 0.4, 0.4], []])
def test_one_lambda_per_task(mask_lambda):
    message = f"mask_lambda has {len(mask_lambda)} values for 2 tasks"
    with pytest.raises(MergeInputError, match=message):
        consensus_ta(TASKS, mask_lambda=mask_lambda, min_tasks=2)
    with pytest.raises(MergeInputError, match=message):
        tall_mask_update(TASKS, 0, mask_lambda=mask_lambda)
