"""The polar factor of orthonormal rows joined by others."""

import torch
from jaxtyping import Float64
from torch import Tensor

from raymerge.linalg import gram, inverse_sqrt, polar_factor
from raymerge.notes import note


def joined_polar_factor(
    orthonormal: Float64[Tensor, "rows cols"], added: Float64[Tensor, "added cols"], tolerance: float
) -> tuple[Float64[Tensor, "rows+added cols"], Float64[Tensor, " rank"]]:
    """polar([V; W]) for V V^T = I, and the singular values of [V; W], descending.

    The Gram matrix of the rows is [[I, C^T], [C, W W^T]] with C = W V^T. Where W is the smaller part, its inverse
    square root differs from I only in the span of W and of the projections of V's rows on it: with the thin QR
    C^T = Z R, that is a problem of twice the rows of W.

    Args:
        tolerance: relative error that the factor may have. Where the rows are too close to being linearly dependent
            for it, the whole is decomposed, and noted.
    """
    num_rows, num_added = len(orthonormal), len(added)
    overlap = orthonormal @ added.mT
    if num_added >= num_rows:
        whole = torch.eye(num_rows + num_added, dtype=added.dtype, device=added.device)
        whole[:num_rows, num_rows:], whole[num_rows:, :num_rows] = overlap, overlap.mT
        whole[num_rows:, num_rows:] = gram(added)
        found = inverse_sqrt(whole, tolerance)
        if found is None:
            return _exactly(orthonormal, added)
        return found[0] @ torch.cat([orthonormal, added]), found[1].flip(-1).sqrt()
    directions, overlap = torch.linalg.qr(overlap)
    small = torch.eye(2 * num_added, dtype=added.dtype, device=added.device)
    small[:num_added, num_added:], small[num_added:, :num_added] = overlap, overlap.mT
    small[num_added:, num_added:] = gram(added)
    found = inverse_sqrt(small, tolerance)
    if found is None:
        return _exactly(orthonormal, added)
    turned = directions.mT @ orthonormal
    moved = found[0] @ torch.cat([turned, added])
    factor = torch.cat([orthonormal + directions @ (moved[:num_added] - turned), moved[num_added:]])
    values = torch.cat([found[1].sqrt(), found[1].new_ones(num_rows - num_added)])
    return factor, values.sort(descending=True).values


def _exactly(orthonormal: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    note("the right vectors were whitened by a full decomposition: they are nearly dependent")
    return polar_factor(torch.cat([orthonormal, added]))
