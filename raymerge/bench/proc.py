"""Processes and their memory, as the kernel knows them. Linux only."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path


def has_proc() -> bool:
    return Path("/proc/self/status").is_file()


def memory_of(pid: int) -> dict[str, int]:
    """Bytes by the names of /proc/PID/status; empty once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("VmRSS", "Rss", "VmHWM", "VmData")))
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in fields}


def child_named(name: str) -> int | None:
    """The process of that name which this process started, if there is one."""
    return next((pid for pid, own, parent in _processes() if own == name and parent == os.getpid()), None)


def below(roots: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Id and command line of every process that descends from some."""
    children: dict[int, list[int]] = {}
    for pid, _, parent in _processes():
        children.setdefault(parent, []).append(pid)
    todo = list(roots)
    while todo:
        for pid in children.get(todo.pop(), []):
            todo.append(pid)
            try:
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue


def kill(pid: int) -> None:
    """End a process at once, if it has not ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _processes() -> Iterator[tuple[int, str, int]]:
    """Id, name and parent of every process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state parent ...", and a name may hold blanks
            head, _, tail = path.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        yield int(path.parent.name), head.partition("(")[2], int(tail.split()[1])
