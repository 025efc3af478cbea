"""Who writes to an output folder where files cannot be locked: a small file that its owner renews.

    <output>/.lease.json     id, host, pid and since of the driver, machine, renewed_at

The last writer of the file owns the folder. Whoever wants it writes the file, waits, and reads whether it is still its
own; the owner looks before it renews, and stops when the file is not its own any more. Times are of wall clocks; a
clock that is wrong makes a driver wait, or watch in vain, but two drivers write at most for one heartbeat.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raymerge.errors import OutputError
from raymerge.folder import Folder, reason

LEASE = ".lease.json"
HEARTBEAT_S = 20.0
STALE_S = 90.0
"""A lease that was not renewed for so long is nobody's."""
WATCH_S = 25.0
"""A lease that looks stale is watched for so long before it is taken: the other clock may be wrong."""
SETTLE_S = 2.0
"""Between writing a lease and reading who was last."""


@dataclass(frozen=True)
class Holder:
    """A driver that writes to a folder. None where that is not known."""

    host: str | None = None
    pid: int | None = None
    since: str | None = None
    """Time in UTC, ISO 8601."""

    @classmethod
    def here(cls) -> "Holder":
        return cls(platform.node(), os.getpid(), now())

    @classmethod
    def from_dict(cls, value: Any) -> "Holder":
        known = value if isinstance(value, Mapping) else {}
        return cls(known.get("host"), known.get("pid"), known.get("since"))

    def __str__(self) -> str:
        if self.pid is None:
            return "an unknown process"
        return f"process {self.pid} on {self.host}, since {self.since}"


class Lease:
    """Held from the constructor to `release`, if nobody takes it; renewed by a thread."""

    def __init__(self, folder: Folder):
        """Take the lease.

        Raises:
            OutputError: another driver holds it.
            OSError: the filesystem refused.
        """
        self._folder = folder
        self._id = uuid.uuid4().hex
        self._holder = Holder.here()
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._keep, name="raymerge-lease", daemon=True)
        self._thread.start()

    def check(self, *, look: bool = False) -> None:
        """Return if the lease is still held.

        Args:
            look: at the lease itself, instead of relying on the last heartbeat.

        Raises:
            OutputError: it is not.
        """
        if self._lost is None and (look or time.time() - self._renewed > STALE_S):
            self._renew()  # this process slept, or the network was away: others may have been here
        if self._lost is not None:
            raise OutputError(self._lost)

    def release(self) -> None:
        """Remove the lease if it is held. Releasing twice is no error."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        with self._lock:
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_own(read(self._folder)):
                self._folder.delete(LEASE)

    def _take(self) -> None:
        before = read(self._folder)
        if before is not None:
            if not _is_dead(before):
                raise refusal(self._folder, before)
            if not _is_gone(before):
                time.sleep(WATCH_S)
                if (after := read(self._folder)) is not None and after != before:
                    raise refusal(self._folder, after)
        try:
            self._write()
            time.sleep(SETTLE_S)
        except BaseException:
            self._remove()
            raise
        after = read(self._folder)
        if not self._is_own(after):
            raise refusal(self._folder, after)

    def _keep(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self._renew()
            if self._lost is not None:
                return

    def _renew(self) -> None:
        with self._lock:
            try:
                found = read(self._folder)
                if self._is_own(found):
                    self._write()
                    return
            except OSError as error:
                if time.time() - self._renewed > STALE_S:
                    self._lost = (
                        f"{self._folder.name}: could not be reached for {STALE_S:.0f} s ({reason(error)}), so that "
                        "another sweep may write there now. Start the same sweep again; what was saved is kept."
                    )
                return
            who = "its lease is gone" if found is None else f"{Holder.from_dict(found)} writes there now"
            self._lost = (
                f"{self._folder.name}: {who}, so this sweep has stopped writing. Let only one of them run; what was "
                "saved is kept."
            )

    def _write(self) -> None:
        written = time.time()
        lease = {"id": self._id, **asdict(self._holder), "machine": _machine(), "renewed_at": now()}
        self._folder.write(LEASE, json.dumps(lease, indent=2).encode() + b"\n")
        self._renewed = written

    def _is_own(self, lease: Mapping[str, Any] | None) -> bool:
        return lease is not None and lease.get("id") == self._id


def read(folder: Folder) -> dict[str, Any] | None:
    """The lease of a folder, held or not; None where there is none that can be read."""
    try:
        lease = json.loads(folder.read(LEASE) or b"null")
    except ValueError:
        return None
    return lease if isinstance(lease, dict) else None


def lease_holder(folder: Folder) -> Holder | None:
    """Who writes now."""
    lease = read(folder)
    return None if lease is None or _is_dead(lease) else Holder.from_dict(lease)


def refusal(folder: Folder, lease: Mapping[str, Any] | None) -> OutputError:
    """What a second driver is told."""
    left = 0.0 if lease is None else STALE_S - _age_s(lease)
    dead = f" If that process is dead, the folder is free in {left:.0f} s." if left > 0 else ""
    return OutputError(
        f"{folder.name}: another sweep is writing there ({Holder.from_dict(lease)}). Wait for it, stop it, or choose "
        f"another --output.{dead}"
    )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_dead(lease: Mapping[str, Any]) -> bool:
    return _age_s(lease) > STALE_S or _is_gone(lease)


def _is_gone(lease: Mapping[str, Any]) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    if _machine() is None or lease.get("machine") != _machine():
        return False
    try:
        os.kill(int(lease["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        pass
    return False


def _age_s(lease: Mapping[str, Any]) -> float:
    try:
        return time.time() - datetime.fromisoformat(lease["renewed_at"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return float("inf")


def _machine() -> str | None:
    """Where process ids mean the same; None where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None
