"""Numbered JPEG files, and the MATLAB files of Flowers102 with their labels and splits, all counted from 1."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raymerge.data.flowers102 import FOLDER
from raymerge.rehearsal.raw import Drawn

NAMES = {"train": "trnid", "test": "tstid"}


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    """Images of all splits are numbered by label, as in the original. The unused validation split gets one of them."""
    import scipy.io

    folder = root / FOLDER
    (folder / "jpg").mkdir(parents=True, exist_ok=True)
    images = [(label, split, number) for split, drawn in splits.items() for number, (_, label) in enumerate(drawn)]
    images.append((0, "unused", 0))
    images.sort(key=lambda image: image[0])
    ids: dict[str, list[int]] = {split: [0] * len(drawn) for split, drawn in splits.items()} | {"unused": [0]}
    for number, (_, split, index) in enumerate(images, 1):
        image = splits[split][index][0] if split in splits else next(drawn[0][0] for drawn in splits.values())
        image.save(folder / "jpg" / f"image_{number:05d}.jpg", quality=95)
        ids[split][index] = number
    labels = np.array([[label + 1 for label, _, _ in images]], dtype=np.uint8)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels})
    sets = {NAMES.get(split, "valid"): np.array([numbers], dtype=np.uint16) for split, numbers in ids.items()}
    scipy.io.savemat(folder / "setid.mat", sets)
