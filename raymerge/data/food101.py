"""Food-101: photographs of dishes (Bossard et al. 2014)."""

import json
from pathlib import Path

from raymerge.data._dataset import Dataset, HuggingFace, Layout, RawSplit, Samples, Torchvision
from raymerge.data._readers import listed_files, parquet_split
from raymerge.errors import DataError

REPO = "ethz/food101"
CLASSES = (
    "apple_pie",
    "baby_back_ribs",
    "baklava",
    "beef_carpaccio",
    "beef_tartare",
    "beet_salad",
    "beignets",
    "bibimbap",
    "bread_pudding",
    "breakfast_burrito",
    "bruschetta",
    "caesar_salad",
    "cannoli",
    "caprese_salad",
    "carrot_cake",
    "ceviche",
    "cheese_plate",
    "cheesecake",
    "chicken_curry",
    "chicken_quesadilla",
    "chicken_wings",
    "chocolate_cake",
    "chocolate_mousse",
    "churros",
    "clam_chowder",
    "club_sandwich",
    "crab_cakes",
    "creme_brulee",
    "croque_madame",
    "cup_cakes",
    "deviled_eggs",
    "donuts",
    "dumplings",
    "edamame",
    "eggs_benedict",
    "escargots",
    "falafel",
    "filet_mignon",
    "fish_and_chips",
    "foie_gras",
    "french_fries",
    "french_onion_soup",
    "french_toast",
    "fried_calamari",
    "fried_rice",
    "frozen_yogurt",
    "garlic_bread",
    "gnocchi",
    "greek_salad",
    "grilled_cheese_sandwich",
    "grilled_salmon",
    "guacamole",
    "gyoza",
    "hamburger",
    "hot_and_sour_soup",
    "hot_dog",
    "huevos_rancheros",
    "hummus",
    "ice_cream",
    "lasagna",
    "lobster_bisque",
    "lobster_roll_sandwich",
    "macaroni_and_cheese",
    "macarons",
    "miso_soup",
    "mussels",
    "nachos",
    "omelette",
    "onion_rings",
    "oysters",
    "pad_thai",
    "paella",
    "pancakes",
    "panna_cotta",
    "peking_duck",
    "pho",
    "pizza",
    "pork_chop",
    "poutine",
    "prime_rib",
    "pulled_pork_sandwich",
    "ramen",
    "ravioli",
    "red_velvet_cake",
    "risotto",
    "samosa",
    "sashimi",
    "scallops",
    "seaweed_salad",
    "shrimp_and_grits",
    "spaghetti_bolognese",
    "spaghetti_carbonara",
    "spring_rolls",
    "steak",
    "strawberry_shortcake",
    "sushi",
    "tacos",
    "takoyaki",
    "tiramisu",
    "tuna_tartare",
    "waffles",
)


def read_reference(root: Path, split: RawSplit) -> Samples:
    return _read(root / "food101" / "food-101", split)


def read_torchvision(root: Path, split: RawSplit) -> Samples:
    return _read(root / "food-101", split)


def _read(folder: Path, split: RawSplit) -> Samples:
    meta = folder / "meta" / f"{split}.json"
    try:
        listed = json.loads(meta.read_text(encoding="utf-8"))
        pairs = [(name, folder / "images" / f"{image}.jpg") for name, images in listed.items() for image in images]
    except OSError as error:
        raise DataError(f"{meta}: cannot be read ({error.strerror}); get the dataset again.") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{meta}: no list of images per class ({error}); get it again.") from None
    missing, unknown = sorted(set(CLASSES) - set(listed)), sorted(set(listed) - set(CLASSES))
    if missing or unknown:
        what = f"lacks class '{missing[0]}'" if missing else f"has class '{unknown[0]}', which is no class"
        raise DataError(f"{meta}: {what}; expected {len(CLASSES)} classes, found {len(listed)}. Get it again.")
    numbers = {name: number for number, name in enumerate(CLASSES)}
    # in the order of the file, which is not that of the classes
    return listed_files([path for _, path in pairs], [numbers[name] for name, _ in pairs], meta)


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, {"train": "train", "test": "validation"}[split], class_names=CLASSES)


def _needs(folder: str) -> tuple[str, ...]:
    return (f"{folder}/meta/train.json", f"{folder}/meta/test.json", f"{folder}/images")


DATASET = Dataset(
    name="Food101",
    classes=CLASSES,
    templates=("a photo of {}, a type of food.",),
    num_train=75_750,
    num_test=25_250,
    val_sha256="56165b8dbd1a043c",
    layouts=(
        Layout("reference", needs=_needs("food101/food-101"), read=read_reference),
        Layout("torchvision", needs=_needs("food-101"), read=read_torchvision),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        Torchvision("Food101", root="food101", arguments=((("split", "train"),), (("split", "test"),))),
        HuggingFace(REPO),
    ),
    note="The Hugging Face repository has the images in another order, so that other ones are drawn for validation.",
)
