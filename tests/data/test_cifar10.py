"""CIFAR-10: our reader against torchvision's on the same files."""

import os
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

CIFAR10 = dataset("CIFAR10")
FOLDER = "cifar-10-batches-py"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("cifar10", tmp_path, {"train": drawn(10, 33), "test": drawn(10, 12, seed=1)})
    return tmp_path


def torchvisions(root: Path, split: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5: Path(path).exists())
    return torchvision.datasets.CIFAR10(str(root), train=split == "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = CIFAR10.find_layout(root).read(root, split)
    theirs = torchvisions(root, split, monkeypatch)
    assert theirs.classes == list(CIFAR10.classes)
    assert len(ours) == len(theirs) == {"train": 33, "test": 12}[split]
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_the_five_batches_come_in_order(root: Path) -> None:
    images = drawn(10, 33)
    ours = CIFAR10.layouts[0].read(root, "train")
    assert list(ours.labels) == [label for _, label in images]
    for i in (0, 6, 7, 13, 14, 32):  # batches of 7, 7, 7, 6 and 6 images
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(images[i][0].resize((32, 32))))


def test_names_tell_batch_and_index(root: Path) -> None:
    ours = CIFAR10.layouts[0].read(root, "train")
    places = "data_batch_1[0]", "data_batch_1[6]", "data_batch_2[0]", "data_batch_5[5]"
    assert [ours.name(i) for i in (0, 6, 7, 32)] == [f"{root}/{FOLDER}/{place}" for place in places]


def test_the_validation_split_is_the_published_one() -> None:
    train, val = drawn_indices(CIFAR10.num_train)
    assert (train[0], val[0], val[-1], len(val)) == (36044, 19260, 31476, CIFAR10.num_val)
    assert index_hash(val) == CIFAR10.val_sha256


def of_python_2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 pickled it, and as the published files are: every string is a string of bytes."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    shape = b"K" + bytes([len(pixels)]) + b"M" + (3072).to_bytes(2, "little") + b"\x86"
    content = b"T" + pixels.nbytes.to_bytes(4, "little") + pixels.tobytes()
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    state = b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"
    return b"\x80\x02}(U\x0bbatch_labelU\x01\xe9U\x04data" + array + state + b"U\x06labels" + numbers + b"u."


def test_reads_pickles_of_python_2(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    (root / FOLDER / "test_batch").write_bytes(of_python_2(pixels, [7, 0, 9]))
    ours = read_split(CIFAR10, root, "test")
    theirs = torchvisions(root, "test", monkeypatch)
    assert list(ours.labels) == theirs.targets == [7, 0, 9]
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(ours.image(i)), theirs.data[i])


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_in_it_is_refused(root: Path) -> None:
    path = root / FOLDER / "test_batch"
    path.write_bytes(pickle.dumps({"data": Harm(root / "harm"), "labels": [0]}))
    with pytest.raises(DataError, match=r"test_batch: refused, because loading it would run code: it needs \w+\.mkdir"):
        read_split(CIFAR10, root, "test")
    assert not (root / "harm").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"test_batch: truncated or no pickle"),
        (b"<html>quota</html>", r"test_batch: truncated or no pickle"),
        (pickle.dumps([1, 2]), r"test_batch: no batch of 32 x 32 images"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, 2), r"test_batch: no batch .* \(KeyError: 'labels'\)"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, 2), r"test_batch: no batch"),
        (pickle.dumps({"data": np.zeros((2, 3072)), "labels": [1, 2]}, 2), r"\(ValueError: pixels are float64\)"),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, 2),
            r"has a label 10, expected 0 to 9",
        ),
    ],
)
def test_damage_is_named(root: Path, content: bytes, message: str) -> None:
    (root / FOLDER / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_split(CIFAR10, root, "test")


def test_a_truncated_batch_is_named(root: Path) -> None:
    path = root / FOLDER / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"data_batch_3: truncated or no pickle"):
        read_split(CIFAR10, root, "train")


def test_a_missing_batch_is_no_layout(root: Path) -> None:
    (root / FOLDER / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"the reference layout lacks cifar-10-batches-py/data_batch_4"):
        CIFAR10.find_layout(root)


def test_samples_survive_pickling(root: Path) -> None:
    samples = read_split(CIFAR10, root, "val")
    again = pickle.loads(pickle.dumps(samples))
    assert (list(again.labels), again.name(1)) == (list(samples.labels), samples.name(1))
    np.testing.assert_array_equal(np.asarray(again.image(2)), np.asarray(samples.image(2)))


def test_reads_the_hugging_face_layout_in_our_order_of_classes(tmp_path: Path) -> None:
    images, names = drawn(10, 12), sorted(CIFAR10.classes, reverse=True)
    parquet(tmp_path / "huggingface/tanganke/cifar10/data/train-00000-of-00001.parquet", images, names=names)
    found = CIFAR10.find_layout(tmp_path).read(tmp_path, "train")
    assert [CIFAR10.classes[label] for label in found.labels] == [names[label] for _, label in images]
    np.testing.assert_array_equal(np.asarray(found.image(11)), np.asarray(images[11][0]))
