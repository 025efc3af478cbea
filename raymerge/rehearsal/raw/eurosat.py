"""A folder per split and class, as the published code has EuroSAT."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.eurosat import FOLDERS
from raymerge.rehearsal.raw import Drawn

FIRST = 10_000  # names of equal length sort in the order of their numbers


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    numbers: Counter[int] = Counter()
    for split, drawn in splits.items():
        for image, label in drawn:
            path = root / "EuroSAT_splits" / split / FOLDERS[label] / f"{FOLDERS[label]}_{FIRST + numbers[label]}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.resize((64, 64)).save(path, quality=95, subsampling=0)
            numbers[label] += 1
