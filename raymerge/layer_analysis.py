"""What the task matrices of one layer, and what methods make of them, have to do with each other.

Task sets are the first so many tasks. Every factorisation is made once per layer and set: the SVD of the sum serves
Task Arithmetic, Iso-C, everything between them, and the common space of Iso-CTS.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raymerge.alignment import EPSILON, RANK_RULES, RankRule, alignment_profile, effective_rank
from raymerge.linalg import check_task_matrices, check_task_tensors, compact_svd, tolerance_for
from raymerge.methods.iso_cts import IsoCtsFactors, iso_cts_directions, iso_cts_factorise

TASK_ARITHMETIC, ISO_C, ISO_CTS, INTERPOLATION = "task-arithmetic", "iso-c", "iso-cts", "spectrum-interpolation"
BETAS = tuple(i / 10 for i in range(11))

Kind = Literal["task-task", "task-merged"]


@dataclass(frozen=True)
class AnalysisSettings:
    """fractions: by number of tasks, the common-space fractions of Iso-CTS. Its keys are the sizes of the task sets."""

    fractions: Mapping[int, tuple[float, ...]]
    betas: tuple[float, ...] = BETAS
    epsilon: float = EPSILON


@dataclass(frozen=True)
class Merged:
    """A matrix that a method merges, by what determines it."""

    method: str
    num_tasks: int
    common_space_fraction: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Spectrum:
    """Singular values, descending, min(rows, cols) of them; `of` is a task's position or a merged matrix."""

    of: int | Merged
    values: Float64[Tensor, " values"]


@dataclass(frozen=True)
class Rank:
    of: Merged
    rule: RankRule
    num_values: int
    k: int


@dataclass(frozen=True)
class Alignment:
    """SAR of a task's matrix with the top k directions of another matrix; `by` is the merged matrix that k is of."""

    source: int
    target: int | Merged
    by: Merged
    rule: RankRule
    k: int
    sar: float


@dataclass(frozen=True)
class Product:
    """<source, target> of a task's tensor and another task's or a merged one, and their squared norms.

    Sums over tensors give the cosine similarity of whole task vectors.
    """

    source: int
    target: int | Merged
    value: float
    source_squared: float
    target_squared: float


@dataclass(frozen=True)
class TensorAnalysis:
    """All there is to say about one tensor; of what is no matrix, products alone."""

    products: list[Product]
    spectra: list[Spectrum] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)
    alignments: list[Alignment] = field(default_factory=list)


def analyse_other(task_tensors: Float[Tensor, "tasks ..."], settings: AnalysisSettings) -> TensorAnalysis:
    """Of a tensor that is no matrix: Task Arithmetic sums it, the SVD methods take the mean.

    Raises:
        MergeInputError: there is no task, or a value is not finite.
    """
    check_task_tensors(task_tensors)
    flat = task_tensors.double().flatten(start_dim=1)
    updates = {}
    for num_tasks, fractions in settings.fractions.items():
        updates[Merged(TASK_ARITHMETIC, num_tasks)] = flat[:num_tasks].sum(dim=0)
        for merged in [Merged(ISO_C, num_tasks), *(Merged(ISO_CTS, num_tasks, fraction) for fraction in fractions)]:
            updates[merged] = flat[:num_tasks].mean(dim=0)
    return TensorAnalysis(_products(flat, updates))


def analyse_matrix(task_matrices: Float[Tensor, "tasks rows cols"], settings: AnalysisSettings) -> TensorAnalysis:
    """Spectra, effective ranks, subspace alignments and inner products of a layer.

    Iso-C has the singular vectors of the sum in their order; all its singular values being equal, those of a fresh SVD
    would be arbitrary. Iso-CTS has the common directions first, then the task-specific ones.

    Args:
        task_matrices: theta_t - theta_0 of the largest task set, one slice per task. Read only.
    Raises:
        MergeInputError: there is no task, a matrix is empty, a value is not finite, or a fraction is outside [0, 1].
    """
    check_task_matrices(task_matrices)
    num_values = min(task_matrices.shape[1:])
    spectra, bases = [], []
    for task, matrix in enumerate(task_matrices):
        u, s, _ = compact_svd(matrix, tolerance=tolerance_for(matrix.dtype))
        bases.append(u)
        spectra.append(Spectrum(task, _padded(s, num_values)))
    # of the source tasks with the basis of every target task, for all ranks
    pairs = [alignment_profile(task_matrices, basis) for basis in bases]
    ranks, alignments = [], []
    updates: dict[Merged, Tensor] = {}
    for num_tasks, fractions in settings.fractions.items():
        tasks = task_matrices[:num_tasks]
        factors = iso_cts_factorise(tasks)
        by_method = list(_merged_matrices(factors, num_tasks, fractions))
        spectra += [Spectrum(merged.of, merged.values) for merged in by_method]
        updates |= {merged.of: merged.matrix for merged in by_method}
        profiles = {merged.of: alignment_profile(tasks, merged.left) for merged in by_method}
        values = {merged.of: merged.values for merged in by_method}
        for beta in settings.betas:
            of, summed = Merged(INTERPOLATION, num_tasks, beta=beta), values[Merged(TASK_ARITHMETIC, num_tasks)]
            values[of] = (1 - beta) * summed + beta * summed.mean()
            profiles[of] = profiles[Merged(TASK_ARITHMETIC, num_tasks)]
        for rule in RANK_RULES:
            found = {of: effective_rank(s, rule, settings.epsilon) for of, s in values.items()}
            ranks += [Rank(of, rule, num_values, k) for of, k in found.items()]
            alignments += [
                Alignment(source, of, of, rule, k, sar)
                for of, k in found.items()
                for source, sar in enumerate(_at(profiles[of], k))
            ]
            by = Merged(TASK_ARITHMETIC, num_tasks)
            alignments += [
                Alignment(source, target, by, rule, found[by], sar)
                for target in range(num_tasks)
                for source, sar in enumerate(_at(pairs[target][:num_tasks], found[by]))
            ]
    flat = {of: matrix.flatten() for of, matrix in updates.items()}
    return TensorAnalysis(_products(task_matrices.flatten(start_dim=1), flat), spectra, ranks, alignments)


@dataclass(frozen=True)
class _MergedMatrix:
    of: Merged
    left: Tensor
    values: Tensor
    matrix: Tensor


def _merged_matrices(factors: IsoCtsFactors, num_tasks: int, fractions: Sequence[float]) -> Iterator[_MergedMatrix]:
    """What is merged from the SVD of the sum, with left singular vectors in the order that each method gives them."""
    u, s, vh = factors.u, factors.s, factors.vh
    num_values = min(factors.task_matrices.shape[1:])
    yield _MergedMatrix(Merged(TASK_ARITHMETIC, num_tasks), u, _padded(s, num_values), (u * s) @ vh)
    flat = torch.full_like(s, float(s.sum()) / num_values)
    yield _MergedMatrix(Merged(ISO_C, num_tasks), u, _padded(flat, num_values), (u * flat) @ vh)
    for fraction in fractions:
        left, isotropic_factor, right = iso_cts_directions(factors, fraction)
        values = left.new_full((left.shape[1],), isotropic_factor, dtype=torch.float64)
        matrix = isotropic_factor * (left @ right)
        yield _MergedMatrix(Merged(ISO_CTS, num_tasks, fraction), left, _padded(values, num_values), matrix)


def _padded(values: Tensor, size: int) -> Tensor:
    """With the zeros that a compact decomposition leaves out, on the CPU."""
    return torch.cat([values, values.new_zeros(size - len(values))]).double().cpu()


def _at(profiles: Tensor, k: int) -> list[float]:
    """Of every source; a basis has no more directions than its matrix's rank."""
    return profiles[:, min(k, profiles.shape[1] - 1)].tolist()


def _products(
    flat: Float[Tensor, "tasks entries"], updates: Mapping[Merged, Float[Tensor, " entries"]]
) -> list[Product]:
    """Of every task with every task, and with what is merged of it and others."""
    flat = flat.double()
    gram = flat @ flat.mT
    values, norms = gram.tolist(), gram.diagonal().tolist()
    products = [
        Product(source, target, values[source][target], norms[source], norms[target])
        for source in range(len(flat))
        for target in range(len(flat))
    ]
    for of, update in updates.items():
        update = update.double()
        squared = float(update @ update)
        inner = (flat[: of.num_tasks] @ update).tolist()
        products += [Product(source, of, value, norms[source], squared) for source, value in enumerate(inner)]
    return products
