"""Merging, tensor by tensor: task matrices from mapped checkpoints, through a method, into updates.

An update is what alpha multiplies: theta = theta_0 + alpha * update. Tensors that no expert changed are left out of
it, their update being exactly zero. At most one tensor of every checkpoint is in memory at a time.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from raymerge import __version__
from raymerge.checkpoints import Checkpoint, file_sha256, open_checkpoint
from raymerge.errors import MergeInputError
from raymerge.linalg import check_task_tensors
from raymerge.merge_request import MergeRequest, Output
from raymerge.methods import METHODS
from raymerge.methods._method import Method
from raymerge.records import content_id

Update = dict[str, Tensor]

SHARD_COST = 1e9
MAX_SHARDS = 64
"""Shards depend on the request alone, never on the number of workers, so that cached shards stay valid."""


def is_matrix(name: str, ndim: int) -> bool:
    """Whether the SVD methods treat a tensor as a matrix (the published rule: 2-D and not text_projection)."""
    return ndim == 2 and "text_projection" not in name


def shards_of(request: MergeRequest) -> list[list[str]]:
    """The tensors of the model in groups of similar cost, the costliest first."""
    shapes = open_checkpoint(request.zero_shot).shapes
    uses_svd = METHODS[request.method].matrices == "svd"

    def cost(name: str) -> float:
        shape = shapes[name]
        work = min(shape) if uses_svd and is_matrix(name, len(shape)) else 1
        return float(torch.Size(shape).numel()) * work * len(request.experts)

    wanted = math.ceil(sum(map(cost, shapes)) / SHARD_COST)
    groups: list[list[str]] = [[] for _ in range(min(wanted, MAX_SHARDS, len(shapes)))]
    loads = [0.0] * len(groups)
    for name in sorted(shapes, key=lambda n: (-cost(n), n)):  # longest processing time first
        lightest = loads.index(min(loads))
        groups[lightest].append(name)
        loads[lightest] += cost(name)
    return [group for _, group in sorted(zip(loads, groups, strict=True), key=lambda pair: -pair[0])]


def read_statistics(request: MergeRequest) -> list[Any]:
    """What a flat-vector method must know of the whole task vectors, one entry per output; None when nothing.

    Raises:
        CheckpointError: a file cannot be read.
        MergeInputError: a setting is out of range, or a task vector is not finite, naming the tensor.
    """
    method = METHODS[request.method]
    if method.statistic is None:
        return [None] * len(request.outputs)
    zero_shot, experts = _open(request)
    place = ""

    def passes() -> Iterator[Tensor]:
        nonlocal place
        for name in zero_shot.names:
            place = f"'{name}', "
            yield _task_tensors(name, zero_shot, experts)
        place = ""

    try:
        return [method.statistic(passes, **output.setting) for output in request.outputs]
    except MergeInputError as error:
        raise MergeInputError(f"{place}merged by {request.method}: {error}") from None


def merge_shard(request: MergeRequest, names: Sequence[str], statistics: Sequence[Any]) -> list[Update]:
    """The updates of some tensors, one dict per output of the request.

    Args:
        statistics: of `read_statistics`.
    Raises:
        CheckpointError: a file cannot be read.
        MergeInputError: a task vector is not finite, naming the tensor.
    """
    method = METHODS[request.method]
    zero_shot, experts = _open(request)
    updates: list[Update] = [{} for _ in request.outputs]
    for name in names:
        task_tensors = _task_tensors(name, zero_shot, experts)
        if not task_tensors.any():  # text leftovers: the update is exactly zero, whatever the method
            continue
        try:
            for i, value in enumerate(_merge_tensor(method, name, task_tensors, request.outputs, statistics)):
                updates[i][name] = value
        except MergeInputError as error:
            raise MergeInputError(f"'{name}', merged by {request.method}: {error}") from None
    return updates


def _merge_tensor(
    method: Method,
    name: str,
    task_tensors: Float[Tensor, "tasks ..."],
    outputs: Sequence[Output],
    statistics: Sequence[Any],
) -> Iterator[Tensor]:
    averaged = method.matrices == "svd" and not is_matrix(name, task_tensors.ndim - 1)
    factors = None
    for output, statistic in zip(outputs, statistics, strict=True):
        extra = {} if statistic is None else {"statistic": statistic}
        if output.task is not None:
            assert method.task_update is not None, f"{method.name} has no update per task"
            yield method.task_update(task_tensors, output.task, **output.setting, **extra)
        elif averaged:
            check_task_tensors(task_tensors)
            yield task_tensors.mean(dim=0)
        else:
            assert method.merge is not None, f"{method.name} does not merge"
            if factors is None:
                factors = method.factorise(task_tensors) if method.factorise else task_tensors
            yield method.merge(factors, **output.setting, **extra)


def _open(request: MergeRequest) -> tuple[Checkpoint, list[Checkpoint]]:
    return open_checkpoint(request.zero_shot), [open_checkpoint(path) for path in request.experts]


def _task_tensors(name: str, zero_shot: Checkpoint, experts: Sequence[Checkpoint]) -> Float[Tensor, "tasks ..."]:
    base = zero_shot.tensor(name).float()
    return torch.stack([expert.tensor(name).float() - base for expert in experts])


def cached_merge_shard(
    request: MergeRequest, hashes: Sequence[str], shard: int, statistics: Sequence[Any] | None, folder: Path
) -> list[Update]:
    """`merge_shard` of shard number `shard`, read from `folder` when an earlier run computed it.

    Single tasks' updates are not kept: they are as cheap to compute as to read.

    Args:
        hashes: SHA-256 of the zero-shot checkpoint and of every expert, in order.
        statistics: None when `has_cached` said that they are not needed.
        folder: the merge cache; safe to delete at any time.
    """
    paths = [_cache_path(request, hashes, output, shard, folder) for output in request.outputs]
    found = [None if path is None else _read_cached(path) for path in paths]
    missing = [i for i, update in enumerate(found) if update is None]
    if missing:
        if statistics is None:  # the cache was complete a moment ago; somebody is deleting it
            statistics = read_statistics(request)
        todo = replace(request, outputs=tuple(request.outputs[i] for i in missing))
        updates = merge_shard(todo, shards_of(request)[shard], [statistics[i] for i in missing])
        for i, update in zip(missing, updates, strict=True):
            found[i] = update
            if (path := paths[i]) is not None:
                _write_cached(path, update)
    return [update for update in found if update is not None]


def has_cached(request: MergeRequest, hashes: Sequence[str], folder: Path) -> bool:
    """Whether every shard of every output is in the cache, so that no statistic is needed."""
    shards = range(len(shards_of(request)))
    paths = [_cache_path(request, hashes, output, shard, folder) for output in request.outputs for shard in shards]
    return all(path is not None and path.is_file() for path in paths)


def merge_key(request: MergeRequest, hashes: Sequence[str], setting: Mapping[str, Any]) -> str:
    """Content id of a merged update: checkpoints x tasks x method x structural parameters, and our own code."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in setting.items()}
    return content_id([_code_version(), list(hashes), request.method, values], length=32)


def _cache_path(request: MergeRequest, hashes: Sequence[str], output: Output, shard: int, folder: Path) -> Path | None:
    if output.task is not None:
        return None
    return folder / merge_key(request, hashes, output.setting) / f"{shard}.safetensors"


@cache
def _code_version() -> str:
    """Changes with every line that merging runs through: a cached update must never outlive a fixed bug."""
    package = Path(__file__).parent
    files = [Path(__file__), package / "linalg.py", package / "checkpoints.py", *(package / "methods").glob("*.py")]
    digest = hashlib.sha256(__version__.encode())
    for file in sorted(files):
        digest.update(file_sha256(file).encode())
    return digest.hexdigest()


def _read_cached(path: Path) -> Update | None:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        return None
    except (safetensors.SafetensorError, OSError):  # torn by a full disk or by hand: compute it again
        return None


def _write_cached(path: Path, update: Update) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({name: value.contiguous() for name, value in update.items()}, temporary)
        temporary.replace(path)
    except (safetensors.SafetensorError, OSError):  # a full disk costs the cache, not the sweep
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
