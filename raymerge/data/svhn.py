"""SVHN: cropped house numbers of Google Street View (Netzer et al. 2011)."""

from pathlib import Path

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import array_images, parquet_split, read_mat
from raymerge.errors import DataError

CLASSES = tuple(str(digit) for digit in range(10))
REPO, CONFIG = "ufldl-stanford/svhn", "cropped_digits"


def read_mat_file(root: Path, split: RawSplit) -> Samples:
    path = root / "svhn" / f"{split}_32x32.mat"
    pixels, digits = read_mat(path, "X", "y")
    if pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3) or pixels.dtype != "uint8":
        raise DataError(
            f"{path}: X has shape {pixels.shape} and type {pixels.dtype}, expected (32, 32, 3, images) and uint8; "
            "get it again."
        )
    outside = digits[(digits < 1) | (digits > 10)]
    if outside.size:
        raise DataError(f"{path}: has a label {outside[0]}, expected 1 to 10; get it again.")
    return array_images(pixels.transpose(3, 0, 1, 2), (digits % 10).tolist(), path)  # the file calls zero 10


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES, config=CONFIG)


DATASET = Dataset(
    name="SVHN",
    classes=CLASSES,
    templates=('a photo of the number: "{}".',),
    num_train=73_257,
    num_test=26_032,
    val_sha256="2e98730817740258",
    layouts=(
        Layout("reference", needs=("svhn/train_32x32.mat", "svhn/test_32x32.mat"), read=read_mat_file),
        Layout("huggingface", needs=(f"huggingface/{REPO}/{CONFIG}",), read=read_parquet),
    ),
    sources=(
        Torchvision("SVHN", root="svhn", arguments=((("split", "train"),), (("split", "test"),))),
        HuggingFace(REPO, patterns=(f"{CONFIG}/train-*.parquet", f"{CONFIG}/test-*.parquet")),
    ),
    note="The 531,131 easier images of the 'extra' split are not used.",
)
