"""Input checks and float64 decompositions.

Every decomposition here is in float64, whatever the input: flattening a spectrum lifts its weakest directions to the
mean, so an error of float32 size in a direction 1e-6 times as strong as the strongest would decide the result.

A direction whose singular value is zero to float64 precision carries no information, only the arbitrary basis that
LAPACK completes the factors with. Decompositions here leave such directions out, so that what is built from them
does not depend on the order of the tasks or on the BLAS in use.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.notes import note

ILL_CONDITIONED = 1e-6
"""Smallest over largest singular value below which rounding noise of the inputs decides a flattened spectrum."""

SMALL = 64
"""With fewer rows or columns than this, a full SVD takes no longer than anything else."""

MAX_POLAR_ERROR = 5e-5
"""Estimated relative error beyond which polar factors of approximate vectors are not used."""

_GRAM_BLOCK = 192


def check_task_tensors(task_tensors: Tensor) -> None:
    """Check what every method needs: at least one task, floating point, all finite.

    Args:
        task_tensors: theta_t - theta_0 of one parameter, one slice per task, shape (tasks, ...).
    Raises:
        MergeInputError: naming the dtype, the shape, or the first bad task and position.
    """
    shape = tuple(task_tensors.shape)
    if not task_tensors.is_floating_point():
        raise MergeInputError(f"task tensors are {task_tensors.dtype}, expected floating point: leave this one out.")
    if not shape or shape[0] == 0:
        raise MergeInputError(f"task tensors of shape {shape} hold no task, expected (tasks, ...) with tasks >= 1.")
    if all_finite(task_tensors):
        return
    task, *position = (~torch.isfinite(task_tensors)).nonzero()[0].tolist()
    value = task_tensors[(task, *position)].item()
    raise MergeInputError(
        f"task tensor {task} of {shape[0]} has {value} at {tuple(position)}, expected finite values: "
        "check the checkpoint of that expert."
    )


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; without a mask as large as the tensor."""
    return tensor.numel() == 0 or all(bool(end.isfinite()) for end in torch.aminmax(stored(tensor)))


def stored(tensor: Tensor) -> Tensor:
    """The part of a tensor that is in memory: an expanded dimension is one slice. Holds the same set of values."""
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]


def check_task_matrices(task_matrices: Tensor) -> None:
    """`check_task_tensors` for (tasks, rows, cols) with at least one row and one column.

    Raises:
        MergeInputError: as above, or naming the shape.
    """
    shape = tuple(task_matrices.shape)
    if len(shape) != 3 or 0 in shape[1:]:
        raise MergeInputError(f"task matrices have shape {shape}, expected (tasks, rows, cols), rows and cols >= 1.")
    check_task_tensors(task_matrices)


class Uncertified(Exception):
    """A fast way cannot vouch for its result; the caller takes the full decomposition. Never reaches a user."""


def sum_of_tasks(task_tensors: Float[Tensor, " tasks *shape"]) -> Float64[Tensor, " *shape"]:
    """sum_t tau_t in float64, without a copy of all task tensors in float64."""
    total = torch.zeros(task_tensors.shape[1:], dtype=torch.float64, device=task_tensors.device)
    for task_tensor in task_tensors:
        total += task_tensor.double()
    return total


def tolerance_for(dtype: torch.dtype) -> float:
    """The relative error that a float64 decomposition may have when the result is rounded to `dtype`.

    0 for float64: nothing but a full decomposition will do.
    """
    return 0.0 if dtype == torch.float64 else 1e-7


def note_conditioning(conditioning: float, of: str) -> None:
    """Say so where rounding noise of the inputs decides what is flattened or whitened."""
    if conditioning < ILL_CONDITIONED:
        note(f"{of} has singular values from 1 to {conditioning:.0e}, so rounding noise of the checkpoints decides it")


def note_cancellation(total: Tensor, norms: float) -> None:
    """Say so where terms whose norms add up to `norms` leave next to nothing, which is then scaled up."""
    part = float(torch.linalg.matrix_norm(total)) / norms if norms else 1.0
    if part < 1e-3:
        note(f"the terms cancel to {part:.0e} of their norms, so what is flattened is little more than their errors")


def note_fallback(what: str, reason: Exception) -> None:
    """Say that full decompositions were taken instead of a fast way."""
    note(f"{what}: merged by full decompositions, because {reason}")


@dataclass(frozen=True)
class ConditionedMatrix:
    """A merged matrix and how well the inputs determine it.

    conditioning: smallest over largest singular value of what was flattened or whitened, 0..1. Below
        ILL_CONDITIONED the matrix is exact for these inputs but follows their rounding noise.
    """

    matrix: Float[Tensor, "rows cols"]
    conditioning: float


def conditioning(singular_values: Float64[Tensor, " values"], size: int) -> float:
    """Smallest over largest of `size` singular values in descending order, those not listed being 0. 1 if all are 0."""
    if len(singular_values) == 0 or singular_values[0] == 0:
        return 1.0
    return float(singular_values[-1] / singular_values[0]) if len(singular_values) == size else 0.0


def gram(matrices: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch rows rows"]:
    """X X^T in the precision of X. Products of large matrices are formed once for both halves."""
    rows = matrices.shape[-2]
    if rows < 2 * _GRAM_BLOCK:
        return matrices @ matrices.mT
    product = matrices.new_empty(*matrices.shape[:-1], rows)
    for start in range(0, rows, _GRAM_BLOCK):
        stop = min(start + _GRAM_BLOCK, rows)
        torch.matmul(matrices[..., start:stop, :], matrices[..., :stop, :].mT, out=product[..., start:stop, :stop])
        product[..., :start, start:stop] = product[..., start:stop, :start].mT
    return product


def compact_svd(
    matrix: Float[Tensor, "rows cols"], scale: float | None = None, tolerance: float = 0.0
) -> tuple[Float64[Tensor, "rows rank"], Float64[Tensor, " rank"], Float64[Tensor, "rank cols"]]:
    """u, s, vh with matrix = u diag(s) vh and s > 0, in descending order, in float64.

    Args:
        matrix: finite.
        scale: what a singular value is compared with to be called zero; the largest one by default. Pass the norm
            of the original when `matrix` is what a projection left of it, so that cancellation noise is dropped.
        tolerance: relative error that the vectors may have. Where the conditioning allows it, they are then taken
            from the Gram matrix, several times faster, and the rank is full.
    Raises:
        MergeInputError: the decomposition did not converge.
    """
    rows, cols = matrix.shape
    matrix = matrix.double()
    short = matrix if rows <= cols else matrix.mT
    smallest = max(rows, cols) * torch.finfo(torch.float64).eps
    if (found := _eigen_by_gram(short, tolerance)) is not None:
        u, s = found
        # of cancellation noise the Gram matrix may be as good as any
        if scale is None or float(s[-1]) * tolerance > smallest * scale:
            vh = (u.mT @ short) / s[:, None]
            return (u, s, vh) if rows <= cols else (vh.mT, s, u.mT)
    u, s, vh = _thin_svd(matrix)
    largest = float(s[0]) if scale is None and len(s) else (scale or 0.0)
    rank = int((s > smallest * largest).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def polar_factor(
    matrix: Float[Tensor, "rows cols"], tolerance: float = 0.0
) -> tuple[Float64[Tensor, "rows cols"], Float64[Tensor, " rank"]]:
    """The nearest (partial) isometry, u vh of the compact SVD, and the singular values, descending.

    X (X^T X)^(-1/2) where X has full column rank; unique in every case.

    Args:
        tolerance: relative error that the factor may have, as for `compact_svd`.
    """
    matrix = matrix.double()
    wide = matrix.shape[0] <= matrix.shape[1]
    short = matrix if wide else matrix.mT
    if (found := _eigen_by_gram(short, tolerance)) is not None:
        u, s = found
        factor = ((u / s) @ u.mT) @ short
        return factor if wide else factor.mT, s
    u, s, vh = compact_svd(matrix)
    return u @ vh, s


def polar_amplification(singular_values: Float64[Tensor, " count"], size: int) -> float:
    """How many times larger the relative error of a polar factor is than that of the vectors it is made of.

    For independent errors of the `count` vectors, in all their `size` entries, to first order: within the span of
    the vectors the factor turns by the skew part of the error over s_i + s_j, out of it by the error over s_j
    (Higham, Functions of Matrices, 2008, Section 8.2). Of as many vectors as there are dimensions, one that nearly
    depends on the others does little harm, of fewer it does.
    """
    count = len(singular_values)
    turned = (singular_values[:, None] + singular_values).square().reciprocal().fill_diagonal_(0).sum()
    moved = (size - count) * singular_values.square().reciprocal().sum()
    return float(((2 * turned + moved) / (count * size)).sqrt())


def check_polar_error(error: Float64[Tensor, " tasks"], *factors: tuple[Float64[Tensor, " _"], int]) -> None:
    """Raise Uncertified where polar factors of vectors with these RMS errors may be off by too much.

    Args:
        error: per task, of the vectors of every factor alike.
        factors: of every polar factor, the singular values of its vectors and their size.
    """
    largest = float(error.square().mean().sqrt())
    if largest == 0:
        return
    estimate = largest * math.hypot(*(polar_amplification(s, n) for s, n in factors))
    if not estimate <= MAX_POLAR_ERROR:
        raise Uncertified(f"directions of the tasks nearly depend on each other: the error may be {estimate:.0e}")


def inverse_sqrt(
    matrices: Float64[Tensor, "*batch size size"], tolerance: float
) -> tuple[Float64[Tensor, "*batch size size"], Float64[Tensor, "*batch size"]] | None:
    """G^(-1/2) of Gram matrices and their eigenvalues, ascending; None where the error may exceed the tolerance.

    Args:
        tolerance: relative error of the polar factor X G^(-1/2): float64 rounding over the ratio of eigenvalues.
    """
    if (found := _eigh_within(matrices, tolerance)) is None:
        return None
    values, vectors = found
    return (vectors * values.rsqrt()[..., None, :]) @ vectors.mT, values


def _eigen_by_gram(short: Tensor, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """Left singular vectors and singular values, descending, of a matrix with no more rows than columns.

    None where it is small, or where squaring the singular values may cost more than the tolerance.
    """
    if tolerance == 0 or len(short) < SMALL:
        return None
    if (found := _eigh_within(gram(short), tolerance)) is None:
        return None
    values, vectors = found
    return vectors.flip(-1), values.flip(-1).sqrt()


def _eigh_within(grams: Tensor, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """`eigh`, or None where it fails, or where rounding over the ratio of eigenvalues exceeds the tolerance."""
    try:
        values, vectors = eigh(grams)
    except Uncertified:
        return None
    well_conditioned = values[..., 0] > torch.finfo(torch.float64).eps / tolerance * values[..., -1]
    return (values, vectors) if bool(well_conditioned.all()) else None


def eigh(
    matrices: Float64[Tensor, "*batch size size"],
) -> tuple[Float64[Tensor, "*batch size"], Float64[Tensor, "*batch size size"]]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices.

    Raises:
        Uncertified: not all could be decomposed, as where the entries of a Gram matrix overflow.
    """
    try:
        return torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise Uncertified("an eigendecomposition failed") from error


def _thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        pass
    # Divide and conquer gives up on rare finite matrices. The triangular factor has the same singular values and
    # other entries, which is enough in practice.
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = torch.linalg.qr(matrix.mT if wide else matrix)
    try:
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        rows, cols = matrix.shape
        raise MergeInputError(
            f"the SVD of a {rows} x {cols} matrix did not converge, twice: check its values for extreme ranges."
        ) from error
    return (vh.mT, s, (q @ u).mT) if wide else (q @ u, s, vh)
