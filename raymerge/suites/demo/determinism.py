"""Arithmetic that does not depend on the machine's number of cores."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

_debugging: Any = torch.utils.deterministic


@contextlib.contextmanager
def bitwise_repeatable() -> Iterator[None]:
    """One thread and deterministic algorithms for the calling process; the previous state afterwards.

    Sums over several threads are split differently on every number of cores, which is enough to change the last bits
    of a gradient and, after some hundred steps, every digit of a weight.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = _debugging.fill_uninitialized_memory
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    _debugging.fill_uninitialized_memory = False  # costs 6 % of the time and changes no result
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        _debugging.fill_uninitialized_memory = fill
