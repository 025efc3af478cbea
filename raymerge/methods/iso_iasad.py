"""Iso-IASAD: centred task matrices made low-rank plus sparse in the metric of their inputs, then isotropic."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.linalg import check_task_matrices, note_cancellation, note_conditioning, sum_of_tasks, tolerance_for
from raymerge.methods._low_rank_sparse import decompose
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method, Parameter
from raymerge.methods.iso_c import flatten_spectrum


@dataclass(frozen=True)
class IsoIasadFactors:
    """The task matrices and the moments of their inputs: nothing else is free of parameters."""

    task_matrices: Float[Tensor, "tasks rows cols"]
    moments: Sequence[Tensor]


def iso_iasad_factorise(
    task_matrices: Float[Tensor, "tasks rows cols"], *, moments: Sequence[Tensor] | None
) -> IsoIasadFactors:
    """Check the input.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only, and not copied.
        moments: per task, the second moments of the inputs, shaped to broadcast against a task matrix.
    Raises:
        MergeInputError: there is no task, a matrix is empty, a value is not finite, or there are no moments.
    """
    check_task_matrices(task_matrices)
    if moments is None or len(moments) != len(task_matrices):
        raise MergeInputError("there are no input moments for every task: collect them with 'raymerge stats'.")
    return IsoIasadFactors(task_matrices, moments)


def iso_iasad(
    factors: IsoIasadFactors,
    *,
    sparsity: int | float,
    rank_ratio: int | float,
    num_iters: int | float,
    prune_level: str,
    center: str,
) -> Float[Tensor, "rows cols"]:
    """Decompose what distinguishes every task, add it up, and flatten the spectrum of the sum.

    With the mean task matrix M = sum_t Delta_t / T and C_t = Delta_t - M, the sum that is flattened as by Iso-C is
        "restore_mean": T M + sum_t decompose(C_t),
        "none":         sum_t decompose(Delta_t),
        "drop_mean":    sum_t decompose(C_t), what the published code computes: sum_t C_t = 0, so all that is left is
                        the sum of the approximation errors.

    Source: the decomposition of arXiv:2409.13652, the centring of arXiv:2412.12153, and Eq. 7-8 of arXiv:2502.04959;
    docs/methods.md.

    Raises:
        MergeInputError: a parameter is out of range, or the moments are not usable.
    """
    if center not in ("restore_mean", "none", "drop_mean"):
        raise MergeInputError(f"center is '{center}', expected 'restore_mean', 'none' or 'drop_mean'.")
    task_matrices = factors.task_matrices
    summed = sum_of_tasks(task_matrices)
    mean = torch.zeros_like(summed) if center == "none" else summed / len(task_matrices)
    total = summed if center == "restore_mean" else torch.zeros_like(summed)
    norms = float(torch.linalg.matrix_norm(total))
    for task_matrix, moment in zip(task_matrices, factors.moments, strict=True):
        part = decompose(
            task_matrix.double() - mean,
            moment,
            sparsity=sparsity,
            rank_ratio=rank_ratio,
            num_iters=num_iters,
            prune_level=prune_level,
        )
        total = total + part
        norms += float(torch.linalg.matrix_norm(part))
    note_cancellation(total, norms)
    update, conditioning = flatten_spectrum(total, tolerance_for(task_matrices.dtype))
    note_conditioning(conditioning, "the sum of the decomposed task matrices")
    return update.to(task_matrices.dtype)


METHOD = Method(
    name="iso-iasad",
    title="Iso-IASAD",
    source="arXiv:2502.04959",
    alpha=Alpha(search=Interval(0.1, 3.0, 0.1), paper=AlphaGrid(3.0, 30)),
    parameters=(
        Parameter("sparsity", default=0.1, description="part of the numbers of a task matrix that are dropped"),
        Parameter("rank_ratio", default=0.75, description="part of the rest that goes to the low-rank term"),
        Parameter("num_iters", default=10.0, low=1.0, high=1000.0, description="alternations between the terms"),
        Parameter(
            "prune_level",
            default="row",
            choices=("row", "element"),
            description="whether the sparse term keeps entries of each output or of the whole matrix",
        ),
        Parameter(
            "center",
            default="restore_mean",
            choices=("restore_mean", "none", "drop_mean"),
            description="what becomes of the mean task matrix",
        ),
    ),
    matrices="svd",
    moments=True,
    merge=iso_iasad,
    factorise=iso_iasad_factorise,
)
