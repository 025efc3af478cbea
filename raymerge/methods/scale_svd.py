"""Scale-SVD: task matrices made low-rank plus sparse in the metric of their inputs, then summed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.linalg import check_task_matrices
from raymerge.methods._low_rank_sparse import decompose
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method, Parameter, Use

Setting = tuple[float, float, float, str]
"""sparsity, rank_ratio, num_iters, prune_level."""


@dataclass(frozen=True)
class ScaleSvdFactors:
    """The task matrices, the moments of their inputs, and what is decomposed already, by setting."""

    task_matrices: Float[Tensor, "tasks rows cols"]
    moments: Sequence[Tensor]
    decomposed: Sequence[Mapping[Setting, Tensor]]


def scale_svd_task_factors(
    task_matrices: Float[Tensor, "tasks rows cols"], uses: Sequence[Use], *, moments: Sequence[Tensor]
) -> list[dict[Setting, Tensor]]:
    """Every task matrix decomposed by itself, once for all sets of tasks, for every planned setting.

    Raises:
        MergeInputError: there is no task, a value is not finite, or a parameter or the moments are not usable.
    """
    check_task_matrices(task_matrices)
    settings = {_setting(use.setting) for use in uses if use.setting["apply"] == "per_task"}
    return [
        {setting: _decomposed(task_matrix, moment, setting).to(task_matrices.dtype) for setting in sorted(settings)}
        for task_matrix, moment in zip(task_matrices, moments, strict=True)
    ]


def scale_svd_factorise(
    task_matrices: Float[Tensor, "tasks rows cols"],
    task_factors: Sequence[Mapping[Setting, Tensor]] | None = None,
    *,
    moments: Sequence[Tensor] | None,
) -> ScaleSvdFactors:
    """Nothing of the decomposition is free of parameters: `task_factors` has what was planned.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only.
        moments: per task, the second moments of the inputs, shaped to broadcast against a task matrix.
    Raises:
        MergeInputError: there is no task, a matrix is empty, a value is not finite, or there are no moments.
    """
    check_task_matrices(task_matrices)
    if moments is None or len(moments) != len(task_matrices):
        raise MergeInputError("there are no input moments for every task: collect them with 'raymerge stats'.")
    return ScaleSvdFactors(task_matrices, moments, task_factors or [{} for _ in task_matrices])


def scale_svd(
    factors: ScaleSvdFactors,
    *,
    sparsity: int | float,
    rank_ratio: int | float,
    num_iters: int | float,
    prune_level: str,
    apply: str,
) -> Float[Tensor, "rows cols"]:
    """sum_t of the decomposed task matrices ("per_task"), or the decomposition of their sum ("merged").

    The sum meets the mean of the tasks' second moments, the second moment of an input drawn from any of the tasks.

    Source: the decomposition of arXiv:2409.13652 before or after Task Arithmetic; docs/methods.md.

    Raises:
        MergeInputError: a parameter is out of range, or the moments are not usable.
    """
    setting = (float(sparsity), float(rank_ratio), float(num_iters), prune_level)
    task_matrices = factors.task_matrices
    if apply == "merged":
        moment = torch.stack(list(factors.moments)).double().mean(dim=0)
        return _decomposed(task_matrices.sum(dim=0, dtype=torch.float64), moment, setting).to(task_matrices.dtype)
    if apply != "per_task":
        raise MergeInputError(f"apply is '{apply}', expected 'per_task' or 'merged'.")
    total = torch.zeros_like(task_matrices[0], dtype=torch.float64)
    for task_matrix, moment, known in zip(task_matrices, factors.moments, factors.decomposed, strict=True):
        total += known[setting] if setting in known else _decomposed(task_matrix, moment, setting)
    return total.to(task_matrices.dtype)


def _decomposed(task_matrix: Tensor, moment: Tensor, setting: Setting) -> Tensor:
    sparsity, rank_ratio, num_iters, prune_level = setting
    return decompose(
        task_matrix, moment, sparsity=sparsity, rank_ratio=rank_ratio, num_iters=num_iters, prune_level=prune_level
    )


def _setting(values: Mapping[str, float | str]) -> Setting:
    sparsity, rank_ratio, num_iters = (float(values[name]) for name in ("sparsity", "rank_ratio", "num_iters"))
    return (sparsity, rank_ratio, num_iters, str(values["prune_level"]))


METHOD = Method(
    name="scale-svd",
    title="Scale-SVD",
    source="arXiv:2409.13652",
    alpha=Alpha(search=Interval(1 / 30, 1.0, 1 / 30), paper=AlphaGrid(1.0, 30)),
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
            "apply",
            default="per_task",
            choices=("per_task", "merged"),
            description="whether every task matrix is decomposed, or their sum",
        ),
    ),
    matrices="svd",
    others="sum",
    moments=True,
    merge=scale_svd,
    factorise=scale_svd_factorise,
    task_factors=scale_svd_task_factors,
)
