"""CIFAR-10: small photographs of animals and vehicles (Krizhevsky 2009)."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import array_images, parquet_split, read_plain_pickle
from raymerge.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
REPO = "tanganke/cifar10"
FOLDER = "cifar-10-batches-py"
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}


def read_batches(root: Path, split: RawSplit) -> Samples:
    files = tuple(root / FOLDER / name for name in BATCHES[split])
    batches = [_read_batch(file) for file in files]
    pixels = np.concatenate([pixels for pixels, _ in batches])
    samples = array_images(pixels, [label for _, labels in batches for label in labels], root / FOLDER)
    return replace(samples, name=_Place(files, tuple(accumulate(len(labels) for _, labels in batches))))


@dataclass(frozen=True)
class _Place:
    files: tuple[Path, ...]
    ends: tuple[int, ...]
    """Number of images in every file and those before it."""

    def __call__(self, number: int) -> str:
        file = bisect_right(self.ends, number)
        return f"{self.files[file]}[{number - (self.ends[file - 1] if file else 0)}]"


def _read_batch(path: Path) -> tuple[np.ndarray, list[int]]:
    content = read_plain_pickle(path, encoding="latin1")  # of Python 2, whose strings are bytes
    try:
        pixels, labels = np.asarray(content["data"]), [int(label) for label in content["labels"]]
        if pixels.dtype != np.uint8:
            raise ValueError(f"pixels are {pixels.dtype}")
        pixels = pixels.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)  # planes to pixels
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: no batch of 32 x 32 images and their labels ({type(error).__name__}: {error}); get it again."
        ) from None
    outside = next((label for label in labels if not 0 <= label < len(CLASSES)), None)
    if outside is not None:
        raise DataError(f"{path}: has a label {outside}, expected 0 to {len(CLASSES) - 1}; get it again.")
    return pixels, labels


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES)


DATASET = Dataset(
    name="CIFAR10",
    classes=CLASSES,
    templates=(
        "a photo of a {}.",
        "a blurry photo of a {}.",
        "a black and white photo of a {}.",
        "a low contrast photo of a {}.",
        "a high contrast photo of a {}.",
        "a bad photo of a {}.",
        "a good photo of a {}.",
        "a photo of a small {}.",
        "a photo of a big {}.",
        "a photo of the {}.",
        "a blurry photo of the {}.",
        "a black and white photo of the {}.",
        "a low contrast photo of the {}.",
        "a high contrast photo of the {}.",
        "a bad photo of the {}.",
        "a good photo of the {}.",
        "a photo of the small {}.",
        "a photo of the big {}.",
    ),
    num_train=50_000,
    num_test=10_000,
    val_sha256="8beec0accb6d468f",
    layouts=(
        Layout(
            "reference",
            needs=tuple(f"{FOLDER}/{name}" for names in BATCHES.values() for name in names),
            read=read_batches,
        ),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("CIFAR10", arguments=((("train", True),), (("train", False),))),
        HuggingFace(REPO),
    ),
)
