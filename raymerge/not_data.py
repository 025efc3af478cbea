"""What a file may be instead of the data that it should hold, told by its first bytes."""

from pathlib import Path

PICKLE_START = b"\x80"
_BEGINNINGS = {
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "a web page",
    b"version https://git-lfs": "the pointer of a large file, not the file",
}


def not_data(path: Path) -> str | None:
    """What the file is, where it is one of the things that downloads give instead; None: something else."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        return "empty"
    return next((what for beginning, what in _BEGINNINGS.items() if start.startswith(beginning)), None)
