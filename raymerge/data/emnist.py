"""EMNIST: handwritten digits, and letters, of NIST's Special Database 19 (Cohen et al. 2017)."""

import string
from pathlib import Path

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import idx_files, idx_images, parquet_split

CLASSES = tuple(string.digits)
LETTER_CLASSES = tuple(string.ascii_uppercase)
LETTERS_REPO = "tanganke/emnist_letters"
REFERENCE, TORCHVISION = "EMNIST/EMNIST/raw", "EMNIST/raw"
DIGIT_FILES = ("emnist-digits-train", "emnist-digits-test")
LETTER_FILES = ("emnist-letters-train", "emnist-letters-test")
TEMPLATES = ('a photo of the digit character: "{}".',)


def read_reference(root: Path, split: RawSplit) -> Samples:
    return idx_images(root / REFERENCE, f"emnist-digits-{split}", len(CLASSES))


def read_torchvision(root: Path, split: RawSplit) -> Samples:
    return idx_images(root / TORCHVISION, f"emnist-digits-{split}", len(CLASSES))


def read_letters(root: Path, split: RawSplit) -> Samples:
    return idx_images(root / REFERENCE, f"emnist-letters-{split}", len(LETTER_CLASSES), first_label=1)


def read_letters_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, LETTERS_REPO, split, class_names=LETTER_CLASSES, mode="L")


DATASET = Dataset(
    name="EMNIST",
    classes=CLASSES,
    templates=TEMPLATES,
    num_train=240_000,
    num_test=40_000,
    val_sha256="fa8f289558252bb2",
    layouts=(
        Layout("reference", needs=idx_files(REFERENCE, *DIGIT_FILES), read=read_reference),
        Layout("torchvision", needs=idx_files(TORCHVISION, *DIGIT_FILES), read=read_torchvision),
    ),
    sources=(
        Torchvision(
            "EMNIST",
            root="EMNIST",
            arguments=((("split", "digits"), ("train", True)), (("split", "digits"), ("train", False))),
        ),
    ),
    note="Digits are transposed, as they lie in the files and as the published models saw them; do not turn them.",
)

LETTERS = Dataset(
    name="EMNIST-letters",
    classes=LETTER_CLASSES,
    templates=TEMPLATES,
    num_train=124_800,
    num_test=20_800,
    val_sha256="28f05fd4a9821689",
    layouts=(
        Layout("torchvision", needs=idx_files(REFERENCE, *LETTER_FILES), read=read_letters),
        Layout("huggingface", needs=(f"huggingface/{LETTERS_REPO}",), read=read_letters_parquet),
    ),
    sources=(
        HuggingFace(LETTERS_REPO),
        Torchvision(
            "EMNIST",
            root="EMNIST",
            arguments=((("split", "letters"), ("train", True)), (("split", "letters"), ("train", False))),
        ),
    ),
    note="The EMNIST of FusionBench's model collection, and another task than EMNIST; letters are transposed, too.",
)
