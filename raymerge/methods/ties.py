"""TIES: trim each task vector, elect a sign for each parameter, average what agrees with it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.linalg import check_task_tensors, stored
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method, Parameter
from raymerge.methods._order_statistic import kth_smallest_magnitude


@dataclass(frozen=True)
class TiesStatistic:
    """What TIES must know of the whole task vectors before it can merge one tensor.

    thresholds: smallest magnitude kept of each task; None where nothing is trimmed.
    majority_sign: -1, 0 or 1, what entries get whose trimmed sum is zero.
    """

    thresholds: Float[Tensor, " tasks"] | None
    majority_sign: int


def ties_statistic(passes: Callable[[], Iterable[Tensor]], *, keep: int | float) -> TiesStatistic:
    """Thresholds and majority sign over the flat vectors of all parameters, unused ones included.

    With N entries per task, a task keeps |v| >= its (N - int(N * keep))-th smallest |v|: int(N * keep) + 1 entries,
    and all that tie with the last. The majority sign is the sign of the sum over entries of the elected signs.

    Args:
        passes: `passes()` starts another pass over all tensors, each (tasks, ...). One pass when keep is 1, else
            three (five for float64).
        keep: fraction of entries, 0 < keep <= 1.
    Raises:
        MergeInputError: keep is out of range, there is no tensor, or a value is not finite.
    """
    if not 0 < keep <= 1:
        raise MergeInputError(f"ties: keep is {keep}, expected a fraction 0 < keep <= 1 (20 % is 0.2).")
    thresholds = None
    if keep < 1:
        thresholds = kth_smallest_magnitude(passes, lambda num_entries: num_entries - int(num_entries * keep))
    total = 0
    for task_tensors in passes():
        check_task_tensors(task_tensors)
        if not stored(task_tensors).any():  # unused parameters have no sign
            continue
        total += int(_column_signs(_trim(task_tensors, thresholds)).sum())
    return TiesStatistic(thresholds, majority_sign=(total > 0) - (total < 0))


def ties(
    task_tensors: Float[Tensor, " tasks *shape"], *, statistic: TiesStatistic, keep: int | float
) -> Float[Tensor, " *shape"]:
    """The mean over the tasks that kept an entry and agree with its elected sign ("disjoint merge").

    The elected sign of an entry is the sign of the sum over tasks of the trimmed values, or the majority sign where
    that sum is zero; where the majority sign is zero as well, negative values agree.

    Source: Yadav et al. 2023, arXiv:2306.01708, Algorithm 1.

    Args:
        task_tensors: theta_t - theta_0 of one parameter of any shape, one slice per task. Read only.
        statistic: of `ties_statistic`, over all parameters.
        keep: already in the thresholds of `statistic`.
    Raises:
        MergeInputError: there is no task, or a value is not finite.
    """
    check_task_tensors(task_tensors)
    trimmed = _trim(task_tensors, statistic.thresholds)
    elected = _column_signs(trimmed)
    elected = torch.where(elected == 0, statistic.majority_sign, elected)
    agrees = torch.where(elected > 0, trimmed > 0, trimmed < 0)
    return torch.where(agrees, trimmed, 0).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def _trim(task_tensors: Tensor, thresholds: Tensor | None) -> Tensor:
    if thresholds is None:
        return task_tensors
    thresholds = thresholds.to(task_tensors.device).reshape(-1, *[1] * (task_tensors.ndim - 1))
    return torch.where(task_tensors.abs() >= thresholds, task_tensors, 0)


def _column_signs(trimmed: Tensor) -> Tensor:
    return trimmed.sum(dim=0, dtype=torch.float64).sign()  # in float64 the task order cannot flip a sign


METHOD = Method(
    name="ties",
    title="TIES",
    source="arXiv:2306.01708",
    alpha=Alpha(search=Interval(1 / 30, 1.0, 1 / 30), paper=AlphaGrid(1.0, 30)),
    parameters=(
        Parameter("keep", default=0.2, low=1e-4, description="fraction of each task vector kept; 1 trims nothing"),
    ),
    merge=ties,
    statistic=ties_statistic,
)
