"""A folder per split and class, as Rendered SST2 has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.rendered_sst2 import CLASSES
from raymerge.rehearsal.raw import Drawn

FOLDERS = {"train": "train", "val": "valid", "test": "test"}


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    for split, drawn in splits.items():
        for index, (image, label) in enumerate(drawn):
            path = root / "RenderedSST2" / "rendered-sst2" / FOLDERS[split] / CLASSES[label] / f"{index:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").save(path, "PNG")
