"""Made-up images for tests of dataset readers, and a Parquet file as Hugging Face writes it."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def drawn(num_classes: int, count: int, *, seed: int = 0, size: tuple[int, int] = (40, 36)) -> list:
    """Random RGB images of (width, height) pixels and labels: every class as soon as there are enough images."""
    generator = np.random.default_rng(seed)
    width, height = size
    pixels = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    labels = generator.permutation(np.arange(count) % num_classes)
    return [(Image.fromarray(p), int(label)) for p, label in zip(pixels, labels, strict=True)]


def parquet(
    path: Path,
    images: Sequence[tuple[Image.Image, int]],
    *,
    names: Sequence[str] | None = None,
    image: str = "image",
    label: str = "label",
    row_group_size: int = 3,
) -> None:
    """Encoded images and labels, with the class names in the metadata, as `datasets` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png(picture), "path": f"{i}.png"} for i, (picture, _) in enumerate(images)]
    table = pa.table({image: rows, label: [number for _, number in images]})
    kind = {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    info = {"info": {"features": {image: {"_type": "Image"}, label: kind}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path, row_group_size)


def png(picture: Image.Image) -> bytes:
    """An image file in memory, without loss."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
