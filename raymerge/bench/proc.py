"""Memory of processes, as the kernel counts it. Linux only."""

import os
from pathlib import Path


def has_proc() -> bool:
    return Path("/proc/self/status").is_file()


def memory_of(pid: int) -> dict[str, int]:
    """Bytes by the names of /proc/PID/status; empty once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("VmRSS", "Rss", "VmHWM")))
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in fields}


def child_named(name: str) -> int | None:
    """The process of that name which this process started, if there is one."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # "pid (name) state parent ...", and a name may hold blanks
            head, _, tail = (folder / "stat").read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        if head.partition("(")[2] == name and int(tail.split()[1]) == os.getpid():
            return int(folder.name)
    return None
