"""Collecting the input moments of a suite's experts, and keeping those that are there already."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from raymerge.backbones import build_image_encoder
from raymerge.checkpoints import Checkpoint, file_sha256
from raymerge.errors import CheckpointError, EvaluationError, OutputError, SuiteError
from raymerge.evaluation import Evaluator
from raymerge.images import ImageSplit
from raymerge.input_moments import InputMoments
from raymerge.moment_files import SPLIT, Origin, check_moments, mean_moments, write_moments
from raymerge.preflight import check_backbone, check_expert, check_images
from raymerge.suites import Suite, moments_path

Report = Callable[[str, float], None]
"""Told what is being done and which fraction of it is behind."""


@dataclass(frozen=True)
class Item:
    """One expert and the images it is described by."""

    expert: Checkpoint
    images: ImageSplit
    origin: Origin
    path: Path
    """Where its moments are, or will be."""
    why: str | None
    """Why they have to be collected; None when they are there."""

    def __str__(self) -> str:
        return f"{self.origin.backbone}/{self.origin.task}"


@dataclass(frozen=True)
class Collected:
    """The file of one expert's moments."""

    item: Item
    means: Mapping[str, float]
    """Mean moment by kind of input."""


def find_items(
    suite: Suite,
    tasks: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    max_images: int | None = None,
    force: bool = False,
    report: Report = lambda what, fraction: None,
) -> list[Item]:
    """Check experts and images, and find which moments are in `folder`. Never opens the test split.

    Args:
        tasks: by backbone.
        max_images: take the first so many images of each task; None: all of them.
        force: collect moments that are there once more.
    Raises:
        CheckpointError, DataError: the first problem found.
    """

    @cache
    def images_of(task: str) -> tuple[ImageSplit, str]:
        images = check_images(suite, task, SPLIT)
        return images, file_sha256(images.path)

    items, num = [], sum(map(len, tasks.values()))
    for backbone, names in tasks.items():
        check_backbone(suite, backbone)
        for task in names:
            report(f"{backbone}/{task}", len(items) / num)
            expert, (images, images_sha256) = check_expert(suite, backbone, task), images_of(task)
            origin = Origin(
                suite=suite.name,
                profile=suite.profile,
                seed=suite.seed,
                backbone=backbone,
                task=task,
                images=min(len(images), max_images or len(images)),
                images_sha256=images_sha256,
                expert_sha256=file_sha256(expert.path),
            )
            path = moments_path(folder, backbone, task)
            why = "asked for" if force else _why_collect(path, origin, expert)
            items.append(Item(expert, images, origin, path, why))
    return items


def _why_collect(path: Path, origin: Origin, expert: Checkpoint) -> str | None:
    if not path.exists():
        return "not there"
    try:
        moments = check_moments(path, expert_sha256=origin.expert_sha256, shapes=expert.shapes)
    except CheckpointError:
        return "damaged, or of another expert"
    metadata = moments.metadata()
    is_same = all(metadata.get(name) == str(getattr(origin, name)) for name in ("images", "images_sha256"))
    return None if is_same else "of other images"


def collect(
    suite: Suite,
    items: Sequence[Item],
    *,
    device: torch.device,
    batch_size: int | None = None,
    report: Report = lambda what, fraction: None,
) -> Iterator[Collected]:
    """Collect and write what is missing; yield every item, in order, once its file is there.

    Args:
        batch_size: images per forward pass; None: as in evaluation.
    Raises:
        SuiteError: a backbone has a matrix whose inputs cannot be watched.
        EvaluationError: inputs are not finite, or the device has too little memory.
        OutputError: a file cannot be written.
    """
    todo = [item for item in items if item.why]
    num_images, num_seen = sum(item.origin.images for item in todo), 0
    encoder, backbone = None, ""

    def on_batch(item: Item, size: int) -> None:
        nonlocal num_seen
        num_seen += size
        report(f"{item}, {todo.index(item) + 1} of {len(todo)}", num_seen / num_images)

    for item in items:
        if item.why:
            if encoder is None or backbone != item.origin.backbone:
                backbone = item.origin.backbone
                encoder = build_image_encoder(suite.backbones[backbone], item.expert.shapes)
            with _told_of(item):
                seen = _pass_images(suite, item, encoder, device, batch_size, partial(on_batch, item))
                write_moments(item.path, seen.moments(), seen.kinds, item.origin)
        yield Collected(item, mean_moments(Checkpoint(item.path)))


def _pass_images(
    suite: Suite,
    item: Item,
    encoder: nn.Module,
    device: torch.device,
    batch_size: int | None,
    on_batch: Callable[[int], None],
) -> InputMoments:
    """Put the images of an item through its expert."""
    seen, normalisation = InputMoments(encoder), suite.backbones[item.origin.backbone]
    # an expert in the place of theta_0, without an update: exactly its weights
    expert = Evaluator(
        encoder,
        item.expert,
        mean=normalisation.mean,
        std=normalisation.std,
        device=device,
        batch_size=batch_size,
        keep_batch_size=True,
    )
    with seen:
        for start in range(0, item.origin.images, expert.batch_size):
            pixels, _ = item.images.read(start, min(start + expert.batch_size, item.origin.images))
            for features in expert.encode(pixels):
                on_batch(len(features))
    return seen


@contextmanager
def _told_of(item: Item) -> Iterator[None]:
    """Errors that name the item."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise EvaluationError(f"{item}: too many images at a time for the GPU. Use a smaller --batch-size.") from None
    except (EvaluationError, SuiteError) as error:
        raise type(error)(f"{item}: {error}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{item.path}: cannot be written ({reason}). Make room for it, or choose another --output."
        ) from None


def make_folder(folder: Path) -> None:
    """Make the folder of moments.

    Raises:
        OutputError: it is not one that can be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder}: not a folder one can write to ({error.strerror or error}). Choose another --output."
        ) from None
