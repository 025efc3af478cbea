"""Batches on the device by the time they are needed.

A CPU reads them where they lie. For a GPU a thread copies the next batch into pinned memory and from there to the
device, on a stream of its own, while the present one is being computed.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


def batches_on(device: torch.device, images: Tensor, size: int) -> Iterator[Tensor]:
    """The images in batches of at most `size`, in order, on the device.

    Raises:
        torch.OutOfMemoryError: a batch does not fit.
    """
    batches = iter(images.split(size))
    if device.type != "cuda" or images.device.type != "cpu":
        yield from (batch.to(device) for batch in batches)
        return
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def copy(batch: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            copied = batch.pin_memory().to(device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(copying)
        return copied, done

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="staging") as thread:
        pending: Future[tuple[Tensor, torch.cuda.Event]] | None = thread.submit(copy, next(batches))
        while pending is not None:
            staged, done = pending.result()
            following = next(batches, None)
            pending = None if following is None else thread.submit(copy, following)
            computing.wait_event(done)
            staged.record_stream(computing)  # its memory belongs to the stream that copied it
            yield staged
