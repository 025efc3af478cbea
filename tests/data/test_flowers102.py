"""Flowers102: our reader against torchvision's on the same files."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.flowers102 import NAMES_TODAY
from raymerge.data.splits import read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

FLOWERS = dataset("Flowers102")
FOLDER = "flowers102/flowers-102"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("flowers102", tmp_path, {"train": drawn(102, 110), "test": drawn(102, 150, seed=1)})
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    ours = FLOWERS.find_layout(root).read(root, split)
    theirs = torchvision.datasets.Flowers102(str(root / "flowers102"), split=split)
    assert len(ours) == len(theirs) == {"train": 110, "test": 150}[split]
    assert [ours.name(i) for i in range(len(ours))] == [str(path) for path in theirs._image_files]
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_classes_agree_with_torchvision_except_for_three_names() -> None:
    theirs = torchvision.datasets.Flowers102.classes
    assert [NAMES_TODAY.get(name, name) for name in FLOWERS.classes] == theirs
    changed = [i for i, name in enumerate(FLOWERS.classes) if name in NAMES_TODAY]
    assert changed == [15, 59, 92]


def test_trains_on_the_training_split_only(root: Path) -> None:
    scipy.io.savemat(root / FOLDER / "imagelabels.mat", {"labels": np.array([[1, 102, 3, 4, 5, 6]], dtype=np.uint8)})
    sets = {"trnid": np.array([[2]]), "valid": np.array([[3, 4]]), "tstid": np.array([[6, 5, 1]])}
    scipy.io.savemat(root / FOLDER / "setid.mat", sets)
    read = FLOWERS.layouts[0].read
    train, test = read(root, "train"), read(root, "test")
    assert (train.labels, Path(train.name(0)).name) == ([101], "image_00002.jpg")
    assert test.labels == [5, 4, 0]  # in the order of the file


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("setid.mat", {"trnid": [[1]]}, r"setid\.mat: not the MATLAB file expected \(KeyError: 'tstid'\)"),
        ("setid.mat", {"tstid": [[0, 4]]}, r"setid\.mat: names images 0 to 4 of 261"),
        ("setid.mat", {"tstid": [[1, 262]]}, r"setid\.mat: names images 1 to 262 of 261"),
        ("imagelabels.mat", {"labels": [[0] * 261]}, r"imagelabels\.mat: has labels from 0 to 0, not 1 to 102"),
    ],
)
def test_damage_is_named(root: Path, file: str, content: dict, message: str) -> None:
    scipy.io.savemat(root / FOLDER / file, {name: np.array(values) for name, values in content.items()})
    with pytest.raises(DataError, match=message):
        read_split(FLOWERS, root, "test")


def test_a_missing_image_is_named(root: Path) -> None:
    missing = Path(read_split(FLOWERS, root, "test").name(9))
    missing.unlink()
    with pytest.raises(DataError, match=rf"{missing.name}: no such image file, though .*setid\.mat names it"):
        read_split(FLOWERS, root, "test")


def test_no_matlab_file(root: Path) -> None:
    (root / FOLDER / "setid.mat").write_bytes(b"no")
    with pytest.raises(DataError, match=r"setid\.mat: not the MATLAB file expected"):
        read_split(FLOWERS, root, "test")


@pytest.mark.parametrize("names", ["ours", "today", "another order"])
def test_reads_the_hugging_face_layout(tmp_path: Path, names: str) -> None:
    images = drawn(102, 104)
    spelled = [name if names == "ours" else NAMES_TODAY.get(name, name) for name in FLOWERS.classes]
    folder = tmp_path / "huggingface/dpdl-benchmark/oxford_flowers102/data"
    spelled = spelled[::-1] if names == "another order" else spelled
    for split, some in {"test": images, "train": images[:3], "validation": images[:5]}.items():
        parquet(folder / f"{split}-00000-of-00001.parquet", some, names=spelled)
    found = read_split(FLOWERS, tmp_path, "test")
    assert FLOWERS.find_layout(tmp_path).name == "huggingface"
    assert found.labels == [101 - label if names == "another order" else label for _, label in images]
    assert len(FLOWERS.layouts[1].read(tmp_path, "train")) == 3
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0]))
