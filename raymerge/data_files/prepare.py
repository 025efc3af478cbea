"""Cache the images of datasets: decode and resize them once, in parallel, in little memory, and go on where it stopped.

When the last chunk of a dataset is there, all of them are joined to `val.arrow` and `test.arrow`, `dataset.json` is
written, and the chunks go away.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

from raymerge.checkpoints import file_sha256
from raymerge.data import Samples
from raymerge.data.splits import read_split
from raymerge.data_files.cache_plan import CHUNKS_PREFIX, CachePlan, check_room, plan_cache
from raymerge.data_files.cache_record import CacheRecord, cached, check_declared, record_path, write_record
from raymerge.errors import DataError
from raymerge.images import DecodedSplit, image_writer, open_images
from raymerge.processes import default_workers, go_on, run_jobs
from raymerge.records import SPLITS, Split
from raymerge.suites.published import PublishedSuite
from raymerge.whole_file import TEMPORARY_SUFFIX, make_directory

AT_ONCE = 32
"""Images that a process has in memory together."""

Report = Callable[[str, float], None]
"""Told what is being done and which fraction of the whole is behind it."""


@dataclass(frozen=True)
class Prepared:
    """The cached images of a task."""

    task: str
    record: CacheRecord
    num_bytes: int
    is_new: bool
    """Whether they were not there before."""


def prepare_images(
    suite: PublishedSuite,
    tasks: Sequence[str],
    *,
    workers: int | None = None,
    force: bool = False,
    stage: Callable[[str], None] = lambda what: None,
    report: Report = lambda what, fraction: None,
) -> list[Prepared]:
    """Cache the validation and test images of tasks, where they are not cached yet.

    Everything is checked before the first image is decoded. Two at once for the same data wait for each other.

    Args:
        workers: processes that decode; None: as many as are worth it.
        force: make what is there once more.
    Raises:
        DataError: a dataset is missing, damaged or of another size than is known of it; there is no room for its
            images, or no permission to write them.
    """
    new: list[str] = []
    try:
        if _uncached(suite, tasks, force):
            make_directory(suite.images_folder)
            with _locked(suite.images_folder / ".lock", stage):
                new = _uncached(suite, tasks, force)  # somebody else may have made some while we waited
                if new:
                    _make(suite, new, workers, force, stage, report)
    except OSError as error:
        raise DataError(
            f"{error.filename or suite.images_folder}: cannot be written ({error.strerror or error}). Make room or "
            "change its permissions, or let RAYMERGE_HOME name another folder."
        ) from None
    return [_prepared(suite, task, task in new) for task in tasks]


def _uncached(suite: PublishedSuite, tasks: Sequence[str], force: bool) -> list[str]:
    """The tasks to do, one for each dataset."""
    by_folder = {suite.image_cache(task): task for task in reversed(tasks)}
    chosen = [task for task in tasks if by_folder[suite.image_cache(task)] == task]
    return chosen if force else [task for task in chosen if not _is_cached(suite, task)]


def _is_cached(suite: PublishedSuite, task: str) -> bool:
    try:
        record = cached(suite, task)
    except DataError:  # a damaged file, which is made again
        return False
    if record is not None:
        check_declared(suite, task, record)
    return record is not None


def _prepared(suite: PublishedSuite, task: str, is_new: bool) -> Prepared:
    record = cached(suite, task)
    assert record is not None
    return Prepared(task, record, sum(suite.images_path(task, split).stat().st_size for split in SPLITS), is_new)


@contextlib.contextmanager
def _locked(path: Path, stage: Callable[[str], None]) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        stage(f"waiting for another 'raymerge data prepare', which holds {path}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Chunk:
    """Images to make, for a process of its own."""

    plan: int
    split: Split
    start: int
    samples: Samples
    image_size: int
    path: Path


def _make(
    suite: PublishedSuite,
    tasks: Sequence[str],
    workers: int | None,
    force: bool,
    stage: Callable[[str], None],
    report: Report,
) -> None:
    stage("checking datasets")
    plans = []
    for number, task in enumerate(tasks):
        report(task, number / len(tasks))
        plans.append(plan_cache(suite, task))
    for plan in plans:
        _clear(plan, force)
    check_room(plans, suite.images_folder)
    missing = [plan.missing() for plan in plans]
    total = sum(plan.num_images for plan in plans)
    left = sum(len(plan.numbers(*key)) for plan, keys in zip(plans, missing, strict=True) for key in keys)
    workers = workers or default_workers(left)
    stage(f"caching {left:,} images with {workers} process{'es' * (workers != 1)}")
    for plan, keys in zip(plans, missing, strict=True):
        if not keys:
            _finish(plan)
    jobs = _chunks(suite, plans, [sorted(keys) for keys in missing])
    with contextlib.closing(run_jobs(_make_chunk, jobs, workers)) as results:
        for chunk, _ in results:
            left -= len(chunk.samples)
            report(f"{plans[chunk.plan].task}, {total - left:,} of {total:,} images", (total - left) / total)
            missing[chunk.plan].discard((chunk.split, chunk.start))
            if not missing[chunk.plan]:
                _finish(plans[chunk.plan])


def _clear(plan: CachePlan, force: bool) -> None:
    """Remove what killed runs left and this one cannot use."""
    make_directory(plan.folder)
    for path in plan.folder.iterdir():
        if path.name.startswith(CHUNKS_PREFIX) and (force or path != plan.chunks):
            shutil.rmtree(path)
        elif path.name.endswith(TEMPORARY_SUFFIX):
            path.unlink(missing_ok=True)
    make_directory(plan.chunks)
    if force:  # so that an interrupted run can be continued without `force`
        record_path(plan.folder).unlink(missing_ok=True)


def _chunks(
    suite: PublishedSuite, plans: Sequence[CachePlan], missing: Sequence[Sequence[tuple[Split, int]]]
) -> Iterator[_Chunk]:
    """What there is to do. A dataset is read again when its turn comes, so that one of them is in memory."""
    for number, (plan, keys) in enumerate(zip(plans, missing, strict=True)):
        for split in SPLITS:
            starts = [start for key, start in keys if key == split]
            if not starts:
                continue
            samples = read_split(suite.datasets[plan.task], suite.data, split, plan.layout)
            if not np.array_equal(samples.labels, plan.labels[split]):
                raise DataError(f"{plan.task}: its files changed while they were read. Start the same command again.")
            for start in starts:
                part = samples.subset(plan.numbers(split, start))
                yield _Chunk(number, split, start, part, plan.image_size, plan.chunk_path(split, start))


def _make_chunk(chunk: _Chunk) -> None:
    size = chunk.image_size, chunk.image_size
    images = DecodedSplit(chunk.samples, size)
    with image_writer(chunk.path, size) as writer:
        for start in range(0, len(images), AT_ONCE):
            go_on()
            writer.append(*images.read(start, min(start + AT_ONCE, len(images))))


def _finish(plan: CachePlan) -> None:
    """Join the chunks of a dataset."""
    record_path(plan.folder).unlink(missing_ok=True)
    hashes: dict[Split, str] = {}
    for split in SPLITS:
        path = plan.folder / f"{split}.arrow"
        with image_writer(path, (plan.image_size, plan.image_size)) as writer:
            for start in plan.starts(split):
                writer.append_split(open_images(plan.chunk_path(split, start)))
        hashes[split] = file_sha256(path)
    write_record(plan.folder, plan.record(hashes))
    shutil.rmtree(plan.chunks)
