"""Leading eigenspaces and singular triplets of many matrices at once, each with an estimate of its error.

What TSV-M and Iso-CTS take from a task matrix is its leading singular triplets, whose left or right vectors span a
leading eigenspace of a Gram matrix. Small matrices and large parts are decomposed fully; for a small part of a large
matrix a filtered block of vectors converges within a few products, which is what processors and GPUs do best.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from raymerge.linalg import Uncertified, compact_svd, eigh, gram, tolerance_for
from raymerge.notes import note

FULL_SIZE = 192
"""Up to this size a full decomposition costs no more than a few products."""
FULL_PART = 1 / 6
"""From this part of the eigenvectors on as well."""
OVERSAMPLING = 0.6
"""Vectors carried beyond those wanted, as a part of them, and at least MIN_EXTRA: they make the filter steep."""
MIN_EXTRA = 24
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-9}
"""RMS sine of the angle to the true vectors at which iteration stops, by the precision it runs in."""
MAX_ERROR = {torch.float32: 2e-5, torch.float64: 1e-8}
"""The same, beyond which a space is not used."""
MAX_PRODUCTS = 6
"""Vectors multiplied per row of a matrix after which a full decomposition would have been cheaper."""
MAX_GROWTH = 1e6
"""How much more than the weakest wanted vector a filter may amplify the strongest: more drowns it in rounding."""
FLOAT32_SIZE = 512
"""From this size on, products in float64 would take most of the time; below it they cost next to nothing."""


@dataclass(frozen=True)
class Eigenspaces:
    """Orthonormal bases of leading eigenspaces, and how well each is known.

    basis: in no particular rotation within each space.
    error: estimated RMS sine of the angles between the basis and the true eigenspace; inf where nothing is known.
    """

    basis: Float[Tensor, "batch size count"]
    error: Float64[Tensor, " batch"]


@dataclass(frozen=True)
class Triplets:
    """Singular triplets of several matrices in descending order, u diag(s) vh being the part of a matrix in them.

    error: as of `Eigenspaces`.
    """

    u: Float[Tensor, "batch rows count"]
    s: Float64[Tensor, "batch count"]
    vh: Float[Tensor, "batch count cols"]
    error: Float64[Tensor, " batch"]


def precision_for(size: int, part: float) -> torch.dtype:
    """The precision to form Gram matrices of this size in, when this part of their eigenvectors is wanted.

    float32 where iteration pays, because products are most of its cost.
    """
    return torch.float32 if size >= FLOAT32_SIZE and part <= FULL_PART else torch.float64


def leading_triplets(matrices: Float[Tensor, "batch rows cols"], count: int, cuts: Sequence[int] = ()) -> Triplets:
    """The `count` leading singular triplets of every matrix, in the precision of the matrices.

    Args:
        cuts: smaller counts that the triplets will be cut to; the error is the largest of all.
    Raises:
        Uncertified: a matrix has too low a rank, or too little of it is known.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    short = matrices if wide else matrices.mT
    energy = torch.linalg.vector_norm(matrices, dim=(1, 2)).double().square()
    check_energy(energy)
    grams = torch.stack([gram(matrix) for matrix in short])
    spaces = leading_eigenspaces(grams, count, energy)
    u, s, vh = triplets_of_basis(spaces.basis, spaces.basis.mT @ short)
    # within the space triplets are those of the projected matrix, whose entries are off by rounding
    rounding = torch.finfo(matrices.dtype).eps * (energy / short.shape[2]).sqrt()
    error = spaces.error
    for cut in cuts:
        if cut < count:
            turned = (rounding[:, None, None] / (s[:, :cut, None] - s[:, None, cut:])).square().sum(-1)
            inner = turned.mean(-1).sqrt().nan_to_num(nan=math.inf)
            error = torch.maximum(error, torch.hypot(spaces.error, inner))
    found = Triplets(u, s, vh, error) if wide else Triplets(vh.mT, s, u.mT, error)
    return with_exact(found, lambda i: compact_svd(matrices[i], tolerance=tolerance_for(torch.float32)))


def check_energy(energy: Float64[Tensor, " batch"]) -> None:
    """Raise Uncertified where a task matrix is zero: it has no leading directions, and would only hold up others."""
    if not bool((energy > 0).all()):
        raise Uncertified("a task matrix is zero")


def triplets_of_basis(
    basis: Float[Tensor, "batch short count"], image: Float[Tensor, "batch count long"]
) -> tuple[Float[Tensor, "batch short count"], Float64[Tensor, "batch count"], Float[Tensor, "batch count long"]]:
    """u, s, vh of M from an orthonormal basis of its leading left vectors and basis^T M.

    Raises:
        Uncertified: the image is rank-deficient to the precision given.
    """
    values, rotation = eigh(image.double() @ image.double().mT)
    values, rotation = values.flip(-1), rotation.flip(-1)
    if not bool((values[:, -1] > torch.finfo(image.dtype).eps * values[:, 0]).all()):
        raise Uncertified("a task matrix has fewer directions than are taken from it")
    s = values.sqrt()
    rotation = rotation.to(basis.dtype)
    return basis @ rotation, s, (rotation / s[:, None, :].to(basis.dtype)).mT @ image


def with_exact(found: Triplets, decompose: Callable[[int], tuple[Tensor, Tensor, Tensor]]) -> Triplets:
    """Replace what is not certified by a full float64 decomposition of that matrix.

    Raises:
        Uncertified: a decomposition has fewer triplets than wanted.
    """
    count, doubtful = found.s.shape[1], (found.error > MAX_ERROR[found.u.dtype]).nonzero()[:, 0].tolist()
    eps = torch.finfo(found.u.dtype).eps  # the vectors are rounded to it, however well they are known
    if not doubtful:
        return replace(found, error=found.error.clamp(min=eps))
    note(
        f"{len(doubtful)} of {len(found.error)} tasks were decomposed in full: values too close at the cut, or no "
        "convergence"
    )
    u, s, vh, error = found.u.clone(), found.s.clone(), found.vh.clone(), found.error.clamp(min=eps)
    for i in doubtful:
        exact = decompose(i)
        if len(exact[1]) < count:
            raise Uncertified("a task matrix has fewer directions than are taken from it")
        u[i], s[i], vh[i] = exact[0][:, :count], exact[1][:count], exact[2][:count]
        error[i] = eps
    return Triplets(u, s, vh, error)


def leading_eigenspaces(
    matrices: Float[Tensor, "batch size size"], count: int, energy: Float64[Tensor, " batch"] | None = None
) -> Eigenspaces:
    """The spans of the `count` leading eigenvectors of symmetric positive semidefinite matrices.

    Full decompositions are in float64. The iteration is subspace iteration with Chebyshev filters on a block of
    count * 1.6 vectors that starts from fixed random numbers, so a space is found whatever its gaps, and the same
    input gives the same bits. The error counts the residuals of the Ritz vectors over their distance from the part
    of the spectrum that the block does not see, and the rounding of a Gram matrix of this precision.

    Args:
        matrices: Gram matrices formed in their own precision. Read only.
        count: 1 <= count <= size.
        energy: the trace of what each matrix is a difference of; its own trace by default.
    """
    if energy is None:
        energy = matrices.diagonal(dim1=-2, dim2=-1).double().sum(-1)
    # the entries are off by about 0.25 eps times the mean eigenvalue, independently of each other
    rounding = 0.25 * torch.finfo(matrices.dtype).eps * energy / matrices.shape[-1]
    size = matrices.shape[-1]
    if size <= FULL_SIZE or count > FULL_PART * size:
        return _full(matrices, count, rounding)
    found, converged = _iterate(matrices, count, rounding)
    if bool(converged.all()):
        return found
    rest = (~converged).nonzero()[:, 0]
    full = _full(matrices[rest], count, rounding[rest])
    return Eigenspaces(found.basis.index_copy(0, rest, full.basis), found.error.index_copy(0, rest, full.error))


def _full(matrices: Tensor, count: int, rounding: Tensor) -> Eigenspaces:
    values, vectors = eigh(matrices.double())
    basis = vectors[..., -count:].flip(-1).to(matrices.dtype)
    return Eigenspaces(basis, _rounding_error(values.flip(-1), count, rounding, matrices.shape[-1]))


def _iterate(matrices: Tensor, count: int, rounding: Tensor) -> tuple[Eigenspaces, Bool[Tensor, " batch"]]:
    """The spaces, and which of them converged."""
    generator = torch.Generator().manual_seed(0)
    block = count + max(MIN_EXTRA, math.ceil(OVERSAMPLING * count))
    start = torch.randn(matrices.shape[-1], block, generator=generator).to(matrices)
    vectors = torch.linalg.qr(matrices @ (matrices @ start))[0]
    tolerance = TOLERANCE[matrices.dtype]
    max_products = MAX_PRODUCTS * matrices.shape[-1] // block
    num_products, best = 2, math.inf
    while True:
        product = matrices @ vectors
        ritz = (vectors.mT @ product).double()
        values, rotation = eigh((ritz + ritz.mT) / 2)
        values, rotation = values.flip(-1), rotation.flip(-1).to(matrices.dtype)
        vectors, product = vectors @ rotation, product @ rotation
        wanted = vectors[..., :count]
        residuals = torch.linalg.vector_norm(product[..., :count] - wanted * values[:, None, :count].to(wanted), dim=1)
        error = _rms(residuals / (values[:, :count] - values[:, -1:]))
        num_products, worst = num_products + 1, float(error.max())
        degree = _degree(values, count, worst / tolerance)
        stalled = worst > best / 2  # as near as this precision comes
        if worst <= tolerance or stalled or num_products + degree > max_products:
            error = (error.square() + _rounding_error(values, count, rounding, matrices.shape[-1]).square()).sqrt()
            return Eigenspaces(wanted.contiguous(), error), error <= MAX_ERROR[matrices.dtype]
        best = worst
        vectors = torch.linalg.qr(_filter(matrices, vectors, product, values[:, -1], degree))[0]
        num_products += degree - 1


def _degree(values: Tensor, count: int, excess: float) -> int:
    """Of the filter that should make the worst error `excess` times smaller, as far as precision allows in one go."""
    strongest, weakest = (torch.acosh((2 * values[:, i] / values[:, -1] - 1).clamp(min=1)) for i in (0, count - 1))
    needed = math.log(2 * excess) / max(1e-3, float(weakest.min()))
    allowed = math.log(MAX_GROWTH) / max(1e-3, float((strongest - weakest).max()))
    return max(2, math.ceil(min(needed, allowed)))


def _filter(matrices: Tensor, vectors: Tensor, product: Tensor, cut: Tensor, degree: int) -> Tensor:
    """T_degree(2 H / cut - 1) applied to vectors whose product with H is known: bounded by 1 below the cut."""
    half_cut = (cut / 2)[:, None, None].to(vectors.dtype)
    previous, current = vectors, product / half_cut - vectors
    for _ in range(degree - 1):
        following = (matrices @ current).mul_(2 / half_cut).sub_(current, alpha=2).sub_(previous)
        previous, current = current, following
    return current


def _rounding_error(values: Tensor, count: int, rounding: Tensor, size: int) -> Float64[Tensor, " batch"]:
    """What the rounding of its entries turns an eigenspace by, as an RMS sine over its vectors.

    To first order vector i turns towards vector j by the entry between them over the distance of their values.
    """
    turned = (rounding[:, None, None] / (values[:, :count, None] - values[:, None, count:])).square().sum(-1)
    if values.shape[-1] < size:  # the rest lies below the last that is known
        distances = values[:, :count] - values[:, -1:]
        turned = turned + (size - values.shape[-1]) * (rounding[:, None] / distances).square()
    return turned.mean(-1).sqrt().nan_to_num(nan=math.inf)


def _rms(values: Tensor) -> Tensor:
    return values.double().square().mean(-1).sqrt().nan_to_num(nan=math.inf)
