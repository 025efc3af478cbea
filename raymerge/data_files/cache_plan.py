"""What there is to do to cache the images of one dataset: everything is read and checked, and nothing decoded yet.

The images are made in chunks, each a file of its own beside the cache, so that a killed run loses little.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from raymerge.data import Layout, Samples
from raymerge.data.checks import check_split
from raymerge.data.splits import drawn_indices, index_hash
from raymerge.data_files.cache_record import FORMAT, CacheRecord
from raymerge.errors import DataError
from raymerge.images import open_images
from raymerge.records import SPLITS, Split, content_id
from raymerge.suites.published import PublishedSuite

CHUNK = 512
"""Images of a file that a killed run does not make again."""
CHUNKS_PREFIX = "chunks-"


@dataclass(frozen=True)
class CachePlan:
    """A dataset that was checked, and where its chunks go."""

    task: str
    dataset: str
    num_classes: int
    layout: Layout
    data: Path
    image_size: int
    labels: Mapping[Split, np.ndarray]
    val_indices: str | None
    folder: Path
    """Of the cache."""
    chunks: Path
    """Folder of the chunks, which is named by what they are made of."""

    @property
    def num_images(self) -> int:
        return sum(map(len, self.labels.values()))

    @property
    def num_bytes(self) -> int:
        return self.num_images * (3 * self.image_size**2 + 8)

    def starts(self, split: Split) -> range:
        """First image of every chunk."""
        return range(0, len(self.labels[split]), CHUNK)

    def numbers(self, split: Split, start: int) -> range:
        """The images of a chunk."""
        return range(start, min(start + CHUNK, len(self.labels[split])))

    def chunk_path(self, split: Split, start: int) -> Path:
        return self.chunks / f"{split}-{start:06d}.arrow"

    def missing(self) -> set[tuple[Split, int]]:
        """Split and first image of every chunk that is not there and whole."""
        return {(split, start) for split in SPLITS for start in self.starts(split) if not self._is_made(split, start)}

    def _is_made(self, split: Split, start: int) -> bool:
        try:
            found = open_images(self.chunk_path(split, start)).labels().numpy()
        except DataError:
            return False
        return np.array_equal(found, self.labels[split][start : start + CHUNK])

    def record(self, sha256: Mapping[Split, str]) -> CacheRecord:
        """What the finished cache says of itself."""
        return CacheRecord(
            format=FORMAT,
            dataset=self.dataset,
            layout=self.layout.name,
            data=str(self.data),
            image_size=self.image_size,
            images={split: len(self.labels[split]) for split in SPLITS},
            class_counts={
                split: np.bincount(self.labels[split], minlength=self.num_classes).tolist() for split in SPLITS
            },
            val_indices=self.val_indices,
            sha256=sha256,
            versions=_versions(),
        )


def plan_cache(suite: PublishedSuite, task: str) -> CachePlan:
    """Read what there is of a dataset, and check it.

    Raises:
        DataError: it is not there, damaged, or not as declared.
    """
    dataset, declared_size = suite.datasets[task], suite.has_declared_sizes(task)
    layout = dataset.find_layout(suite.data, suite.fetch_command(task))
    splits: dict[Split, Samples] = {}
    val_indices = None
    if dataset.num_own_val is None:
        train = layout.read(suite.data, "train")
        check_split(dataset, "train", train, declared_size=declared_size)
        drawn = drawn_indices(len(train))[1]
        splits["val"], val_indices = train.subset(drawn), index_hash(drawn)
    else:
        if declared_size:
            check_split(dataset, "train", layout.read(suite.data, "train"), declared_size=True)
        splits["val"] = layout.read(suite.data, "val")
    splits["test"] = layout.read(suite.data, "test")
    for split, samples in splits.items():
        check_split(dataset, split, samples, declared_size=declared_size)
    return CachePlan(
        task=task,
        dataset=dataset.name,
        num_classes=len(dataset.classes),
        layout=layout,
        data=suite.data,
        image_size=suite.image_size,
        labels={split: np.asarray(samples.labels, dtype=np.int64) for split, samples in splits.items()},
        val_indices=val_indices,
        folder=suite.image_cache(task),
        chunks=suite.image_cache(task) / f"{CHUNKS_PREFIX}{_identity(suite, task, layout, splits)}",
    )


def check_room(plans: Sequence[CachePlan], folder: Path) -> None:
    """Compare the disk with the files of all datasets and the chunks of one, less what an interrupted run left.

    Args:
        folder: of the caches, which exists.
    Raises:
        DataError: there is less room.
    """
    there = sum(path.stat().st_size for plan in plans for path in plan.chunks.glob("*.arrow"))
    sizes = [plan.num_bytes for plan in plans]
    needed, free = sum(sizes) + max(sizes) - there, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: caching the images of {len(plans)} dataset{'s' * (len(plans) != 1)} needs {_gb(needed)}, but "
            f"its disk has {_gb(free)} free. Make room, name fewer tasks, or let RAYMERGE_HOME name another folder."
        )


def _identity(suite: PublishedSuite, task: str, layout: Layout, splits: Mapping[Split, Samples]) -> str:
    source = hashlib.sha256()
    for samples in splits.values():
        for number, label in enumerate(samples.labels):
            source.update(f"{samples.name(number)}\0{label}\n".encode())
    content = [suite.datasets[task].name, layout.name, suite.image_size, source.hexdigest()]
    return content_id([FORMAT, CHUNK, _versions(), content])


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("raymerge", "pillow", "torchvision")}


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
