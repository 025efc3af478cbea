"""Weight averaging: the mean of the experts."""

from jaxtyping import Float
from torch import Tensor

from raymerge.linalg import check_task_tensors
from raymerge.methods._method import FixedAlpha, Method


def weight_averaging(task_tensors: Float[Tensor, " tasks *shape"]) -> Float[Tensor, " *shape"]:
    """sum_t tau_t; with alpha fixed at 1/T, theta_0 + alpha * sum_t tau_t is the mean of the experts.

    Source: Wortsman et al. 2022, arXiv:2203.05482, "uniform soup".

    Raises:
        MergeInputError: there is no task, or a value is not finite.
    """
    check_task_tensors(task_tensors)
    return task_tensors.sum(dim=0)


METHOD = Method(
    name="weight-averaging",
    title="Weight Averaging",
    source="arXiv:2203.05482",
    alpha=FixedAlpha("1/T"),
    merge=weight_averaging,
)
