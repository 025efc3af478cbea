"""Consensus Task Arithmetic: the sum of the task vectors, where enough tasks need it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.linalg import check_task_tensors
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method, Parameter


def tall_mask(
    task_tensor: Float[Tensor, " *shape"], total: Float[Tensor, " *shape"], mask_lambda: int | float
) -> Bool[Tensor, " *shape"]:
    """Where a task needs the sum: |tau_t| > lambda_t * |sum_t' tau_t' - tau_t|, strictly.

    The published code compares |theta_0 - theta_t| with |theta_0 + sum tau - theta_t|, the same up to the rounding of
    theta_0. An entry that no expert has moved is False.

    Source: Wang et al. 2024, arXiv:2405.07813, TALL-masks.
    """
    return task_tensor.abs() > mask_lambda * (total - task_tensor).abs()


def consensus_ta(
    task_tensors: Float[Tensor, " tasks *shape"],
    *,
    mask_lambda: int | float | Sequence[int | float],
    min_tasks: int | float,
) -> Float[Tensor, " *shape"]:
    """sum_t tau_t where at least `min_tasks` TALL masks are set, else 0.

    min_tasks = 0 is Task Arithmetic, 1 drops only what no task needs, more than T gives zero-shot.

    Source: Wang et al. 2024, arXiv:2405.07813, Consensus Merging.

    Args:
        task_tensors: theta_t - theta_0 of one parameter of any shape, one slice per task. Read only.
        mask_lambda: strictness of the masks, one value for all tasks or one per task.
    Raises:
        MergeInputError: there is no task, a value is not finite, or mask_lambda has the wrong length.
    """
    check_task_tensors(task_tensors)
    lambdas = _one_per_task(mask_lambda, len(task_tensors))
    widened = _at_least_float32(task_tensors)
    total = widened.sum(dim=0)
    num_in_need = torch.zeros_like(total, dtype=torch.int32)
    for task_tensor, task_lambda in zip(widened, lambdas, strict=True):
        num_in_need += tall_mask(task_tensor, total, task_lambda)
    return torch.where(num_in_need >= min_tasks, total, 0).to(task_tensors.dtype)


def tall_mask_update(
    task_tensors: Float[Tensor, " tasks *shape"],
    task: int,
    mask_lambda: int | float | Sequence[int | float],
    min_tasks: int | float | None = None,
) -> Float[Tensor, " *shape"]:
    """The sum under the TALL mask of task number `task`: what that task's lambda is chosen by. Ignores min_tasks.

    Source: Wang et al. 2024, arXiv:2405.07813, TALL-masks.

    Raises:
        MergeInputError: as `consensus_ta`.
    """
    check_task_tensors(task_tensors)
    task_lambda = _one_per_task(mask_lambda, len(task_tensors))[task]
    widened = _at_least_float32(task_tensors)
    total = widened.sum(dim=0)
    return torch.where(tall_mask(widened[task], total, task_lambda), total, 0).to(task_tensors.dtype)


def _one_per_task(mask_lambda: int | float | Sequence[int | float], num_tasks: int) -> list[int | float]:
    lambdas = [mask_lambda] * num_tasks if isinstance(mask_lambda, int | float) else list(mask_lambda)
    if len(lambdas) != num_tasks:
        raise MergeInputError(
            f"consensus-ta: mask_lambda has {len(lambdas)} values for {num_tasks} tasks, expected one for each."
        )
    return lambdas


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


METHOD = Method(
    name="consensus-ta",
    title="Consensus TA",
    source="arXiv:2405.07813",
    alpha=Alpha(search=Interval(1 / 30, 1.0, 1 / 30), paper=AlphaGrid(1.0, 30)),
    parameters=(
        Parameter(
            "mask_lambda",
            default=0.4,
            per_task=(0.2, 0.3, 0.4, 0.5, 0.6),
            description="strictness of a task's mask; every task chooses its own",
        ),
        Parameter("min_tasks", default=2.0, high=1000.0, description="tasks that must need a parameter to keep it"),
    ),
    merge=consensus_ta,
    task_update=tall_mask_update,
)
