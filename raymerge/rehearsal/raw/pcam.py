"""The HDF5 files of PCAM: images in chunks, and a label in an array of four dimensions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raymerge.data.pcam import FOLDER
from raymerge.rehearsal.raw import Drawn


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    import h5py

    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for split, drawn in splits.items():
        images = np.stack([np.asarray(image.resize((96, 96))) for image, _ in drawn])
        labels = np.array([label for _, label in drawn], dtype=np.uint8).reshape(-1, 1, 1, 1)
        stem = folder / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file.create_dataset("x", data=images, chunks=(min(16, len(drawn)), 96, 96, 3), compression="gzip")
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file.create_dataset("y", data=labels)
