"""TSV-M: the strongest directions of every task, made orthogonal to each other."""

import torch
from jaxtyping import Float
from torch import Tensor

from raymerge.linalg import ConditionedMatrix, check_task_matrices, compact_svd, polar_factor
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method


def tsv_factorise(task_matrices: Float[Tensor, "tasks rows cols"]) -> ConditionedMatrix:
    """Keep the top r // T singular triplets of every task, whiten the stacked bases, put the spectra back.

    With Delta_t ~ U_t diag(s_t) Vh_t truncated to r // T triplets, r = min(rows, cols), U = [U_1 ... U_T] and
    Vh = [Vh_1; ...; Vh_T], the result is polar(U) diag(s_1 ... s_T) polar(Vh). With more tasks than singular
    values, r // T = 0: no task gets a direction, and the update is zero.

    Source: Gargiulo et al. 2024, arXiv:2412.00081, TSV-Merge; the published code whitens by the polar factor.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only.
    Raises:
        MergeInputError: there is no task, a matrix is empty, or a value is not finite.
    """
    check_task_matrices(task_matrices)
    num_tasks, *shape = task_matrices.shape
    num_per_task = min(shape) // num_tasks
    if num_per_task == 0 or not task_matrices.any():
        return ConditionedMatrix(torch.zeros_like(task_matrices[0]), conditioning=1.0)
    triplets = [compact_svd(task_matrix) for task_matrix in task_matrices]
    left, left_conditioning = polar_factor(torch.cat([u[:, :num_per_task] for u, _, _ in triplets], dim=1))
    right, right_conditioning = polar_factor(torch.cat([vh[:num_per_task] for _, _, vh in triplets]))
    spectrum = torch.cat([s[:num_per_task] for _, s, _ in triplets])
    update = (left * spectrum) @ right
    return ConditionedMatrix(update.to(task_matrices.dtype), min(left_conditioning, right_conditioning))


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
)
