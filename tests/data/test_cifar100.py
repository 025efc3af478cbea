"""CIFAR-100: our reader against torchvision's on the same files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

CIFAR100 = dataset("CIFAR100")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("cifar100", tmp_path, {"train": drawn(100, 120), "test": drawn(100, 110, seed=1)})
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).exists())
    ours = CIFAR100.find_layout(root).read(root, split)
    theirs = torchvision.datasets.CIFAR100(str(root), train=split == "train")
    assert theirs.classes == list(CIFAR100.classes)
    assert len(ours) == len(theirs) == {"train": 120, "test": 110}[split]
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_labels_are_the_fine_ones(root: Path) -> None:
    batch = pickle.loads((root / "cifar-100-python/test").read_bytes())
    samples = read_split(CIFAR100, root, "test")
    assert samples.labels == batch["fine_labels"] != batch["coarse_labels"]
    assert max(samples.labels) == 99
    assert samples.name(4) == f"{root}/cifar-100-python/test[4]"


def test_channels_are_planes(root: Path) -> None:
    row = np.zeros((1, 3072), dtype=np.uint8)
    row[0, 1024 + 32 * 5 + 7] = 200  # green, y = 5, x = 7
    write_batch(root, {"data": row, "fine_labels": [3]})
    assert read_split(CIFAR100, root, "test").image(0).getpixel((7, 5)) == (0, 200, 0)


def test_reads_the_pickles_of_an_older_numpy(root: Path) -> None:
    path = root / "cifar-100-python/test"
    before = np.asarray(read_split(CIFAR100, root, "test").image(9))
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    np.testing.assert_array_equal(np.asarray(read_split(CIFAR100, root, "test").image(9)), before)


class Bomb:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("the pickle ran code",))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": Bomb(), "fine_labels": [0]}, r"test: refused, because loading it would run code"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [3]}, r"test: not a batch of CIFAR-100 \(KeyError: 'fine"),
        ({"data": np.zeros((1, 100), np.uint8), "fine_labels": [3]}, r"test: not a batch of CIFAR-100 \(ValueError"),
        ({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}, r"test: fine labels are not a list of num"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [3]}, r"test: 2 images but 1 labels"),
        ([1, 2], r"test: not a batch of CIFAR-100 \(TypeError"),
    ],
)
def test_another_content_is_named(root: Path, batch: object, message: str) -> None:
    write_batch(root, batch)
    with pytest.raises(DataError, match=message):
        read_split(CIFAR100, root, "test")


def write_batch(root: Path, batch: object) -> None:
    (root / "cifar-100-python/test").write_bytes(pickle.dumps(batch, protocol=2))


def test_a_truncated_file_is_named(root: Path) -> None:
    path = root / "cifar-100-python/train"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cifar-100-python/train: truncated or no pickle"):
        read_split(CIFAR100, root, "val")


@pytest.mark.parametrize("crab", ["cra", "crab"])
@pytest.mark.parametrize("reverse", [False, True])
def test_reads_the_hugging_face_layout_and_its_misspelled_crab(tmp_path: Path, crab: str, reverse: bool) -> None:
    images = drawn(100, 104)
    names = [crab if name == "crab" else name for name in CIFAR100.classes]
    path = tmp_path / "huggingface/tanganke/cifar100/data/test-00000-of-00001.parquet"
    parquet(path, images, names=names[::-1] if reverse else names)
    found = read_split(CIFAR100, tmp_path, "test")
    assert CIFAR100.find_layout(tmp_path).name == "huggingface"
    assert found.labels == [99 - label if reverse else label for _, label in images]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0]))
