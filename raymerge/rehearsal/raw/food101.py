"""A folder per class and JSON files with the images of each split, as Food-101 has them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.food101 import CLASSES
from raymerge.rehearsal.raw import Drawn


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    folder = root / "food101" / "food-101"
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    for number, (split, drawn) in enumerate(splits.items()):
        # a key of every class, and not sorted: as in the published files, whose classes come in an order of their own
        listed: dict[str, list[str]] = {name: [] for name in sorted(CLASSES, key=lambda name: name[::-1])}
        for index, (image, label) in enumerate(drawn):
            name = f"{CLASSES[label]}/{1_000_000 * (number + 1) + index}"
            path = folder / "images" / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, "JPEG", quality=95)
            listed[CLASSES[label]].append(name)
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed), encoding="utf-8")
        lines = [name for names in listed.values() for name in names]
        (folder / "meta" / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "meta" / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
