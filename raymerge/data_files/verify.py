"""Say what is there of datasets and what is wrong with it: sizes, classes, validation images, the cache, all images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raymerge.checkpoints import file_sha256
from raymerge.data import Samples
from raymerge.data._dataset import RawSplit
from raymerge.data.checks import NAMES, expected_size, problems_of
from raymerge.data.splits import drawn_indices, index_hash
from raymerge.data_files.cache_record import cached, check_declared, read_record
from raymerge.errors import DataError
from raymerge.images import open_images
from raymerge.processes import default_workers, go_on, run_jobs
from raymerge.records import SPLITS
from raymerge.suites.published import PublishedSuite

CHUNK = 512
"""Images that a process decodes before it reports."""

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class SplitFound:
    """A split as it lies there; "train" with the images that are held out for validation."""

    size: int
    expected: int | None
    """None: not known, or any size will do."""
    class_counts: tuple[int, ...]
    """Images of every class, in the order of the labels."""


@dataclass(frozen=True)
class Verified:
    """What was found of a task's dataset."""

    task: str
    dataset: str
    num_classes: int
    layout: str | None
    """None: the raw files are not there."""
    splits: Mapping[RawSplit, SplitFound]
    """By "train", "val" and "test", those that could be read."""
    val_indices: str | None
    """Hash of the numbers of the training images that are held out; None: validation images have files of their own."""
    expected_val_indices: str | None
    """None: not known for a training split of this size."""
    is_cached: bool
    corrupt: tuple[str, ...] = ()
    """Names of images that cannot be decoded."""
    problems: tuple[str, ...] = ()
    """What is wrong, a sentence each."""


def verify_data(
    suite: PublishedSuite,
    tasks: Sequence[str],
    *,
    quick: bool = False,
    workers: int | None = None,
    stage: Callable[[str], None] = lambda what: None,
    report: Report = lambda what, fraction: None,
) -> list[Verified]:
    """Look at the raw files and the cached images of tasks. Writes nothing.

    Args:
        quick: decode no image, and do not read the cache as a whole.
        workers: processes that decode; None: as many as are worth it.
    Raises:
        RaymergeError: a process that decodes was killed.
    """
    stage("reading datasets")
    rows = []
    for number, task in enumerate(tasks):
        report(task, number / len(tasks))
        rows.append(_inspect(suite, task))
    if quick:
        return rows
    total = sum(row.splits[split].size for row in rows for split in _raw_splits(row))
    workers, done = workers or default_workers(total), 0
    stage(f"decoding {total:,} images with {workers} process{'es' * (workers != 1)}")
    with closing(run_jobs(_look, _jobs(suite, rows), workers)) as results:
        for job, seen in results:
            row = rows[job.row]
            rows[job.row] = replace(
                row, corrupt=(*row.corrupt, *seen.corrupt), problems=(*row.problems, *seen.problems)
            )
            if job.samples is not None:
                done += len(job.samples)
                report(f"{row.task}, {done:,} of {total:,} images", done / total)
    return rows


# --- sizes, labels, validation images, the cache ---------------------------------------------------------------------


def _inspect(suite: PublishedSuite, task: str) -> Verified:
    """All but the images themselves."""
    dataset, declared_size = suite.datasets[task], suite.has_declared_sizes(task)
    found = Verified(task, dataset.name, len(dataset.classes), None, {}, None, None, is_cached=False)
    problems: list[str] = []
    try:
        record = cached(suite, task)
        if record is not None:
            check_declared(suite, task, record)
    except DataError as error:
        record = read_record(suite.image_cache(task))
        problems.append(str(error))
    found = replace(found, is_cached=record is not None)
    try:
        layout = dataset.find_layout(suite.data, suite.fetch_command(task))
    except DataError as error:
        if not found.is_cached:  # what is cached needs its raw files no longer
            problems.append(str(error))
        return replace(found, problems=tuple(problems))
    if record is not None and record.layout != layout.name:
        problems.append(
            f"{dataset.name}: was cached from the {record.layout} layout, but the {layout.name} layout is found now; "
            f"cache it again with: {suite.prepare_command(task)} --force"
        )
    samples: dict[RawSplit, Samples] = {}
    raw: tuple[RawSplit, ...] = ("train", "test") if dataset.num_own_val is None else ("train", "val", "test")
    for split in raw:
        try:
            samples[split] = layout.read(suite.data, split)
        except DataError as error:
            # who brings validation images along may have no training images
            if split != "train" or declared_size or dataset.num_own_val is None:
                problems.append(str(error))
            continue
        problems += problems_of(dataset, split, samples[split], declared_size=declared_size)
    val_indices = None
    if dataset.num_own_val is None and "train" in samples:
        drawn = drawn_indices(len(samples["train"]))[1]
        samples["val"], val_indices = samples["train"].subset(drawn), index_hash(drawn)
    expected = dataset.val_sha256 if val_indices and len(samples["train"]) == dataset.num_train else None
    if expected and val_indices != expected:
        problems.append(
            f"{dataset.name}: the numbers of its validation images hash to {val_indices}, expected {expected}; does "
            "this version of torch draw other random numbers?"
        )
    if not problems and record is not None:
        problems += _unlike(suite, task, samples)
    return replace(
        found,
        layout=layout.name,
        splits={
            split: _split_found(samples[split], expected_size(dataset, split) if declared_size else None, found)
            for split in NAMES
            if split in samples
        },
        val_indices=val_indices,
        expected_val_indices=expected,
        problems=tuple(problems),
    )


def _split_found(samples: Samples, expected: int | None, found: Verified) -> SplitFound:
    labels = np.asarray(samples.labels, dtype=np.int64)
    in_range = labels[(labels >= 0) & (labels < found.num_classes)]
    counts = np.bincount(in_range, minlength=found.num_classes)
    return SplitFound(len(samples), expected, tuple(counts.tolist()))


def _unlike(suite: PublishedSuite, task: str, samples: Mapping[RawSplit, Samples]) -> Iterator[str]:
    for split in SPLITS:
        labels = open_images(suite.images_path(task, split)).labels().numpy()
        if not np.array_equal(labels, samples[split].labels):
            yield (
                f"{task}: the cached {NAMES[split]} images have other labels than the raw files have now; cache them "
                f"again with: {suite.prepare_command(task)} --force"
            )


# --- every image -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """Images to decode, or a file to hash, for a process of its own."""

    row: int
    samples: Samples | None = None
    path: Path | None = None
    sha256: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class _Seen:
    corrupt: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def _raw_splits(row: Verified) -> list[RawSplit]:
    """Those that have files of their own."""
    return [split for split in row.splits if split != "val" or row.val_indices is None]


def _jobs(suite: PublishedSuite, rows: Sequence[Verified]) -> Iterator[_Job]:
    for number, row in enumerate(rows):
        record = read_record(suite.image_cache(row.task)) if row.is_cached else None
        for split in SPLITS if record else ():
            assert record is not None
            path = suite.images_path(row.task, split)
            if path.exists():
                remedy = f"{suite.images_remedy(row.task)} --force"
                yield _Job(number, path=path, sha256=record.sha256[split], remedy=remedy)
        layout = suite.datasets[row.task].find_layout(suite.data) if row.splits else None
        for split in _raw_splits(row):
            assert layout is not None
            samples = layout.read(suite.data, split)
            for start in range(0, len(samples), CHUNK):
                yield _Job(number, samples.subset(range(start, min(start + CHUNK, len(samples)))))


def _look(job: _Job) -> _Seen:
    if job.path is not None:
        if file_sha256(job.path) == job.sha256:
            return _Seen()
        return _Seen(problems=(f"{job.path}: is not as it was written. {job.remedy}",))
    assert job.samples is not None
    corrupt, problems = [], []
    for number in range(len(job.samples)):
        go_on()
        try:
            job.samples.image(number)
        except DataError as error:
            corrupt.append(job.samples.name(number))
            problems.append(str(error))
    return _Seen(tuple(corrupt), tuple(problems))
