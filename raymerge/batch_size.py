"""How many images go through an encoder at a time: by a rule on a CPU, by a measurement on a GPU.

A rule, because results of one machine may be continued on another: how many images are multiplied together decides
the last digits of every feature, and what time a busy CPU takes would decide it anew at every start. On a GPU sizes
differ by factors and depend on the model of the GPU, so a sweep measures once and tells every evaluator.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

CPU_VALUES = 1_200_000
"""Activations (tokens x width) of a batch from which encoders were not faster with more: 32 images of ViT-B-32, 8 of
ViT-B-16, 4 of ViT-L-14 (docs/performance.md). The number of threads is left out on purpose: it is a resource, and
resources change no number."""
CPU_MOST = 64
GPU_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
GPU_DEFAULT = 256
"""For encoders that do not tell the size of their images."""
GOOD_ENOUGH = 1.03
"""Of two sizes whose times differ by less, the smaller one: it needs less memory, and noise decides less."""
HOPELESS = 1.1
"""Larger sizes are not tried once one takes so many times as long per image as the best."""


def cpu_batch_size(encoder: nn.Module) -> int:
    """The power of two that is nearest to `CPU_VALUES` activations, at most `CPU_MOST`."""
    positions = getattr(getattr(encoder, "visual", None), "positional_embedding", None)
    if not isinstance(positions, Tensor):
        return CPU_MOST
    return min(CPU_MOST, 2 ** max(0, round(math.log2(CPU_VALUES / positions.numel()))))


def image_size(encoder: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images that an encoder of open_clip takes; None where it does not tell."""
    size = getattr(getattr(encoder, "visual", None), "image_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, Sequence) and len(size) == 2 else None


def fastest_batch_size(seconds_of: Callable[[int], float], sizes: Sequence[int] = GPU_SIZES) -> int:
    """The smallest size that takes nearly as little time per image as the best.

    Args:
        seconds_of: the time of one batch of a size; may raise that memory is out, which ends the search.
        sizes: to be tried, in ascending order. The first one is returned when not even that fits.
    """
    per_image: dict[int, float] = {}
    for size in sizes:
        try:
            per_image[size] = seconds_of(size) / size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if per_image[size] > HOPELESS * min(per_image.values()):
            break
    best = min(per_image.values(), default=0.0)
    return next((size for size, seconds in per_image.items() if seconds <= GOOD_ENOUGH * best), sizes[0])


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether torch says that memory is out: it has a class for GPUs, and words for CPUs and for NVIDIA's libraries.

    oneDNN, which multiplies matrices on CPUs, says only what it could not do.
    """
    words = (
        "not enough memory",
        "can't allocate memory",
        "_STATUS_ALLOC_FAILED",
        "out of memory",
        "could not create a primitive",
    )
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or any(word in str(error) for word in words)
