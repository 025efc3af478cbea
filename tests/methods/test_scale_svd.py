import pytest
import reference
import torch
from random_tasks import decaying
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.methods._method import Use
from raymerge.methods.scale_svd import scale_svd, scale_svd_factorise, scale_svd_task_factors

DEFAULTS = {"sparsity": 0.1, "rank_ratio": 0.75, "num_iters": 10, "prune_level": "row"}


def moments_of(num_tasks: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, size, generator=generator).exp() for _ in range(num_tasks)]


def error_of(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.matrix_norm(found - expected) / torch.linalg.matrix_norm(expected))


@pytest.mark.parametrize("apply", ["per_task", "merged"])
@pytest.mark.parametrize("prune_level", ["row", "element"])
@pytest.mark.parametrize("shape", [(3, 70, 70), (3, 90, 66), (3, 66, 90), (1, 20, 30), (5, 12, 12)])
def test_agrees_with_the_reference(shape, prune_level, apply):
    tasks, moments = decaying(*shape), moments_of(shape[0], shape[2])
    setting = DEFAULTS | {"prune_level": prune_level}
    found = scale_svd(scale_svd_factorise(tasks, moments=moments), **setting, apply=apply)
    assert error_of(found, reference.scale_svd(tasks, moments, apply, *setting.values())) <= 2e-7


def test_nothing_dropped_and_all_sparse_is_task_arithmetic():
    tasks, moments = decaying(3, 20, 25), moments_of(3, 25)
    setting = DEFAULTS | {"sparsity": 0.0, "rank_ratio": 0.0}
    found = scale_svd(scale_svd_factorise(tasks, moments=moments), **setting, apply="per_task")
    torch.testing.assert_close(found, tasks.sum(dim=0))


def test_defaults_are_close_to_task_arithmetic():
    tasks, moments = decaying(3, 96, 96), moments_of(3, 96)
    found = scale_svd(scale_svd_factorise(tasks, moments=moments), **DEFAULTS, apply="per_task")
    assert 1e-4 < error_of(found, tasks.sum(dim=0)) < 0.2


def test_every_task_has_its_own_moments():
    tasks, moments = decaying(2, 30, 30), moments_of(2, 30)
    swapped = scale_svd(scale_svd_factorise(tasks, moments=moments[::-1]), **DEFAULTS, apply="per_task")
    own = scale_svd(scale_svd_factorise(tasks, moments=moments), **DEFAULTS, apply="per_task")
    assert error_of(swapped, own) > 1e-3


def test_decomposed_tasks_are_shared_by_sets_and_settings():
    tasks, moments = decaying(4, 70, 80), moments_of(4, 80)
    other = DEFAULTS | {"num_iters": 2}
    uses = [
        *(Use(n, {**DEFAULTS, "apply": "per_task"}) for n in (2, 4)),
        Use(4, {**other, "apply": "per_task"}),
        Use(4, {**DEFAULTS, "apply": "merged"}),
    ]
    shared = scale_svd_task_factors(tasks, uses, moments=moments)
    assert [len(known) for known in shared] == [2] * 4
    for num_tasks in (2, 4):
        for setting in (DEFAULTS, other):
            factors = scale_svd_factorise(tasks[:num_tasks], shared[:num_tasks], moments=moments[:num_tasks])
            alone = scale_svd_factorise(tasks[:num_tasks], moments=moments[:num_tasks])
            found = scale_svd(factors, **setting, apply="per_task")
            assert error_of(found, scale_svd(alone, **setting, apply="per_task").double()) <= 1e-6
    # what is known is not computed again: poison it and see it come out
    poisoned = [{setting: torch.full_like(value, 7.0) for setting, value in known.items()} for known in shared]
    factors = scale_svd_factorise(tasks, poisoned, moments=moments)
    assert torch.equal(scale_svd(factors, **DEFAULTS, apply="per_task"), torch.full((70, 80), 28.0))


@pytest.mark.parametrize("moments", [None, [], [torch.ones(1, 6)]])
def test_missing_moments_are_no_ones(moments):
    with pytest.raises(MergeInputError, match="no input moments for every task"):
        scale_svd_factorise(torch.ones(2, 5, 6), moments=moments)


def test_unknown_place():
    factors = scale_svd_factorise(torch.ones(1, 5, 6), moments=[torch.ones(1, 6)])
    with pytest.raises(MergeInputError, match="apply is 'both', expected 'per_task' or 'merged'"):
        scale_svd(factors, **DEFAULTS, apply="both")
