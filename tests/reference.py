"""The published algorithms once more, for tests: float64, whole vectors in memory, full SVDs, nothing shared.

Written from the papers and kept apart from `raymerge`, of which nothing is imported. Task vectors come as a tensor
(tasks, rows, cols) for the SVD methods and (tasks, N) for the flat-vector methods.
"""

import math

import numpy as np
import torch
from torch import Tensor


def iso_c(deltas: Tensor) -> Tensor:
    u, s, v = _svd(_numpy(deltas).sum(axis=0))
    return torch.from_numpy(u @ np.diag(np.full(len(s), s.mean())) @ v)


def spectrum_interpolation(deltas: Tensor, beta: float) -> Tensor:
    u, s, v = _svd(_numpy(deltas).sum(axis=0))
    return torch.from_numpy(u @ np.diag((1 - beta) * s + beta * s.mean()) @ v)


def truncated_iso_c(deltas: Tensor, fraction: float) -> Tensor:
    u, s, v = _svd(_numpy(deltas).sum(axis=0))
    kept = math.floor(len(s) * fraction + 1e-9)
    flat = np.where(np.arange(len(s)) < kept, s.mean(), 0.0)
    return torch.from_numpy(u @ np.diag(flat) @ v)


def iso_cts_sizes(r: int, num_tasks: int, fraction: float) -> tuple[int, int]:
    """Size of the common and of one task-specific subspace."""
    specific = round((r - int(r * fraction)) / num_tasks) * num_tasks
    specific = min(specific, math.floor(r / num_tasks) * num_tasks)
    return r - specific, specific // num_tasks


def iso_cts(deltas: Tensor, fraction: float) -> Tensor:
    deltas_ = _numpy(deltas)
    num_tasks, rows, cols = deltas_.shape
    r = min(rows, cols)
    k, per_task = iso_cts_sizes(r, num_tasks, fraction)
    u, s, v = _svd(deltas_.sum(axis=0))
    left, sigma, right = np.zeros((rows, r)), np.zeros(r), np.zeros((r, cols))
    for t in range(num_tasks):
        rest = deltas_[t] - u[:, :k] @ u[:, :k].T @ deltas_[t]
        ut, st, vt = _svd(rest)
        at = slice(t * per_task, (t + 1) * per_task)
        left[:, at], sigma[at], right[at] = ut[:, :per_task], st[:per_task], vt[:per_task]
    left[:, r - k :], sigma[r - k :], right[r - k :] = u[:, :k], s[:k], v[:k]
    return torch.from_numpy(sigma.mean() * _polar(left) @ _polar(right))


def tsv_m(deltas: Tensor) -> Tensor:
    deltas_ = _numpy(deltas)
    num_tasks, rows, cols = deltas_.shape
    r = min(rows, cols)
    per_task = int(r / num_tasks)
    left, sigma, right = np.zeros((rows, r)), np.zeros(r), np.zeros((r, cols))
    for t in range(num_tasks):
        ut, st, vt = _svd(deltas_[t])
        at = slice(t * per_task, (t + 1) * per_task)
        left[:, at], sigma[at], right[at] = ut[:, :per_task], st[:per_task], vt[:per_task]
    return torch.from_numpy(_polar(left) @ np.diag(sigma) @ _polar(right))


def low_rank_plus_sparse(
    matrix: Tensor, moment: Tensor, sparsity: float, rank_ratio: float, num_iters: int, prune_level: str
) -> Tensor:
    """One full SVD per iteration. `moment` is (1, cols) or (rows, 1)."""
    if moment.shape[0] != 1:
        return low_rank_plus_sparse(matrix.T, moment.T, sparsity, rank_ratio, num_iters, prune_level).T
    scale = np.sqrt(_numpy(moment))[0]
    scaled = _numpy(matrix) @ np.diag(scale)
    m, n = scaled.shape
    dense = rank_ratio * (1 - sparsity)
    rank = max(int(dense * m * n / (m + n)), 1 if dense > 0 else 0)
    part = (1 - rank_ratio) * (1 - sparsity)
    sparse = np.zeros_like(scaled)
    for _ in range(num_iters):
        u, s, v = _svd(scaled - sparse)
        low_rank = u[:, :rank] @ np.diag(s[:rank]) @ v[:rank]
        rest = scaled - low_rank
        sparse = np.zeros_like(scaled)
        if prune_level == "row":
            for i in range(m):
                kept = np.argsort(-np.abs(rest[i]), kind="stable")[: int(part * n)]
                sparse[i, kept] = rest[i, kept]
        else:
            kept = np.argsort(-np.abs(rest.ravel()), kind="stable")[: int(part * m * n)]
            sparse.ravel()[kept] = rest.ravel()[kept]
    return torch.from_numpy((low_rank + sparse) @ np.diag(1 / scale))


def scale_svd(deltas: Tensor, moments: list[Tensor], apply: str, *setting: float | int | str) -> Tensor:
    if apply == "merged":
        return low_rank_plus_sparse(deltas.double().sum(dim=0), torch.stack(moments).double().mean(dim=0), *setting)
    return sum(low_rank_plus_sparse(delta, moment, *setting) for delta, moment in zip(deltas, moments, strict=True))


def iso_iasad(deltas: Tensor, moments: list[Tensor], center: str, *setting: float | int | str) -> Tensor:
    deltas = deltas.double()
    mean = deltas.mean(dim=0) * (center != "none")
    parts = [low_rank_plus_sparse(d - mean, moment, *setting) for d, moment in zip(deltas, moments, strict=True)]
    if center == "restore_mean":
        parts = [part + mean for part in parts]
    return iso_c(torch.stack(parts))


def ties(flat: Tensor, keep: float) -> Tensor:
    num_tasks, n = flat.shape
    trimmed = flat.clone()
    if keep < 1:
        for t in range(num_tasks):
            threshold = flat[t].abs().kthvalue(n - int(n * keep)).values
            trimmed[t][flat[t].abs() < threshold] = 0
    elected = trimmed.double().sum(dim=0).sign()
    elected[elected == 0] = elected.sum().sign()
    merged = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        column = [float(value) for value in trimmed[:, i]]
        kept = [value for value in column if (value > 0 if elected[i] > 0 else value < 0)]
        merged[i] = sum(kept) / max(len(kept), 1)
    return merged


def tall_masks(zero_shot: Tensor, experts: Tensor, mask_lambda: list[float]) -> Tensor:
    """From the weights themselves, as published. (tasks, ...) of bool."""
    multi_task = (experts - zero_shot).sum(dim=0)
    return torch.stack(
        [
            (zero_shot - expert).abs() > lam * (zero_shot + multi_task - expert).abs()
            for expert, lam in zip(experts, mask_lambda, strict=True)
        ]
    )


def consensus_ta(zero_shot: Tensor, experts: Tensor, mask_lambda: list[float], min_tasks: int) -> Tensor:
    agreement = tall_masks(zero_shot, experts, mask_lambda).sum(dim=0)
    return (experts - zero_shot).sum(dim=0) * (agreement >= min_tasks)


def _svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin, by torch: numpy's is many times slower where its BLAS knows the processor badly."""
    u, s, vh = torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)
    return u.numpy(), s.numpy(), vh.numpy()


def _polar(matrix: np.ndarray) -> np.ndarray:
    u, _, v = _svd(matrix)
    return u @ v


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()
