"""Getting datasets: in which order, what is left of a download that was cut off, and what is said where none works.

The functions that download are replaced by ones that write files, or nothing, here.
"""

import errno
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import huggingface_hub
import pytest
import torchvision
from raw_images import drawn, parquet
from raw_suite import BIRDS_TASK, raw_suite, write_mnist

from raymerge.data import ByHand, HuggingFace, Torchvision, dataset
from raymerge.data.splits import read_split
from raymerge.data_files.fetch import Fetched, fetch_data
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw
from raymerge.suites.published import PublishedSuite

IMAGES = {"train": drawn(10, 40), "test": drawn(10, 21, seed=1)}
HUB_FOLDER = "huggingface/ylecun/mnist"


@pytest.fixture
def suite(tmp_path: Path) -> PublishedSuite:
    return raw_suite(tmp_path, ["MNIST", BIRDS_TASK])


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of libraries, which have no network unless a test gives them one."""
    asked: list[Any] = []

    def no_network(*args: Any, **kwargs: Any) -> Any:
        asked.append(args[0] if args else kwargs)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "MNIST", no_network)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, repo, timeout: no_network(repo))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return asked


def torchvision_works(monkeypatch: pytest.MonkeyPatch, calls: list[Any], write: Callable[[Path, bool], None]) -> None:
    def download(root: str, *, download: bool, train: bool) -> None:
        calls.append((root, download, train))
        write(Path(root), train)

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)


def write_one_split(root: Path, train: bool) -> None:
    split = "train" if train else "test"
    write_raw("mnist", root, {split: IMAGES[split]})


def hub_works(monkeypatch: pytest.MonkeyPatch, calls: list[Any], write: Callable[[Path], None]) -> None:
    def download(repo: str, **options: Any) -> str:
        calls.append((repo, options))
        write(Path(options["local_dir"]))
        return str(options["local_dir"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, repo, timeout: SimpleNamespace(sha="abc"))


def write_parquet(folder: Path, num_test: int = 21) -> None:
    for split, count in (("train", 40), ("test", num_test)):
        parquet(
            folder / "mnist" / f"{split}-00000-of-00001.parquet", drawn(10, count), names=[str(i) for i in range(10)]
        )
    (folder / ".cache" / "huggingface").mkdir(parents=True)


def everything(suite: PublishedSuite) -> set[str]:
    return {str(path.relative_to(suite.data)) for path in suite.data.rglob("*") if path.is_file()}


# --- from where ------------------------------------------------------------------------------------------------------


def test_torchvision_comes_first(suite, calls, monkeypatch):
    torchvision_works(monkeypatch, calls, write_one_split)
    stages: list[str] = []
    assert fetch_data(suite, ["MNIST"], stage=stages.append) == [
        Fetched("MNIST", "fetched", "torchvision.datasets.MNIST")
    ]
    staging = str(suite.data / ".fetching" / "MNIST")
    assert calls == [(staging, True, True), (staging, True, False)]
    assert stages == ["MNIST: getting it from torchvision.datasets.MNIST"]
    assert read_split(dataset("MNIST"), suite.data, "test").labels == [label for _, label in IMAGES["test"]]
    assert everything(suite) == {".fetching.lock", *(need for need in dataset("MNIST").layouts[0].needs)}


def test_the_hub_where_torchvision_fails(suite, calls, monkeypatch):
    hub_works(monkeypatch, calls, write_parquet)
    (row,) = fetch_data(suite, ["MNIST"])
    assert (row.status, row.detail) == ("fetched", "ylecun/mnist")
    assert row.failures == ("torchvision.datasets.MNIST: gaierror: [Errno -2] Name or service not known",)
    repo, options = calls[-1]
    assert (repo, options["repo_type"], options["revision"], options["allow_patterns"]) == (
        "ylecun/mnist",
        "dataset",
        "abc",
        ["*.parquet"],
    )
    assert everything(suite) == {
        ".fetching.lock",
        f"{HUB_FOLDER}/mnist/train-00000-of-00001.parquet",
        f"{HUB_FOLDER}/mnist/test-00000-of-00001.parquet",
    }
    assert len(read_split(dataset("MNIST"), suite.data, "test")) == 21


def test_from_one_of_them_only(suite, calls, monkeypatch):
    torchvision_works(monkeypatch, calls, write_one_split)
    (row,) = fetch_data(suite, ["MNIST"], hub="huggingface")
    assert (row.status, calls) == ("not fetched", ["ylecun/mnist"])
    (row,) = fetch_data(suite, ["MNIST"], hub="torchvision")
    assert row.status == "fetched"


def with_sources(suite: PublishedSuite, *sources: Any, **changes: Any) -> PublishedSuite:
    return replace(suite, datasets={"MNIST": replace(dataset("MNIST"), sources=sources, **changes)})


def test_what_is_by_hand_is_told_before_what_is_second_best(suite, calls, monkeypatch):
    hub_works(monkeypatch, calls, write_parquet)
    by_hand = with_sources(suite, ByHand("Put the four files into MNIST/raw/."), HuggingFace("ylecun/mnist"))
    (row,) = fetch_data(by_hand, ["MNIST"])
    assert row == Fetched("MNIST", "not fetched", "", steps="Put the four files into MNIST/raw/.")
    assert calls == []
    assert fetch_data(by_hand, ["MNIST"], hub="huggingface")[0].status == "fetched"


def test_by_hand_where_nothing_works(suite):
    (row,) = fetch_data(with_sources(suite, HuggingFace("a/b"), ByHand("Ask for it.")), ["MNIST"])
    assert (row.status, row.steps) == ("not fetched", "Ask for it.")
    assert row.failures == ("a/b: gaierror: [Errno -2] Name or service not known",)
    (birds,) = fetch_data(suite, ["Birds"])
    assert birds.steps.startswith("Put images into birds/train/<class>/")


def test_no_source_of_that_kind(suite):
    (row,) = fetch_data(with_sources(suite, HuggingFace("a/b")), ["MNIST"], hub="torchvision")
    assert row.failures == ("it cannot be had from torchvision, but from huggingface",)
    (row,) = fetch_data(suite, ["Birds"], hub="torchvision")
    assert row.failures == ("it cannot be had from torchvision",)


def test_a_layout_that_is_not_the_best_comes_with_the_note_of_its_dataset(suite, calls, monkeypatch):
    hub_works(monkeypatch, calls, write_parquet)
    sources = dataset("MNIST").sources
    (row,) = fetch_data(with_sources(suite, *sources, note="Its images are in another order."), ["MNIST"])
    assert row.note == "Its images are in another order."
    torchvision_works(monkeypatch, calls, write_one_split)
    (row,) = fetch_data(with_sources(suite, *sources, note="Its images are in another order."), ["MNIST"], force=True)
    assert row.note == ""


def test_files_may_go_elsewhere(suite, calls, monkeypatch):
    hub_works(monkeypatch, calls, lambda folder: write_raw("mnist", folder, IMAGES))
    (suite.data / "MNIST").mkdir(parents=True)
    (suite.data / "MNIST" / "mine.txt").touch()
    elsewhere = with_sources(suite, HuggingFace("a/b", ("*ubyte",), folder="."))
    assert fetch_data(elsewhere, ["MNIST"])[0].status == "fetched"
    assert everything(suite) == {".fetching.lock", "MNIST/mine.txt", *dataset("MNIST").layouts[0].needs}


# --- what is there ---------------------------------------------------------------------------------------------------


def test_what_is_there_is_kept(suite, calls, monkeypatch):
    write_mnist(suite.data.parent)
    assert fetch_data(suite, ["MNIST"]) == [Fetched("MNIST", "was there", "reference layout")]
    assert calls == []
    torchvision_works(monkeypatch, calls, write_one_split)
    path = suite.data / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"damaged")
    assert fetch_data(suite, ["MNIST"], force=True)[0].status == "fetched"
    assert len(read_split(dataset("MNIST"), suite.data, "test")) == 21


def test_files_of_another_revision_go_away(suite, calls, monkeypatch):
    hub_works(monkeypatch, calls, write_parquet)
    fetch_data(suite, ["MNIST"], hub="huggingface")
    old = suite.data / HUB_FOLDER / "mnist" / "test-00000-of-00002.parquet"
    old.write_bytes(b"of another revision")
    fetch_data(suite, ["MNIST"], hub="huggingface", force=True)
    assert not old.exists()
    assert len(read_split(dataset("MNIST"), suite.data, "test")) == 21


def test_a_download_that_was_cut_off_is_no_dataset_and_goes_on(suite, calls, monkeypatch):
    def cut_off(root: Path, train: bool) -> None:
        write_one_split(root, train)
        if not train:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    torchvision_works(monkeypatch, calls, cut_off)
    (row,) = fetch_data(suite, ["MNIST"], hub="torchvision")
    assert row.failures == ("torchvision.datasets.MNIST: ConnectionResetError: [Errno 104] Connection reset by peer",)
    with pytest.raises(DataError, match="MNIST: not found"):
        dataset("MNIST").find_layout(suite.data)
    begun = suite.data / ".fetching" / "MNIST" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    assert begun.is_file(), "for the library to go on with"
    with monkeypatch.context() as patch:
        hub_works(patch, calls, lambda folder: None)
        assert fetch_data(suite, ["MNIST"], hub="huggingface")[0].status == "not fetched"
    torchvision_works(monkeypatch, calls, lambda root, train: None if train else write_one_split(root, train))
    assert fetch_data(suite, ["MNIST"])[0].status == "fetched"
    assert len(read_split(dataset("MNIST"), suite.data, "val")) == 4
    assert not (suite.data / ".fetching").exists()


def test_a_download_without_the_files_that_are_needed(suite, calls, monkeypatch):
    torchvision_works(monkeypatch, calls, lambda root, train: write_one_split(root, train) if train else None)
    (row,) = fetch_data(suite, ["MNIST"], hub="torchvision")
    assert row.failures == (
        "torchvision.datasets.MNIST: came without files that are needed (reference: MNIST/raw/t10k-images-idx3-ubyte; "
        "huggingface: huggingface/ylecun/mnist)",
    )
    assert not (suite.data / "MNIST").exists()


def test_a_failure_leaves_no_empty_folders(suite):
    assert fetch_data(suite, ["MNIST"])[0].status == "not fetched"
    assert [path.name for path in suite.data.iterdir()] == [".fetching.lock"]


# --- without a network -----------------------------------------------------------------------------------------------


def test_the_cache_of_the_hub_where_it_is_told_to_stay_offline(suite, calls, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (row,) = fetch_data(suite, ["MNIST"], hub="huggingface")
    assert row.failures == ("ylecun/mnist: HF_HUB_OFFLINE is set, and the cache in HF_HOME does not have it",)
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshot"
    write_parquet(blobs)
    (snapshot / "mnist").mkdir(parents=True)
    for path in (blobs / "mnist").iterdir():
        (snapshot / "mnist" / path.name).symlink_to(path)

    def cached(repo: str, **options: Any) -> str:
        assert options["local_files_only"]
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert fetch_data(suite, ["MNIST"], hub="huggingface")[0].status == "fetched"
    assert not any(path.is_symlink() for path in suite.data.rglob("*"))
    assert len(read_split(dataset("MNIST"), suite.data, "test")) == 21


def test_the_libraries_themselves_without_a_network(suite, monkeypatch):
    """They ask for no address that can be resolved, and do not try for long."""

    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.undo()
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    sources = (Torchvision("SVHN", "svhn", ((("split", "train"),),)), HuggingFace("ylecun/mnist"))
    started = time.monotonic()
    (row,) = fetch_data(with_sources(suite, *sources), ["MNIST"])
    assert time.monotonic() - started < 20
    assert row.status == "not fetched"
    assert [failure.partition(": ")[0] for failure in row.failures] == ["torchvision.datasets.SVHN", "ylecun/mnist"]
    assert all("Name or service not known" in failure for failure in row.failures)
    assert socket.getdefaulttimeout() is None


# --- the disk --------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_is_no_reason_to_try_another_source(suite, calls, monkeypatch):
    def full(root: Path, train: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    torchvision_works(monkeypatch, calls, full)
    with pytest.raises(DataError) as caught:
        fetch_data(suite, ["MNIST"])
    assert str(caught.value) == (
        f"{suite.data}: cannot be written (No space left on device). Make room, change its permissions, or name "
        "another folder with --data."
    )
    assert len(calls) == 1


def test_data_that_are_no_folder(suite):
    suite.data.write_text("")
    with pytest.raises(DataError, match=r"data.*: cannot be written \("):
        fetch_data(suite, ["MNIST"])


def test_two_at_once_wait_for_each_other(suite, calls, monkeypatch):
    torchvision_works(monkeypatch, calls, write_one_split)
    waiting, rows = threading.Event(), []

    def stage(what: str) -> None:
        if what.startswith("waiting for another 'raymerge data fetch'"):
            waiting.set()

    suite.data.mkdir()
    second = threading.Thread(target=lambda: rows.extend(fetch_data(suite, ["MNIST"], stage=stage)))
    with filelock.FileLock(suite.data / ".fetching.lock"):
        second.start()
        assert waiting.wait(30)
        write_mnist(suite.data.parent)
    second.join(30)
    assert [row.status for row in rows] == ["was there"]
    assert calls == []
