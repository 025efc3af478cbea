"""JPEG files named after their breed, and the annotation lists of Oxford-IIIT Pet."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.oxford_iiit_pet import FOLDER, FOLDERS
from raymerge.rehearsal.raw import Drawn

LISTS = {"train": "trainval.txt", "test": "test.txt"}


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    images, annotations = root / FOLDER / "images", root / FOLDER / "annotations"
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(exist_ok=True)
    cats = [breed for breed in FOLDERS if breed[0].isupper()]
    dogs = [breed for breed in FOLDERS if breed[0].islower()]
    first = 1  # the splits share the folder of images
    for split, drawn in splits.items():
        lines = []
        for number, (image, label) in enumerate(drawn, first):
            breed = FOLDERS[label]
            kind, breeds = (1, cats) if breed in cats else (2, dogs)
            image.save(images / f"{breed}_{number}.jpg", quality=95)
            lines.append(f"{breed}_{number} {label + 1} {kind} {breeds.index(breed) + 1}\n")
        (annotations / LISTS[split]).write_text("".join(lines))
        first += len(drawn)
