"""MNIST: handwritten digits (LeCun et al. 1998)."""

from pathlib import Path

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import idx_files, idx_images, parquet_split

CLASSES = tuple(str(digit) for digit in range(10))
REPO = "ylecun/mnist"


def read_files(root: Path, split: RawSplit) -> Samples:
    return idx_images(root / "MNIST" / "raw", {"train": "train", "test": "t10k"}[split], len(CLASSES))


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES, mode="L")


DATASET = Dataset(
    name="MNIST",
    classes=CLASSES,
    templates=('a photo of the number: "{}".',),
    num_train=60_000,
    num_test=10_000,
    val_sha256="a80ccd6c95a3aa08",
    layouts=(
        Layout("reference", needs=idx_files("MNIST/raw", "train", "t10k"), read=read_files),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("MNIST", arguments=((("train", True),), (("train", False),))),
        HuggingFace(REPO),
    ),
)
