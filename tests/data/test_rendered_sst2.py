"""Rendered SST2: our reader against torchvision's on the same files."""

from pathlib import Path

import numpy as np
import pytest
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import drawn_indices, index_hash, read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

SST2 = dataset("RenderedSST2")
FOLDER = "RenderedSST2/rendered-sst2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    splits = {"train": drawn(2, 30), "val": drawn(2, 5, seed=2), "test": drawn(2, 9, seed=1)}
    write_raw("rendered_sst2", tmp_path, splits)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str) -> None:
    ours = SST2.find_layout(root).read(root, split)
    theirs = torchvision.datasets.RenderedSST2(str(root / "RenderedSST2"), split=split)
    assert theirs.classes == list(SST2.classes)
    assert len(ours) == len(theirs) == {"train": 30, "test": 9}[split]
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_negative_is_0_and_positive_1(root: Path) -> None:
    ours = read_split(SST2, root, "test")
    assert {(Path(ours.name(i)).parent.name, label) for i, label in enumerate(ours.labels)} == {
        ("negative", 0),
        ("positive", 1),
    }


def test_validation_is_drawn_from_train_and_the_folder_valid_is_not_used(root: Path) -> None:
    val = read_split(SST2, root, "val")
    assert len(val) == 3
    assert all("/rendered-sst2/train/" in val.name(i) for i in range(3))
    train, indices = drawn_indices(SST2.num_train)
    assert (train[0], indices[0], indices[-1], len(indices)) == (4124, 5279, 1885, SST2.num_val)
    assert index_hash(indices) == SST2.val_sha256


def test_reads_the_torchvision_layout(root: Path) -> None:
    (root / FOLDER).rename(root / "rendered-sst2")
    assert SST2.find_layout(root).name == "torchvision"
    assert len(read_split(SST2, root, "test")) == 9


def test_reads_the_hugging_face_layout(tmp_path: Path) -> None:
    images = drawn(2, 7)
    folder = tmp_path / "huggingface/nateraw/rendered-sst2/data"
    parquet(folder / "train-00000-of-00001.parquet", images[:2], names=["positive", "negative"])
    parquet(folder / "validation-00000-of-00001.parquet", images[:3], names=["positive", "negative"])
    parquet(folder / "test-00000-of-00001.parquet", images, names=["positive", "negative"])
    found = read_split(SST2, tmp_path, "test")
    assert list(found.labels) == [1 - label for _, label in images]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0]))


def test_a_missing_class_folder_is_no_layout(root: Path) -> None:
    (root / FOLDER / "test/positive").rename(root / "elsewhere")
    with pytest.raises(DataError, match=rf"the reference layout lacks {FOLDER}/test/positive"):
        SST2.find_layout(root)


def test_damage_is_named(root: Path) -> None:
    ours = read_split(SST2, root, "test")
    path = Path(ours.name(4))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=rf"{path}: cannot be decoded"):
        ours.image(4)
    (root / FOLDER / "test/neutral").mkdir()
    with pytest.raises(DataError, match=r"rendered-sst2/test: has class folder 'neutral', which is no class"):
        read_split(SST2, root, "test")
