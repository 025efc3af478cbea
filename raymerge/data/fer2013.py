"""FER2013: facial expressions (Goodfellow et al. 2013).

Labels are alphabetical, as in the Hugging Face dataset of the published code; the CSV files of Kaggle number three of
the expressions differently. `classes` say what the labels mean. The published heads were built from
`PUBLISHED_CLASSES`, whose last three do not: the experts were trained with that mismatch, so that a published head has
to be used as it is.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raymerge.data._dataset import ByHand, Dataset, HuggingFace, Layout, RawSplit, Samples
from raymerge.data._readers import array_images, decode, huggingface_folder, parquet_split, read_plain_pickle
from raymerge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
FOLDERS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
PUBLISHED_CLASSES = (
    "['angry']",
    "['disgusted']",
    "['fearful']",
    "['happy', 'smiling']",
    "['sad', 'depressed']",
    "['surprised', 'shocked', 'spooked']",
    "['neutral', 'bored']",
)
"""What stands in the prompts of the published heads: the class names are Python lists there, formatted as such."""

_KAGGLE_ORDER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_KAGGLE_LABELS = {str(number): FOLDERS.index(name) for number, name in enumerate(_KAGGLE_ORDER)}
USAGES = {"train": ("Training",), "test": ("PublicTest", "PrivateTest")}
REPO = "Jeneral/fer-2013"
PARQUET_REPO = "clip-benchmark/wds_fer2013"
SIDE = 48


@dataclass(frozen=True)
class _Encoded:
    images: Sequence[bytes]
    file: str

    def __call__(self, number: int) -> "Image":
        return decode(io.BytesIO(self.images[number]), self.name(number), "L")

    def name(self, number: int) -> str:
        return f"{self.file}[{number}]"


def read_pickles(root: Path, split: RawSplit) -> Samples:
    path = root / huggingface_folder(REPO) / f"{split}.pt"
    rows = read_plain_pickle(path)
    try:
        content, names = [row["img_bytes"] for row in rows], [row["labels"] for row in rows]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a list of 'img_bytes' and 'labels' ({type(error).__name__}: {error}); get it again."
        ) from None
    unknown = [name for name in names if name not in FOLDERS]
    if unknown:
        raise DataError(f"{path}: label {unknown[0]!r} is none of {', '.join(FOLDERS)}; is it another dataset?")
    images = _Encoded(content, str(path))
    return Samples([FOLDERS.index(name) for name in names], images, images.name)


def read_csv(root: Path, split: RawSplit) -> Samples:
    folder = root / "fer2013"
    path = next((folder / name for name in ("fer2013.csv", "icml_face_data.csv") if (folder / name).exists()), None)
    if path is None:
        raise DataError(
            f"{folder}: neither fer2013.csv nor icml_face_data.csv is there; get one of them, "
            "because the test images of test.csv have no labels."
        )
    images: list[bytes] = []
    labels: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            columns = [name.strip() for name in next(rows, [])]
            emotion, usage, pixels = (columns.index(name) for name in ("emotion", "Usage", "pixels"))
            for row in rows:
                if row[usage].strip() in USAGES[split]:
                    content, label = bytes(map(int, row[pixels].split())), _KAGGLE_LABELS[row[emotion].strip()]
                    if len(content) != SIDE * SIDE:
                        raise ValueError(f"{len(content)} pixels, expected {SIDE * SIDE}")
                    images.append(content)
                    labels.append(label)
    except (OSError, ValueError, LookupError, csv.Error) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: image {len(labels)} of {split} is not as expected ({problem}); get it again."
        ) from None
    if not images:
        raise DataError(f"{path}: holds no image of usage {' or '.join(USAGES[split])}; get it again.")
    array = np.frombuffer(bytearray().join(images), dtype=np.uint8)
    return array_images(array.reshape(len(labels), SIDE, SIDE), labels, path)


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, PARQUET_REPO, split, class_names=CLASSES, image="jpg", label="cls", mode="L")


DATASET = Dataset(
    name="FER2013",
    classes=CLASSES,
    folders=FOLDERS,
    templates=(
        "a photo of a {} looking face.",
        "a photo of a face showing the emotion: {}.",
        "a photo of a face looking {}.",
        "a face that looks {}.",
        "they look {}.",
        "look at how {} they are.",
    ),
    num_train=28_709,
    num_test=7_178,
    val_sha256="068d02d09c023d40",
    layouts=(
        Layout(
            "reference",
            needs=tuple(f"{huggingface_folder(REPO)}/{part}.pt" for part in ("train", "test")),
            read=read_pickles,
        ),
        Layout("torchvision", needs=("fer2013/*.csv",), read=read_csv),
        Layout("huggingface", needs=(f"{huggingface_folder(PARQUET_REPO)}/default",), read=read_parquet),
    ),
    sources=(
        HuggingFace(REPO, patterns=("train.pt", "test.pt")),
        ByHand(
            "Download fer2013.csv or icml_face_data.csv of the Kaggle competition "
            "challenges-in-representation-learning-facial-expression-recognition-challenge into fer2013/ under the "
            "data root; or the branch refs/convert/parquet of the Hugging Face dataset clip-benchmark/wds_fer2013 into "
            "huggingface/clip-benchmark/wds_fer2013/, so that default/train/0000.parquet lies there."
        ),
    ),
    note=(
        "The heads published with the experts name three classes in another order than the labels, which belongs to "
        "them; copies other than that of Jeneral on Hugging Face hold out other images for validation."
    ),
)
