"""IDX files, as MNIST has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raymerge.rehearsal.raw import Drawn

FILES = {"train": "train", "test": "t10k"}


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    for split, drawn in splits.items():
        write_idx_pair(root / "MNIST" / "raw", FILES[split], drawn)


def write_idx_pair(folder: Path, prefix: str, drawn: Sequence[Drawn]) -> None:
    """Two IDX files of 28 x 28 grey images and their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.stack([np.asarray(image.convert("L").resize((28, 28))) for image, _ in drawn])
    _write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
    _write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.array([label for _, label in drawn], dtype=np.uint8))


def _write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(header + values.tobytes())
