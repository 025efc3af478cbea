"""Iso-C: isotropic merging in the common subspace."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.linalg import ConditionedMatrix, check_task_matrices, compact_svd, conditioning
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method


def flatten_spectrum(
    u: Float64[Tensor, "rows rank"], s: Float64[Tensor, " rank"], vh: Float64[Tensor, "rank cols"]
) -> Float64[Tensor, "rows cols"]:
    """s_bar U Vh, s_bar = mean over r = min(rows, cols) singular values, those beyond the rank being zero. Eq. 7-8."""
    isotropic_factor = s.sum() / min(u.shape[0], vh.shape[1])
    return isotropic_factor * (u @ vh)


def iso_c_factorise(task_matrices: Float[Tensor, "tasks rows cols"]) -> ConditionedMatrix:
    """Sum the task matrices, then flatten the spectrum of the sum to its mean.

    With sum_t Delta_t = U diag(s) Vh, the result is s_bar U Vh, where the isotropic factor s_bar = mean(s) runs over
    r = min(rows, cols) values. Where the sum lacks full rank, U Vh is its partial isometry.

    Source: Marczak et al. 2025, arXiv:2502.04959, Eq. 7-8.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only.
    Raises:
        MergeInputError: there is no task, a matrix is empty, or a value is not finite.
    """
    check_task_matrices(task_matrices)
    u, s, vh = compact_svd(task_matrices.sum(dim=0, dtype=torch.float64))
    update = flatten_spectrum(u, s, vh).to(task_matrices.dtype)
    return ConditionedMatrix(update, conditioning(s, min(update.shape)))


def iso_c(factors: ConditionedMatrix) -> Float[Tensor, "rows cols"]:
    """Iso-C has no structural parameter: `factors` holds the merged matrix already."""
    return factors.matrix.clone()


METHOD = Method(
    name="iso-c",
    title="Iso-C",
    source="arXiv:2502.04959",
    alpha=Alpha(search=Interval(0.1, 3.0, 0.1), paper=AlphaGrid(3.0, 30)),
    matrices="svd",
    merge=iso_c,
    factorise=iso_c_factorise,
)
