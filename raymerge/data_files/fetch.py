"""Download datasets from where they still can be had, or say what a person has to do.

Files go to a folder of their own below the data root and are moved to their places when all of them are there, so that
a download that was cut off never looks like a dataset. Begun again, it goes on with what it has.
"""

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock

from raymerge.data import ByHand, Dataset, HuggingFace, Source, Torchvision
from raymerge.data._readers import huggingface_folder
from raymerge.errors import DataError
from raymerge.suites.published import PublishedSuite
from raymerge.whole_file import make_directory

Hub = Literal["torchvision", "huggingface"]
KINDS: dict[Hub, type[Source]] = {"torchvision": Torchvision, "huggingface": HuggingFace}

SILENCE_S = 60.0
"""How long a server may say nothing, where a library sets no limit of its own."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
"""After which no other source is tried."""
STAGING = ".fetching"
"""Folder below the data root for what is not complete."""


@dataclass(frozen=True)
class Fetched:
    """How it went with the dataset of a task."""

    task: str
    status: Literal["was there", "fetched", "not fetched"]
    detail: str
    """Where it came from, or in which layout it was there."""
    failures: tuple[str, ...] = ()
    """What was tried in vain, a sentence each."""
    steps: str = ""
    """What a person has to do."""
    note: str = ""
    """What a user should know of what was fetched."""


def fetch_data(
    suite: PublishedSuite,
    tasks: Sequence[str],
    *,
    hub: Hub | None = None,
    force: bool = False,
    stage: Callable[[str], None] = lambda what: None,
) -> list[Fetched]:
    """Get the datasets of tasks that are not there, from the first of their sources that works.

    Args:
        hub: use sources of this kind only; None: all, in the order in which the dataset names them, up to the first
            that is by hand.
        force: get what is there once more.
    Raises:
        DataError: the folder of the data cannot be written.
    """
    try:
        make_directory(suite.data)
        with _locked(suite.data, stage):
            done = [_fetch(suite, task, hub, force, stage) for task in tasks]
        with contextlib.suppress(OSError):
            (suite.data / STAGING).rmdir()
        return done
    except OSError as error:
        raise DataError(
            f"{error.filename or suite.data}: cannot be written ({error.strerror or error}). Make room, change its "
            "permissions, or name another folder with --data."
        ) from None


@contextlib.contextmanager
def _locked(root: Path, stage: Callable[[str], None]) -> Iterator[None]:
    lock = filelock.FileLock(root / f"{STAGING}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        stage(f"waiting for another 'raymerge data fetch', which holds {lock.lock_file}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch(suite: PublishedSuite, task: str, hub: Hub | None, force: bool, stage: Callable[[str], None]) -> Fetched:
    dataset, root = suite.datasets[task], suite.data
    if not force and (there := _layout_name(dataset, root)):
        return Fetched(task, "was there", f"{there} layout")
    sources = [source for source in dataset.sources if hub is None or isinstance(source, KINDS[hub])]
    failures: list[str] = []
    for source in sources:
        if isinstance(source, ByHand):
            break  # what comes after is second best, and has to be asked for
        where = f"torchvision.datasets.{source.class_name}" if isinstance(source, Torchvision) else source.repo
        stage(f"{task}: getting it from {where}")
        try:
            _download(source, dataset, root)
        except _DownloadError as error:
            failures.append(f"{where}: {error}")
            continue
        for other in dataset.sources:
            if not isinstance(other, ByHand):
                shutil.rmtree(_staging(other, root), ignore_errors=True)
        layout = _layout_name(dataset, root)
        note = dataset.note if layout != dataset.layouts[0].name else ""
        return Fetched(task, "fetched", where, tuple(failures), note=note)
    if hub is not None and not sources:
        kinds = sorted({kind for kind, of in KINDS.items() for source in dataset.sources if isinstance(source, of)})
        failures.append(f"it cannot be had from {hub}" + (f", but from {' and '.join(kinds)}" if kinds else ""))
    steps = next((source.steps for source in dataset.sources if isinstance(source, ByHand)), "")
    return Fetched(task, "not fetched", "", tuple(failures), steps)


def _layout_name(dataset: Dataset, root: Path) -> str | None:
    return next((layout.name for layout in dataset.layouts if not layout.missing(root)), None)


class _DownloadError(Exception):
    """One sentence, without its end."""


def _download(source: Torchvision | HuggingFace, dataset: Dataset, root: Path) -> None:
    """Get all files of a source, then move them to their places.

    Raises:
        _DownloadError: it did not work.
    """
    staging = _staging(source, root)
    make_directory(staging)
    try:
        if isinstance(source, Torchvision):
            _from_torchvision(source, staging)
        else:
            _from_huggingface(source, staging)
    except _DownloadError:
        raise
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise _DownloadError(_reason(error)) from None
    except Exception as error:  # of half a dozen packages, each with errors of its own
        raise _DownloadError(_reason(error)) from None
    finally:
        _remove_empty(staging)
    if _layout_name(dataset, staging) is None:
        lacking = "; ".join(f"{layout.name}: {layout.missing(staging)[0]}" for layout in dataset.layouts)
        raise _DownloadError(f"came without files that are needed ({lacking})")
    if isinstance(source, HuggingFace) and source.folder is None:
        shutil.rmtree(root / huggingface_folder(source.repo), ignore_errors=True)  # files of another revision
    _move(staging, root)


def _staging(source: Torchvision | HuggingFace, root: Path) -> Path:
    name = source.class_name if isinstance(source, Torchvision) else source.repo.replace("/", "--")
    return root / STAGING / name


def _from_torchvision(source: Torchvision, folder: Path) -> None:
    import torchvision

    make = getattr(torchvision.datasets, source.class_name)
    (folder / source.root).mkdir(parents=True, exist_ok=True)
    with _patience(SILENCE_S):
        for arguments in source.arguments or ((),):
            make(os.fspath(folder / source.root), download=True, **dict(arguments))


def _from_huggingface(source: HuggingFace, folder: Path) -> None:
    """Where HF_HUB_OFFLINE is set, from the cache in HF_HOME."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE

    target = folder / (source.folder or huggingface_folder(source.repo))
    patterns = list(source.patterns)
    if HF_HUB_OFFLINE:
        try:
            found = huggingface_hub.snapshot_download(
                source.repo, repo_type="dataset", allow_patterns=patterns, local_files_only=True
            )
        except Exception:
            raise _DownloadError("HF_HUB_OFFLINE is set, and the cache in HF_HOME does not have it") from None
        shutil.copytree(found, target, dirs_exist_ok=True)  # links become files
        return
    # asked for first: where there is no network, a download that was cut off would pass for a complete one
    revision = huggingface_hub.HfApi().dataset_info(source.repo, timeout=SILENCE_S).sha
    huggingface_hub.snapshot_download(
        source.repo, repo_type="dataset", revision=revision, allow_patterns=patterns, local_dir=target
    )
    shutil.rmtree(target / ".cache", ignore_errors=True)


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _move(source: Path, target: Path) -> None:
    """Move what is in a folder into another, whole folders at a time where nothing is there yet."""
    for path in source.iterdir():
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _move(path, there)
        else:
            path.replace(there)
    source.rmdir()


def _remove_empty(folder: Path) -> None:
    """Remove folders without files, this one too."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()


def _reason(error: Exception) -> str:
    """The first sentence of an error, or what caused it where that says more."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": .")
