"""Fine-tuned: every task keeps its own expert, the ceiling of every table."""

from jaxtyping import Float
from torch import Tensor

from raymerge.linalg import check_task_tensors
from raymerge.methods._method import FixedAlpha, Method


def own_task_vector(task_tensors: Float[Tensor, " tasks *shape"], task: int) -> Float[Tensor, " *shape"]:
    """theta_t - theta_0 of task number `task`, a copy.

    Source: experts fine-tuned end to end under a frozen zero-shot head, Wortsman et al. 2021, arXiv:2109.01903.

    Raises:
        MergeInputError: there is no task, or a value is not finite.
    """
    check_task_tensors(task_tensors)
    return task_tensors[task].clone()


METHOD = Method(
    name="fine-tuned",
    title="Fine-tuned",
    source="arXiv:2109.01903",
    alpha=FixedAlpha(1.0),
    kind="experts",
    task_update=own_task_vector,
)
