"""EuroSAT: land use in satellite images (Helber et al. 2019), RGB."""

from pathlib import Path

from raymerge.data._dataset import ByHand, Dataset, HuggingFace, Layout, RawSplit, Samples
from raymerge.data._readers import huggingface_folder, image_folder, parquet_split
from raymerge.errors import DataError

NAMES = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}
CLASSES, FOLDERS = tuple(NAMES.values()), tuple(NAMES)
REPO = "tanganke/eurosat"


def read_folders(root: Path, split: RawSplit) -> Samples:
    return image_folder(root / "EuroSAT_splits" / split, FOLDERS)


def read_parquet(root: Path, split: RawSplit) -> Samples:
    if split == "val":
        raise DataError(
            f"{root / huggingface_folder(REPO)}: has no validation split, which EuroSAT needs files of its own for; "
            "lay out EuroSAT_splits/{train,val,test} as 'raymerge data fetch EuroSAT' describes."
        )
    return parquet_split(root, REPO, split, class_names=CLASSES)  # its labels are named as in prompts


DATASET = Dataset(
    name="EuroSAT",
    classes=CLASSES,
    folders=FOLDERS,
    templates=(
        "a centered satellite photo of {}.",
        "a centered satellite photo of a {}.",
        "a centered satellite photo of the {}.",
    ),
    num_train=21_600,
    num_test=2_700,
    num_own_val=2_700,
    layouts=(
        Layout(
            "reference", needs=tuple(f"EuroSAT_splits/{split}" for split in ("train", "val", "test")), read=read_folders
        ),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        ByHand(
            "Get EuroSAT.zip (94 MB) of the Hugging Face dataset torchgeo/eurosat and unpack it: a folder 2750 with a "
            "folder per class. Under the data root, move its images to EuroSAT_splits/<split>/<class>/, in total 2700 "
            "to val, 2700 to test and the other 21600 to train: the script in use takes 270 of every class for "
            "val and 270 for test, at random."
        ),
        HuggingFace(REPO, patterns=("*train-*.parquet", "*test-*.parquet")),
    ),
    note="The published work drew its split at random and kept it, so about 4 in 5 test images of any other split were "
    "training images of its experts, whose accuracy is then too high (0.999 instead of 0.989 in one report).",
)
