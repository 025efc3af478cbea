"""Food-101: our reader against torchvision's on the same files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import drawn_indices, index_hash, read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

FOOD101 = dataset("Food101")
FOLDER = "food101/food-101"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("food101", tmp_path, {"train": drawn(101, 210, size=(20, 16)), "test": drawn(101, 110, seed=1)})
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str) -> None:
    ours = FOOD101.find_layout(root).read(root, split)
    theirs = torchvision.datasets.Food101(str(root / "food101"), split=split)
    assert theirs.classes == list(FOOD101.classes)
    assert len(ours) == len(theirs) == {"train": 210, "test": 110}[split]
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_images_come_in_the_order_of_the_json_file_and_labels_in_that_of_sorted_names(root: Path) -> None:
    listed = json.loads((root / FOLDER / "meta/train.json").read_text())
    names = list(listed)
    assert names != sorted(names)  # or this test would say nothing
    ours = FOOD101.find_layout(root).read(root, "train")
    assert list(ours.labels) == [sorted(names).index(name) for name in names for _ in listed[name]]
    assert ours.name(0) == f"{root}/{FOLDER}/images/{listed[names[0]][0]}.jpg"


def test_an_underscore_sorts_before_letters() -> None:
    assert FOOD101.classes.index("cheese_plate") == 16
    assert FOOD101.classes.index("cheesecake") == 17


def test_the_validation_split_is_the_published_one() -> None:
    train, val = drawn_indices(FOOD101.num_train)
    assert (train[0], val[0], val[-1], len(val)) == (23294, 22401, 23025, FOOD101.num_val)
    assert index_hash(val) == FOOD101.val_sha256


def test_reads_the_torchvision_layout(root: Path) -> None:
    expected = FOOD101.layouts[0].read(root, "test")
    (root / FOLDER).rename(root / "food-101")
    layout = FOOD101.find_layout(root)
    assert layout.name == "torchvision"
    found = layout.read(root, "test")
    assert list(found.labels) == list(expected.labels)
    assert found.name(0).startswith(f"{root}/food-101/images/")


def test_the_hugging_face_repository_calls_the_test_split_validation_and_swaps_two_classes(tmp_path: Path) -> None:
    names = list(FOOD101.classes)
    names[16:18] = "cheesecake", "cheese_plate"  # as it has them
    images = [(image, 16 + i % 2) for i, (image, _) in enumerate(drawn(2, 6))]
    folder = tmp_path / "huggingface/ethz/food101/data"
    parquet(folder / "train-00000-of-00008.parquet", images[:2], names=names)
    parquet(folder / "validation-00000-of-00003.parquet", images[:4], names=names)
    parquet(folder / "validation-00001-of-00003.parquet", images[4:], names=names)
    found = read_split(FOOD101, tmp_path, "test")
    assert list(found.labels) == [17, 16, 17, 16, 17, 16]
    np.testing.assert_array_equal(np.asarray(found.image(5)), np.asarray(images[5][0]))


def test_a_missing_image_is_named(root: Path) -> None:
    ours = FOOD101.find_layout(root).read(root, "test")
    path = Path(ours.name(7))
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: no such image file, though .*meta/test.json names it; 1 of 110"):
        FOOD101.find_layout(root).read(root, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"train.json: no list of images per class"),
        ("<html>", r"train.json: no list of images per class"),
        ("[1]", r"train.json: no list of images per class"),
        ('{"pho": 3}', r"train.json: no list of images per class"),
        ('{"pho": ["pho/1"]}', r"train.json: lacks class 'apple_pie'; expected 101 classes, found 1"),
    ],
)
def test_a_damaged_list_is_named(root: Path, content: str, message: str) -> None:
    (root / FOLDER / "meta/train.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_split(FOOD101, root, "val")


def test_an_unknown_class_is_named(root: Path) -> None:
    path = root / FOLDER / "meta/train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "soup": []}))
    with pytest.raises(DataError, match=r"has class 'soup', which is no class; expected 101 classes, found 102"):
        read_split(FOOD101, root, "train")
