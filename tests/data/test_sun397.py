"""SUN397: our readers against torchvision's on the same files, and the order of its classes."""

from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import read_split
from raymerge.data.sun397 import CLASSES, FOLDERS, LISTS
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

SUN397 = dataset("SUN397")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    small = (9, 8)
    write_raw("sun397", folder, {"train": drawn(397, 420, size=small), "test": drawn(397, 397, seed=1, size=small)})
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str) -> None:
    ours = SUN397.layouts[0].read(root, split)
    theirs = torchvision.datasets.ImageFolder(str(root / "sun397" / {"train": "train", "test": "val"}[split]))
    assert theirs.classes == list(FOLDERS)
    assert len(ours) == len(theirs) == {"train": 420, "test": 397}[split]
    assert [(ours.name(i), ours.labels[i]) for i in range(len(ours))] == theirs.samples
    for i in range(0, len(ours), 7):
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(theirs[i][0]))


def test_classes_are_sorted_as_folders() -> None:
    assert len(CLASSES) == 397
    assert list(FOLDERS) == sorted(FOLDERS)
    assert CLASSES[205:209] == ("jacuzzi indoor", "jail cell", "jail indoor", "jewelry shop")  # not of ClassName.txt
    assert (FOLDERS[8], CLASSES[8]) == ("a_apartment_building_outdoor", "apartment building outdoor")


def write_archive(root: Path) -> list[str]:
    """Five images as in the official archive, with its list of classes and of the first partition."""
    lines = ["/j/jail_cell/sun_b.jpg", "/j/jail/indoor/sun_a.jpg", "/a/abbey/sun_d.jpg", "/j/jail_cell/sun_a.jpg"]
    for number, line in enumerate([*lines, "/a/abbey/sun_unused.jpg"]):
        path = root / f"SUN397{line}"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn(1, 1, seed=number)[0][0].save(path)
    (root / "SUN397/ClassName.txt").write_text("/a/abbey\n/j/jail/indoor\n/j/jail_cell\n")
    (root / "SUN397" / LISTS["train"]).write_text("\n".join(lines) + "\n")
    (root / "SUN397" / LISTS["test"]).write_text(lines[2] + "\n")
    return lines


def test_reads_the_official_archive_in_the_order_of_flattened_folders(tmp_path: Path) -> None:
    write_archive(tmp_path)
    assert SUN397.find_layout(tmp_path).name == "torchvision"
    ours = SUN397.find_layout(tmp_path).read(tmp_path, "train")
    files = ["a/abbey/sun_d.jpg", "j/jail_cell/sun_a.jpg", "j/jail_cell/sun_b.jpg", "j/jail/indoor/sun_a.jpg"]
    assert [ours.name(i) for i in range(4)] == [str(tmp_path / "SUN397" / file) for file in files]
    assert ours.labels == [0, 206, 206, 207]
    theirs = torchvision.datasets.SUN397(str(tmp_path))  # all images, classes as in ClassName.txt
    for i in range(4):
        number = [str(path) for path in theirs._image_files].index(ours.name(i))
        image, label = theirs[number]
        assert theirs.classes[label].replace("/", "_") == FOLDERS[ours.labels[i]][2:]
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))
    assert len(SUN397.find_layout(tmp_path).read(tmp_path, "test")) == 1


def test_an_unknown_class_in_a_list_is_named(tmp_path: Path) -> None:
    write_archive(tmp_path)
    (tmp_path / "SUN397" / LISTS["train"]).write_text("/m/moon/sun_a.jpg\n")
    with pytest.raises(DataError, match=r"Training_01\.txt: line '/m/moon/sun_a\.jpg' is in none of the 397 classes"):
        read_split(SUN397, tmp_path, "train")


def test_a_listed_file_that_is_missing_is_named(tmp_path: Path) -> None:
    write_archive(tmp_path)
    (tmp_path / "SUN397/j/jail_cell/sun_b.jpg").unlink()
    with pytest.raises(DataError, match=r"j/jail_cell/sun_b\.jpg: no such image file, though .*Training_01\.txt"):
        read_split(SUN397, tmp_path, "train")


def test_a_missing_class_folder_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "sun397/train").mkdir(parents=True)
    (tmp_path / "sun397/val").symlink_to(root / "sun397/val")
    for folder in FOLDERS[:-1]:
        (tmp_path / "sun397/train" / folder).symlink_to(root / "sun397/train" / folder)
    with pytest.raises(DataError, match=r"sun397/train: lacks class folder 'y_youth_hostel'; expected 397"):
        read_split(SUN397, tmp_path, "train")


@pytest.mark.parametrize("spelling", ["classes", "folders", "official"])
def test_reads_the_hugging_face_layout_whatever_its_order(tmp_path: Path, spelling: str) -> None:
    names = list({"classes": CLASSES, "folders": FOLDERS, "official": CLASSES}[spelling])
    if spelling == "official":  # the order of ClassName.txt, and its slash
        names[206:208] = ["jail/indoor", "jail_cell"]
    images = [(image, [0, 206, 207, 396][i]) for i, (image, _) in enumerate(drawn(1, 4))]
    parquet(tmp_path / "huggingface/tanganke/sun397/data/test-00000-of-00001.parquet", images, names=names)
    found = read_split(SUN397, tmp_path, "test")
    assert SUN397.find_layout(tmp_path).name == "huggingface"
    assert found.labels == ([0, 207, 206, 396] if spelling == "official" else [0, 206, 207, 396])
    np.testing.assert_array_equal(np.asarray(found.image(3)), np.asarray(images[3][0]))
