"""Kuzushiji-MNIST: cursive Japanese characters (Clanuwat et al. 2018)."""

from pathlib import Path

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import idx_files, idx_images, parquet_split

CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
KANA: dict[str, str] = dict(zip("おきすつなはまやれを", CLASSES, strict=True))
REPO = "tanganke/kmnist"
FILES = {"train": "train", "test": "t10k"}


def read_reference(root: Path, split: RawSplit) -> Samples:
    return idx_images(root / "KMNIST" / "KMNIST" / "raw", FILES[split], len(CLASSES))


def read_torchvision(root: Path, split: RawSplit) -> Samples:
    return idx_images(root / "KMNIST" / "raw", FILES[split], len(CLASSES))


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES, spellings=KANA, mode="L")


DATASET = Dataset(
    name="KMNIST",
    classes=CLASSES,
    templates=("a photo of the character {}.",),
    num_train=60_000,
    num_test=10_000,
    val_sha256="a80ccd6c95a3aa08",
    layouts=(
        Layout("reference", needs=idx_files("KMNIST/KMNIST/raw", *FILES.values()), read=read_reference),
        Layout("torchvision", needs=idx_files("KMNIST/raw", *FILES.values()), read=read_torchvision),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("KMNIST", root="KMNIST", arguments=((("train", True),), (("train", False),))),
        HuggingFace(REPO),
    ),
    note="Prompts name the characters in Latin letters.",
)
