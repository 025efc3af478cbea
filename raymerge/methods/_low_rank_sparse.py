"""A matrix as low rank plus sparse, in the metric of its inputs: what Scale-SVD and Iso-IASAD do to task matrices.

The alternation is that of OATS, Zhang and Papyan 2024, arXiv:2409.13652; docs/methods.md has the formulas.
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.linalg import Uncertified, compact_svd, eigh, gram

ROOT_FLOOR = 1e-6
"""Smallest root moment as a part of the largest: an input that is always zero must not divide by zero."""


def decompose(
    matrix: Float[Tensor, "rows cols"],
    moments: Float[Tensor, "#rows #cols"],
    *,
    sparsity: int | float,
    rank_ratio: int | float,
    num_iters: int | float,
    prune_level: str,
) -> Float64[Tensor, "rows cols"]:
    """(L + S) D^-1, where L + S approximates A = matrix D and D holds the root second moments of the inputs.

    With m outputs and n inputs, p = 1 - sparsity and q = rank_ratio: L has rank k = floor(q p m n / (m + n)), at least
    1 if q p > 0, and S keeps the part (1 - q) p of the entries of what L leaves. From S = 0, num_iters times:
        L = the nearest matrix of rank k to A - S,
        S = the entries of A - L that are largest in magnitude, of each output ("row") or of all ("element").

    Args:
        moments: second moments of the inputs, shaped to broadcast against the matrix: (1, cols) where the inputs run
            along its columns, (rows, 1) where along its rows.
    Raises:
        MergeInputError: a parameter is out of range, or the moments are not usable.
    """
    _check(sparsity, rank_ratio, num_iters, prune_level)
    roots = _roots(moments).to(matrix.device)
    scaled = matrix.double() * roots
    if moments.shape[0] == 1:  # a row per output
        return _alternate(scaled, sparsity, rank_ratio, int(num_iters), prune_level) / roots
    return _alternate(scaled.mT.contiguous(), sparsity, rank_ratio, int(num_iters), prune_level).mT / roots


def _alternate(
    scaled: Float64[Tensor, "outputs inputs"],
    sparsity: int | float,
    rank_ratio: int | float,
    num_iters: int,
    prune_level: str,
) -> Float64[Tensor, "outputs inputs"]:
    """L + S of the last alternation.

    At the entries that S keeps, L + S is A itself, and L elsewhere; A - S is the other way round.
    """
    num_outputs, num_inputs = scaled.shape
    dense = rank_ratio * (1 - sparsity)
    rank = max(dense > 0, int(dense * num_outputs * num_inputs / (num_outputs + num_inputs)))
    part = (1 - rank_ratio) * (1 - sparsity)
    num_kept = int(part * (num_inputs if prune_level == "row" else scaled.numel()))
    remaining, low_rank, magnitudes = scaled, torch.empty_like(scaled), torch.empty_like(scaled)
    kept = torch.zeros_like(scaled, dtype=torch.bool)
    for _ in range(num_iters):
        _nearest_of_rank(remaining, rank, out=low_rank)
        torch.sub(scaled, low_rank, out=magnitudes).abs_()
        kept = _largest(magnitudes, num_kept, prune_level)
        remaining = torch.where(kept, low_rank, scaled)
    return torch.where(kept, scaled, low_rank)


def _nearest_of_rank(matrix: Tensor, rank: int, out: Tensor) -> None:
    """The truncated SVD in float64: the selection of entries that follows turns on its last digits."""
    if rank == 0:
        out.zero_()
        return
    wide = matrix.shape[0] <= matrix.shape[1]
    try:
        values, vectors = eigh(gram(matrix if wide else matrix.mT))
    except Uncertified:
        _truncate(matrix, rank, out)
        return
    size = len(values)
    # the span is known as well as the eigenvalues at the cut are told apart
    gap = float(values[-rank] - values[-rank - 1]) if rank < size else float(values[-1])
    if 4 * torch.finfo(torch.float64).eps * float(values[-1]) > 1e-8 * gap:
        _truncate(matrix, rank, out)
        return
    is_rest = 2 * rank > size  # the rest is the smaller part
    basis = vectors[:, :-rank] if is_rest else vectors[:, -rank:]
    factors = (basis, basis.mT @ matrix) if wide else (matrix @ basis, basis.mT)
    torch.addmm(matrix, *factors, beta=int(is_rest), alpha=-1 if is_rest else 1, out=out)


def _truncate(matrix: Tensor, rank: int, out: Tensor) -> None:
    u, s, vh = compact_svd(matrix)
    torch.mm(u[:, :rank] * s[:rank], vh[:rank], out=out)


def _largest(magnitudes: Float64[Tensor, "outputs inputs"], num_kept: int, prune_level: str) -> Bool[Tensor, "..."]:
    """Which entries are the largest, those that tie with the last of them included."""
    if num_kept == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    candidates = magnitudes if prune_level == "row" else magnitudes.reshape(1, -1)
    smallest = candidates.kthvalue(candidates.shape[1] - num_kept + 1, dim=1, keepdim=True).values
    return magnitudes >= smallest


def _roots(moments: Tensor) -> Float64[Tensor, "..."]:
    if not bool((moments >= 0).all()) or not bool(moments.isfinite().all()) or not moments.any():
        raise MergeInputError(
            "the second moments of its inputs are negative, not finite or all zero: collect them again with "
            "'raymerge stats --force'."
        )
    roots = moments.double().sqrt()
    return roots.clamp(min=ROOT_FLOOR * float(roots.max()))


def _check(sparsity: int | float, rank_ratio: int | float, num_iters: int | float, prune_level: str) -> None:
    for name, value in (("sparsity", sparsity), ("rank_ratio", rank_ratio)):
        if not 0 <= value <= 1:
            raise MergeInputError(f"{name} is {value}, expected 0 to 1.")
    if num_iters != int(num_iters) or num_iters < 1:
        raise MergeInputError(f"num_iters is {num_iters:g}, expected a whole number of at least 1.")
    if prune_level not in ("row", "element"):
        raise MergeInputError(f"prune_level is '{prune_level}', expected 'row' or 'element'.")
