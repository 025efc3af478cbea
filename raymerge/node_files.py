"""Which of a sweep's files a machine has, and whether they are the same everywhere. No ray here.

Machines need not share a file system. A copy is recognised by its size and three blocks of it: enough to tell another
version or half a copy, and as cheap for 20 GB of checkpoints as for one. Every byte is read once, by `preflight`.
"""

import hashlib
import importlib.metadata
import platform
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raymerge.records import SPLITS
from raymerge.suites import Suite, moments_path

BLOCK = 65536
PACKAGES = ("raymerge", "torch", "open_clip_torch")
"""Whose versions decide numbers. Ray itself refuses nodes with another Ray or Python."""


@dataclass(frozen=True)
class NodeFiles:
    """What one machine has of a sweep's files."""

    host: str
    merging: Mapping[str, str | None]
    """Of what merges read, by path: a print of the content, None where the file is missing."""
    evaluating: Mapping[str, str | None]
    """Of what evaluators read."""
    versions: Mapping[str, str]
    devices: tuple[str, ...] = ()
    """GPUs, by name."""


@dataclass(frozen=True)
class Comparison:
    """Machines, by id: which can do what."""

    complete: tuple[str, ...]
    """Those that have every file, all alike."""
    no_merging: Mapping[str, str]
    """Why others cannot merge."""
    no_evaluating: Mapping[str, str]
    """Why others cannot evaluate."""


def survey(suite: Suite, tasks: Mapping[str, Sequence[str]], moments: Path | None = None) -> NodeFiles:
    """Look at this machine.

    Args:
        tasks: the tasks in use, by backbone.
        moments: folder of input moments, where a method needs them.
    """
    import torch  # whoever only compares need not wait for it

    merging, evaluating = list(_read_by_merges(suite, tasks, moments)), list(_read_by_evaluators(suite, tasks))
    prints = {path: _print(path) for path in {*merging, *evaluating}}
    return NodeFiles(
        host=socket.gethostname(),
        merging={str(path): prints[path] for path in merging},
        evaluating={str(path): prints[path] for path in evaluating},
        versions={name: _version(name) for name in PACKAGES} | {"machine": platform.machine()},
        devices=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
    )


def compare(surveys: Mapping[str, NodeFiles], preferred: str, reference: NodeFiles | None = None) -> Comparison:
    """Compare machines with the largest group of those that have everything, or with `reference`.

    Args:
        surveys: by id of the machine, at least one.
        preferred: the one whose files count where groups are equally large, and where no machine has everything; it
            may be none of them.
    """
    if reference is None:
        complete = {name: found for name, found in surveys.items() if _missing(found) is None}
        sizes = Counter(_identity(found) for found in complete.values())
        fallback = preferred if preferred in surveys else next(iter(surveys))
        chosen = max(complete, key=lambda name: (sizes[_identity(surveys[name])], name == preferred), default=fallback)
        reference = surveys[chosen]
    no_merging = {name: why for name, found in surveys.items() if (why := _difference(found, reference, "merging"))}
    no_evaluating = {
        name: why for name, found in surveys.items() if (why := _difference(found, reference, "evaluating"))
    }
    bad = no_merging.keys() | no_evaluating.keys()
    return Comparison(tuple(name for name in surveys if name not in bad), no_merging, no_evaluating)


def _read_by_merges(suite: Suite, tasks: Mapping[str, Sequence[str]], moments: Path | None) -> Iterator[Path]:
    for backbone, names in tasks.items():
        yield suite.zero_shot_path(backbone)
        for task in names:
            yield suite.expert_path(backbone, task)
            if moments is not None:
                yield moments_path(moments, backbone, task)


def _read_by_evaluators(suite: Suite, tasks: Mapping[str, Sequence[str]]) -> Iterator[Path]:
    for backbone, names in tasks.items():
        yield suite.zero_shot_path(backbone)
        for task in names:
            yield suite.head_path(backbone, task)
    for task in dict.fromkeys(task for names in tasks.values() for task in names):
        for split in SPLITS:
            yield suite.images_path(task, split)


def _print(path: Path) -> str | None:
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - BLOCK)):
                file.seek(start)
                digest.update(file.read(BLOCK))
    except OSError:
        return None
    return digest.hexdigest()[:32]


def _missing(found: NodeFiles) -> str | None:
    prints = {**found.merging, **found.evaluating}
    return next((path for path, content in prints.items() if content is None), None)


def _identity(found: NodeFiles) -> tuple[object, ...]:
    return tuple(sorted({**found.merging, **found.evaluating}.items())), tuple(sorted(found.versions.items()))


def _difference(found: NodeFiles, reference: NodeFiles, job: str) -> str | None:
    """Why a machine cannot do the same job as the reference."""
    mine, theirs = getattr(found, job), getattr(reference, job)
    missing = [path for path in mine if mine[path] is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"{missing[0]}{more} {'is' if len(missing) == 1 else 'are'} missing there"
    if path := next((path for path in mine if mine[path] != theirs.get(path)), None):
        return f"{path} is another file there than on {reference.host}"
    for name, version in found.versions.items():
        if version != reference.versions.get(name):
            return f"{name} is {version} there, and {reference.versions.get(name)} on {reference.host}"
    return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
