"""What is cached of a dataset's images: two Arrow files, and `dataset.json`, which is written last.

<cache>/images/<data root>/<dataset>/<size>px/{val,test}.arrow
<cache>/images/<data root>/<dataset>/<size>px/dataset.json
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raymerge.data.checks import NAMES, expected_size
from raymerge.errors import DataError
from raymerge.images import open_images
from raymerge.records import SPLITS, Split
from raymerge.suites.published import PublishedSuite
from raymerge.whole_file import whole_file

FORMAT = 1


@dataclass(frozen=True)
class CacheRecord:
    """The content of `dataset.json`: what was cached, and of what it was made."""

    format: int
    dataset: str
    layout: str
    """In which the raw files lay."""
    data: str
    """The folder of the raw datasets."""
    image_size: int
    images: Mapping[Split, int]
    class_counts: Mapping[Split, Sequence[int]]
    """Images of every class, in the order of the labels."""
    val_indices: str | None
    """Hash of the numbers of the training images that are held out; None: validation images have files of their own."""
    sha256: Mapping[Split, str]
    """Of the Arrow files."""
    versions: Mapping[str, str]
    """Of the packages that decode and resize."""


def write_record(folder: Path, record: CacheRecord) -> None:
    """Mark the cache in a folder as complete."""
    with whole_file(record_path(folder)) as file:
        file.write((json.dumps(asdict(record), indent=1) + "\n").encode())


def read_record(folder: Path) -> CacheRecord | None:
    """What is cached in a folder; None if it is incomplete, or of another version."""
    try:
        value = json.loads(record_path(folder).read_text())
        return CacheRecord(**value) if value["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record_path(folder: Path) -> Path:
    return folder / "dataset.json"


def cached(suite: PublishedSuite, task: str) -> CacheRecord | None:
    """What is cached of a task's images; None if something is missing or has to be made again.

    Raises:
        DataError: an Arrow file is damaged.
    """
    record, dataset = read_record(suite.image_cache(task)), suite.datasets[task]
    if record is None or record.dataset != dataset.name or record.image_size != suite.image_size:
        return None
    for split in SPLITS:
        path = suite.images_path(task, split)
        if not path.exists() or len(record.class_counts[split]) != len(dataset.classes):
            return None
        images = open_images(path, suite.images_remedy(task))
        if len(images) != record.images[split] or images.size != (suite.image_size, suite.image_size):
            raise DataError(
                f"{path}: holds {len(images)} images of {images.size[0]} pixels, dataset.json says "
                f"{record.images[split]} of {record.image_size}. {suite.images_remedy(task)}"
            )
    return record


def check_declared(suite: PublishedSuite, task: str, record: CacheRecord) -> None:
    """Compare the sizes of what is cached with those that are known of the dataset.

    Raises:
        DataError: they differ, so that it was cached for a suite that takes any size.
    """
    dataset = suite.datasets[task]
    for split in SPLITS if suite.has_declared_sizes(task) else ():
        found, expected = record.images[split], expected_size(dataset, split)
        if found != expected:
            raise DataError(
                f"{dataset.name}: the cached {NAMES[split]} split has {found} images, expected {expected}; it was "
                f"cached for a suite that takes any size. Cache the published images with: "
                f"{suite.prepare_command(task)} --force"
            )
