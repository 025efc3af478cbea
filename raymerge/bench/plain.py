"""The methods as the published code computes them: one full SVD for every decomposition, in the input's precision.

A yardstick for time, and in float64 for accuracy. Nothing is shared between settings, sets of tasks or matrices.
Every function takes task matrices (tasks, rows, cols), the moments of their inputs, and the parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TaskMatrices = Float[Tensor, "tasks rows cols"]


def weight_averaging(task_matrices: TaskMatrices, moments: Sequence[Tensor]) -> Tensor:
    return task_matrices.sum(dim=0)


def ties(task_matrices: TaskMatrices, moments: Sequence[Tensor], *, keep: float) -> Tensor:
    flat = task_matrices.flatten(start_dim=1)
    size = flat.shape[1]
    thresholds = flat.abs().kthvalue(size - int(size * keep), dim=1, keepdim=True).values
    trimmed = torch.where(flat.abs() >= thresholds, flat, 0)
    signs = trimmed.sum(dim=0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    kept = torch.where(torch.where(signs > 0, trimmed > 0, trimmed < 0), trimmed, 0)
    return (kept.sum(dim=0) / (kept != 0).sum(dim=0).clamp(min=1)).view_as(task_matrices[0])


def consensus_ta(
    task_matrices: TaskMatrices, moments: Sequence[Tensor], *, mask_lambda: float, min_tasks: float
) -> Tensor:
    total = task_matrices.sum(dim=0)
    masks = task_matrices.abs() > mask_lambda * (total - task_matrices).abs()
    return total * (masks.sum(dim=0) >= min_tasks)


def iso_c(task_matrices: TaskMatrices, moments: Sequence[Tensor] = ()) -> Tensor:
    u, s, vh = _svd(task_matrices.sum(dim=0))
    return s.mean() * (u @ vh)


def iso_cts(task_matrices: TaskMatrices, moments: Sequence[Tensor], *, common_space_fraction: float) -> Tensor:
    num_tasks, num_values = len(task_matrices), min(task_matrices.shape[1:])
    left_over = num_values - int(num_values * common_space_fraction)
    num_per_task = min(round(left_over / num_tasks), num_values // num_tasks)
    num_common = num_values - num_per_task * num_tasks
    u, s, vh = _svd(task_matrices.sum(dim=0))
    common = u[:, :num_common]
    triplets = [_svd(matrix - common @ (common.mT @ matrix)) for matrix in task_matrices]
    left = torch.cat([*(u_t[:, :num_per_task] for u_t, _, _ in triplets), common], dim=1)
    right = torch.cat([*(vh_t[:num_per_task] for _, _, vh_t in triplets), vh[:num_common]])
    spectrum = torch.cat([*(s_t[:num_per_task] for _, s_t, _ in triplets), s[:num_common]])
    return spectrum.mean() * (_polar(left) @ _polar(right))


def tsv_m(task_matrices: TaskMatrices, moments: Sequence[Tensor] = ()) -> Tensor:
    num_per_task = min(task_matrices.shape[1:]) // len(task_matrices)
    triplets = [_svd(matrix) for matrix in task_matrices]
    left = torch.cat([u[:, :num_per_task] for u, _, _ in triplets], dim=1)
    right = torch.cat([vh[:num_per_task] for _, _, vh in triplets])
    spectrum = torch.cat([s[:num_per_task] for _, s, _ in triplets])
    return (_polar(left) * spectrum) @ _polar(right)


def scale_svd(task_matrices: TaskMatrices, moments: Sequence[Tensor], *, apply: str, **setting: Any) -> Tensor:
    if apply == "merged":
        return _low_rank_sparse(task_matrices.sum(dim=0), torch.stack(list(moments)).mean(dim=0), **setting)
    parts = (_low_rank_sparse(m, moment, **setting) for m, moment in zip(task_matrices, moments, strict=True))
    return torch.stack(list(parts)).sum(dim=0)


def iso_iasad(task_matrices: TaskMatrices, moments: Sequence[Tensor], *, center: str, **setting: Any) -> Tensor:
    mean = task_matrices.mean(dim=0) * (center != "none")
    parts = [_low_rank_sparse(m - mean, moment, **setting) for m, moment in zip(task_matrices, moments, strict=True)]
    return iso_c(torch.stack(parts) + mean * (center == "restore_mean"))


def spectrum_interpolation(task_matrices: TaskMatrices, moments: Sequence[Tensor] = (), *, beta: float) -> Tensor:
    u, s, vh = _svd(task_matrices.sum(dim=0))
    return (u * ((1 - beta) * s + beta * s.mean())) @ vh


def truncated_iso_c(task_matrices: TaskMatrices, moments: Sequence[Tensor] = (), *, rank_fraction: float) -> Tensor:
    u, s, vh = _svd(task_matrices.sum(dim=0))
    kept = int(len(s) * rank_fraction)
    return s.mean() * (u[:, :kept] @ vh[:kept])


PLAIN: Mapping[str, Callable[..., Tensor]] = {
    "weight-averaging": weight_averaging,
    "task-arithmetic": weight_averaging,
    "ties": ties,
    "consensus-ta": consensus_ta,
    "scale-svd": scale_svd,
    "tsv-m": tsv_m,
    "iso-c": iso_c,
    "iso-cts": iso_cts,
    "iso-iasad": iso_iasad,
    "spectrum-interpolation": spectrum_interpolation,
    "truncated-iso-c": truncated_iso_c,
}


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix, full_matrices=False)


def _polar(matrix: Tensor) -> Tensor:
    u, _, vh = _svd(matrix)
    return u @ vh


def _low_rank_sparse(
    matrix: Tensor, moment: Tensor, *, sparsity: float, rank_ratio: float, num_iters: float, prune_level: str
) -> Tensor:
    """Of inputs along the columns."""
    roots = moment.to(matrix.dtype).sqrt()
    scaled = matrix * roots
    rows, cols = scaled.shape
    rank = int(rank_ratio * (1 - sparsity) * rows * cols / (rows + cols))
    part = (1 - rank_ratio) * (1 - sparsity)
    low_rank, sparse = torch.zeros_like(scaled), torch.zeros_like(scaled)
    for _ in range(int(num_iters)):
        u, s, vh = _svd(scaled - sparse)
        low_rank = (u[:, :rank] * s[:rank]) @ vh[:rank]
        rest = scaled - low_rank
        by_row = rest if prune_level == "row" else rest.reshape(1, -1)
        num_kept = int(part * by_row.shape[1])
        smallest = by_row.abs().topk(num_kept, dim=1).values[:, -1:]
        sparse = torch.where(by_row.abs() >= smallest, by_row, 0).view_as(rest)
    return (low_rank + sparse) / roots
