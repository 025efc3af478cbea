"""Iso-CTS: isotropic merging in the common and the task-specific subspaces."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.linalg import (
    MAX_POLAR_ERROR,
    SMALL,
    Uncertified,
    check_polar_error,
    check_task_matrices,
    compact_svd,
    conditioning,
    note_conditioning,
    note_fallback,
    polar_factor,
    sum_of_tasks,
    tolerance_for,
)
from raymerge.linalg_joined import joined_polar_factor
from raymerge.linalg_leading import precision_for
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method, Parameter, Use
from raymerge.methods._projected import ProjectedGrams, projected_grams, projected_triplets
from raymerge.methods.iso_c import iso_c, iso_c_factorise


@dataclass(frozen=True)
class IsoCtsFactors:
    """What every common-space fraction shares: the SVD of the sum, compact and in float64, and the task matrices.

    grams: what the projected task matrices have in common for all fractions that were planned; None where each
        fraction computes it for itself.
    """

    task_matrices: Float[Tensor, "tasks rows cols"]
    u: Float64[Tensor, "rows rank"]
    s: Float64[Tensor, " rank"]
    vh: Float64[Tensor, "rank cols"]
    conditioning: float
    grams: ProjectedGrams | None = None


def subspace_sizes(num_values: int, num_tasks: int, common_space_fraction: int | float) -> tuple[int, int]:
    """(num_common, num_per_task) with num_common + num_tasks * num_per_task = num_values = min(rows, cols).

    The task-specific part is the multiple of num_tasks nearest to what the fraction leaves, halves rounding to the
    even multiple, and never more than fits.

    Raises:
        MergeInputError: the fraction is outside [0, 1].
    """
    if not 0 <= common_space_fraction <= 1:
        raise MergeInputError(f"iso-cts: common_space_fraction is {common_space_fraction}, expected 0 to 1.")
    left_over = num_values - int(num_values * common_space_fraction)
    num_per_task = min(round(left_over / num_tasks), num_values // num_tasks)
    return num_values - num_per_task * num_tasks, num_per_task


def iso_cts_factorise(task_matrices: Float[Tensor, "tasks rows cols"], uses: Sequence[Use] = ()) -> IsoCtsFactors:
    """Decompose the sum, the common space of every fraction.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only, and not copied.
        uses: the fractions that will be merged.
    Raises:
        MergeInputError: there is no task, a matrix is empty, a value is not finite, or a fraction is outside [0, 1].
    """
    check_task_matrices(task_matrices)
    num_tasks, rows, cols = task_matrices.shape
    num_values = min(rows, cols)
    u, s, vh = compact_svd(sum_of_tasks(task_matrices), tolerance=tolerance_for(task_matrices.dtype))
    grams = None
    sizes = {subspace_sizes(num_values, num_tasks, use.setting["common_space_fraction"]) for use in uses}
    planned = [num_common for num_common, num_per_task in sizes if num_per_task]
    if planned and _is_large(task_matrices) and len(s) == num_values:
        precision = precision_for(num_values, 1 / num_tasks)
        grams = projected_grams(task_matrices.to(precision), u.to(precision), min(planned), max(planned))
    found = conditioning(s, num_values)
    note_conditioning(found, "the sum of the task matrices")
    return IsoCtsFactors(task_matrices, u, s, vh, found, grams)


def iso_cts(factors: IsoCtsFactors, *, common_space_fraction: int | float) -> Float[Tensor, "rows cols"]:
    """Join the top of the sum with the top of what it leaves of every task, then flatten the spectrum.

    1. U_k, s_k, Vh_k: top `num_common` triplets of the sum.
    2. U_t, s_t, Vh_t: top `num_per_task` triplets of Delta_t - U_k U_k^T Delta_t, for every task.
    3. U = polar([U_k U_1 ... U_T]) and Vh = polar([Vh_k; Vh_1; ...; Vh_T]).
    4. s_bar U Vh, where s_bar is the mean of the r gathered singular values.

    With no task-specific direction, as for a fraction of 1, this is Iso-C to the bit.

    Source: Marczak et al. 2025, arXiv:2502.04959, Eq. 9-12; sizes rounded as in the published code.

    Args:
        factors: of `iso_cts_factorise`. Read only.
        common_space_fraction: part of the r = min(rows, cols) directions given to the common space, 0..1.
    Raises:
        MergeInputError: the fraction is outside [0, 1].
    """
    task_matrices = factors.task_matrices
    num_tasks, rows, cols = task_matrices.shape
    if subspace_sizes(min(rows, cols), num_tasks, common_space_fraction)[1] == 0:
        return iso_c(iso_c_factorise(task_matrices))
    left, isotropic_factor, right = iso_cts_directions(factors, common_space_fraction)
    return (isotropic_factor * (left @ right)).to(task_matrices.dtype)


def iso_cts_directions(
    factors: IsoCtsFactors, common_space_fraction: int | float
) -> tuple[Float[Tensor, "rows directions"], float, Float[Tensor, "directions cols"]]:
    """U, s_bar and Vh of the merged matrix s_bar U Vh, with orthonormal columns of U and rows of Vh.

    Columns of U: the common directions, strongest first, then the task-specific ones, orthogonalised together, those
    of task 1 first. Null directions are left out.
    """
    task_matrices = factors.task_matrices
    num_tasks, rows, cols = task_matrices.shape
    num_values = min(rows, cols)
    num_common, num_per_task = subspace_sizes(num_values, num_tasks, common_space_fraction)
    if num_per_task and _is_large(task_matrices) and len(factors.s) == num_values:
        try:
            return _directions_of_large(factors, num_common, num_per_task)
        except Uncertified as reason:
            note_fallback(f"common_space_fraction {common_space_fraction:g}", reason)
    return _exact_directions(factors, num_common, num_per_task)


def _is_large(task_matrices: Tensor) -> bool:
    return task_matrices.dtype != torch.float64 and min(task_matrices.shape[1:]) >= SMALL


def _exact_directions(factors: IsoCtsFactors, num_common: int, num_per_task: int) -> tuple[Tensor, float, Tensor]:
    """By full decompositions in float64, leaving null directions out."""
    task_matrices = factors.task_matrices
    u, s, vh = factors.u, factors.s, factors.vh
    if _is_large(task_matrices):  # they may be orthonormal to float32 alone, and what they leave would count as more
        u, s, vh = compact_svd(sum_of_tasks(task_matrices))
    u_common = u[:, :num_common]
    lefts, spectra, rights = [u_common], [s[:num_common]], [vh[:num_common]]
    for task_matrix in task_matrices:
        task_matrix = task_matrix.double()
        residual = task_matrix - u_common @ (u_common.mT @ task_matrix)
        u, s, vh = compact_svd(residual, scale=float(torch.linalg.matrix_norm(task_matrix)))
        lefts.append(u[:, :num_per_task])
        spectra.append(s[:num_per_task])
        rights.append(vh[:num_per_task])
    left, left_values = polar_factor(torch.cat(lefts, dim=1))
    right, right_values = polar_factor(torch.cat(rights))
    _note_directions(left_values, right_values, min(task_matrices.shape[1:]))
    return left, float(torch.cat(spectra).sum()) / min(task_matrices.shape[1:]), right


def _directions_of_large(factors: IsoCtsFactors, num_common: int, num_per_task: int) -> tuple[Tensor, float, Tensor]:
    """By leading triplets and Gram matrices.

    Task-specific left vectors are orthogonal to U_k, so polar([U_k L]) = [U_k polar(L)]; on the right side there is
    no such orthogonality.

    Raises:
        Uncertified: a part of it cannot be vouched for.
    """
    num_tasks, rows, cols = factors.task_matrices.shape
    precision, tolerance = precision_for(min(rows, cols), 1 / num_tasks), tolerance_for(torch.float32)
    task_matrices, u = factors.task_matrices.to(precision), factors.u.to(precision)
    specific = projected_triplets(task_matrices, u, num_common, num_per_task, factors.grams)
    num_specific = num_tasks * num_per_task
    u_specific = specific.u.permute(1, 0, 2).flatten(start_dim=1)
    left, left_values = polar_factor(u_specific, tolerance)
    vh_common, vh_specific = factors.vh[:num_common], specific.vh.flatten(end_dim=1).double()
    right, right_values = joined_polar_factor(vh_common, vh_specific, tolerance)
    check_polar_error(specific.error, (left_values, len(left)), (right_values, cols))
    # one side of the sum's triplets is orthonormal to this, and whitening would count the rest as a direction
    common = factors.s[:num_common]
    defect = torch.finfo(torch.float64).eps * float(common[0] / common[-1]) ** 2 if num_common else 0.0
    if defect > MAX_POLAR_ERROR * float(right_values[-1]) ** 2:
        raise Uncertified("the sum is ill-conditioned and directions nearly depend on each other")
    _note_directions(left_values, right_values, num_specific + num_common)
    if rows <= cols:  # the left vectors are coordinates
        left = factors.u[:, num_common:] @ left
    isotropic_factor = float(common.sum() + specific.s.sum()) / (num_common + num_specific)
    return torch.cat([factors.u[:, :num_common].float(), left.float()], dim=1), isotropic_factor, right.float()


def _note_directions(left: Tensor, right: Tensor, size: int) -> None:
    """Of the stacked directions' singular values; those on the left side are of the task-specific ones alone."""
    found = min(conditioning(left, len(left)), conditioning(right, size))
    note_conditioning(found, "the stacked directions of the tasks")


METHOD = Method(
    name="iso-cts",
    title="Iso-CTS",
    source="arXiv:2502.04959",
    alpha=Alpha(search=Interval(0.1, 3.0, 0.1), paper=AlphaGrid(3.0, 30)),
    parameters=(
        Parameter(
            "common_space_fraction",
            default=0.8,
            search=Interval(0.1, 0.9, 0.1),
            description="part of the directions given to the common space; 1 is Iso-C",
        ),
    ),
    matrices="svd",
    merge=iso_cts,
    factorise=iso_cts_factorise,
    plans=True,
)
