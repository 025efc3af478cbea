"""TSV-M: the strongest directions of every task, made orthogonal to each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.linalg import (
    SMALL,
    ConditionedMatrix,
    Uncertified,
    check_polar_error,
    check_task_matrices,
    compact_svd,
    conditioning,
    note_conditioning,
    note_fallback,
    polar_factor,
    tolerance_for,
)
from raymerge.linalg_leading import leading_triplets, precision_for
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method, Use


@dataclass(frozen=True)
class TaskDirections:
    """The strongest singular triplets of one task matrix, in descending order; fewer than wanted at a lower rank.

    error: estimated RMS sine of the angles between them and the true ones; 0 of a full decomposition in float64.
    """

    u: Float[Tensor, "rows count"]
    s: Float[Tensor, " count"]
    vh: Float[Tensor, "count cols"]
    error: Float64[Tensor, ""]


def tsv_task_factors(task_matrices: Float[Tensor, "tasks rows cols"], uses: Sequence[Use] = ()) -> list[TaskDirections]:
    """The strongest directions of every task, as many as the smallest set of tasks gives to each.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only.
        uses: the sets of tasks to be merged; that of all these tasks when empty.
    Raises:
        MergeInputError: there is no task, a matrix is empty, or a value is not finite.
    """
    check_task_matrices(task_matrices)
    num_values = min(task_matrices.shape[1:])
    counts = {num_values // use.num_tasks for use in uses} or {num_values // len(task_matrices)}
    count = max(counts)
    if count == 0:  # more tasks than directions: none gets any
        num_tasks, rows, cols = task_matrices.shape
        u, s, vh = (task_matrices.new_empty(shape) for shape in ((rows, 0), (0,), (0, cols)))
        return [TaskDirections(u, s, vh, s.new_zeros((), dtype=torch.float64))] * num_tasks
    if task_matrices.dtype != torch.float64 and num_values >= SMALL:
        try:
            precision = precision_for(num_values, count / num_values)
            found = leading_triplets(task_matrices.to(precision), count, sorted(counts))
            return [TaskDirections(*triplets) for triplets in zip(found.u, found.s, found.vh, found.error, strict=True)]
        except Uncertified as reason:
            note_fallback(f"{count} directions of every task", reason)
    return _decompose_all(task_matrices, count)


def _decompose_all(task_matrices: Float[Tensor, "tasks rows cols"], count: int) -> list[TaskDirections]:
    decompositions = (compact_svd(task_matrix) for task_matrix in task_matrices)
    return [TaskDirections(u[:, :count], s[:count], vh[:count], s.new_zeros(())) for u, s, vh in decompositions]


def tsv_factorise(
    task_matrices: Float[Tensor, "tasks rows cols"], task_factors: Sequence[TaskDirections] | None = None
) -> ConditionedMatrix:
    """Keep the top r // T singular triplets of every task, whiten the stacked bases, put the spectra back.

    With Delta_t ~ U_t diag(s_t) Vh_t truncated to r // T triplets, r = min(rows, cols), U = [U_1 ... U_T] and
    Vh = [Vh_1; ...; Vh_T], the result is polar(U) diag(s_1 ... s_T) polar(Vh). With more tasks than singular
    values, r // T = 0: no task gets a direction, and the update is zero.

    Source: Gargiulo et al. 2024, arXiv:2412.00081, TSV-Merge; the published code whitens by the polar factor.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only.
        task_factors: of `tsv_task_factors`, for these tasks.
    Raises:
        MergeInputError: there is no task, a matrix is empty, or a value is not finite.
    """
    check_task_matrices(task_matrices)
    num_tasks, *shape = task_matrices.shape
    num_per_task = min(shape) // num_tasks
    if num_per_task == 0 or not task_matrices.any():
        return ConditionedMatrix(torch.zeros_like(task_matrices[0]), conditioning=1.0)
    directions = task_factors or tsv_task_factors(task_matrices)
    tolerance = tolerance_for(task_matrices.dtype)
    try:
        left, right, found = _whiten(directions, num_per_task, tolerance)
    except Uncertified as reason:
        note_fallback(f"{num_per_task} directions of each of {num_tasks} tasks", reason)
        directions = _decompose_all(task_matrices, num_per_task)
        left, right, found = _whiten(directions, num_per_task, tolerance)
    note_conditioning(found, "the stacked directions of the tasks")
    spectrum = torch.cat([d.s[:num_per_task] for d in directions]).double()
    precision = torch.promote_types(task_matrices.dtype, torch.float32)
    update = (left * spectrum).to(precision) @ right.to(precision)
    return ConditionedMatrix(update.to(task_matrices.dtype), found)


def _whiten(
    directions: Sequence[TaskDirections], num_per_task: int, tolerance: float
) -> tuple[Float64[Tensor, "rows count"], Float64[Tensor, "count cols"], float]:
    """The polar factors of the stacked left and right directions, and the conditioning of the worse one.

    Raises:
        Uncertified: the directions are not known well enough for it.
    """
    stacked = (
        torch.cat([d.u[:, :num_per_task] for d in directions], dim=1),
        torch.cat([d.vh[:num_per_task] for d in directions]),
    )
    left, left_values = polar_factor(stacked[0], tolerance)
    right, right_values = polar_factor(stacked[1], tolerance)
    error = torch.stack([d.error for d in directions])
    check_polar_error(error, (left_values, left.shape[0]), (right_values, right.shape[1]))
    count = left.shape[1]
    return left, right, min(conditioning(left_values, count), conditioning(right_values, count))


def tsv_m(factors: ConditionedMatrix) -> Float[Tensor, "rows cols"]:
    """TSV-M has no structural parameter: `factors` holds the merged matrix already."""
    return factors.matrix.clone()


METHOD = Method(
    name="tsv-m",
    title="TSV-M",
    source="arXiv:2412.00081",
    alpha=Alpha(search=Interval(0.1, 3.0, 0.1), paper=AlphaGrid(3.0, 30)),
    matrices="svd",
    merge=tsv_m,
    factorise=tsv_factorise,
    task_factors=tsv_task_factors,
)
