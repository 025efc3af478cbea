"""A folder per class and split, as SUN397 is laid out for training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.sun397 import FOLDERS
from raymerge.rehearsal.raw import Drawn

PARTS = {"train": "train", "test": "val"}


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    for split, drawn in splits.items():
        for number, (image, label) in enumerate(drawn):
            path = root / "sun397" / PARTS[split] / FOLDERS[label] / f"sun_{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=95)
