"""What is found of datasets, and what is found wrong with them."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from raw_images import drawn
from raw_suite import BIRDS_TASK, damage, raw_suite, write_birds, write_mnist

from raymerge.data import dataset
from raymerge.data.splits import drawn_indices, index_hash
from raymerge.data_files.prepare import prepare_images
from raymerge.data_files.verify import SplitFound, Verified, verify_data
from raymerge.rehearsal.raw import write_raw
from raymerge.suites.published import PublishedSuite


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "home"))


@pytest.fixture
def suite(tmp_path: Path) -> PublishedSuite:
    write_mnist(tmp_path)
    write_birds(tmp_path)
    return raw_suite(tmp_path, ["MNIST", BIRDS_TASK])


def verified(suite: PublishedSuite, task: str = "MNIST", *, quick: bool = False) -> Verified:
    (row,) = verify_data(suite, [task], quick=quick)
    return row


@pytest.mark.parametrize("quick", [False, True])
def test_a_sound_dataset(suite, quick):
    train, test = (suite.datasets["MNIST"].layouts[0].read(suite.data, split) for split in ("train", "test"))
    held_out = drawn_indices(40)[1]
    counts = {
        "train": tuple(list(train.labels).count(label) for label in range(10)),
        "val": tuple([train.labels[i] for i in held_out].count(label) for label in range(10)),
        "test": tuple(list(test.labels).count(label) for label in range(10)),
    }
    assert verified(suite, quick=quick) == Verified(
        task="MNIST",
        dataset="MNIST",
        num_classes=10,
        layout="reference",
        splits={split: SplitFound(sum(of_class), None, of_class) for split, of_class in counts.items()},
        val_indices=index_hash(held_out),
        expected_val_indices=None,
        is_cached=False,
    )
    prepare_images(suite, ["MNIST"])
    assert verified(suite, quick=quick).is_cached
    assert verified(suite, quick=quick).problems == ()


def test_nothing_is_written(suite):
    verify_data(suite, ["MNIST", "Birds"])
    assert not suite.images_folder.exists()


def test_the_published_validation_images(tmp_path):
    """MNIST at its real size, all images black."""
    write_raw("mnist", tmp_path / "data", {"train": drawn(10, 60), "test": drawn(10, 60)})
    for prefix, size in (("train", 60_000), ("t10k", 10_000)):
        labels = np.arange(size, dtype=np.uint8) % 10
        stem = tmp_path / "data" / "MNIST" / "raw" / prefix
        header = lambda *shape: bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)  # noqa: E731
        Path(f"{stem}-labels-idx1-ubyte").write_bytes(header(size) + labels.tobytes())
        Path(f"{stem}-images-idx3-ubyte").write_bytes(header(size, 28, 28) + bytes(size * 28 * 28))
    suite = raw_suite(tmp_path, any_size=False)
    row = verified(suite, quick=True)
    assert row.problems == ()
    assert row.val_indices == row.expected_val_indices == "a80ccd6c95a3aa08"
    assert {split: (found.size, found.expected) for split, found in row.splits.items()} == {
        "train": (60_000, 60_000),
        "val": (5_000, 5_000),
        "test": (10_000, 10_000),
    }
    other = replace(dataset("MNIST"), val_sha256="0123456789abcdef")
    (problem,) = verified(replace(suite, datasets={"MNIST": other}), quick=True).problems
    assert problem.startswith(
        "MNIST: the numbers of its validation images hash to a80ccd6c95a3aa08, expected 0123456789"
    )


def test_sizes_that_differ_are_all_told(suite):
    row = verified(replace(suite, any_size=False))
    assert [problem.partition(";")[0] for problem in row.problems] == [
        "MNIST: its training split has 40 images, expected 60000",
        "MNIST: its test split has 21 images, expected 10000",
    ]
    assert row.splits["train"].expected == 60_000
    assert row.expected_val_indices is None, "known for the real size only"


def test_a_dataset_that_is_not_there(suite):
    shutil.rmtree(suite.data / "MNIST")
    row = verified(suite)
    assert (row.layout, row.splits, row.is_cached) == (None, {}, False)
    assert row.problems[0].startswith(f"MNIST: not found under {suite.data}")
    assert row.problems[0].endswith(f"raymerge data fetch MNIST --suite {suite.option}")


def test_raw_files_may_go_once_their_images_are_cached(suite):
    prepare_images(suite, ["MNIST"])
    shutil.rmtree(suite.data / "MNIST")
    row = verified(suite)
    assert (row.layout, row.is_cached, row.problems) == (None, True, ())


def test_a_split_that_cannot_be_read(suite):
    path = suite.data / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    row = verified(suite)
    assert set(row.splits) == {"train", "val"}
    assert [problem.partition(",")[0] for problem in row.problems] == [f"{path}: has {16 + 21 * 784 - 1} bytes"]


def test_every_corrupt_image_is_named(tmp_path):
    paths = write_birds(tmp_path)
    suite = raw_suite(tmp_path, [BIRDS_TASK])
    bad = [paths[2], paths[13], paths[20]]
    for path in bad:
        damage(path)
    row = verified(suite, "Birds")
    assert sorted(row.corrupt) == sorted(map(str, bad))
    assert sorted(problem.partition(": cannot be decoded (")[0] for problem in row.problems) == sorted(row.corrupt)
    assert verified(suite, "Birds", quick=True).problems == ()


def test_progress_counts_images(suite):
    stages, told = [], []
    verify_data(
        suite, ["MNIST", "Birds"], stage=stages.append, report=lambda what, fraction: told.append((what, fraction))
    )
    assert stages == ["reading datasets", "decoding 85 images with 1 process"]
    assert told == [
        ("MNIST", 0),
        ("Birds", 0.5),
        ("MNIST, 40 of 85 images", 40 / 85),
        ("MNIST, 61 of 85 images", 61 / 85),
        ("Birds, 73 of 85 images", 73 / 85),
        ("Birds, 85 of 85 images", 1),
    ]


def test_own_validation_images(tmp_path):
    paths = write_birds(tmp_path, own_val=True)
    suite = raw_suite(tmp_path, [BIRDS_TASK])
    damage(paths[12])
    row = verified(suite, "Birds")
    assert row.corrupt == (str(paths[12]),)
    assert "/val/" in row.corrupt[0]
    assert row.val_indices is None
    assert {split: found.class_counts for split, found in row.splits.items()} == dict.fromkeys(
        ("train", "val", "test"), (4, 4, 4)
    )
    shutil.rmtree(tmp_path / "data" / "birds" / "train")
    paths[12].write_bytes(paths[13].read_bytes())
    row = verified(suite, "Birds")
    assert (set(row.splits), row.problems) == ({"val", "test"}, ()), "evaluation needs no training images"


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_cached_file_that_changed(suite):
    prepare_images(suite, ["MNIST"])
    path = suite.images_path("MNIST", "test")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1  # of a pixel
    path.write_bytes(content)
    assert verified(suite, quick=True).problems == ()
    (problem,) = verified(suite).problems
    assert problem == (
        f"{path}: is not as it was written. Make it with: raymerge data prepare MNIST --suite {suite.option} --force"
    )


def test_a_cached_file_that_was_cut_short(suite):
    prepare_images(suite, ["MNIST"])
    path = suite.images_path("MNIST", "val")
    path.write_bytes(path.read_bytes()[:-100])
    row = verified(suite, quick=True)
    assert row.problems[0].startswith(f"{path}: not a readable image file (")


def test_a_cache_of_other_images(suite):
    prepare_images(suite, ["MNIST"])
    images = drawn(10, 21, seed=5)
    write_raw("mnist", suite.data, {"test": images})
    (problem,) = verified(suite, quick=True).problems
    assert problem == (
        "MNIST: the cached test images have other labels than the raw files have now; cache them again with: "
        f"raymerge data prepare MNIST --suite {suite.option} --force"
    )
    prepare_images(suite, ["MNIST"], force=True)
    assert verified(suite).problems == ()


def test_a_cache_of_another_layout(suite):
    prepare_images(suite, ["MNIST"])
    layout = replace(dataset("MNIST").layouts[0], name="torchvision")
    other = replace(suite, datasets={"MNIST": replace(dataset("MNIST"), layouts=(layout,))})
    (problem,) = verified(other, quick=True).problems
    assert "was cached from the reference layout, but the torchvision layout is found now" in problem


def test_a_cache_of_another_size(suite):
    prepare_images(suite, ["MNIST"])
    row = verified(replace(suite, any_size=False), quick=True)
    assert "the cached validation split has 4 images, expected 5000" in row.problems[0]
