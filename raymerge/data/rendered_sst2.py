"""Rendered SST2: sentences of film reviews as images (Radford et al. 2021)."""

from pathlib import Path

from raymerge.data._dataset import ByHand, Dataset, HuggingFace, Layout, RawSplit, Samples
from raymerge.data._readers import image_folder, parquet_split

CLASSES = ("negative", "positive")
REPO = "nateraw/rendered-sst2"


def read_reference(root: Path, split: RawSplit) -> Samples:
    return image_folder(root / "RenderedSST2" / "rendered-sst2" / split, CLASSES)


def read_torchvision(root: Path, split: RawSplit) -> Samples:
    return image_folder(root / "rendered-sst2" / split, CLASSES)


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES)


def _needs(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{split}/{name}" for split in ("train", "test") for name in CLASSES)


DATASET = Dataset(
    name="RenderedSST2",
    classes=CLASSES,
    templates=("a {} review of a movie.",),
    num_train=6_920,
    num_test=1_821,
    val_sha256="ceca693a9231e0d8",
    layouts=(
        Layout("reference", needs=_needs("RenderedSST2/rendered-sst2"), read=read_reference),
        Layout("torchvision", needs=_needs("rendered-sst2"), read=read_torchvision),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        HuggingFace(REPO),
        ByHand(
            "Get https://openaipublic.azureedge.net/clip/data/rendered-sst2.tgz and unpack it in RenderedSST2, so that "
            "there are RenderedSST2/rendered-sst2/train/negative/*.png, and the same of positive and of test."
        ),
    ),
    note="The folder 'valid' is not used; validation images are drawn from 'train', as for other datasets.",
)
