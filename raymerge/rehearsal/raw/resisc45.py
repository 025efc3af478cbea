"""A folder per class and lists of the images of every split, as RESISC45 has them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.resisc45 import FOLDERS
from raymerge.rehearsal.raw import Drawn


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    numbers: Counter[int] = Counter()
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for split, drawn in splits.items():
        for image, label in drawn:
            numbers[label] += 1
            name = f"{FOLDERS[label]}_{numbers[label]:03d}.jpg"
            path = root / "resisc45" / "NWPU-RESISC45" / FOLDERS[label] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=95, subsampling=0)
            lists[split].append(name)
    for split, names in lists.items():
        (root / "resisc45" / f"resisc45-{split}.txt").write_text("".join(f"{name}\n" for name in names))
