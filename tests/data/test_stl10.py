"""STL10: our reader against torchvision's on the same files."""

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

STL10 = dataset("STL10")
FOLDER = "stl10/stl10_binary"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("stl10", tmp_path, {"train": drawn(10, 30), "test": drawn(10, 12, seed=1)})
    return tmp_path


@pytest.fixture
def any_files_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.usefixtures("any_files_will_do")
def test_reads_what_torchvision_reads(root: Path, split: str) -> None:
    ours = STL10.find_layout(root).read(root, split)
    theirs = torchvision.datasets.STL10(str(root / "stl10"), split=split)
    assert theirs.classes == list(STL10.classes)
    assert len(ours) == len(theirs) == {"train": 30, "test": 12}[split]
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_planes_lie_column_by_column_and_labels_count_from_1(root: Path) -> None:
    image = np.zeros((3, 96, 96), dtype=np.uint8)  # channel, column, row
    image[1, 50, 7] = 200
    (root / FOLDER / "test_X.bin").write_bytes(image.tobytes())
    (root / FOLDER / "test_y.bin").write_bytes(bytes([10]))
    samples = read_split(STL10, root, "test")
    assert samples.labels == [9]
    assert samples.image(0).getpixel((50, 7)) == (0, 200, 0)  # (x, y)


def test_the_unlabelled_images_are_not_needed(root: Path) -> None:
    assert not (root / FOLDER / "unlabeled_X.bin").exists()
    assert len(read_split(STL10, root, "val")) == 3


def test_samples_survive_pickling(root: Path) -> None:
    samples = read_split(STL10, root, "train")
    again = pickle.loads(pickle.dumps(samples))
    np.testing.assert_array_equal(np.asarray(again.image(5)), np.asarray(samples.image(5)))
    assert again.name(5) == samples.name(5)
    assert again.name(5).startswith(f"{root}/{FOLDER}/train_X.bin[")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_X", bytes(27647), r"test_X\.bin: has 27647 bytes, expected a positive multiple of 27648"),
        ("test_y", bytes(12), r"test_y\.bin: has labels from 0 to 0, not 1 to 10"),
        ("test_y", bytes([11] * 12), r"test_y\.bin: has labels from 11 to 11, not 1 to 10"),
        ("test_y", bytes([1] * 11), r"test_X\.bin: 12 images but 11 labels"),
        ("test_y", b"", r"test_y\.bin: has 0 bytes"),
        ("test_y", None, r"test_y\.bin: cannot be read"),
    ],
)
def test_damage_is_named(root: Path, name: str, content: bytes | None, message: str) -> None:
    path = root / FOLDER / f"{name}.bin"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        STL10.layouts[0].read(root, "test")


def test_reads_the_hugging_face_layout(tmp_path: Path) -> None:
    images = drawn(10, 11)
    path = tmp_path / "huggingface/tanganke/stl10/data/test-00000-of-00001.parquet"
    parquet(path, images, names=[name.title() for name in reversed(STL10.classes)])
    found = read_split(STL10, tmp_path, "test")
    assert STL10.find_layout(tmp_path).name == "huggingface"
    assert found.labels == [9 - label for _, label in images]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0]))
