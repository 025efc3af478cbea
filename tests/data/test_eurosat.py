"""EuroSAT: our reader against torchvision's ImageFolder on the same files."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

EUROSAT = dataset("EuroSAT")
SPLITS = {"train": drawn(10, 40), "val": drawn(10, 20, seed=1), "test": drawn(10, 30, seed=2)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("eurosat", tmp_path, SPLITS)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_reads_what_image_folder_reads(root: Path, split: str) -> None:
    theirs = torchvision.datasets.ImageFolder(str(root / "EuroSAT_splits" / split))
    ours = pickle.loads(pickle.dumps(read_split(EUROSAT, root, split)))
    assert list(EUROSAT.folders) == theirs.classes
    assert len(ours) == len(SPLITS[split])
    assert [(ours.name(i), ours.labels[i]) for i in range(len(ours))] == theirs.samples
    for i, (image, _) in enumerate(theirs):
        assert ours.image(i).mode == image.mode == "RGB"
        assert ours.image(i).size == (64, 64)
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_validation_images_come_from_their_own_folder(root: Path) -> None:
    found = {split: read_split(EUROSAT, root, split) for split in ("train", "val")}
    assert all("/EuroSAT_splits/val/" in found["val"].name(i) for i in range(20))
    assert len(found["val"]) == 20  # drawn from the training images, they would be 4
    assert len(found["train"]) == 40  # and would be taken from these
    assert (EUROSAT.num_val, EUROSAT.val_sha256) == (2700, None)


def test_file_names_are_sorted_as_text(root: Path) -> None:
    folder = root / "EuroSAT_splits/test/SeaLake"
    for number, path in zip((9, 10, 100), sorted(folder.iterdir()), strict=True):
        path.rename(folder / f"SeaLake_{number}.jpg")
    found = read_split(EUROSAT, root, "test")
    names = [Path(found.name(i)).name for i in range(len(found)) if found.labels[i] == 9]
    assert names == ["SeaLake_10.jpg", "SeaLake_100.jpg", "SeaLake_9.jpg"]


def test_prompts_name_what_the_folders_mean() -> None:
    assert dict(zip(EUROSAT.folders, EUROSAT.classes, strict=True))["HerbaceousVegetation"] == "brushland or shrubland"
    assert list(EUROSAT.folders) == sorted(EUROSAT.folders)


def test_damage_is_named(root: Path) -> None:
    image = root / "EuroSAT_splits/val/Forest/Forest_10004.jpg"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataError, match=r"val/Forest/Forest_10004.jpg: cannot be decoded"):
        read_split(EUROSAT, root, "val").image(2)
    (root / "EuroSAT_splits/test/Wood").mkdir()
    with pytest.raises(DataError, match=r"EuroSAT_splits/test: has class folder 'Wood', which is no class"):
        read_split(EUROSAT, root, "test")
    shutil.rmtree(root / "EuroSAT_splits/val")
    with pytest.raises(DataError, match=r"reference layout lacks EuroSAT_splits/val"):
        read_split(EUROSAT, root, "train")


def test_reads_the_hugging_face_layout_which_has_no_validation_split(tmp_path: Path) -> None:
    folder = tmp_path / "huggingface/tanganke/eurosat/data"
    parquet(folder / "train-00000-of-00001.parquet", SPLITS["train"], names=EUROSAT.classes)
    parquet(folder / "test-00000-of-00001.parquet", SPLITS["test"], names=EUROSAT.classes)
    found = read_split(EUROSAT, tmp_path, "test")
    assert EUROSAT.find_layout(tmp_path).name == "huggingface"
    assert list(found.labels) == [label for _, label in SPLITS["test"]]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(SPLITS["test"][6][0]))
    assert len(read_split(EUROSAT, tmp_path, "train")) == 40
    with pytest.raises(DataError, match=r"huggingface/tanganke/eurosat: has no validation split"):
        read_split(EUROSAT, tmp_path, "val")
