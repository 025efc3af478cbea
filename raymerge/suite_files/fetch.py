"""Fetching the files of a published collection: only those that are needed, each under its name once it is whole."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import filelock

from raymerge.checkpoints import Checkpoint, file_sha256, read_head
from raymerge.errors import CheckpointError, FetchError, SuiteError
from raymerge.suite_files import drive_files, hub_files
from raymerge.suite_files.downloads import check_download, give_name
from raymerge.suite_files.fetch_plan import Place, Wanted, places_of
from raymerge.suite_files.hash_list import FETCHED_NAME, FileHash, HashList, read_hashes, write_hashes
from raymerge.suites.published import PublishedSuite, existing_file

STAGING = ".fetch"
"""Folder below the weights where files lie until they are whole."""

Status = Literal["fetched", "there already", "not offered"]
Remote = hub_files.HubFile | drive_files.DriveFile
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Fetched:
    """What became of one file."""

    wanted: Wanted
    path: Path
    status: Status
    num_bytes: int = 0
    is_unchecked: bool = False
    """Whether the hub could not be asked, so that it is only known to be what was fetched."""


def fetch_suite(
    suite: PublishedSuite,
    tasks: Mapping[str, Sequence[str]],
    *,
    masks: bool = False,
    report: Report = lambda what, share: None,
) -> list[Fetched]:
    """Fetch what is missing into the folder of the weights. What was begun is continued.

    Args:
        tasks: by backbone.
        masks: fetch the published TALL masks as well, which raymerge does not read.
    Raises:
        SuiteError: the suite is not one that can be fetched.
        FetchError: there is no network, a place refuses, another fetch is running, or what came is not what was
            expected; also if a file is there already that is another one.
    """
    places = places_of(suite, tasks, masks=masks)
    num = sum(len(wanted) for _, wanted in places)
    done: list[Fetched] = []
    suite.root.mkdir(parents=True, exist_ok=True)
    with _only_one(suite.root):
        record = _Record(suite)
        for place, wanted in places:

            def tell(number: int, share: float, what: str, before: int = len(done)) -> None:
                report(what, (before + number + share) / num)

            done += _Fetcher(suite, place, record, tell).fetch(wanted)
        with contextlib.suppress(OSError):
            (suite.root / STAGING).rmdir()  # if it is empty
    return done


class _Fetcher:
    """Fetches files from one place."""

    def __init__(self, suite: PublishedSuite, place: Place, record: "_Record", tell: Callable[[int, float, str], None]):
        self._suite, self._place, self._record, self._tell = suite, place, record, tell

    def fetch(self, wanted: Sequence[Wanted]) -> list[Fetched]:
        try:
            offered: Sequence[Remote] = self._list()
        except hub_files.HubUnreachable:
            there = [self._recorded(item) for item in wanted]
            if all(found is not None or item.optional for found, item in zip(there, wanted, strict=True)):
                return [found for found in there if found is not None]
            raise
        done = []
        for number, item in enumerate(wanted):
            remote = item.choose({file.path: file for file in offered})
            if remote is not None:
                done.append(self._bring(remote, replace(item, target=item.target_for(remote.path)), number))
            elif item.optional:
                done.append(Fetched(item, self._suite.root / item.target, "not offered"))
            else:
                raise FetchError(
                    f"{self._place.label}: has no {item.remote[0]}, only {len(offered)} other files; was it renamed?"
                )
        staging = self._staging()
        if staging.is_dir():
            shutil.rmtree(staging)
        return done

    def _list(self) -> Sequence[Remote]:
        if self._place.drive_id is not None:
            return drive_files.list_files(self._place.drive_id, self._place.label)
        return hub_files.list_files(self._place.label)

    def _bring(self, remote: Remote, item: Wanted, number: int) -> Fetched:
        if (there := self._is_there(item, remote)) is not None:
            return Fetched(item, there, "there already", there.stat().st_size)
        staging, target = self._staging(), self._suite.root / item.target
        size = f", {remote.size / 1e6:,.0f} MB" if remote.size else ""

        def report(num_bytes: int) -> None:
            self._tell(number, min(1.0, num_bytes / remote.size) if remote.size else 0.0, f"{remote.path}{size}")

        report(0)
        staging.mkdir(parents=True, exist_ok=True)
        if isinstance(remote, drive_files.DriveFile):
            downloaded = self._from_drive(remote, staging, target, report)
        else:
            downloaded = hub_files.download(remote, staging, report)
        try:
            check_download(downloaded, name=remote.name, size=remote.size, sha256=remote.sha256)
            _check_opens(item, downloaded)
        except (FetchError, CheckpointError) as error:
            downloaded.unlink()  # or it would be continued
            raise FetchError(str(error)) from error
        num_bytes = downloaded.stat().st_size
        if item.kind is not None:
            self._record.add(item.key, FileHash(num_bytes, remote.sha256 or file_sha256(downloaded)))
        give_name(downloaded, target)
        return Fetched(item, target, "fetched", num_bytes)

    def _from_drive(
        self, remote: drive_files.DriveFile, staging: Path, target: Path, report: Callable[[int], None]
    ) -> Path:
        try:
            return drive_files.download(remote, staging, report)
        except FetchError as error:  # its quotas may last for days, but not in a browser that is logged in
            address = f"https://drive.google.com/drive/folders/{self._place.drive_id}"
            raise FetchError(f"{error} Or download it in a browser from {address} to {target}.") from error

    def _is_there(self, item: Wanted, remote: Remote) -> Path | None:
        """The file, if it is there and whole.

        Raises:
            FetchError: another file is there, which somebody may need.
        """
        path = existing_file(self._suite.root, item.target)
        if path is None and item.kind is not None:
            path = self._suite.source(item.kind, item.backbone, item.task)
        if path is None:
            return None
        known, size = self._record.get(item.key), path.stat().st_size
        if remote.size in (None, size):
            recorded = known if known is not None and known.num_bytes == size else None
            if remote.sha256 is None:  # nothing to compare with but what it was when it was fetched
                if recorded is None:
                    _check_opens(item, path)
                return path
            if recorded is None:
                recorded = FileHash(size, file_sha256(path))
            if recorded.sha256 == remote.sha256:
                self._record.add(item.key, recorded)
                return path
        raise FetchError(
            f"{path}: is another file than {remote.name} ({size:,} bytes there"
            f"{f', {remote.size:,} offered' if remote.size else ''}); remove it, or fetch into another folder with "
            "--weights."
        )

    def _recorded(self, item: Wanted) -> Fetched | None:
        path = existing_file(self._suite.root, item.target_for(item.remote[0]))
        known = self._record.get(item.key)
        if path is None or known is None or known.num_bytes != path.stat().st_size:
            return None
        return Fetched(item, path, "there already", known.num_bytes, is_unchecked=True)

    def _staging(self) -> Path:
        return self._suite.root / STAGING / self._place.label.replace("/", "--").replace(" ", "-")


class _Record:
    """The list of what was fetched, written after every file."""

    def __init__(self, suite: PublishedSuite):
        self._path = suite.root / FETCHED_NAME
        self._files: dict[str, FileHash] = {}
        self._suite = suite
        with contextlib.suppress(SuiteError):  # none yet, or one that was damaged: files are then hashed again
            self._files |= read_hashes(self._path).files

    def get(self, key: str) -> FileHash | None:
        return self._files.get(key)

    def add(self, key: str, value: FileHash) -> None:
        if self._files.get(key) != value:
            self._files[key] = value
            write_hashes(self._path, HashList(self._suite.name, self._suite.profile, self._files))


def _check_opens(item: Wanted, path: Path) -> None:
    if item.kind == "head":
        read_head(path)
    elif item.kind is not None:
        Checkpoint(path)


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[None]:
    try:
        with filelock.FileLock(root / f"{STAGING}.lock", timeout=0):
            yield
    except filelock.Timeout:
        raise FetchError(f"{root}: another fetch into this folder is running; wait for it.") from None
