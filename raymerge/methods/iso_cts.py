"""Iso-CTS: isotropic merging in the common and the task-specific subspaces."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.linalg import check_task_matrices, compact_svd, conditioning, polar_factor
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method, Parameter
from raymerge.methods.iso_c import flatten_spectrum


@dataclass(frozen=True)
class IsoCtsFactors:
    """What every common-space fraction shares: the SVD of the sum, compact and in float64, and the task matrices."""

    task_matrices: Float[Tensor, "tasks rows cols"]
    u: Float64[Tensor, "rows rank"]
    s: Float64[Tensor, " rank"]
    vh: Float64[Tensor, "rank cols"]
    conditioning: float


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


def iso_cts_factorise(task_matrices: Float[Tensor, "tasks rows cols"]) -> IsoCtsFactors:
    """Decompose the sum, the common space of every fraction.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only, and not copied.
    Raises:
        MergeInputError: there is no task, a matrix is empty, or a value is not finite.
    """
    check_task_matrices(task_matrices)
    u, s, vh = compact_svd(task_matrices.sum(dim=0, dtype=torch.float64))
    return IsoCtsFactors(task_matrices, u, s, vh, conditioning(s, min(task_matrices.shape[1:])))


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
    num_tasks, rows, cols = factors.task_matrices.shape
    dtype, num_values = factors.task_matrices.dtype, min(rows, cols)
    num_common, num_per_task = subspace_sizes(num_values, num_tasks, common_space_fraction)
    if num_per_task == 0:
        return flatten_spectrum(factors.u, factors.s, factors.vh).to(dtype)
    if not factors.task_matrices.any():
        return torch.zeros(rows, cols, dtype=dtype, device=factors.task_matrices.device)
    u_common = factors.u[:, :num_common]
    lefts, spectra, rights = [u_common], [factors.s[:num_common]], [factors.vh[:num_common]]
    for task_matrix in factors.task_matrices:
        task_matrix = task_matrix.double()
        residual = task_matrix - u_common @ (u_common.mT @ task_matrix)
        u, s, vh = compact_svd(residual, scale=float(torch.linalg.matrix_norm(task_matrix)))
        lefts.append(u[:, :num_per_task])
        spectra.append(s[:num_per_task])
        rights.append(vh[:num_per_task])
    left, _ = polar_factor(torch.cat(lefts, dim=1))
    right, _ = polar_factor(torch.cat(rights))
    isotropic_factor = torch.cat(spectra).sum() / num_values
    return (isotropic_factor * (left @ right)).to(dtype)


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
)
