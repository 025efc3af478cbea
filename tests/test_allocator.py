"""Memory that was freed stays in the process: counted by the system, in a process of its own."""

import subprocess
import sys

import pytest

from raymerge.allocator import keep_freed_memory

SCRIPT = """
import resource
import torch
from raymerge.allocator import give_freed_memory_back, keep_freed_memory

torch.set_num_threads(1)

def faults(block_mb):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(block_mb * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

sizes = (1, 40, 200)
before = [faults(size) for size in sizes]
kept = keep_freed_memory()
for size in sizes:
    faults(size)  # the heap grows
after = sum(faults(size) for size in sizes)
give_freed_memory_back()
print(kept, sum(before), after, faults(200))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what glibc does")
def test_large_blocks_are_used_again():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, before, after, given_back = done.stdout.split()
    if kept == "False":
        pytest.skip("another C library than glibc")
    assert int(before) > 1000, "otherwise there is nothing to win"
    assert int(after) < 100
    assert 1000 < int(given_back) < int(before), "once, not every time"


def test_it_is_told_once():
    assert keep_freed_memory() is keep_freed_memory()
    assert keep_freed_memory.cache_info().misses <= 1
