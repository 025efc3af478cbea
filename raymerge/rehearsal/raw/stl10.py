"""The binary files of STL10: bytes, a plane per channel and each plane column by column, labels from 1."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raymerge.data.stl10 import CLASSES, SIDE
from raymerge.rehearsal.raw import Drawn


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    folder = root / "stl10" / "stl10_binary"
    folder.mkdir(parents=True, exist_ok=True)
    for split, drawn in splits.items():
        images = np.stack([np.asarray(image.resize((SIDE, SIDE))) for image, _ in drawn])
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for _, label in drawn))
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (folder / "fold_indices.txt").write_text(" ".join(str(i) for i in range(len(splits.get("train", ())))) + "\n")
