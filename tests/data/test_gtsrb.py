"""GTSRB: our reader against torchvision's on the same files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import drawn_indices, index_hash, read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

GTSRB = dataset("GTSRB")
SPLITS = {"train": drawn(43, 100), "test": drawn(43, 50, seed=1)}
TABLE = "gtsrb/GT-final_test.csv"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("gtsrb", tmp_path, SPLITS)
    (tmp_path / "gtsrb/GTSRB/Training/00000/GT-00000.csv").write_text("Filename;ClassId\n")  # is there, no image
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str) -> None:
    theirs = torchvision.datasets.GTSRB(str(root), split=split)
    ours = pickle.loads(pickle.dumps(GTSRB.find_layout(root).read(root, split)))
    assert GTSRB.find_layout(root).name == "reference"
    assert [(ours.name(i), ours.labels[i]) for i in range(len(ours))] == theirs._samples
    assert len(ours) == len(theirs) == len(SPLITS[split])
    for i in range(len(ours)):
        image = theirs[i][0]
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_training_images_are_in_the_order_of_folders(root: Path) -> None:
    found = GTSRB.layouts[0].read(root, "train")
    assert list(found.labels) == sorted(label for _, label in SPLITS["train"])
    assert list(found.labels) != [label for _, label in SPLITS["train"]]


def test_labels_and_order_of_test_images_are_those_of_the_table(root: Path) -> None:
    header, *rows = (root / TABLE).read_text().splitlines()
    (root / TABLE).write_text("\n".join([header, *rows[::-1]]))
    found = read_split(GTSRB, root, "test")
    assert list(found.labels) == [label for _, label in reversed(SPLITS["test"])]
    assert [Path(found.name(i)).name for i in (0, 1, 49)] == ["00049.ppm", "00048.ppm", "00000.ppm"]
    np.testing.assert_array_equal(np.asarray(found.image(0)), np.asarray(SPLITS["test"][-1][0]))


def test_images_that_the_table_does_not_list_are_not_read(root: Path) -> None:
    rows = (root / TABLE).read_text().splitlines()
    (root / TABLE).write_text("\n".join(rows[:11]))
    assert len(read_split(GTSRB, root, "test")) == 10


def test_validation_images_are_the_published_ones() -> None:
    assert index_hash(drawn_indices(GTSRB.num_train)[1]) == GTSRB.val_sha256
    assert GTSRB.num_val == 2664


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Filename,ClassId\n00000.ppm,3\n", r"GT-final_test.csv: lacks 'Filename' or 'ClassId' between ';'"),
        ("Filename;Width;ClassId\n00000.ppm;3\n", r"GT-final_test.csv: lacks 'Filename' or 'ClassId' between ';'"),
        ("Filename;ClassId\n00000.ppm;43\n", r"GT-final_test.csv: has a ClassId 43, expected 0 to 42"),
        ("Filename;ClassId\n00000.ppm;stop\n", r"GT-final_test.csv: cannot be read \(invalid literal"),
        ("Filename;ClassId\n", r"GT-final_test.csv: names no image"),
        ("Filename;ClassId\n00099.ppm;1\n", r"Images/00099.ppm: no such image file, .*csv names it; 1 of 1"),
    ],
)
def test_a_damaged_table_is_named(root: Path, content: str, message: str) -> None:
    (root / TABLE).write_text(content)
    with pytest.raises(DataError, match=message):
        read_split(GTSRB, root, "test")


def test_damage_is_named(root: Path) -> None:
    image = root / "gtsrb/GTSRB/Final_Test/Images/00000.ppm"
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(DataError, match=r"Images/00000.ppm: cannot be decoded"):
        read_split(GTSRB, root, "test").image(0)
    (root / TABLE).unlink()
    with pytest.raises(DataError, match=r"reference layout lacks gtsrb/GT-final_test.csv"):
        read_split(GTSRB, root, "test")
    for path in (root / "gtsrb/GTSRB/Training/00042").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"Training/00042: the class folder holds no image"):
        GTSRB.layouts[0].read(root, "train")


def test_reads_the_hugging_face_layout(tmp_path: Path) -> None:
    folder = tmp_path / "huggingface/tanganke/gtsrb/data"
    parquet(folder / "test-00000-of-00001.parquet", SPLITS["test"], names=GTSRB.classes)
    parquet(folder / "spatter-00000-of-00001.parquet", SPLITS["test"][:3], names=GTSRB.classes)
    found = read_split(GTSRB, tmp_path, "test")
    assert list(found.labels) == [label for _, label in SPLITS["test"]]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(SPLITS["test"][6][0]))
