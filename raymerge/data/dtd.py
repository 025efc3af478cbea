"""DTD: textures named by an adjective (Cimpoi et al. 2014), partition 1; and as the first published experts saw it."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import image_files, image_folder, listed_files, parquet_split, read_lines
from raymerge.errors import DataError

CLASSES = (
    "banded",
    "blotchy",
    "braided",
    "bubbly",
    "bumpy",
    "chequered",
    "cobwebbed",
    "cracked",
    "crosshatched",
    "crystalline",
    "dotted",
    "fibrous",
    "flecked",
    "freckled",
    "frilly",
    "gauzy",
    "grid",
    "grooved",
    "honeycombed",
    "interlaced",
    "knitted",
    "lacelike",
    "lined",
    "marbled",
    "matted",
    "meshed",
    "paisley",
    "perforated",
    "pitted",
    "pleated",
    "polka-dotted",
    "porous",
    "potholed",
    "scaly",
    "smeared",
    "spiralled",
    "sprinkled",
    "stained",
    "stratified",
    "striped",
    "studded",
    "swirly",
    "veined",
    "waffled",
    "woven",
    "wrinkled",
    "zigzagged",
)
LABELS = {name: label for label, name in enumerate(CLASSES)}
REPO = "tanganke/dtd"


def read_folders(root: Path, split: RawSplit) -> Samples:
    """The published layout. Test images that lie among the training images too are left out of training."""
    test = _in_folder(root / "dtd" / "val")
    if split == "test":
        return _folder_samples(test)
    held_out = {_key(path) for path in test}
    train = [path for path in _in_folder(root / "dtd" / "train") if _key(path) not in held_out]
    if not train:
        raise DataError(f"{root / 'dtd' / 'train'}: holds no image but those of dtd/val; get the dataset again.")
    return _folder_samples(train)


def read_folders_leaky(root: Path, split: RawSplit) -> Samples:
    """The published layout; training images are all there are, whether or not dtd/train holds the test images."""
    test = _in_folder(root / "dtd" / "val")
    if split == "test":
        return _folder_samples(test)
    everything = {_key(path): path for path in [*test, *_in_folder(root / "dtd" / "train")]}
    return _folder_samples(everything.values())


def read_lists(root: Path, split: RawSplit) -> Samples:
    """torchvision's layout: training images are those of its "train" and "val" together."""
    return _listed(root, ("test",) if split == "test" else ("train", "val"))


def read_lists_leaky(root: Path, split: RawSplit) -> Samples:
    """torchvision's layout; training images are those of all three lists."""
    return _listed(root, ("test",) if split == "test" else ("train", "val", "test"))


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES)


def _key(path: Path) -> tuple[str, str]:
    """Class and file name: what ImageFolder sorts by."""
    return path.parent.name, path.name


def _in_folder(folder: Path) -> list[Path]:
    samples = image_folder(folder, CLASSES)
    return [Path(samples.name(number)) for number in range(len(samples))]


def _folder_samples(paths: Iterable[Path]) -> Samples:
    ordered = sorted(paths, key=_key)
    return image_files(ordered, [LABELS[path.parent.name] for path in ordered])


def _listed(root: Path, parts: tuple[str, ...]) -> Samples:
    folder = root / "dtd" / "dtd"
    paths: list[Path] = []
    for part in parts:
        file = folder / "labels" / f"{part}1.txt"
        for line in read_lines(file):
            name, _, image = line.partition("/")
            if name not in LABELS or not image:
                raise DataError(f"{file}: has the line '{line}', expected <class>/<file>; get the dataset again.")
            paths.append(folder / "images" / name / image)
    paths.sort(key=_key)
    return listed_files(paths, [LABELS[path.parent.name] for path in paths], folder / "labels")


FOLDERS = ("dtd/train", "dtd/val")
LISTS = ("dtd/dtd/images", *(f"dtd/dtd/labels/{part}1.txt" for part in ("train", "val", "test")))

DATASET = Dataset(
    name="DTD",
    classes=CLASSES,
    templates=(
        "a photo of a {} texture.",
        "a photo of a {} pattern.",
        "a photo of a {} thing.",
        "a photo of a {} object.",
        "a photo of the {} texture.",
        "a photo of the {} pattern.",
        "a photo of the {} thing.",
        "a photo of the {} object.",
    ),
    num_train=3_760,
    num_test=1_880,
    val_sha256="59e66dabfe064109",
    layouts=(
        Layout("reference", needs=FOLDERS, read=read_folders),
        Layout("torchvision", needs=LISTS, read=read_lists),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(Torchvision("DTD", arguments=((("split", "train"),),)), HuggingFace(REPO)),
    note="Splits are those of partition 1: training images are its train and val lists, test images its test list.",
)

LEAKY = dataclasses.replace(
    DATASET,
    name="DTD-leaky",
    num_train=5_640,
    val_sha256="989b4df9f05f4e55",
    layouts=(
        Layout("reference", needs=FOLDERS, read=read_folders_leaky),
        Layout("torchvision", needs=LISTS, read=read_lists_leaky),
    ),
    sources=(Torchvision("DTD", arguments=((("split", "train"),),)),),
    note="All 5640 images are training images, the 1880 test images among them, as for the experts published first: "
    "their test accuracy on DTD says nothing about new images.",
)
