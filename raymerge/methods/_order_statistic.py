"""An exact order statistic of vectors that are never held in memory."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from raymerge.errors import MergeInputError
from raymerge.linalg import check_task_tensors, stored

_DIGIT_BITS = 16
_CHUNK = 1 << 22


def kth_smallest_magnitude(
    passes: Callable[[], Iterable[Tensor]], rank: Callable[[int], int]
) -> Float[Tensor, " tasks"]:
    """For each task the k-th smallest |value| over all tensors, as `torch.kthvalue` of the concatenation.

    A radix selection: the bits of a non-negative float, read as an integer, order as the float does. Every pass
    counts the next 16 bits of those values that share the bits found so far: two passes for 32-bit floats (and for
    16-bit ones, widened), four when a tensor is float64. Memory: 2^16 counts per task, and one chunk.

    Args:
        passes: `passes()` starts another pass over the same tensors, each (tasks, ...).
        rank: from the number of entries of one task's vector to k, counted from 1.
    Returns:
        The values, float32, or float64 when a tensor is.
    Raises:
        MergeInputError: there is no tensor, or one that `check_task_tensors` refuses.
    """
    selected = _select(passes, rank, torch.float32, torch.int32, bits=32)
    if selected is None:
        selected = _select(passes, rank, torch.float64, torch.int64, bits=64)
    assert selected is not None
    return selected


def _select(
    passes: Callable[[], Iterable[Tensor]],
    rank: Callable[[int], int],
    float_dtype: torch.dtype,
    int_dtype: torch.dtype,
    *,
    bits: int,
) -> Tensor | None:
    """None when a tensor does not fit into `float_dtype`."""
    num_bins = 1 << _DIGIT_BITS
    prefixes: list[int] = []
    remaining: list[int] = []
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        first = shift == bits - _DIGIT_BITS
        num_entries, counts = 0, None
        for tensor in passes():
            if first:
                check_task_tensors(tensor)
                if torch.promote_types(tensor.dtype, float_dtype) != float_dtype:
                    return None
            if counts is None:
                counts = torch.zeros(len(tensor), num_bins, dtype=torch.int64)
                prefixes = prefixes or [0] * len(tensor)
            num_entries += tensor[0].numel()
            for task, values in enumerate(tensor):
                if not stored(values).any():  # unused parameters: all zero bits, no need to look at each
                    counts[task, 0] += values.numel() if prefixes[task] == 0 else 0
                    continue
                for chunk in values.reshape(-1).split(_CHUNK):
                    pattern = chunk.to(float_dtype).abs().view(int_dtype)
                    if not first:
                        pattern = pattern[pattern >> (shift + _DIGIT_BITS) == prefixes[task]]
                    digits = (pattern >> shift) & (num_bins - 1)
                    counts[task] += torch.bincount(digits, minlength=num_bins).cpu()
        if counts is None:
            raise MergeInputError("there are no task tensors to take a threshold of, expected at least one.")
        if first:
            k = rank(num_entries)
            if not 1 <= k <= num_entries:
                raise ValueError(f"rank {k} of {num_entries} entries does not exist")
            remaining = [k] * len(counts)
        for task, cumulative in enumerate(counts.cumsum(dim=1)):
            digit = int(torch.searchsorted(cumulative, remaining[task]))  # the first bin that reaches the rank
            remaining[task] -= int(cumulative[digit - 1]) if digit else 0
            prefixes[task] = prefixes[task] << _DIGIT_BITS | digit
    return torch.tensor(prefixes, dtype=int_dtype).view(float_dtype)
