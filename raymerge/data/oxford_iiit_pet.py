"""Oxford-IIIT Pet: breeds of cats and dogs (Parkhi et al. 2012)."""

from pathlib import Path

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import listed_files, parquet_split, read_lines
from raymerge.errors import DataError

# As in the names of the image files, where breeds of cats begin with a capital. The order of the labels ignores case.
FOLDERS = (
    "Abyssinian",
    "american_bulldog",
    "american_pit_bull_terrier",
    "basset_hound",
    "beagle",
    "Bengal",
    "Birman",
    "Bombay",
    "boxer",
    "British_Shorthair",
    "chihuahua",
    "Egyptian_Mau",
    "english_cocker_spaniel",
    "english_setter",
    "german_shorthaired",
    "great_pyrenees",
    "havanese",
    "japanese_chin",
    "keeshond",
    "leonberger",
    "Maine_Coon",
    "miniature_pinscher",
    "newfoundland",
    "Persian",
    "pomeranian",
    "pug",
    "Ragdoll",
    "Russian_Blue",
    "saint_bernard",
    "samoyed",
    "scottish_terrier",
    "shiba_inu",
    "Siamese",
    "Sphynx",
    "staffordshire_bull_terrier",
    "wheaten_terrier",
    "yorkshire_terrier",
)
CLASSES = tuple(breed.replace("_", " ").title() for breed in FOLDERS)
REPO = "timm/oxford-iiit-pet"
FOLDER = "OxfordIIITPet/oxford-iiit-pet"


def read_files(root: Path, split: RawSplit) -> Samples:
    folder = root / FOLDER
    path = folder / "annotations" / {"train": "trainval.txt", "test": "test.txt"}[split]
    paths: list[Path] = []
    labels: list[int] = []
    for line in read_lines(path):  # such as "Abyssinian_100 1 1 1": file, breed from 1, cat or dog, number in that
        file, label = [*line.split(), ""][:2]
        breed = FOLDERS[int(label) - 1] if label.isdecimal() and 1 <= int(label) <= len(FOLDERS) else ""
        if file.rpartition("_")[0].lower() != breed.lower():
            raise DataError(f"{path}: line '{line}' does not give an image and the number of its breed; get it again.")
        paths.append(folder / "images" / f"{file}.jpg")
        labels.append(int(label) - 1)
    return listed_files(paths, labels, path)


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=FOLDERS)


DATASET = Dataset(
    name="OxfordIIITPet",
    classes=CLASSES,
    folders=FOLDERS,
    templates=("a photo of a {}, a type of pet.",),
    num_train=3_680,
    num_test=3_669,
    val_sha256="df80767e72490452",
    layouts=(
        Layout(
            "reference",
            needs=tuple(f"{FOLDER}/{part}" for part in ("images", "annotations/trainval.txt", "annotations/test.txt")),
            read=read_files,
        ),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("OxfordIIITPet", root="OxfordIIITPet", arguments=((("split", "trainval"),), (("split", "test"),))),
        HuggingFace(REPO),
    ),
    note="Training and validation images are drawn from the official split called trainval.",
)
