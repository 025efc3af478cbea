"""Whole models merged in memory, in float64, by the rules of `reference`; nothing of `raymerge` is imported."""

from collections.abc import Mapping, Sequence
from typing import Any

import reference
import torch
from torch import Tensor

SVD_METHODS = {
    "tsv-m": reference.tsv_m,
    "iso-c": reference.iso_c,
    "iso-cts": reference.iso_cts,
    "spectrum-interpolation": reference.spectrum_interpolation,
    "truncated-iso-c": reference.truncated_iso_c,
}


def task_vectors(zero_shot: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """theta_t - theta_0 of every tensor, (tasks, ...) in float64, subtracted in float32 as published."""
    return {
        name: torch.stack([expert[name].float() - value.float() for expert in experts]).double()
        for name, value in zero_shot.items()
    }


def merged_update(
    method: str,
    deltas: Mapping[str, Tensor],
    params: Mapping[str, Any] | None = None,
    moments: Sequence[Mapping[str, Tensor]] = (),
) -> dict:
    """What alpha multiplies, for every tensor of the model."""
    params = params or {}
    if method in ("scale-svd", "iso-iasad"):
        return {name: _low_rank_sparse(method, name, value, params, moments) for name, value in deltas.items()}
    if method in ("weight-averaging", "task-arithmetic"):
        return {name: value.sum(dim=0) for name, value in deltas.items()}
    if method == "ties":
        return _unflattened(reference.ties(_flattened(deltas), params["keep"]), deltas)
    if method == "consensus-ta":
        flat = _flattened(deltas)
        lambdas = params["mask_lambda"]
        lambdas = [lambdas] * len(flat) if isinstance(lambdas, float) else list(lambdas)
        zero = torch.zeros_like(flat[0])
        return _unflattened(reference.consensus_ta(zero, flat, lambdas, params["min_tasks"]), deltas)
    merge = SVD_METHODS[method]
    return {
        name: merge(value, *params.values()) if value.ndim == 3 and "text_projection" not in name else value.mean(dim=0)
        for name, value in deltas.items()
    }


def _low_rank_sparse(
    method: str, name: str, deltas: Tensor, params: Mapping[str, Any], moments: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    if deltas.ndim != 3 or "text_projection" in name or not deltas.any():
        return deltas.sum(dim=0) if method == "scale-svd" else deltas.mean(dim=0)
    setting = [params["sparsity"], params["rank_ratio"], int(params["num_iters"]), params["prune_level"]]
    own = [task[name] for task in moments]
    if method == "scale-svd":
        return reference.scale_svd(deltas, own, params["apply"], *setting)
    return reference.iso_iasad(deltas, own, params["center"], *setting)


def tall_mask_update(deltas: Mapping[str, Tensor], task: int, mask_lambda: float) -> dict[str, Tensor]:
    """What consensus-ta shows to one task while the task chooses its lambda."""
    flat = _flattened(deltas)
    mask = reference.tall_masks(torch.zeros_like(flat[0]), flat, [mask_lambda] * len(flat))[task]
    return _unflattened(flat.sum(dim=0) * mask, deltas)


def _flattened(deltas: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([deltas[name].reshape(len(deltas[name]), -1) for name in sorted(deltas)], dim=1)


def _unflattened(flat: Tensor, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = flat.split([deltas[name][0].numel() for name in sorted(deltas)])
    return {name: part.reshape(deltas[name].shape[1:]) for name, part in zip(sorted(deltas), parts, strict=True)}
