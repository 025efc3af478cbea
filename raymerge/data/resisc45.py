"""RESISC45: scenes in aerial images (Cheng et al. 2017), in the split of Neumann et al. 2019."""

from pathlib import Path

from raymerge.data._dataset import ByHand, Dataset, HuggingFace, Layout, RawSplit, Samples
from raymerge.data._readers import image_folder, parquet_split, read_lines
from raymerge.errors import DataError

FOLDERS = (
    "airplane",
    "airport",
    "baseball_diamond",
    "basketball_court",
    "beach",
    "bridge",
    "chaparral",
    "church",
    "circular_farmland",
    "cloud",
    "commercial_area",
    "dense_residential",
    "desert",
    "forest",
    "freeway",
    "golf_course",
    "ground_track_field",
    "harbor",
    "industrial_area",
    "intersection",
    "island",
    "lake",
    "meadow",
    "medium_residential",
    "mobile_home_park",
    "mountain",
    "overpass",
    "palace",
    "parking_lot",
    "railway",
    "railway_station",
    "rectangular_farmland",
    "river",
    "roundabout",
    "runway",
    "sea_ice",
    "ship",
    "snowberg",
    "sparse_residential",
    "stadium",
    "storage_tank",
    "tennis_court",
    "terrace",
    "thermal_power_station",
    "wetland",
)
CLASSES = tuple(name.replace("_", " ") for name in FOLDERS)
REPO = "tanganke/resisc45"


def read_lists(root: Path, split: RawSplit) -> Samples:
    """The images whose file names a split's list holds, in the order of folders, not of the list."""
    file = root / "resisc45" / f"resisc45-{split}.txt"
    listed = set(read_lines(file))
    everything = image_folder(root / "resisc45" / "NWPU-RESISC45", FOLDERS)
    names = [Path(everything.name(number)).name for number in range(len(everything))]
    missing = sorted(listed.difference(names))
    if missing or not listed:
        what = f"names {len(listed)} images, of which {len(missing)} are not" if listed else "names no image"
        example = f" in NWPU-RESISC45 beside it, such as '{missing[0]}'" if missing else ""
        raise DataError(f"{file}: {what}{example}; get the dataset again.")
    return everything.subset([number for number, name in enumerate(names) if name in listed])


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=FOLDERS)


DATASET = Dataset(
    name="RESISC45",
    classes=CLASSES,
    folders=FOLDERS,
    templates=(
        "satellite imagery of {}.",
        "aerial imagery of {}.",
        "satellite photo of {}.",
        "aerial photo of {}.",
        "satellite view of {}.",
        "aerial view of {}.",
        "satellite imagery of a {}.",
        "aerial imagery of a {}.",
        "satellite photo of a {}.",
        "aerial photo of a {}.",
        "satellite view of a {}.",
        "aerial view of a {}.",
        "satellite imagery of the {}.",
        "aerial imagery of the {}.",
        "satellite photo of the {}.",
        "aerial photo of the {}.",
        "satellite view of the {}.",
        "aerial view of the {}.",
    ),
    num_train=18_900,
    num_test=6_300,
    val_sha256="998f605dc7ecdef4",
    layouts=(
        Layout(
            "reference",
            needs=("resisc45/NWPU-RESISC45", "resisc45/resisc45-train.txt", "resisc45/resisc45-test.txt"),
            read=read_lists,
        ),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        HuggingFace(REPO, patterns=("*train-*.parquet", "*test-*.parquet")),
        ByHand(
            "Get NWPU-RESISC45.zip (427 MB), resisc45-train.txt, resisc45-val.txt and resisc45-test.txt of the Hugging "
            "Face dataset torchgeo/resisc45, put the three lists into resisc45/ under the data root, and unpack the "
            "archive there, so that resisc45/NWPU-RESISC45/ holds a folder per class."
        ),
    ),
    note="The 6300 images of the list resisc45-val.txt are not used: validation images are drawn from the training "
    "images, and are the published ones only in the order of the folders.",
)
