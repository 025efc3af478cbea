"""STL10: ten kinds of objects (Coates et al. 2011)."""

from pathlib import Path

import numpy as np

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import array_images, parquet_split
from raymerge.errors import DataError

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 96
REPO = "tanganke/stl10"


def read_files(root: Path, split: RawSplit) -> Samples:
    folder = root / "stl10" / "stl10_binary"
    path = folder / f"{split}_X.bin"
    # A plane per channel, each of them column by column.
    planes = _bytes(path, 3 * SIDE * SIDE).reshape(-1, 3, SIDE, SIDE)
    return array_images(planes.transpose(0, 3, 2, 1), _labels(folder / f"{split}_y.bin"), path)


def _labels(path: Path) -> list[int]:
    labels = np.array(_bytes(path, 1)).astype(np.int64) - 1
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DataError(f"{path}: has labels from {labels.min() + 1} to {labels.max() + 1}, not 1 to 10; get it again.")
    return labels.tolist()


def _bytes(path: Path, unit: int) -> np.ndarray:
    """A file of bytes, mapped, whose size has to be a multiple of `unit`."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); get the dataset again.") from None
    if size == 0 or size % unit:
        raise DataError(f"{path}: has {size} bytes, expected a positive multiple of {unit}; get it again.")
    return np.memmap(path, dtype=np.uint8, mode="r")


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES)


DATASET = Dataset(
    name="STL10",
    classes=CLASSES,
    templates=("a photo of a {}.", "a photo of the {}."),
    num_train=5_000,
    num_test=8_000,
    val_sha256="b34afbaa2e0a3fe4",
    layouts=(
        Layout(
            "reference",
            needs=tuple(f"stl10/stl10_binary/{part}.bin" for part in ("train_X", "train_y", "test_X", "test_y")),
            read=read_files,
        ),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("STL10", root="stl10", arguments=((("split", "train"),), (("split", "test"),))),
        HuggingFace(REPO),
    ),
    note=(
        "The download of torchvision holds 2.6 GB of unlabelled images, which may be deleted; "
        "the copy on Hugging Face (0.2 GB) lists images by class, so that other ones are held out for validation."
    ),
)
