"""Merged updates kept on disk by content: what was merged once is read from there, on any later day.

A cached shard is named by the bytes of the checkpoints, the method, the setting and the code that merges, so it never
has to be invalidated. The folder may be deleted at any time.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch

from raymerge import __version__
from raymerge.checkpoints import file_sha256
from raymerge.merge_request import MergeRequest, Output
from raymerge.merging import Update, merge_shard, of_tasks, read_statistics, shards_of, use_of
from raymerge.methods import METHODS
from raymerge.records import content_id


def cached_merge_shard(
    request: MergeRequest, hashes: Sequence[str], shard: int, statistics: Sequence[Any] | None, folder: Path
) -> list[Update]:
    """`merge_shard` of shard number `shard`, read from `folder` when an earlier run computed it.

    Single tasks' updates are not kept: they are as cheap to compute as to read.

    Args:
        hashes: SHA-256 of the zero-shot checkpoint, of every expert, and of every file of moments, in order.
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


def merge_key(request: MergeRequest, hashes: Sequence[str], output: Output) -> str:
    """Content id of a merged update: checkpoints x tasks x method x structural parameters, and our own code.

    What else is planned is part of it for methods whose outputs share work, because it may decide the last bit.
    """
    method, num_tasks = METHODS.declaration(request.method), len(request.experts)
    zero_shot, *experts = hashes[: 1 + num_tasks]
    models = [
        zero_shot,
        *of_tasks(experts, output.tasks),
        *of_tasks(hashes[1 + num_tasks :], output.tasks if method.moments else None),
    ]
    planned = []
    if method.plans or method.task_factors is not None:
        uses = [use_of(other, num_tasks) for other in request.planned]
        planned = sorted({content_id([use.num_tasks, _jsonable(use.setting)]) for use in uses})
    return content_id([code_version(), models, request.method, _jsonable(output.setting), planned], length=32)


def _jsonable(setting: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in setting.items()}


def _cache_path(request: MergeRequest, hashes: Sequence[str], output: Output, shard: int, folder: Path) -> Path | None:
    if output.task is not None:
        return None
    return folder / merge_key(request, hashes, output) / f"{shard}.safetensors"


@cache
def code_version() -> str:
    """Changes with every line that merging runs through: a cached update must never outlive a fixed bug."""
    package = Path(__file__).parent
    files = [
        Path(__file__),
        package / "merging.py",
        package / "checkpoints.py",
        *package.glob("linalg*.py"),
        *package.glob("methods/*.py"),
    ]
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
