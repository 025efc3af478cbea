"""One writer per output folder: the lock of a file where files can be locked, a lease everywhere else."""

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

from raymerge.errors import OutputError
from raymerge.folder import Folder, Location, reason
from raymerge.lease import Holder, Lease, lease_holder

LOCK = ".lock"
PATIENCE_S = 0.5
"""How long a lock is tried: whoever asks for the `holder` has it for a moment."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@runtime_checkable
class OutputLock(Protocol):
    def check(self, *, look: bool = False) -> None:
        """Raises OutputError once the lock is lost; at the latest a heartbeat later, or now if told to look."""
        ...

    def release(self) -> None:
        """Let others write. Releasing twice is no error."""
        ...


def lock_output(folder: Folder) -> OutputLock:
    """Make the folder and become the one who writes to it.

    Raises:
        OutputError: another driver writes there; the message says which.
        OSError: the filesystem refused.
    """
    if (local := folder.local) is None:
        folder.make()
        return Lease(folder)
    local.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return Lease(folder)


def holder(location: Location) -> Holder | None:
    """Who writes to a folder now, None if nobody does. Creates nothing, waits for nothing.

    Raises:
        OutputError: the folder cannot be read.
    """
    folder = Folder.at(location)
    try:
        found = None if folder.local is None else _lock_holder(folder.local / LOCK)
        return found or lease_holder(folder)
    except OSError as error:
        raise OutputError(f"{folder.name}: cannot be read ({reason(error)}).") from None


class FileLock:
    """Held from the constructor to `release`. It belongs to the process, so its death frees it."""

    def __init__(self, folder: Folder):
        """Lock the folder.

        Raises:
            OutputError: another driver has.
            OSError: the filesystem refused, or has no locks.
        """
        path = Path(folder.root) / LOCK
        self._release = threading.Lock()
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not self._lock():
                found = _read_holder(self._descriptor)
                raise OutputError(
                    f"{folder.name}: another sweep is writing there ({found}). Wait for it, stop it, or choose another "
                    "--output."
                )
        except BaseException:
            os.close(self._descriptor)
            raise
        with contextlib.suppress(OSError):  # on a full disk, for one: who holds it remains unknown
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(asdict(Holder.here())).encode() + b"\n", 0)

    def _lock(self) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
            time.sleep(0.05)

    def check(self, *, look: bool = False) -> None:
        """Held for as long as the process lives."""

    def release(self) -> None:
        """Releasing twice is no error."""
        with self._release:
            if self._descriptor is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
                os.close(self._descriptor)
                self._descriptor = None


def _lock_holder(path: Path) -> Holder | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _read_holder(descriptor)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    finally:
        os.close(descriptor)


def _read_holder(descriptor: int) -> Holder:
    try:
        return Holder.from_dict(json.loads(os.pread(descriptor, 10_000, 0)))
    except (OSError, ValueError):
        return Holder()
