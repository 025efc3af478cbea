"""CIFAR-100: a hundred kinds of objects (Krizhevsky 2009), by their fine labels."""

from pathlib import Path

import numpy as np

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import array_images, parquet_split, read_plain_pickle
from raymerge.errors import DataError

_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""

CLASSES = tuple(_NAMES.split())  # with underscores in prompts, too
REPO = "tanganke/cifar100"


def read_files(root: Path, split: RawSplit) -> Samples:
    path = root / "cifar-100-python" / split
    batch = read_plain_pickle(path, encoding="latin1")  # written by Python 2
    try:
        rows, labels = np.asarray(batch["data"], dtype=np.uint8), np.asarray(batch["fine_labels"], dtype=np.int64)
        planes = rows.reshape(-1, 3, 32, 32)
        fine = labels.ndim == 1 and 0 <= labels.min() <= labels.max() < len(CLASSES)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: not a batch of CIFAR-100 ({type(error).__name__}: {error}); get the dataset again."
        ) from None
    if not fine:
        raise DataError(f"{path}: fine labels are not a list of numbers from 0 to 99; get the dataset again.")
    return array_images(planes.transpose(0, 2, 3, 1), labels.tolist(), path)


def read_parquet(root: Path, split: RawSplit) -> Samples:
    # The copies on Hugging Face misspell a class.
    return parquet_split(root, REPO, split, class_names=CLASSES, spellings={"cra": "crab"})


DATASET = Dataset(
    name="CIFAR100",
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
        Layout("reference", needs=("cifar-100-python/train", "cifar-100-python/test"), read=read_files),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("CIFAR100", arguments=((("train", True),), (("train", False),))),
        HuggingFace(REPO),
    ),
)
