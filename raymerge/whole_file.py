"""Files that are absent or whole: a file gets its name once its content is on the disk."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from io import BufferedRandom
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def whole_file(path: Path, on_complete: Callable[[], None] = lambda: None) -> Iterator[BufferedRandom]:
    """A file to write, and to read again, that becomes `path` in one step, or goes away if the block fails.

    A reader, or a crash at any point, sees the old file or the new one.

    Args:
        path: in a folder that exists.
        on_complete: called when everything is on the disk and only the name is missing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        on_complete()
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """mkdir -p whose new entries survive a power cut."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


@contextlib.contextmanager
def made_directory(path: Path) -> Iterator[None]:
    """`make_directory`; if the block fails, what was made is removed again, unless something is in it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        make_directory(path)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


def sync_directory(path: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
