"""RESISC45: our reader against torchvision's ImageFolder, restricted to a list as the published code does."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import drawn_indices, index_hash, read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

RESISC45 = dataset("RESISC45")
SPLITS = {"train": drawn(45, 100, size=(20, 18)), "test": drawn(45, 50, seed=1, size=(20, 18))}
FOLDER = "resisc45/NWPU-RESISC45"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("resisc45", tmp_path, SPLITS)
    shutil.copy(tmp_path / FOLDER / "lake/lake_001.jpg", tmp_path / FOLDER / "lake/lake_700.jpg")  # in no list
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_the_published_code_reads(root: Path, split: str) -> None:
    with (root / f"resisc45/resisc45-{split}.txt").open() as file:
        listed = {line.strip() for line in file}
    theirs = torchvision.datasets.ImageFolder(str(root / FOLDER), is_valid_file=lambda path: Path(path).name in listed)
    ours = pickle.loads(pickle.dumps(RESISC45.find_layout(root).read(root, split)))
    assert RESISC45.find_layout(root).name == "reference"
    assert [name.replace("_", " ") for name in theirs.classes] == list(RESISC45.classes)
    assert [(ours.name(i), ours.labels[i]) for i in range(len(ours))] == theirs.samples
    assert len(ours) == len(SPLITS[split])
    for i, (image, _) in enumerate(theirs):
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_only_listed_files_are_read(root: Path) -> None:
    names = {split: set() for split in SPLITS}
    for split in SPLITS:
        found = RESISC45.layouts[0].read(root, split)
        names[split] = {Path(found.name(i)).name for i in range(len(found))}
    assert not names["train"] & names["test"]
    assert "lake_700.jpg" not in names["train"] | names["test"]


def test_images_are_in_the_order_of_folders_and_not_of_the_list(root: Path) -> None:
    path = root / "resisc45/resisc45-test.txt"
    listed = path.read_text().split()
    before = read_split(RESISC45, root, "test")
    path.write_text("\n".join(reversed(listed)))
    after = read_split(RESISC45, root, "test")
    assert [after.name(i) for i in range(50)] == [before.name(i) for i in range(50)]
    assert [Path(after.name(i)).name for i in range(50)] == sorted(listed)
    assert sorted(listed) not in (listed, listed[::-1])


def test_validation_images_are_the_published_ones() -> None:
    assert index_hash(drawn_indices(RESISC45.num_train)[1]) == RESISC45.val_sha256
    assert RESISC45.num_val == 1890


def test_damage_is_named(root: Path) -> None:
    image = root / FOLDER / "airplane" / "airplane_001.jpg"
    image.write_bytes(image.read_bytes()[:100])
    train = RESISC45.layouts[0].read(root, "train")
    with pytest.raises(DataError, match=r"airplane_001.jpg: cannot be decoded"):
        train.image(0)
    image.unlink()
    with pytest.raises(
        DataError, match=r"resisc45-train.txt: names 100 images, of which 1 are not .*'airplane_001.jpg'"
    ):
        RESISC45.layouts[0].read(root, "train")
    shutil.rmtree(root / FOLDER / "lake")
    with pytest.raises(
        DataError, match=r"NWPU-RESISC45: lacks class folder 'lake'; expected 45 class folders, found 44"
    ):
        RESISC45.layouts[0].read(root, "test")
    (root / "resisc45/resisc45-test.txt").unlink()
    with pytest.raises(DataError, match=r"reference layout lacks resisc45/resisc45-test.txt"):
        read_split(RESISC45, root, "test")


def test_an_empty_list_is_named(root: Path) -> None:
    (root / "resisc45/resisc45-test.txt").write_text("\n")
    with pytest.raises(DataError, match=r"resisc45-test.txt: names no image; get the dataset again"):
        read_split(RESISC45, root, "test")


@pytest.mark.parametrize("spelled", ["folders", "classes"])
def test_reads_the_hugging_face_layout(tmp_path: Path, spelled: str) -> None:
    path = tmp_path / "huggingface/tanganke/resisc45/data/test-00000-of-00001.parquet"
    parquet(path, SPLITS["test"], names=getattr(RESISC45, spelled))
    found = read_split(RESISC45, tmp_path, "test")
    assert list(found.labels) == [label for _, label in SPLITS["test"]]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(SPLITS["test"][6][0]))
