"""Between Task Arithmetic and Iso-C: the spectrum of the sum, flattened part of the way."""

from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.linalg import check_task_matrices, sum_of_tasks
from raymerge.methods._method import Alpha, AlphaGrid, Interval, Method, Parameter
from raymerge.methods.iso_c import iso_c, iso_c_factorise


@dataclass(frozen=True)
class Ends:
    """beta = 0, the sum of the task matrices, and beta = 1, Iso-C."""

    summed: Float64[Tensor, "rows cols"]
    flat: Float[Tensor, "rows cols"]


def spectrum_interpolation_factorise(task_matrices: Float[Tensor, "tasks rows cols"]) -> Ends:
    """Both ends, between which every beta lies.

    Args:
        task_matrices: theta_t - theta_0 of one layer, one slice per task. Read only.
    Raises:
        MergeInputError: there is no task, a matrix is empty, or a value is not finite.
    """
    check_task_matrices(task_matrices)
    return Ends(sum_of_tasks(task_matrices), iso_c(iso_c_factorise(task_matrices)))


def spectrum_interpolation(factors: Ends, *, beta: int | float) -> Float[Tensor, "rows cols"]:
    """U diag(s_beta) Vh with s_beta = (1 - beta) s + beta mean(s), of the sum U diag(s) Vh.

    U and Vh are the same for all beta, so this is (1 - beta) times the sum plus beta times Iso-C. What is no matrix is
    averaged for every beta, as Iso-C does; Task Arithmetic would sum it.

    Source: Marczak et al. 2025, arXiv:2502.04959, Section 3.3 and Figure 4.

    Args:
        factors: of `spectrum_interpolation_factorise`. Read only.
        beta: 0 leaves the spectrum as it is, 1 flattens it.
    """
    return ((1 - beta) * factors.summed + beta * factors.flat).to(factors.flat.dtype)


METHOD = Method(
    name="spectrum-interpolation",
    title="TA to Iso-C",
    source="arXiv:2502.04959",
    alpha=Alpha(search=Interval(0.1, 3.0, 0.1), paper=AlphaGrid(3.0, 30)),
    parameters=(
        Parameter(
            "beta",
            default=0.5,
            search=Interval(0.0, 1.0, 0.1),
            description="how far the spectrum is flattened: 0 is the sum of the task matrices, 1 is Iso-C",
        ),
    ),
    matrices="svd",
    merge=spectrum_interpolation,
    factorise=spectrum_interpolation_factorise,
)
