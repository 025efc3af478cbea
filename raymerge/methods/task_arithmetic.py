"""Task Arithmetic: the sum of the task vectors."""

from jaxtyping import Float
from torch import Tensor

from raymerge.linalg import check_task_tensors
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method


def task_arithmetic(task_tensors: Float[Tensor, " tasks *shape"]) -> Float[Tensor, " *shape"]:
    """sum_t tau_t, for every parameter of the model.

    Source: Ilharco et al. 2022, arXiv:2212.04089, "learning via addition".

    Raises:
        MergeInputError: there is no task, or a value is not finite.
    """
    check_task_tensors(task_tensors)
    return task_tensors.sum(dim=0)


METHOD = Method(
    name="task-arithmetic",
    title="Task Arithmetic",
    source="arXiv:2212.04089",
    alpha=Alpha(search=Interval(1 / 30, 1.0, 1 / 30), paper=AlphaGrid(1.0, 30)),
    merge=task_arithmetic,
)
