"""Truncated Iso-C: only the leading directions of the flattened sum."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.linalg import check_task_matrices, compact_svd, sum_of_tasks, tolerance_for
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method, Parameter


@dataclass(frozen=True)
class Directions:
    """The singular vectors of the sum, strongest first, and what they are all scaled to."""

    u: Float64[Tensor, "rows rank"]
    vh: Float64[Tensor, "rank cols"]
    isotropic_factor: float
    num_values: int
    """min(rows, cols)."""
    dtype: torch.dtype


def num_kept(num_values: int, rank_fraction: int | float) -> int:
    """floor(num_values * rank_fraction): how many directions are left of min(rows, cols)."""
    return int(round(num_values * rank_fraction, 9))  # 0.29 * 100 is 28.999999999999996


def truncated_iso_c_factorise(task_matrices: Float[Tensor, "tasks rows cols"]) -> Directions:
    """The SVD of the sum, which every fraction shares.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only.
    Raises:
        MergeInputError: there is no task, a matrix is empty, or a value is not finite.
    """
    check_task_matrices(task_matrices)
    u, s, vh = compact_svd(sum_of_tasks(task_matrices), tolerance=tolerance_for(task_matrices.dtype))
    num_values = min(task_matrices.shape[1:])
    return Directions(u, vh, float(s.sum()) / num_values, num_values, task_matrices.dtype)


def truncated_iso_c(factors: Directions, *, rank_fraction: int | float) -> Float[Tensor, "rows cols"]:
    """s_bar sum_{i <= k} u_i v_i^T of the sum U diag(s) Vh, where k = floor(r rank_fraction).

    s_bar = mean(s) runs over all r = min(rows, cols) values, whatever is kept. With all of them this is Iso-C, with
    none it is zero.

    Source: Marczak et al. 2025, arXiv:2502.04959, Figure 5a.

    Args:
        factors: of `truncated_iso_c_factorise`. Read only.
        rank_fraction: k / r.
    """
    kept = num_kept(factors.num_values, rank_fraction)
    return (factors.isotropic_factor * (factors.u[:, :kept] @ factors.vh[:kept])).to(factors.dtype)


METHOD = Method(
    name="truncated-iso-c",
    title="Truncated Iso-C",
    source="arXiv:2502.04959",
    alpha=Alpha(search=Interval(0.1, 3.0, 0.1), paper=AlphaGrid(3.0, 30)),
    parameters=(
        Parameter(
            "rank_fraction",
            default=0.5,
            search=Interval(0.1, 1.0, 0.1),
            description="part of the directions that is kept, the strongest of the sum; 1 is Iso-C",
        ),
    ),
    matrices="svd",
    merge=truncated_iso_c,
    factorise=truncated_iso_c_factorise,
)
