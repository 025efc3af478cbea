"""The image cache: preprocessed uint8 images and labels of one split in one memory-mapped Arrow file.

Images are stored after resize and crop and before normalisation, so the cache is lossless and serves every backbone
of the same input size. Every process of a machine maps the same pages.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from raymerge.errors import DataError
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
        images, labels, offset = [], [], 0
        for batch in self._batches:
            low, high = max(start - offset, 0), min(stop - offset, batch.num_rows)
            offset += batch.num_rows
            if low < high:
                part = batch.slice(low, high - low)
                pixels = part.column("image").flatten().to_numpy(zero_copy_only=True)
                images.append(pixels.reshape(high - low, *self.size, 3))
                labels.append(part.column("label").to_numpy(zero_copy_only=True))
        # concatenate copies, so nothing that torch may write to aliases the read-only mapping
        return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))


def write_images(path: Path, images: UInt8[Tensor, "images height width 3"], labels: Int64[Tensor, " images"]) -> None:
    """Write one split to `path`, which is then absent or whole."""
    height, width = images.shape[1:3]
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images but {len(labels)} labels.")
    schema = _schema(height, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(images), ROWS_PER_BATCH):
            pixels = images[start : start + ROWS_PER_BATCH].contiguous().numpy().reshape(-1)
            column = pa.FixedSizeListArray.from_arrays(pa.array(pixels), height * width * 3)
            rows = [column, pa.array(labels[start : start + ROWS_PER_BATCH].numpy())]
            writer.write_batch(pa.record_batch(rows, schema=schema))


def _schema(height: int, width: int) -> pa.Schema:
    pixels = pa.list_(pa.uint8(), height * width * 3)
    return pa.schema([("image", pixels), ("label", pa.int64())], {"height": str(height), "width": str(width)})


def open_images(path: Path) -> ImageSplit:
    """Map a split written by `write_images`.

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
        raise DataError(f"{path}: no such image file. Delete its suite folder and prepare the suite again.") from None
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a readable image file ({error}). Delete it and prepare again.") from None
    split = ImageSplit(path=path, size=size, _batches=batches)
    if not len(split):
        raise DataError(f"{path}: holds no image. Delete it and prepare the suite again.")
    return split
