"""Iso-C: isotropic merging in the common subspace."""

from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.linalg import (
    ConditionedMatrix,
    check_task_matrices,
    conditioning,
    note_conditioning,
    polar_factor,
    sum_of_tasks,
    tolerance_for,
)
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method


def flatten_spectrum(
    matrix: Float64[Tensor, "rows cols"], tolerance: float
) -> tuple[Float64[Tensor, "rows cols"], float]:
    """s_bar U Vh of U diag(s) Vh, and its conditioning. Eq. 7-8.

    U Vh is the polar factor, and sum(s) its inner product with the matrix, so no singular vector is needed. s_bar is
    the mean over r = min(rows, cols) values, those beyond the rank being zero.
    """
    isometry, singular_values = polar_factor(matrix, tolerance)
    isotropic_factor = (isometry * matrix).sum() / min(matrix.shape)
    return isotropic_factor * isometry, conditioning(singular_values, min(matrix.shape))


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
    update, found = flatten_spectrum(sum_of_tasks(task_matrices), tolerance_for(task_matrices.dtype))
    note_conditioning(found, "the sum of the task matrices")
    return ConditionedMatrix(update.to(task_matrices.dtype), found)


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
