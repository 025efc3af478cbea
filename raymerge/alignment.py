"""Subspace alignment ratio: how much of a task matrix lies in the dominant directions of another matrix.

Source: Marczak et al. 2025, arXiv:2502.04959, Section 3.2.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

RankRule = Literal["paper", "released_code"]
RANK_RULES: tuple[RankRule, ...] = get_args(RankRule)
EPSILON = 0.05
"""Of Eq. 6."""


def effective_rank(
    singular_values: Float64[Tensor, " values"], rule: RankRule = "paper", epsilon: float = EPSILON
) -> int:
    """k_M: how many directions approximate a matrix with these singular values, in descending order.

    paper: min{k : ||M - U_k U_k^T M||_F <= epsilon ||M||_F}, the residual being the root of the squares left out.
        Source: Eq. 6.
    released_code: the position, from 0, of the first direction at which the root of the share of squares exceeds
        1 - epsilon. It lets the residual be as large as sqrt(1 - (1 - epsilon)^2), 0.31 at 0.05, and counts one
        direction fewer than it takes to get there. The published alignments follow it.

    A matrix of zeros has rank 0 in both.
    """
    energy = singular_values.double().square().cumsum(dim=0)
    if len(energy) == 0 or not energy[-1] > 0:
        return 0
    if rule == "paper":
        # the sum of what is left out, from the smallest on: 1 - energy would cancel
        left_out = singular_values.double().square().flip(0).cumsum(dim=0).flip(0)
        is_enough = torch.cat([left_out, left_out.new_zeros(1)]) <= epsilon**2 * energy[-1]
    else:
        is_enough = (energy / energy[-1]).sqrt() > 1 - epsilon
    return int(is_enough.int().argmax())


def alignment_profile(
    sources: Float[Tensor, "*batch rows cols"], basis: Float[Tensor, "rows directions"]
) -> Float64[Tensor, "*batch ranks"]:
    """SAR of source matrices with the span of the first k columns of a basis, for k = 0, 1, ..., directions.

    SAR(source, target; k) = ||U_k U_k^T source||_F / ||source||_F, U_k being the top left singular vectors of the
    target; the projection has the norm of U_k^T source. NaN for a source of zeros.

    Source: Eq. 5.

    Args:
        basis: orthonormal columns, the most dominant first.
    """
    coordinates = basis.mT.to(sources.dtype) @ sources
    energy = coordinates.double().square().sum(dim=-1).cumsum(dim=-1)
    energy = torch.cat([energy.new_zeros(*energy.shape[:-1], 1), energy], dim=-1)
    norms = torch.linalg.matrix_norm(sources.double())[..., None]
    return (energy.sqrt() / norms).clamp(max=1.0)
