"""Fashion-MNIST, Kuzushiji-MNIST and EMNIST: our readers against torchvision's on the same files."""

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import Dataset, dataset
from raymerge.data.splits import drawn_indices, index_hash, read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import emnist, write_raw

FASHION, KMNIST, EMNIST, LETTERS = map(dataset, ("FashionMNIST", "KMNIST", "EMNIST", "EMNIST-letters"))
MODULES = {"FashionMNIST": "fashion_mnist", "KMNIST": "kmnist", "EMNIST": "emnist"}
NAMES = [*MODULES, "EMNIST-letters"]


def write(name: str, root: Path) -> None:
    data = dataset(name)
    splits = {"train": drawn(len(data.classes), 60), "test": drawn(len(data.classes), 27, seed=1)}
    if data is LETTERS:
        emnist.write_letters(root, splits)
    else:
        write_raw(MODULES[name], root, splits)


def torchvisions(name: str, root: Path, split: str):
    folder, train = name.split("-")[0], split == "train"
    if folder == "EMNIST":
        kind = "letters" if name == "EMNIST-letters" else "digits"
        return torchvision.datasets.EMNIST(str(root / folder), split=kind, train=train)
    return getattr(torchvision.datasets, folder)(str(root / folder), train=train)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", NAMES)
def test_reads_what_torchvision_reads(name: str, split: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    data = dataset(name)
    ours, theirs = data.find_layout(tmp_path).read(tmp_path, split), torchvisions(name, tmp_path, split)
    first = 1 if data is LETTERS else 0
    assert [c.upper() for c in theirs.classes[first:]] == [c.upper() for c in data.classes]
    assert len(ours) == len(theirs) == {"train": 60, "test": 27}[split]
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label - first
        assert ours.image(i).mode == image.mode == "L"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


@pytest.mark.parametrize("name", NAMES)
def test_the_validation_split_is_the_published_one(name: str) -> None:
    data = dataset(name)
    train, val = drawn_indices(data.num_train)
    assert index_hash(val) == data.val_sha256
    assert len(val) == data.num_val == 5000
    published = {"EMNIST": (96044, 236083, 90780), "EMNIST-letters": (38444, val[0], val[-1])}
    assert (train[0], val[0], val[-1]) == published.get(name, (36044, 30102, 1544))


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_doubles_the_name_of_the_folder_and_torchvision_does_not(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    data = dataset(name)
    expected = read_split(data, tmp_path, "test")
    assert data.find_layout(tmp_path).name == "reference"
    assert expected.name(2).startswith(f"{tmp_path}/{name}/{name}/raw/")
    shutil.move(tmp_path / name / name / "raw", tmp_path / name / "raw")
    assert data.find_layout(tmp_path).name == "torchvision"
    found = read_split(data, tmp_path, "test")
    assert list(found.labels) == list(expected.labels)
    np.testing.assert_array_equal(np.asarray(found.image(3)), np.asarray(expected.image(3)))


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    data = dataset(name)
    images = Path(re.sub(r"\[.*", "", read_split(data, tmp_path, "test").name(0)))
    labels = Path(str(images).replace("images-idx3", "labels-idx1"))
    content = labels.read_bytes()
    labels.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(DataError, match=rf"{labels}: has a label 255, expected"):
        read_split(data, tmp_path, "test")
    labels.write_bytes(content[:7] + bytes([26]) + content[8:-1])
    with pytest.raises(DataError, match=rf"{images}: 27 images but 26 labels"):
        read_split(data, tmp_path, "test")
    labels.write_bytes(images.read_bytes())
    with pytest.raises(DataError, match=rf"{labels}: has 3 dimensions, expected 1"):
        read_split(data, tmp_path, "test")
    labels.write_bytes(b"<html>")
    with pytest.raises(DataError, match=rf"{labels}: is no IDX file of bytes"):
        read_split(data, tmp_path, "test")
    labels.unlink()
    with pytest.raises(DataError, match=rf"lacks {labels.relative_to(tmp_path)}"):
        read_split(data, tmp_path, "test")


def test_other_processes_map_the_file_instead_of_getting_its_content(tmp_path: Path) -> None:
    images = drawn(10, 400)
    write_raw("kmnist", tmp_path, {"train": images, "test": images})
    samples = read_split(KMNIST, tmp_path, "test")
    content = pickle.dumps(samples)
    assert len(content) < 400 * 28 * 28 / 50
    np.testing.assert_array_equal(np.asarray(pickle.loads(content).image(399)), np.asarray(samples.image(399)))


HUGGING_FACE = [
    (FASHION, "zalando-datasets/fashion_mnist/fashion_mnist", ("T - shirt / top", *FASHION.classes[1:])),
    (KMNIST, "tanganke/kmnist/kmnist", tuple("おきすつなはまやれを")),
    (LETTERS, "tanganke/emnist_letters/emnist-letters", LETTERS.classes),
]


@pytest.mark.parametrize(("data", "folder", "names"), HUGGING_FACE, ids=[data.name for data, _, _ in HUGGING_FACE])
@pytest.mark.parametrize("turned", [False, True])
def test_reads_the_hugging_face_layout(
    data: Dataset, folder: str, names: tuple[str, ...], turned: bool, tmp_path: Path
) -> None:
    images = drawn(len(names), 30)
    spelled = names[::-1] if turned else names
    parquet(tmp_path / "huggingface" / folder / "test-00000-of-00001.parquet", images, names=spelled)
    assert data.find_layout(tmp_path).name == "huggingface"
    found = read_split(data, tmp_path, "test")
    assert list(found.labels) == [len(names) - 1 - label if turned else label for _, label in images]
    assert found.image(0).mode == "L"
    np.testing.assert_array_equal(np.asarray(found.image(29)), np.asarray(images[29][0].convert("L")))
