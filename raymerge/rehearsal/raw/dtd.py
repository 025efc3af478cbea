"""A folder per class, as the published code has DTD."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.dtd import CLASSES
from raymerge.rehearsal.raw import Drawn

FOLDERS = {"train": "train", "test": "val"}


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    numbers: Counter[int] = Counter()  # one numbering for both splits: a file name stands for one image
    for split, drawn in splits.items():
        for image, label in drawn:
            numbers[label] += 1
            path = root / "dtd" / FOLDERS[split] / CLASSES[label] / f"{CLASSES[label]}_{numbers[label]:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=95, subsampling=0)
