"""JPEG files with MATLAB annotations, as Stanford Cars has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raymerge.data.cars import ANNOTATIONS, CLASSES
from raymerge.rehearsal.raw import Drawn

BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    import scipy.io

    devkit = root / "stanford_cars" / "devkit"
    devkit.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(devkit / "cars_meta.mat", {"class_names": np.array([CLASSES], dtype=object)})
    for split, drawn in splits.items():
        folder = root / "stanford_cars" / f"cars_{split}"
        folder.mkdir(exist_ok=True)
        annotations = np.empty((1, len(drawn)), dtype=[(field, object) for field in (*BOX, "class", "fname")])
        for number, (image, label) in enumerate(drawn):
            name = f"{number + 1:05d}.jpg"
            image.save(folder / name, quality=95, subsampling=0)
            annotations[0, number] = (1, 1, image.width, image.height, label + 1, name)
        scipy.io.savemat(root / ANNOTATIONS[split], {"annotations": annotations})  # type: ignore[index]
