"""Oxford-IIIT Pet: our reader against torchvision's on the same files."""

from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

PETS = dataset("OxfordIIITPet")
FOLDER = "OxfordIIITPet/oxford-iiit-pet"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("oxford_iiit_pet", tmp_path, {"train": drawn(37, 80), "test": drawn(37, 40, seed=1)})
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str) -> None:
    ours = PETS.find_layout(root).read(root, split)
    part = {"train": "trainval", "test": "test"}[split]
    theirs = torchvision.datasets.OxfordIIITPet(str(root / "OxfordIIITPet"), split=part)
    assert theirs.classes == list(PETS.classes)
    assert len(ours) == len(theirs) == {"train": 80, "test": 40}[split]
    assert [ours.name(i) for i in range(len(ours))] == [str(path) for path in theirs._images]
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_labels_ignore_case_as_the_names_of_the_files_do_not() -> None:
    assert PETS.classes[:6] == (
        "Abyssinian",
        "American Bulldog",
        "American Pit Bull Terrier",
        "Basset Hound",
        "Beagle",
        "Bengal",
    )
    assert list(PETS.folders) == sorted(PETS.folders, key=str.lower) != sorted(PETS.folders)
    assert sum(breed[0].isupper() for breed in PETS.folders) == 12  # cats


def test_images_keep_the_order_of_the_list(root: Path) -> None:
    path = root / FOLDER / "annotations/test.txt"
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in reversed(lines)))
    samples = read_split(PETS, root, "test")
    assert [Path(samples.name(i)).stem for i in range(40)] == [line.split()[0] for line in reversed(lines)]


@pytest.mark.parametrize("line", ["beagle_1 4 2 4", "beagle_1 0 2 4", "beagle_1 38 2 4", "beagle_1", "beagle_1 x 2 4"])
def test_a_bad_line_is_named(root: Path, line: str) -> None:
    (root / FOLDER / "annotations/test.txt").write_text(f"{line}\n")
    with pytest.raises(
        DataError, match=rf"test\.txt: line '{line}' does not give an image and the number of its breed"
    ):
        read_split(PETS, root, "test")


def test_a_missing_image_is_named(root: Path) -> None:
    missing = next((root / FOLDER / "images").glob("beagle_*.jpg"))
    missing.unlink()
    with pytest.raises(DataError, match=rf"{missing.name}: no such image file, though .*(trainval|test)\.txt names it"):
        [read_split(PETS, root, split) for split in ("train", "test")]


def test_a_damaged_image_is_named(root: Path) -> None:
    samples = read_split(PETS, root, "test")
    Path(samples.name(7)).write_bytes(b"\xff\xd8 no more")
    with pytest.raises(DataError, match=rf"{samples.name(7)}: cannot be decoded"):
        samples.image(7)


def test_reads_the_hugging_face_layout(tmp_path: Path) -> None:
    images = drawn(37, 40)
    names = sorted(breed.lower() for breed in PETS.folders)
    parquet(tmp_path / "huggingface/timm/oxford-iiit-pet/data/test-00000-of-00001.parquet", images, names=names)
    found = read_split(PETS, tmp_path, "test")
    assert PETS.find_layout(tmp_path).name == "huggingface"
    assert found.labels == [label for _, label in images]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0]))
