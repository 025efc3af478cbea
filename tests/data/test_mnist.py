"""MNIST: our reader against torchvision's on the same files."""

from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import drawn_indices, read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

MNIST = dataset("MNIST")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_raw("mnist", folder, {"train": drawn(10, 30), "test": drawn(10, 12, seed=1)})
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str) -> None:
    ours = MNIST.layouts[0].read(root, split)
    theirs = torchvision.datasets.MNIST(str(root), train=split == "train")
    assert len(ours) == len(theirs) == {"train": 30, "test": 12}[split]
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        assert ours.image(i).mode == image.mode == "L"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_index_36044_comes_first() -> None:
    assert drawn_indices(60_000)[0][0] == 36044  # asserted by the published code


def test_names_tell_file_and_index(root: Path) -> None:
    assert read_split(MNIST, root, "test").name(3) == f"{root}/MNIST/raw/t10k-images-idx3-ubyte[3]"


def test_a_truncated_file_is_named(root: Path, tmp_path: Path) -> None:
    write_raw("mnist", tmp_path, {"train": drawn(10, 30), "test": drawn(10, 12)})
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: has 9423 bytes, its header says 9424"):
        read_split(MNIST, tmp_path, "test")


def test_reads_the_hugging_face_layout(tmp_path: Path) -> None:
    images = drawn(10, 7)
    folder = tmp_path / "huggingface/ylecun/mnist/mnist"
    parquet(folder / "test-00000-of-00001.parquet", images, names=[str(i) for i in range(10)])
    found = read_split(MNIST, tmp_path, "test")
    assert MNIST.find_layout(tmp_path).name == "huggingface"
    assert list(found.labels) == [label for _, label in images]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0].convert("L")))
