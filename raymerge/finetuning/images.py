"""The images of a training: in a new order and with new crops in every epoch, decoded by threads ahead of their step.

Order and crops follow from the seed, the epoch and the number of an image, whatever the number of threads, and wherever
a training continues.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from raymerge.data import Samples
from raymerge.data.train_transform import to_train_pixels
from raymerge.training import Batch, Batches

STEPS_AHEAD = 2
"""Steps whose images are decoded while another one is computed."""


class TrainingImages:
    """A `Source` of batches."""

    def __init__(
        self, samples: Samples, *, size: int, batch_size: int, accumulate: int, epochs: int, seed: str, threads: int = 1
    ):
        """Decode nothing yet.

        Args:
            size: height and width of the images that come out.
            batch_size: images of one forward pass.
            accumulate: forward passes of one step. The last step of an epoch takes what is left.
            seed: names the random stream.
        """
        self._samples = samples
        self._labels = torch.tensor(samples.labels)
        self._size = size
        self._batch_size = batch_size
        self._images_per_step = batch_size * accumulate
        self._seed = seed
        self._threads = threads
        self.steps_per_epoch = steps_per_epoch(len(samples), self._images_per_step)
        self.steps = epochs * self.steps_per_epoch

    def __call__(self, first_step: int) -> Batches:
        """Batches from a step on, to the end of the last epoch.

        Raises:
            DataError: an image cannot be decoded.
        """
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="images")
        ahead: deque[tuple[Tensor, list[Future[np.ndarray]]]] = deque()
        try:
            for step in range(first_step, self.steps):
                epoch, numbers = self._numbers(step)
                ahead.append((numbers, [pool.submit(self._pixels, epoch, number) for number in numbers.tolist()]))
                if len(ahead) > STEPS_AHEAD:
                    yield self._batches(*ahead.popleft())
            while ahead:
                yield self._batches(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _numbers(self, step: int) -> tuple[int, Int64[Tensor, " images"]]:
        """The epoch of a step, and the numbers of its images."""
        epoch, within = divmod(step, self.steps_per_epoch)
        # drawn again for every step, which is much cheaper than a step
        order = torch.randperm(len(self._labels), generator=self._generator(epoch, "order"))
        return epoch, order[within * self._images_per_step : (within + 1) * self._images_per_step]

    def _pixels(self, epoch: int, number: int) -> np.ndarray:
        return to_train_pixels(self._samples.image(number), self._size, self._generator(epoch, number))

    def _generator(self, epoch: int, what: int | str) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}/{epoch}/{what}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _batches(self, numbers: Int64[Tensor, " images"], decoded: Sequence[Future[np.ndarray]]) -> list[Batch]:
        images = torch.from_numpy(np.stack([pixels.result() for pixels in decoded]))
        split = self._batch_size
        return [Batch(*parts) for parts in zip(images.split(split), self._labels[numbers].split(split), strict=True)]


def steps_per_epoch(num_images: int, images_per_step: int) -> int:
    """Steps that use every image once; the last one may have fewer."""
    return -(-num_images // images_per_step)
