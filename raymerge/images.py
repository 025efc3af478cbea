"""Images of one split: the cache, which is one memory-mapped Arrow file, or decoded from the raw files each time.

The cache holds uint8 images and labels, after resize and crop and before normalisation, so it is lossless and serves
every backbone of the same input size. Every process of a machine maps the same pages.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from raymerge.data import Samples
from raymerge.data.checks import check_split
from raymerge.data.splits import read_split
from raymerge.data.transforms import to_pixels
from raymerge.errors import DataError
from raymerge.records import Split
from raymerge.suites import Suite
from raymerge.suites.published import PublishedSuite
from raymerge.whole_file import whole_file

ROWS_PER_BATCH = 4096


@dataclass(frozen=True)
class ImageSplit:
    """Images of one split, in order, read lazily from the mapped file."""

    path: Path
    size: tuple[int, int]
    """Height and width in pixels."""
    _batches: tuple[pa.RecordBatch, ...]

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self._batches)

    def labels(self) -> Int64[Tensor, " images"]:
        """All labels, in order."""
        return torch.from_numpy(np.concatenate([batch.column("label").to_numpy() for batch in self._batches]))

    def read(self, start: int, stop: int) -> tuple[UInt8[Tensor, "images height width 3"], Int64[Tensor, " images"]]:
        """Images start..stop-1 and their labels, copied out of the mapping."""
        images, labels = self._parts(start, stop)
        # concatenate copies, so nothing that torch may write to aliases the read-only mapping
        return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))

    def view(self, start: int, stop: int) -> tuple[UInt8[Tensor, "images height width 3"], Int64[Tensor, " images"]]:
        """The same as `read`, but where the images lie together in the file they stay there: never write to them."""
        images, labels = self._parts(start, stop)
        if len(images) > 1:
            return self.read(start, stop)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "not writable": that is the point
            return torch.from_numpy(images[0]), torch.from_numpy(labels[0])

    def _parts(self, start: int, stop: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        images, labels, offset = [], [], 0
        for batch in self._batches:
            low, high = max(start - offset, 0), min(stop - offset, batch.num_rows)
            offset += batch.num_rows
            if low < high:
                part = batch.slice(low, high - low)
                pixels = part.column("image").flatten().to_numpy(zero_copy_only=True)
                images.append(pixels.reshape(high - low, *self.size, 3))
                labels.append(part.column("label").to_numpy(zero_copy_only=True))
        return images, labels


class ImageWriter:
    """Takes the images of a file piece by piece, so that they need not be in memory together."""

    def __init__(self, writer: pa.RecordBatchFileWriter, schema: pa.Schema):
        self._writer = writer
        self._schema = schema

    def append(self, images: UInt8[Tensor, "images height width 3"], labels: Int64[Tensor, " images"]) -> None:
        """Images and their labels, any number of them."""
        pixels = pa.array(images.contiguous().numpy().reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(pixels, self._schema.field("image").type.list_size)
        self._writer.write_batch(pa.record_batch([column, pa.array(labels.numpy())], schema=self._schema))

    def append_split(self, split: ImageSplit) -> None:
        """All images of another file, from which they are not copied into memory."""
        for batch in split._batches:
            self._writer.write_batch(batch)


@contextlib.contextmanager
def image_writer(path: Path, size: tuple[int, int]) -> Iterator[ImageWriter]:
    """A writer of images of one size to `path`, whose folder exists; the file is then absent or whole."""
    schema = _schema(*size)
    with whole_file(path) as sink, pa.ipc.new_file(sink, schema) as writer:
        yield ImageWriter(writer, schema)


def write_images(path: Path, images: UInt8[Tensor, "images height width 3"], labels: Int64[Tensor, " images"]) -> None:
    """Write one split to `path`, which is then absent or whole."""
    height, width = images.shape[1:3]
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images but {len(labels)} labels.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with image_writer(path, (height, width)) as writer:
        for start in range(0, len(images), ROWS_PER_BATCH):
            writer.append(images[start : start + ROWS_PER_BATCH], labels[start : start + ROWS_PER_BATCH])


def _schema(height: int, width: int) -> pa.Schema:
    pixels = pa.list_(pa.uint8(), height * width * 3)
    return pa.schema([("image", pixels), ("label", pa.int64())], {"height": str(height), "width": str(width)})


def open_images(path: Path, remedy: str = "Delete it and prepare its images again.") -> ImageSplit:
    """Map a split written by `write_images`.

    Args:
        remedy: the sentence that says how such a file is made.
    Raises:
        DataError: the file is missing, empty, truncated or of another format.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        metadata = reader.schema.metadata or {}
        size = int(metadata[b"height"]), int(metadata[b"width"])
        if not reader.schema.equals(_schema(*size)):
            raise ValueError(f"its columns are {reader.schema.names} of other types or sizes than expected")
        batches = tuple(reader.get_batch(i) for i in range(reader.num_record_batches))
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file. {remedy}") from None
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a readable image file ({error}). {remedy}") from None
    split = ImageSplit(path=path, size=size, _batches=batches)
    if not len(split):
        raise DataError(f"{path}: holds no image. {remedy}")
    return split


def cached_split(suite: Suite, task: str, split: Split) -> ImageSplit:
    """The cached images of a task.

    Raises:
        DataError: they are missing or damaged; says how they are made.
    """
    return open_images(suite.images_path(task, split), suite.images_remedy(task))


@dataclass(frozen=True)
class DecodedSplit:
    """Images of one split, decoded from the raw files each time they are read: the pixels that the cache would hold."""

    samples: Samples
    size: tuple[int, int]
    """Height and width in pixels, which are equal."""

    def __len__(self) -> int:
        return len(self.samples)

    def labels(self) -> Int64[Tensor, " images"]:
        """All labels, in order."""
        return torch.tensor(self.samples.labels, dtype=torch.int64)

    def read(self, start: int, stop: int) -> tuple[UInt8[Tensor, "images height width 3"], Int64[Tensor, " images"]]:
        """Images start..stop-1 and their labels.

        Raises:
            DataError: one cannot be decoded; names it.
        """
        side = self.size[0]
        pixels = np.empty((stop - start, side, side, 3), dtype=np.uint8)
        for row, number in enumerate(range(start, stop)):
            pixels[row] = to_pixels(self.samples.image(number), side)
        return torch.from_numpy(pixels), torch.tensor(self.samples.labels[start:stop], dtype=torch.int64)


def decoded_split(suite: Suite, task: str, split: Split) -> DecodedSplit:
    """The images of a task without the cache.

    Raises:
        DataError: the suite has no raw images, they are not there, or they are of other sizes or classes than declared.
    """
    if not isinstance(suite, PublishedSuite):
        raise DataError(f"suite '{suite.name}' has no raw images, only cached ones; read those.")
    dataset = suite.datasets[task]
    samples = read_split(dataset, suite.data, split, dataset.find_layout(suite.data, suite.fetch_command(task)))
    check_split(dataset, split, samples, declared_size=suite.has_declared_sizes(task))
    return DecodedSplit(samples, (suite.image_size, suite.image_size))
