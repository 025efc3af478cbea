"""SVHN: our reader against torchvision's on the same files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

SVHN = dataset("SVHN")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_raw("svhn", folder, {"train": drawn(10, 30), "test": drawn(10, 12, seed=1)})
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    theirs = torchvision.datasets.SVHN(str(root / "svhn"), split=split)
    ours = pickle.loads(pickle.dumps(SVHN.find_layout(root).read(root, split)))
    assert len(ours) == len(theirs) == {"train": 30, "test": 12}[split]
    assert set(ours.labels) == set(range(10))
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_ten_in_the_file_is_the_digit_zero(root: Path) -> None:
    digits = scipy.io.loadmat(root / "svhn/test_32x32.mat")["y"][:, 0]
    zeros = [i for i, label in enumerate(read_split(SVHN, root, "test").labels) if label == 0]
    assert zeros == np.flatnonzero(digits == 10).tolist() != []


def test_images_lie_along_the_last_axis(tmp_path: Path) -> None:
    (tmp_path / "svhn").mkdir()
    pixels = np.zeros((32, 32, 3, 2), dtype=np.uint8)
    pixels[3, 7, 1, 1] = 9  # row 3, column 7, green, second image
    scipy.io.savemat(tmp_path / "svhn/test_32x32.mat", {"X": pixels, "y": np.array([[1], [10]], dtype=np.uint8)})
    found = SVHN.layouts[0].read(tmp_path, "test")
    assert list(found.labels) == [1, 0]
    assert found.image(1).getpixel((7, 3)) == (0, 9, 0)
    assert np.asarray(found.image(0)).max() == 0
    assert found.name(1) == f"{tmp_path}/svhn/test_32x32.mat[1]"


@pytest.mark.parametrize(
    ("pixels", "digits", "message"),
    [
        (np.zeros((32, 32, 3, 2), np.uint8), [[1], [11]], r"test_32x32.mat: has a label 11, expected 1 to 10"),
        (np.zeros((2, 32, 32, 3), np.uint8), [[1], [2]], r"test_32x32.mat: X has shape \(2, 32, 32, 3\)"),
        (np.zeros((32, 32, 3, 3), np.uint8), [[1], [2]], r"test_32x32.mat: 3 images but 2 labels"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, pixels: np.ndarray, digits: list, message: str) -> None:
    (tmp_path / "svhn").mkdir()
    scipy.io.savemat(tmp_path / "svhn/test_32x32.mat", {"X": pixels, "y": np.array(digits, dtype=np.uint8)})
    with pytest.raises(DataError, match=message):
        SVHN.layouts[0].read(tmp_path, "test")


def test_a_truncated_and_a_missing_file_are_named(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "svhn/train_32x32.mat"
    path.parent.mkdir()
    path.write_bytes((root / "svhn/train_32x32.mat").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"train_32x32.mat: not the MATLAB file expected"):
        SVHN.layouts[0].read(tmp_path, "train")
    with pytest.raises(DataError, match=r"reference layout lacks svhn/test_32x32.mat"):
        read_split(SVHN, tmp_path, "test")


def test_reads_the_hugging_face_layout(tmp_path: Path) -> None:
    images, others = drawn(10, 7, size=(32, 32)), drawn(10, 5, seed=2)
    folder = tmp_path / "huggingface/ufldl-stanford/svhn"
    parquet(folder / "cropped_digits/test-00000-of-00001.parquet", images, names=[str(i) for i in range(10)])
    parquet(folder / "full_numbers/test-00000-of-00001.parquet", others)  # another configuration, not to be read
    assert SVHN.find_layout(tmp_path).name == "huggingface"
    found = read_split(SVHN, tmp_path, "test")
    assert list(found.labels) == [label for _, label in images]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0]))
