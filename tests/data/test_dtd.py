"""DTD: our readers against torchvision's ImageFolder and DTD on the same files."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import Samples, dataset
from raymerge.data.splits import drawn_indices, index_hash, read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

DTD, LEAKY = dataset("DTD"), dataset("DTD-leaky")
SPLITS = {"train": drawn(47, 141, size=(20, 18)), "test": drawn(47, 60, seed=1, size=(20, 18))}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_raw("dtd", folder, SPLITS)
    return folder


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """The published layout, free to be changed."""
    shutil.copytree(written / "dtd", tmp_path / "dtd")
    return tmp_path


@pytest.fixture
def lists(written: Path, tmp_path: Path) -> Path:
    """The same images in torchvision's layout: every third training image is one of its val list, lists unsorted."""
    folder = tmp_path / "dtd/dtd"
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for part in ("train", "val"):
        for number, path in enumerate(sorted((written / "dtd" / part).glob("*/*.jpg"), reverse=True)):
            target = folder / "images" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            list_name = "test" if part == "val" else "val" if number % 3 == 0 else "train"
            names[list_name].append(f"{path.parent.name}/{path.name}\n")
    (folder / "labels").mkdir()
    for name, lines in names.items():
        (folder / f"labels/{name}1.txt").write_text("".join(lines))
    return tmp_path


def assert_same(ours: Samples, theirs: list) -> None:
    ours = pickle.loads(pickle.dumps(ours))
    assert [ours.name(i) for i in range(len(ours))] == [str(path) for path, _ in theirs]
    assert list(ours.labels) == [label for _, label in theirs]


@pytest.mark.parametrize(("split", "folder", "count"), [("train", "train", 141), ("test", "val", 60)])
def test_reads_what_image_folder_reads(root: Path, split: str, folder: str, count: int) -> None:
    theirs = torchvision.datasets.ImageFolder(str(root / "dtd" / folder))
    ours = DTD.find_layout(root).read(root, split)
    assert DTD.find_layout(root).name == "reference"
    assert list(DTD.classes) == theirs.classes
    assert len(ours) == count
    assert_same(ours, theirs.samples)
    for i, (image, _) in enumerate(theirs):
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_training_images_are_torchvisions_train_and_val_in_the_order_of_folders(lists: Path) -> None:
    parts = [torchvision.datasets.DTD(lists, split=split) for split in ("train", "val")]
    files = [pair for part in parts for pair in zip(part._image_files, part._labels, strict=True)]
    ours = DTD.find_layout(lists).read(lists, "train")
    assert DTD.find_layout(lists).name == "torchvision"
    assert len(ours) == 141
    assert_same(ours, sorted(files))
    assert [ours.name(i) for i in range(141)] != [str(path) for path, _ in files]


def test_test_images_are_torchvisions_test_in_the_order_of_folders(lists: Path) -> None:
    theirs = torchvision.datasets.DTD(lists, split="test")
    assert_same(
        DTD.find_layout(lists).read(lists, "test"), sorted(zip(theirs._image_files, theirs._labels, strict=True))
    )


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("name", ["DTD", "DTD-leaky"])
def test_both_layouts_give_the_same_images(written: Path, lists: Path, name: str, split: str) -> None:
    one, other = (read_split(dataset(name), root, split) for root in (written, lists))
    assert list(one.labels) == list(other.labels)
    assert [Path(one.name(i)).name for i in range(len(one))] == [Path(other.name(i)).name for i in range(len(other))]
    np.testing.assert_array_equal(np.asarray(one.image(5)), np.asarray(other.image(5)))


def test_validation_images_are_the_published_ones() -> None:
    for data, count in ((DTD, 376), (LEAKY, 564)):
        assert data.num_val == count
        assert index_hash(drawn_indices(data.num_train)[1]) == data.val_sha256


def test_a_leaky_folder_is_read_as_it_was_and_without_the_leak(written: Path, root: Path) -> None:
    for path in (root / "dtd/val").glob("*/*.jpg"):
        shutil.copy(path, root / "dtd/train" / path.parent.name / path.name)
    everything = torchvision.datasets.ImageFolder(str(root / "dtd/train"))
    leaky = LEAKY.find_layout(root).read(root, "train")
    assert len(leaky) == 201
    assert_same(leaky, everything.samples)
    clean = DTD.find_layout(root).read(root, "train")
    expected = torchvision.datasets.ImageFolder(str(written / "dtd/train")).samples
    assert [clean.name(i) for i in range(len(clean))] == [p.replace(str(written), str(root)) for p, _ in expected]
    assert list(LEAKY.find_layout(root).read(root, "test").labels) == list(DTD.layouts[0].read(root, "test").labels)


def test_the_leaky_split_needs_no_leaky_folder(root: Path) -> None:
    leaky = LEAKY.find_layout(root).read(root, "train")
    names = [Path(leaky.name(i)).relative_to(root / "dtd").parts[1:] for i in range(len(leaky))]
    assert len(names) == 201
    assert names == sorted(names)


def test_damage_is_named(root: Path) -> None:
    image = min((root / "dtd/val/banded").iterdir())
    image.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{image.name}: cannot be decoded"):
        read_split(DTD, root, "test").image(0)
    image.unlink()
    for path in (root / "dtd/val/banded").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"dtd/val/banded: the class folder holds no image"):
        read_split(DTD, root, "test")
    shutil.rmtree(root / "dtd/val/banded")
    with pytest.raises(DataError, match=r"dtd/val: lacks class folder 'banded'; expected 47 class folders, found 46"):
        read_split(DTD, root, "train")
    shutil.rmtree(root / "dtd/val")
    with pytest.raises(DataError, match=r"reference layout lacks dtd/val; the torchvision layout lacks dtd/dtd/images"):
        read_split(DTD, root, "train")


def test_damage_of_lists_is_named(lists: Path) -> None:
    (lists / "dtd/dtd/labels/val1.txt").write_text("banded/no.jpg\n")
    with pytest.raises(DataError, match=r"images/banded/no.jpg: no such image file, though .*labels names it; 1 of 95"):
        read_split(DTD, lists, "train")
    (lists / "dtd/dtd/labels/val1.txt").write_text("banned/no.jpg\n")
    with pytest.raises(DataError, match=r"val1.txt: has the line 'banned/no.jpg', expected <class>/<file>"):
        read_split(DTD, lists, "train")


def test_reads_the_hugging_face_layout(tmp_path: Path) -> None:
    images = SPLITS["test"][:7]
    parquet(tmp_path / "huggingface/tanganke/dtd/data/test-00000-of-00001.parquet", images, names=DTD.classes)
    found = read_split(DTD, tmp_path, "test")
    assert list(found.labels) == [label for _, label in images]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0]))
    with pytest.raises(DataError, match="DTD-leaky: not found"):  # the order of its training images is unknown there
        LEAKY.find_layout(tmp_path)
