"""The image cache: what is in it, when it is made again, and what stops it."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import threading
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import PIL
import pytest
import torchvision
from raw_suite import BIRDS_TASK, SIDE, damage, raw_suite, write_birds, write_mnist

import raymerge
from raymerge.checkpoints import file_sha256
from raymerge.data import dataset
from raymerge.data.splits import drawn_indices, index_hash, read_split
from raymerge.data.transforms import to_pixels
from raymerge.data_files import cache_plan
from raymerge.data_files import cache_record as image_cache
from raymerge.data_files import prepare as data_prepare
from raymerge.data_files.cache_record import cached, read_record
from raymerge.data_files.prepare import prepare_images
from raymerge.errors import DataError, PreflightError
from raymerge.images import DecodedSplit, open_images
from raymerge.preflight import check_images
from raymerge.records import SPLITS
from raymerge.suite_file import load_suite_file
from raymerge.suites.published import PublishedSuite


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "home"))


@pytest.fixture
def suite(tmp_path: Path) -> PublishedSuite:
    """40 training images of MNIST, 21 for tests; twelve birds for each."""
    write_mnist(tmp_path)
    write_birds(tmp_path)
    return raw_suite(tmp_path, ["MNIST", BIRDS_TASK])


def assert_cached(suite: PublishedSuite, task: str) -> None:
    """The pixels of every raw image, one after the other, in the published order."""
    for split in SPLITS:
        samples = read_split(suite.datasets[task], suite.data, split)
        images, labels = open_images(suite.images_path(task, split)).read(0, len(samples))
        assert len(images) == len(samples) > 0
        assert labels.tolist() == list(samples.labels)
        for number, pixels in enumerate(images.numpy()):
            np.testing.assert_array_equal(pixels, to_pixels(samples.image(number), SIDE))


def files_of(suite: PublishedSuite) -> dict[str, tuple[int, int]]:
    """Inode and time of every file of the cache."""
    paths = [path for path in suite.images_folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(suite.images_folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_every_image_is_cached_as_the_published_transform_makes_it(suite):
    rows = prepare_images(suite, ["MNIST", "Birds"])
    assert [(row.task, row.is_new) for row in rows] == [("MNIST", True), ("Birds", True)]
    assert_cached(suite, "MNIST")
    assert_cached(suite, "Birds")
    assert sorted(files_of(suite)) == [
        f"{name}/{SIDE}px/{file}"
        for name in ("MNIST", "folder-birds")
        for file in ("dataset.json", "test.arrow", "val.arrow")
    ], "no chunk and no temporary file is left"
    assert rows[0].num_bytes == sum(suite.images_path("MNIST", split).stat().st_size for split in SPLITS)


def test_what_the_cache_says_of_itself(suite):
    prepare_images(suite, ["MNIST"])
    value = json.loads((suite.image_cache("MNIST") / "dataset.json").read_text())
    drawn = drawn_indices(40)[1]
    train, test = (suite.datasets["MNIST"].layouts[0].read(suite.data, split) for split in ("train", "test"))
    assert value == {
        "format": 1,
        "dataset": "MNIST",
        "layout": "reference",
        "data": str(suite.data),
        "image_size": SIDE,
        "images": {"val": 4, "test": 21},
        "class_counts": {
            "val": [[train.labels[i] for i in drawn].count(label) for label in range(10)],
            "test": [list(test.labels).count(label) for label in range(10)],
        },
        "val_indices": index_hash(drawn),
        "sha256": {split: file_sha256(suite.images_path("MNIST", split)) for split in SPLITS},
        "versions": {
            "raymerge": raymerge.__version__,
            "pillow": PIL.__version__,
            "torchvision": torchvision.__version__.partition("+")[0],
        },
    }
    assert load_suite_file(suite.option).task("MNIST").images == {"val": 4, "test": 21}


def test_validation_images_of_their_own(tmp_path):
    write_birds(tmp_path, own_val=True)
    suite = raw_suite(tmp_path, [BIRDS_TASK])
    shutil.rmtree(tmp_path / "data" / "birds" / "train")  # not needed for evaluation
    prepare_images(suite, ["Birds"])
    assert_cached(suite, "Birds")
    assert read_record(suite.image_cache("Birds")).val_indices is None


def test_the_number_of_processes_and_of_chunks_changes_nothing(suite, monkeypatch):
    prepare_images(suite, ["MNIST", "Birds"], workers=1)
    alone = {
        task: [open_images(suite.images_path(task, split)).read(0, 1) for split in SPLITS] for task in suite.datasets
    }
    monkeypatch.setattr(cache_plan, "CHUNK", 5)
    monkeypatch.setattr(data_prepare, "AT_ONCE", 2)
    fractions: list[float] = []
    stages: list[str] = []
    report = lambda what, fraction: fractions.append(fraction)  # noqa: E731
    prepare_images(suite, ["MNIST", "Birds"], workers=2, force=True, stage=stages.append, report=report)
    assert stages == ["checking datasets", "caching 38 images with 2 processes"]
    assert fractions[2:] == sorted(fractions[2:])
    assert fractions[-1] == 1
    assert_cached(suite, "MNIST")
    assert_cached(suite, "Birds")
    for task, splits in alone.items():
        for split, (images, _) in zip(SPLITS, splits, strict=True):
            assert open_images(suite.images_path(task, split)).read(0, 1)[0].equal(images)


# --- what is there already -------------------------------------------------------------------------------------------


def test_what_is_cached_is_kept_even_without_its_raw_files(suite):
    prepare_images(suite, ["MNIST"])
    before = files_of(suite)
    shutil.rmtree(suite.data)
    assert [row.is_new for row in prepare_images(suite, ["MNIST"])] == [False]
    assert files_of(suite) == before
    with pytest.raises(DataError, match="MNIST: not found under"):
        prepare_images(suite, ["MNIST"], force=True)


def test_force_makes_it_again(suite):
    prepare_images(suite, ["MNIST", "Birds"])
    before = files_of(suite)
    write_mnist(suite.data.parent, num_train=60)
    rows = prepare_images(suite, ["MNIST"], force=True)
    assert [row.is_new for row in rows] == [True]
    assert rows[0].record.images == {"val": 6, "test": 21}
    assert_cached(suite, "MNIST")
    changed = {name for name, state in files_of(suite).items() if state != before[name]}
    assert changed == {f"MNIST/{SIDE}px/{name}" for name in ("dataset.json", "val.arrow", "test.arrow")}


def truncate(suite: PublishedSuite) -> None:
    path = suite.images_path("MNIST", "test")
    path.write_bytes(path.read_bytes()[:-1000])


def shorten(suite: PublishedSuite) -> None:
    shutil.copy(suite.images_path("MNIST", "val"), suite.images_path("MNIST", "test"))


def drop(suite: PublishedSuite) -> None:
    suite.images_path("MNIST", "val").unlink()


def drop_record(suite: PublishedSuite) -> None:
    (suite.image_cache("MNIST") / "dataset.json").unlink()


def cut_record(suite: PublishedSuite) -> None:
    path = suite.image_cache("MNIST") / "dataset.json"
    path.write_text(path.read_text()[:50])


def other_format(suite: PublishedSuite) -> None:
    path = suite.image_cache("MNIST") / "dataset.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))


@pytest.mark.parametrize("harm", [truncate, shorten, drop, drop_record, cut_record, other_format])
def test_what_is_damaged_is_made_again(suite, harm):
    prepare_images(suite, ["MNIST", "Birds"])
    harm(suite)
    rows = prepare_images(suite, ["MNIST", "Birds"])
    assert [row.is_new for row in rows] == [True, False]
    assert_cached(suite, "MNIST")


def test_a_sweep_names_the_command_that_makes_missing_images(suite):
    command = f"raymerge data prepare MNIST --suite {suite.option}"
    with pytest.raises(PreflightError) as caught:
        check_images(suite, "MNIST", "val")
    assert str(caught.value) == f"{suite.images_path('MNIST', 'val')}: no such image file. Make it with: {command}"
    prepare_images(suite, ["MNIST"])
    counted = load_suite_file(suite.option)
    assert len(check_images(counted, "MNIST", "test")) == 21
    truncate(suite)
    with pytest.raises(
        PreflightError, match=r"test\.arrow: not a readable image file .* Make it with: raymerge data prep"
    ):
        check_images(counted, "MNIST", "test")
    moved = load_suite_file(suite.option, data=suite.data.parent / "my data")
    assert moved.images_remedy("MNIST") == f"Make it with: {command} --data '{suite.data.parent}/my data'"


def test_tasks_that_share_a_dataset_share_its_cache(suite):
    suite = raw_suite(suite.data.parent, ["MNIST", {"name": "Digits", "dataset": "MNIST"}])
    rows = prepare_images(suite, ["Digits", "MNIST"])
    assert [row.record for row in rows] == [rows[0].record] * 2
    assert_cached(suite, "Digits")


# --- killed, or stopped by an image ----------------------------------------------------------------------------------


def test_an_image_that_cannot_be_decoded_stops_it_and_the_chunks_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_plan, "CHUNK", 4)
    paths = write_birds(tmp_path, per_class=4)
    suite = raw_suite(tmp_path, [BIRDS_TASK])
    content = paths[-3].read_bytes()  # the second of the last test class: in the last of the chunks
    damage(paths[-3])
    with pytest.raises(DataError) as caught:
        prepare_images(suite, ["Birds"])
    assert str(caught.value).startswith(f"{paths[-3]}: cannot be decoded (")
    (chunks,) = suite.image_cache("Birds").iterdir()
    assert sorted(path.name for path in chunks.iterdir()) == [
        "test-000000.arrow",
        "test-000004.arrow",
        "val-000000.arrow",
    ]
    assert cached(suite, "Birds") is None
    paths[-3].write_bytes(content)
    assert num_decoded(suite, monkeypatch) == 4, "the last chunk only"
    assert_cached(suite, "Birds")


def num_decoded(suite: PublishedSuite, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    """How many images `prepare_images` decodes."""
    count, read = 0, DecodedSplit.read

    def counted(self: DecodedSplit, start: int, stop: int) -> Any:
        nonlocal count
        count += stop - start
        return read(self, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(DecodedSplit, "read", counted)
        prepare_images(suite, [task.name for task in suite.tasks], workers=1, **options)
    return count


@contextlib.contextmanager
def killed_when(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, after: int) -> Iterator[None]:
    """The process ends at one of the calls of a function."""
    calls, original = 0, getattr(module, function)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, counted)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize(
    ("function", "after", "left"),
    [
        (
            "image_writer",
            3,
            25 - 14,
        ),  # in the fourth of the chunks of 4 validation images and 5, 5, 5, 5, 1 test images
        ("image_writer", 6, 0),  # before val.arrow
        ("image_writer", 7, 0),  # between val.arrow and test.arrow
        ("write_record", 0, 0),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_run_that_ended_anywhere_goes_on_there(suite, monkeypatch, function, after, left, force):
    suite = replace(suite, tasks=suite.tasks[:1])
    monkeypatch.setattr(cache_plan, "CHUNK", 5)
    if force:
        prepare_images(suite, ["MNIST"])
        write_mnist(suite.data.parent, num_train=41)  # the same sizes, other images
    with killed_when(monkeypatch, data_prepare, function, after):
        prepare_images(suite, ["MNIST"], workers=1, force=force)
    assert read_record(suite.image_cache("MNIST")) is None
    assert num_decoded(suite, monkeypatch) == left
    assert_cached(suite, "MNIST")
    assert len(files_of(suite)) == 3


def test_chunks_of_other_images_are_not_used(suite, monkeypatch):
    suite = replace(suite, tasks=suite.tasks[:1])
    with killed_when(monkeypatch, data_prepare, "write_record", 0):
        prepare_images(suite, ["MNIST"])
    write_mnist(suite.data.parent, num_train=70)
    assert num_decoded(suite, monkeypatch) == 7 + 21
    assert_cached(suite, "MNIST")
    assert len(files_of(suite)) == 3, "those of the first run are gone"


def test_a_chunk_that_was_cut_short_is_made_again(suite, monkeypatch):
    suite = replace(suite, tasks=suite.tasks[:1])
    with killed_when(monkeypatch, data_prepare, "write_record", 0):
        prepare_images(suite, ["MNIST"])
    (chunk,) = suite.image_cache("MNIST").glob("chunks-*/val-*.arrow")
    chunk.write_bytes(chunk.read_bytes()[:-20])
    (suite.image_cache("MNIST") / ".val.arrow.1-2.tmp").write_bytes(b"left by a process that was killed")
    assert num_decoded(suite, monkeypatch) == 4
    assert_cached(suite, "MNIST")
    assert len(files_of(suite)) == 3


# --- datasets that are not as they should be -------------------------------------------------------------------------


def refused(suite: PublishedSuite, task: str) -> str:
    with pytest.raises(DataError) as caught:
        prepare_images(suite, [task])
    assert not list(suite.images_folder.rglob("*.arrow"))
    return str(caught.value)


def declared(suite: PublishedSuite, **changes: Any) -> PublishedSuite:
    """The suite with another declaration of MNIST, which has to be met."""
    datasets = {**suite.datasets, "MNIST": replace(dataset("MNIST"), **changes)}
    return replace(suite, datasets=datasets, any_size=False)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            (60_000, 10_000),
            "its training split has 40 images, expected 60000; was the download or the unpacking cut off?",
        ),
        (
            (40, 20),
            "its test split has 21 images, expected 20; is it another edition, or do images of other splits lie",
        ),
        ((44, 21), "its training split has 40 images, expected 44; were validation images taken out already?"),
        ((19, 21), "its training split has 40 images, expected 19; do training and test images lie together?"),
    ],
)
def test_sizes_that_are_known(suite, sizes, message):
    assert f"MNIST: {message}" in refused(declared(suite, num_train=sizes[0], num_test=sizes[1]), "MNIST")


def test_sizes_that_are_met(suite):
    suite = declared(suite, num_train=40, num_test=21)
    prepare_images(suite, ["MNIST"])
    assert_cached(suite, "MNIST")


def test_a_cache_of_another_size_is_not_taken_for_the_published_images(suite):
    prepare_images(suite, ["MNIST"])
    with pytest.raises(DataError) as caught:
        prepare_images(declared(suite, num_train=50), ["MNIST"])
    assert "the cached validation split has 4 images, expected 5; it was cached for a suite that takes any" in str(
        caught.value
    )
    assert str(caught.value).endswith(f"raymerge data prepare MNIST --suite {suite.option} --force")


def test_validation_images_of_their_own_have_a_known_size(tmp_path):
    write_birds(tmp_path, own_val=True)
    suite = raw_suite(tmp_path, [BIRDS_TASK], any_size=False)
    birds = replace(suite.datasets["Birds"], num_train=12, num_test=12, num_own_val=10)
    message = refused(replace(suite, datasets={"Birds": birds}), "Birds")
    assert "its validation split has 12 images, expected 10" in message
    birds = replace(birds, num_train=8, num_own_val=12)
    assert "training split has 12 images, expected 8" in refused(replace(suite, datasets={"Birds": birds}), "Birds")


def test_a_class_without_an_image(suite):
    classes = (*dataset("MNIST").classes, "ten")
    message = refused(declared(suite, num_train=40, num_test=21, classes=classes), "MNIST")
    assert "its training split has no image of class 'ten', and lacks 1 of 11 classes" in message
    prepare_images(replace(declared(suite, classes=classes), any_size=True), ["MNIST"])


def test_labels_of_other_classes(suite):
    layout = replace(dataset("MNIST").layouts[0], read=_labels_from_one)
    message = refused(declared(suite, num_train=40, num_test=21, layouts=(layout,)), "MNIST")
    assert "its training split has labels from 1 to 10, expected 0 to 9, such as " in message
    assert "train-images-idx3-ubyte[" in message


def _labels_from_one(root: Path, split: Any) -> Any:
    samples = dataset("MNIST").layouts[0].read(root, split)
    return replace(samples, labels=[label + 1 for label in samples.labels])


def test_no_image_for_validation(tmp_path):
    write_birds(tmp_path, per_class=3)
    message = refused(raw_suite(tmp_path, [BIRDS_TASK]), "Birds")
    assert (
        message == "folder-birds: has fewer than 10 training images, so that none is held out for validation; add some."
    )


def test_a_dataset_that_is_not_there(suite):
    shutil.rmtree(suite.data / "MNIST")
    message = refused(suite, "MNIST")
    assert message.startswith(
        f"MNIST: not found under {suite.data}: the reference layout lacks MNIST/raw/train-images-"
    )
    assert message.endswith(f"with: raymerge data fetch MNIST --suite {suite.option}")


def test_everything_is_checked_before_the_first_image(suite):
    shutil.rmtree(suite.data / "birds" / "test" / "owl")
    (suite.data / "birds" / "test" / "owl").mkdir()
    with pytest.raises(DataError, match="test/owl: the class folder holds no image"):
        prepare_images(suite, ["MNIST", "Birds"])
    assert files_of(suite) == {}


# --- the disk --------------------------------------------------------------------------------------------------------


def test_room_on_the_disk(suite, monkeypatch):
    usage = namedtuple("usage", "total used free")
    per_image = 3 * SIDE**2 + 8
    needed = per_image * (25 + 13 + 25)  # all images, and the chunks of the larger dataset
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    monkeypatch.setattr(cache_plan, "_gb", str)
    with pytest.raises(DataError) as caught:
        prepare_images(suite, ["MNIST", "Birds"])
    assert str(caught.value) == (
        f"{suite.images_folder}: caching the images of 2 datasets needs {needed}, but its disk has {needed - 1} free. "
        "Make room, name fewer tasks, or let RAYMERGE_HOME name another folder."
    )
    assert files_of(suite) == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed))
    assert len(prepare_images(suite, ["MNIST", "Birds"])) == 2


def test_a_disk_that_fills_up(suite, monkeypatch):
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_cache, "whole_file", full)
    with pytest.raises(DataError, match=r"images/data-\w+: cannot be written \(No space left on device\)\. Make room"):
        prepare_images(suite, ["MNIST"])
    assert cached(suite, "MNIST") is None


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """As a user who owns nothing, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_cache_that_cannot_be_written_is_read(monkeypatch):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setenv("RAYMERGE_HOME", str(folder / "home"))
        write_mnist(folder)
        write_birds(folder)
        suite = raw_suite(folder, ["MNIST", BIRDS_TASK])
        prepare_images(suite, ["MNIST"])
        for path in [*suite.images_folder.rglob("*"), suite.images_folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            with without_rights():
                assert [row.is_new for row in prepare_images(suite, ["MNIST"])] == [False]
                assert_cached(suite, "MNIST")
                with pytest.raises(
                    DataError, match=r"cannot be written \(Permission denied\)\. Make room or change its"
                ):
                    prepare_images(suite, ["Birds"])
        finally:
            for path in [suite.images_folder, *suite.images_folder.rglob("*")]:
                path.chmod(0o755)


def test_a_cache_that_is_no_folder(suite):
    suite.images_folder.parent.mkdir(parents=True)
    suite.images_folder.touch()
    with pytest.raises(DataError, match=r"images/data-\w+.*: cannot be written \("):
        prepare_images(suite, ["MNIST"])


# --- two at once -----------------------------------------------------------------------------------------------------


def test_two_at_once_wait_for_each_other(suite, monkeypatch):
    waiting, rows = threading.Event(), []

    def stage(what: str) -> None:
        if what.startswith("waiting for another 'raymerge data prepare', which holds "):
            waiting.set()

    suite.images_folder.mkdir(parents=True)
    second = threading.Thread(target=lambda: rows.extend(prepare_images(suite, ["MNIST"], stage=stage)))
    with filelock.FileLock(suite.images_folder / ".lock"):
        second.start()
        assert waiting.wait(30)
        assert files_of(suite) == {}
        # meanwhile the first one finishes the work
        with monkeypatch.context() as patch:
            patch.setattr(data_prepare, "_locked", lambda *args: contextlib.nullcontext())
            prepare_images(suite, ["MNIST"])
        before = files_of(suite)
    second.join(30)
    assert files_of(suite) == before
    assert rows[0].is_new is False
