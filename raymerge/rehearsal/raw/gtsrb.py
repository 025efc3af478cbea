"""PPM files in folders and a table of test labels, as GTSRB has them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.gtsrb import FOLDERS
from raymerge.rehearsal.raw import Drawn

PER_TRACK = 30  # frames of one sign that a car drove by


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    _write_train(root / "gtsrb" / "GTSRB" / "Training", splits["train"])
    _write_test(root / "gtsrb", splits["test"])


def _write_train(folder: Path, drawn: Sequence[Drawn]) -> None:
    numbers: Counter[int] = Counter()
    for image, label in drawn:
        track, frame = divmod(numbers[label], PER_TRACK)
        path = folder / FOLDERS[label] / f"{track:05d}_{frame:05d}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        numbers[label] += 1


def _write_test(folder: Path, drawn: Sequence[Drawn]) -> None:
    images = folder / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True, exist_ok=True)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number, (image, label) in enumerate(drawn):
        image.save(images / f"{number:05d}.ppm")
        width, height = image.size
        lines.append(f"{number:05d}.ppm;{width};{height};0;0;{width - 1};{height - 1};{label}")
    (folder / "GT-final_test.csv").write_text("\r\n".join([*lines, ""]), newline="")
