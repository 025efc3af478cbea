"""What a converted file says of what it was made of, and whether that is still so.

Its metadata list the sources with their sizes and hashes, and the file has the newest source's time of modification:
so a source that has changed is seen without reading it, and one that was only touched is recognised by its content.
"""

import json
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from raymerge.checkpoints import Checkpoint, file_sha256
from raymerge.errors import CheckpointError
from raymerge.suites.published import has_time_of

CONVERSION = "1"
"""Version of what is written; files of another one are written again."""
MADE_BY, MADE_FROM, SOURCES = "raymerge.conversion", "raymerge.made_from", "raymerge.sources"
"""Metadata: the version, the format of the source, and a JSON list of {file, bytes, sha256}."""


def describe(made_from: str, sources: Mapping[Path, str]) -> dict[str, str]:
    """The metadata of a file that is made of some sources.

    Args:
        sources: a label for each, which is the same wherever the files lie.
    """
    listed = [
        {"file": label, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path, label in sources.items()
    ]
    return {"format": "pt", MADE_BY: CONVERSION, MADE_FROM: made_from, SOURCES: json.dumps(listed)}


def is_up_to_date(target: Path, sources: Sequence[Path], names: Set[str]) -> bool:
    """Whether a converted file is there, whole, of these sources as they are now, and has tensors of these names."""
    metadata = metadata_of(target)
    if not metadata or set(Checkpoint(target).names) != names or not is_made_of(metadata, sources, full=False):
        return False
    if has_time_of(target, max(sources, key=_time)):
        return True
    if not is_made_of(metadata, sources, full=True):
        return False
    take_time(target, sources)  # they were only touched, or copied
    return True


def is_made_of(metadata: Mapping[str, str], sources: Sequence[Path], *, full: bool) -> bool:
    """Whether the metadata of a converted file describe these sources as they are now.

    Args:
        full: compare their content, not only their number and sizes.
    """
    recorded = sources_in(metadata)
    if metadata.get(MADE_BY) != CONVERSION or len(recorded) != len(sources):
        return False
    return all(
        entry["bytes"] == path.stat().st_size and (not full or entry["sha256"] == file_sha256(path))
        for entry, path in zip(recorded, sources, strict=True)
    )


def sources_in(metadata: Mapping[str, str]) -> list[Mapping]:
    """The recorded sources; empty where there are none, or they are of another form."""
    try:
        recorded = json.loads(metadata.get(SOURCES, "[]"))
        return recorded if all({"file", "bytes", "sha256"} <= entry.keys() for entry in recorded) else []
    except (ValueError, TypeError, AttributeError):
        return []


def metadata_of(target: Path) -> Mapping[str, str]:
    """The metadata of a converted file; empty where there is none, or it is damaged."""
    try:
        return Checkpoint(target).metadata()
    except CheckpointError:
        return {}


def take_time(target: Path, sources: Sequence[Path]) -> None:
    """Give a file the time of modification of what it was made of."""
    newest = max(map(_time, sources))
    os.utime(target, ns=(newest, newest))


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns
