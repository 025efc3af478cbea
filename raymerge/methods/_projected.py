"""Leading triplets of what a common space leaves of every task matrix, for many sizes of the common space.

With sum_t Delta_t = U S V^T (r = min(rows, cols) triplets) and B_t = U^T Delta_t, the projected task matrix is
(I - U_k U_k^T) Delta_t. Its Gram matrices follow from matrices that do not depend on k:

    rows <= cols, from the left, in the basis U_k: :   B_t[k:] B_t[k:]^T, a trailing block of B_t B_t^T
    rows >  cols, from the right:                      E_t + B_t[k:l]^T B_t[k:l], l being the largest k and
                                                       E_t = Delta_t^T Delta_t - B_t[:l]^T B_t[:l]
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.linalg import compact_svd, gram, tolerance_for
from raymerge.linalg_leading import Triplets, check_energy, leading_eigenspaces, triplets_of_basis, with_exact


@dataclass(frozen=True)
class ProjectedGrams:
    """What the Gram matrices for every k from first to last have in common, in the precision of the task matrices.

    trailing: B_t[first:] B_t[first:]^T where rows <= cols, else None.
    outside, inside: E_t and B_t[:last] where rows > cols, else None.
    energy: what the differences in them were taken from, as a trace.
    """

    first: int
    last: int
    energy: Float64[Tensor, " tasks"]
    trailing: Float[Tensor, "tasks size size"] | None = None
    outside: Float[Tensor, "tasks cols cols"] | None = None
    inside: Float[Tensor, "tasks last cols"] | None = None


def projected_grams(
    task_matrices: Float[Tensor, "tasks rows cols"], u: Float[Tensor, "rows rank"], first: int, last: int
) -> ProjectedGrams:
    """One pass over the task matrices.

    Args:
        u: all r left singular vectors of the sum.
        first, last: the smallest and the largest k that will be asked for.
    """
    num_tasks, rows, cols = task_matrices.shape
    energy = torch.linalg.vector_norm(task_matrices, dim=(1, 2)).double().square()
    if rows > cols:
        inside, outside = (task_matrices.new_empty(num_tasks, size, cols) for size in (last, cols))
        for t, task_matrix in enumerate(task_matrices):
            torch.mm(u[:, :last].mT, task_matrix, out=inside[t])
            outside[t] = gram(task_matrix.mT) - gram(inside[t].mT)
        return ProjectedGrams(first, last, energy, outside=outside, inside=inside)
    rest = u[:, first:]
    trailing = task_matrices.new_empty(num_tasks, rows - first, rows - first)
    for t, task_matrix in enumerate(task_matrices):
        if cols >= 2 * rows and first < rows / 2:  # the Gram matrix of Delta_t first: it is smaller than B_t
            trailing[t] = rest.mT @ (gram(task_matrix) @ rest)
        else:
            trailing[t] = gram(rest.mT @ task_matrix)
    return ProjectedGrams(first, last, energy, trailing=trailing)


def projected_triplets(
    task_matrices: Float[Tensor, "tasks rows cols"],
    u: Float[Tensor, "rows rank"],
    num_common: int,
    count: int,
    grams: ProjectedGrams | None = None,
) -> Triplets:
    """The `count` leading triplets of (I - U_k U_k^T) Delta_t of every task, k = num_common.

    Where rows <= cols, their left vectors are given by their coordinates in the basis U_k:, which is as large as
    their space: polar(U_k: Y) = U_k: polar(Y), and nothing of Y can lie outside.

    Args:
        task_matrices, u: of the same precision.
        grams: with first <= num_common <= last; computed for this k alone where they are None.
    Raises:
        Uncertified: a task matrix is zero, or the common space leaves it too few directions.
    """
    grams = grams or projected_grams(task_matrices, u, num_common, num_common)
    check_energy(grams.energy)
    common, rest = u[:, :num_common], u[:, num_common:]
    if grams.trailing is not None:
        start = num_common - grams.first
        spaces = leading_eigenspaces(grams.trailing[:, start:, start:].contiguous(), count, grams.energy)
        image = _times(rest, spaces.basis).mT @ task_matrices
        found = Triplets(*triplets_of_basis(spaces.basis, image), spaces.error)
    else:
        assert grams.inside is not None
        assert grams.outside is not None
        matrices = grams.outside
        if num_common < grams.last:
            matrices = matrices.clone()
            for matrix, left_over in zip(matrices, grams.inside[:, num_common:], strict=True):
                matrix += gram(left_over.mT)
        spaces = leading_eigenspaces(matrices, count, grams.energy)
        image = task_matrices @ spaces.basis - _times(common, grams.inside[:, :num_common] @ spaces.basis)
        v, s, uh = triplets_of_basis(spaces.basis, image.mT)
        found = Triplets(uh.mT, s, v.mT, spaces.error)

    def decompose(task: int) -> tuple[Tensor, Tensor, Tensor]:
        task_matrix = task_matrices[task].double()
        scale, tolerance = float(torch.linalg.matrix_norm(task_matrix)), tolerance_for(torch.float32)
        if grams.trailing is not None:
            return compact_svd(rest.double().mT @ task_matrix, scale, tolerance)
        residual = task_matrix - common.double() @ (common.double().mT @ task_matrix)
        return compact_svd(residual, scale, tolerance)

    return with_exact(found, decompose)


def _times(matrix: Tensor, batch: Tensor) -> Tensor:
    """matrix @ batch[t] for every t, as one product."""
    num_tasks, inner, count = batch.shape
    product = matrix @ batch.permute(1, 0, 2).reshape(inner, num_tasks * count)
    return product.reshape(len(matrix), num_tasks, count).permute(1, 0, 2)
