"""Flowers102: species of flowers (Nilsback and Zisserman 2008), trained on the official training split only."""

from pathlib import Path

import numpy as np

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import listed_files, parquet_split, read_mat
from raymerge.errors import DataError

CLASSES = (
    "pink primrose",
    "hard-leaved pocket orchid",
    "canterbury bells",
    "sweet pea",
    "english marigold",
    "tiger lily",
    "moon orchid",
    "bird of paradise",
    "monkshood",
    "globe thistle",
    "snapdragon",
    "colt's foot",
    "king protea",
    "spear thistle",
    "yellow iris",
    "globe flower",
    "purple coneflower",
    "peruvian lily",
    "balloon flower",
    "giant white arum lily",
    "fire lily",
    "pincushion flower",
    "fritillary",
    "red ginger",
    "grape hyacinth",
    "corn poppy",
    "prince of wales feathers",
    "stemless gentian",
    "artichoke",
    "sweet william",
    "carnation",
    "garden phlox",
    "love in the mist",
    "mexican aster",
    "alpine sea holly",
    "ruby-lipped cattleya",
    "cape flower",
    "great masterwort",
    "siam tulip",
    "lenten rose",
    "barbeton daisy",
    "daffodil",
    "sword lily",
    "poinsettia",
    "bolero deep blue",
    "wallflower",
    "marigold",
    "buttercup",
    "oxeye daisy",
    "common dandelion",
    "petunia",
    "wild pansy",
    "primula",
    "sunflower",
    "pelargonium",
    "bishop of llandaff",
    "gaura",
    "geranium",
    "orange dahlia",
    "pink and yellow dahlia",
    "cautleya spicata",
    "japanese anemone",
    "black-eyed susan",
    "silverbush",
    "californian poppy",
    "osteospermum",
    "spring crocus",
    "bearded iris",
    "windflower",
    "tree poppy",
    "gazania",
    "azalea",
    "water lily",
    "rose",
    "thorn apple",
    "morning glory",
    "passion flower",
    "lotus",
    "toad lily",
    "anthurium",
    "frangipani",
    "clematis",
    "hibiscus",
    "columbine",
    "desert-rose",
    "tree mallow",
    "magnolia",
    "cyclamen",
    "watercress",
    "canna lily",
    "hippeastrum",
    "bee balm",
    "air plant",
    "foxglove",
    "bougainvillea",
    "camellia",
    "mallow",
    "mexican petunia",
    "bromelia",
    "blanket flower",
    "trumpet creeper",
    "blackberry lily",
)
# Three names have changed since: what torchvision and the copies on Hugging Face say today.
NAMES_TODAY = {
    "globe flower": "globe-flower",
    "pink and yellow dahlia": "pink-yellow dahlia?",
    "air plant": "ball moss",
}
REPO = "dpdl-benchmark/oxford_flowers102"
FOLDER = "flowers102/flowers-102"


def read_files(root: Path, split: RawSplit) -> Samples:
    folder = root / FOLDER
    labelled = folder / "imagelabels.mat"
    (labels,) = read_mat(labelled, "labels")
    path = folder / "setid.mat"
    (numbers,) = read_mat(path, {"train": "trnid", "test": "tstid"}[split])  # of images, from 1
    labels, numbers = np.atleast_1d(labels).astype(np.int64), np.atleast_1d(numbers).astype(np.int64)
    if numbers.size and not 1 <= numbers.min() <= numbers.max() <= labels.size:
        raise DataError(f"{path}: names images {numbers.min()} to {numbers.max()} of {labels.size}; get it again.")
    if labels.size and not 1 <= labels.min() <= labels.max() <= len(CLASSES):
        raise DataError(f"{labelled}: has labels from {labels.min()} to {labels.max()}, not 1 to 102; get it again.")
    paths = [folder / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
    return listed_files(paths, (labels[numbers - 1] - 1).tolist(), path)


def read_parquet(root: Path, split: RawSplit) -> Samples:
    spellings = {today: name for name, today in NAMES_TODAY.items()}
    return parquet_split(root, REPO, split, class_names=CLASSES, spellings=spellings)


DATASET = Dataset(
    name="Flowers102",
    classes=CLASSES,
    templates=("a photo of a {}, a type of flower.",),
    num_train=1_020,
    num_test=6_149,
    val_sha256="56c505f5aaf7654f",
    layouts=(
        Layout(
            "reference",
            needs=tuple(f"{FOLDER}/{part}" for part in ("jpg", "imagelabels.mat", "setid.mat")),
            read=read_files,
        ),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("Flowers102", root="flowers102", arguments=((("split", "train"),), (("split", "test"),))),
        HuggingFace(REPO),
    ),
    note="The official validation split is not used; three classes stand in prompts under older names.",
)
