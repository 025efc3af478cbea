"""Checks of a prepared suite before any work: every file that a sweep will read, task by task."""

from collections.abc import Mapping
from pathlib import Path

from raymerge.checkpoints import (
    PREFIX,
    Checkpoint,
    check_checkpoint,
    check_values,
    file_sha256,
    load_head,
    open_checkpoint,
)
from raymerge.errors import CheckpointError, DataError
from raymerge.images import ImageSplit, cached_split
from raymerge.moment_files import check_moments
from raymerge.records import SPLITS, Split
from raymerge.suites import Suite, moments_path, stats_command


def check_backbone(suite: Suite, backbone: str) -> Mapping[Path, str]:
    """Check the zero-shot checkpoint of a backbone. Returns its SHA-256 by path.

    Raises:
        CheckpointError: missing, truncated, NaN, or not of this backbone.
    """
    zero_shot = _open(suite, backbone, suite.zero_shot_path(backbone))
    if not any(name.startswith(PREFIX + "visual.") for name in zero_shot.names):
        raise CheckpointError(
            f"{zero_shot.path}: zero-shot of {backbone}: no name begins with '{PREFIX}visual.', as those of published "
            f"files do; 'raymerge suite convert --suite {suite.argument}' makes a file that is read."
        )
    for name in zero_shot.parameters:
        check_values(zero_shot, name, f"zero-shot of {backbone}")
    return {zero_shot.path: file_sha256(zero_shot.path)}


def check_task(suite: Suite, backbone: str, task: str, moments: Path | None = None) -> Mapping[Path, str]:
    """Check the expert, the head and the images of a task. Returns the SHA-256 of the files a merge reads, by path.

    Args:
        moments: folder of input moments, where they are needed.
    Raises:
        CheckpointError: the expert, the head or the moments are missing, truncated, NaN, or do not fit each other.
        DataError: images are missing, or differ in number or labels from what the suite says.
    """
    expert, head_path = check_expert(suite, backbone, task), suite.head_path(backbone, task)
    embed_dim = expert.shapes[PREFIX + "visual.proj"][1]
    _check_present(suite, backbone, head_path)
    load_head(head_path, num_classes=len(suite.task(task).classes), embed_dim=embed_dim)
    for split in SPLITS:
        check_images(suite, task, split)
    hashes = {path: file_sha256(path) for path in (expert.path, head_path)}
    if moments is not None:
        path = moments_path(moments, backbone, task)
        command = stats_command(suite, moments)
        check_moments(path, expert_sha256=hashes[expert.path], shapes=expert.shapes, command=command)
        hashes[path] = file_sha256(path)
    return hashes


def check_expert(suite: Suite, backbone: str, task: str) -> Checkpoint:
    """Compare the expert of a task with the zero-shot model. Returns it, open.

    Raises:
        CheckpointError: it is missing, truncated, NaN, or does not fit the backbone.
    """
    expert = _open(suite, backbone, suite.expert_path(backbone, task))
    check_checkpoint(expert, _open(suite, backbone, suite.zero_shot_path(backbone)), task)
    return expert


def _open(suite: Suite, backbone: str, path: Path) -> Checkpoint:
    _check_present(suite, backbone, path)
    return open_checkpoint(path)


def _check_present(suite: Suite, backbone: str, path: Path) -> None:
    if not path.is_file() and (remedy := suite.files_remedy(backbone)):
        raise CheckpointError(f"{path}: no such file. {remedy}")


def check_images(suite: Suite, task: str, split: Split) -> ImageSplit:
    """Compare one split of a task with what the suite says of it. Returns it, open.

    Raises:
        DataError: images are missing, or differ in number or labels.
    """
    declared, images = suite.task(task), cached_split(suite, task, split)
    if len(images) != declared.images[split]:
        raise DataError(
            f"{images.path}: holds {len(images)} images, the suite says {declared.images[split]}. "
            f"{suite.images_remedy(task)}"
        )
    labels = images.labels()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(declared.classes):
        raise DataError(
            f"{images.path}: labels run from {low} to {high}, but {task} has {len(declared.classes)} classes. "
            f"{suite.images_remedy(task)}"
        )
    return images
