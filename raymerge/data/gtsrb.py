"""GTSRB: German traffic signs (Stallkamp et al. 2011)."""

import csv
from pathlib import Path

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import image_folder, listed_files, parquet_split
from raymerge.errors import DataError

CLASSES = (  # with the spelling mistakes of the published prompts
    "red and white circle 20 kph speed limit",
    "red and white circle 30 kph speed limit",
    "red and white circle 50 kph speed limit",
    "red and white circle 60 kph speed limit",
    "red and white circle 70 kph speed limit",
    "red and white circle 80 kph speed limit",
    "end / de-restriction of 80 kph speed limit",
    "red and white circle 100 kph speed limit",
    "red and white circle 120 kph speed limit",
    "red and white circle red car and black car no passing",
    "red and white circle red truck and black car no passing",
    "red and white triangle road intersection warning",
    "white and yellow diamond priority road",
    "red and white upside down triangle yield right-of-way",
    "stop",
    "empty red and white circle",
    "red and white circle no truck entry",
    "red circle with white horizonal stripe no entry",
    "red and white triangle with exclamation mark warning",
    "red and white triangle with black left curve approaching warning",
    "red and white triangle with black right curve approaching warning",
    "red and white triangle with black double curve approaching warning",
    "red and white triangle rough / bumpy road warning",
    "red and white triangle car skidding / slipping warning",
    "red and white triangle with merging / narrow lanes warning",
    "red and white triangle with person digging / construction / road work warning",
    "red and white triangle with traffic light approaching warning",
    "red and white triangle with person walking warning",
    "red and white triangle with child and person walking warning",
    "red and white triangle with bicyle warning",
    "red and white triangle with snowflake / ice warning",
    "red and white triangle with deer warning",
    "white circle with gray strike bar no speed limit",
    "blue circle with white right turn arrow mandatory",
    "blue circle with white left turn arrow mandatory",
    "blue circle with white forward arrow mandatory",
    "blue circle with white forward or right turn arrow mandatory",
    "blue circle with white forward or left turn arrow mandatory",
    "blue circle with white keep right arrow mandatory",
    "blue circle with white keep left arrow mandatory",
    "blue circle with white arrows indicating a traffic circle",
    "white circle with gray strike bar indicating no passing for cars has ended",
    "white circle with gray strike bar indicating no passing for trucks has ended",
)
FOLDERS = tuple(f"{number:05d}" for number in range(43))
REPO = "tanganke/gtsrb"


def read_files(root: Path, split: RawSplit) -> Samples:
    folder = root / "gtsrb" / "GTSRB"
    if split == "train":
        return image_folder(folder / "Training", FOLDERS)
    table = root / "gtsrb" / "GT-final_test.csv"
    rows = _read_table(table)
    return listed_files([folder / "Final_Test" / "Images" / name for name, _ in rows], [k for _, k in rows], table)


def _read_table(path: Path) -> list[tuple[str, int]]:
    """File name and class of every test image."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                (row["Filename"], int(row["ClassId"]))
                for row in csv.DictReader(file, delimiter=";", skipinitialspace=True)
            ]
    except (KeyError, TypeError):  # TypeError: a line with too few fields
        raise DataError(f"{path}: lacks 'Filename' or 'ClassId' between ';'; get it again.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); get it again.") from None
    outside = [label for _, label in rows if not 0 <= label < len(CLASSES)]
    if outside:
        raise DataError(f"{path}: has a ClassId {outside[0]}, expected 0 to {len(CLASSES) - 1}; get it again.")
    return rows


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES)  # its labels are named as in prompts


DATASET = Dataset(
    name="GTSRB",
    classes=CLASSES,
    folders=FOLDERS,
    templates=(
        'a zoomed in photo of a "{}" traffic sign.',
        'a centered photo of a "{}" traffic sign.',
        'a close up photo of a "{}" traffic sign.',
    ),
    num_train=26_640,
    num_test=12_630,
    val_sha256="7ef9328e70b2aba1",
    layouts=(
        Layout(
            "reference",
            needs=("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
            read=read_files,
        ),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("GTSRB", arguments=((("split", "train"),), (("split", "test"),))),
        HuggingFace(REPO, patterns=("*train-*.parquet", "*test-*.parquet")),
    ),
    note="The training images are the 26,640 of 'Training_fixed', not the 39,209 that Kaggle has.",
)
