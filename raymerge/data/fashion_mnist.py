"""Fashion-MNIST: articles of clothing (Xiao et al. 2017)."""

from pathlib import Path

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import idx_files, idx_images, parquet_split

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
REPO = "zalando-datasets/fashion_mnist"
FILES = {"train": "train", "test": "t10k"}


def read_reference(root: Path, split: RawSplit) -> Samples:
    return idx_images(root / "FashionMNIST" / "FashionMNIST" / "raw", FILES[split], len(CLASSES))


def read_torchvision(root: Path, split: RawSplit) -> Samples:
    return idx_images(root / "FashionMNIST" / "raw", FILES[split], len(CLASSES))


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES, mode="L")


DATASET = Dataset(
    name="FashionMNIST",
    classes=CLASSES,
    templates=("a photo of a {}.", "a photo of the {}."),
    num_train=60_000,
    num_test=10_000,
    val_sha256="a80ccd6c95a3aa08",
    layouts=(
        Layout("reference", needs=idx_files("FashionMNIST/FashionMNIST/raw", *FILES.values()), read=read_reference),
        Layout("torchvision", needs=idx_files("FashionMNIST/raw", *FILES.values()), read=read_torchvision),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("FashionMNIST", root="FashionMNIST", arguments=((("train", True),), (("train", False),))),
        HuggingFace(REPO),
    ),
)
