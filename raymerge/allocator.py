"""The C library's allocator, told to keep what a batch frees for the next batch.

glibc gives large blocks back to the system when they are freed, and every forward pass asks for the same ones again:
the system then has to clear them, page by page. That took up to a quarter of the time of an evaluation on a CPU, in
some processes and not in others, as it depends on what was allocated before (docs/performance.md).
"""

import contextlib
import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""
KEPT = 2**31 - 1
"""Bytes at the end of the heap that are kept, at most."""


@cache
def keep_freed_memory() -> bool:
    """From now on blocks of any size come from the heap of this process and stay there. Returns whether that is so.

    On systems with another allocator nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))


def give_freed_memory_back() -> None:
    """What is kept goes back to the system this once, for those who do not ask the heap: threads, generated code."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
