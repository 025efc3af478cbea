"""PCAM: our reader against torchvision's on the same files, and that it reads images one by one."""

import multiprocessing
import pickle
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from raw_images import drawn, png

from raymerge.data import dataset
from raymerge.data.splits import read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

PCAM = dataset("PCAM")
STEM = "PCAM/pcam/camelyonpatch_level_2_split_"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("pcam", tmp_path, {"train": drawn(2, 40), "test": drawn(2, 20, seed=1)})
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str) -> None:
    ours = PCAM.find_layout(root).read(root, split)
    theirs = torchvision.datasets.PCAM(str(root / "PCAM"), split=split)
    assert len(ours) == len(theirs) == {"train": 40, "test": 20}[split]
    for i in range(len(theirs)):
        image, label = theirs[i]
        assert ours.labels[i] == label
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))
    assert ours.name(3) == f"{root}/{STEM}{split}_x.h5[3]"


def test_memory_does_not_grow_with_the_number_of_images(root: Path) -> None:
    count = 3000  # 83 MB of pixels, which are zeros that take no room on the disk
    write_arrays(root, x=(count, 96, 96, 3), y=(count, 1, 1, 1))
    read_split(PCAM, root, "train")  # what is imported and opened once does not count
    tracemalloc.start()
    samples = read_split(PCAM, root, "test")
    assert samples.image(count - 1).size == (96, 96)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == count
    assert peak < 2e6
    assert len(pickle.dumps(samples)) < 20 * count


def test_samples_survive_pickling_after_they_were_read(root: Path) -> None:
    samples = read_split(PCAM, root, "val")
    pixels = np.asarray(samples.image(2))  # the file is open now
    again = pickle.loads(pickle.dumps(samples))
    np.testing.assert_array_equal(np.asarray(again.image(2)), pixels)
    assert (again.labels, again.name(2)) == (samples.labels, samples.name(2))


def test_every_process_opens_the_file_for_itself(root: Path) -> None:
    samples = read_split(PCAM, root, "test")
    here = [np.asarray(samples.image(i)).tobytes() for i in range(20)]
    context = multiprocessing.get_context("forkserver")
    with context.Pool(2) as pool:
        images = pool.map(samples.image, range(20), chunksize=5)
    assert [np.asarray(image).tobytes() for image in images] == here


def test_a_file_is_opened_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    really_open = h5py.File
    monkeypatch.setattr(h5py, "File", lambda *args, **options: opened.append(args[0]) or really_open(*args, **options))
    samples = read_split(PCAM, root, "test")
    for i in range(20):
        samples.image(i)
    assert [path.name[-4:] for path in opened] == ["x.h5", "y.h5"]


def test_labels_are_taken_from_the_four_dimensional_array(root: Path) -> None:
    with h5py.File(root / f"{STEM}test_y.h5") as file:
        assert file["y"].shape == (20, 1, 1, 1)
        expected = [int(file["y"][i, 0, 0, 0]) for i in range(20)]
    labels = read_split(PCAM, root, "test").labels
    assert labels == expected
    assert all(type(label) is int for label in labels)


def write_arrays(root: Path, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        path = root / f"{STEM}test_{name}.h5"
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            chunks = (100, *shape[1:]) if shape[0] > 100 else None
            file.create_dataset(name, shape=shape, dtype=np.uint8, chunks=chunks)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (20, 3, 96, 96)}, r"test_x\.h5: 'x' is \(20, 3, 96, 96\), expected \(images, 96, 96, 3\)"),
        ({"y": (19, 1, 1, 1)}, r"test_x\.h5: 20 images but 19 labels in camelyonpatch_level_2_split_test_y\.h5"),
        ({"y": (20,)}, r"test_y\.h5: 'y' cannot be read as \(images, 1, 1, 1\)"),
    ],
)
def test_another_content_is_named(root: Path, shapes: dict, message: str) -> None:
    write_arrays(root, **shapes)
    with pytest.raises(DataError, match=message):
        read_split(PCAM, root, "test")


def test_other_labels_are_named(root: Path) -> None:
    with h5py.File(root / f"{STEM}test_y.h5", "w") as file:
        file["y"] = np.full((20, 1, 1, 1), 2, np.uint8)
    with pytest.raises(DataError, match=r"test_y\.h5: has labels from 2 to 2, not 0 and 1"):
        read_split(PCAM, root, "test")


@pytest.mark.parametrize("content", [b"<html>quota exceeded</html>", b"\x1f\x8b compressed"])
def test_a_file_of_another_kind_is_named(root: Path, content: bytes) -> None:
    (root / f"{STEM}test_x.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"test_x\.h5: not an HDF5 file with 'x'"):
        read_split(PCAM, root, "test")


def test_reads_the_hugging_face_layout_with_its_boolean_labels(tmp_path: Path) -> None:
    images = drawn(2, 7)
    path = tmp_path / "huggingface/1aurent/PatchCamelyon/data/test-00000-of-00002-bb04e6313f58efa0.parquet"
    path.parent.mkdir(parents=True)
    rows = [{"bytes": png(image), "path": None} for image, _ in images]
    pq.write_table(pa.table({"image": rows, "label": [label == 1 for _, label in images]}), path)
    found = read_split(PCAM, tmp_path, "test")
    assert PCAM.find_layout(tmp_path).name == "huggingface"
    assert found.labels == [label for _, label in images]
    assert all(type(label) is int for label in found.labels)
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0]))
