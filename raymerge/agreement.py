"""How often a model answers in half precision as it does in single precision, task by task."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from raymerge.backbones import build_image_encoder
from raymerge.checkpoints import load_head, open_checkpoint
from raymerge.evaluation import Evaluator
from raymerge.images import ImageSplit, cached_split
from raymerge.records import Split
from raymerge.suites import Suite

REFERENCE = "fp32"
READ_AT_ONCE = 1024
"""Images that are in memory together."""


@dataclass(frozen=True)
class Agreement:
    """One model on images of one task, in one precision and in single precision."""

    backbone: str
    task: str
    precision: str
    images: int
    same: int
    """Images to which both give the same class."""
    correct: int
    reference_correct: int
    seconds: float
    reference_seconds: float

    @property
    def agreement(self) -> float:
        return self.same / self.images

    @property
    def accuracy(self) -> float:
        return self.correct / self.images

    @property
    def reference_accuracy(self) -> float:
        return self.reference_correct / self.images


@dataclass(frozen=True)
class _Answers:
    classes: Int64[Tensor, " images"]
    labels: Int64[Tensor, " images"]
    seconds: float


def measure_agreement(
    suite: Suite,
    backbone: str,
    tasks: Sequence[str],
    precisions: Sequence[str],
    *,
    device: torch.device,
    split: Split = "val",
    experts: bool = False,
    batch_size: int | None = None,
    max_images: int | None = None,
    report: Callable[[str, float], None] = lambda what, share: None,
) -> list[Agreement]:
    """Compare precisions with single precision, by task and then in the order of `precisions`.

    Args:
        experts: the expert of every task, instead of the zero-shot model on all of them.
        max_images: so many images of every task, evenly spread over the split; None: all of them.
    Raises:
        CheckpointError: a model or a head is missing, damaged, or of another backbone.
        DataError: images are missing or damaged.
    """
    answers: dict[tuple[str, str], _Answers] = {}
    compared = [REFERENCE, *(precision for precision in precisions if precision != REFERENCE)]
    steps = len(compared) * len(tasks)
    for precision in compared:
        evaluator = None
        for task in tasks:
            report(f"{backbone}/{task} in {precision}", len(answers) / steps)
            if evaluator is None or experts:
                evaluator = None  # room for the next one
                evaluator = _evaluator(suite, backbone, task if experts else None, precision, device, batch_size)
            answers[precision, task] = _answers(suite, backbone, task, split, evaluator, max_images)
    return [
        _compare(backbone, task, precision, answers[precision, task], answers[REFERENCE, task])
        for task in tasks
        for precision in precisions
    ]


def _evaluator(
    suite: Suite, backbone: str, expert_of: str | None, precision: str, device: torch.device, batch_size: int | None
) -> Evaluator:
    path = suite.zero_shot_path(backbone) if expert_of is None else suite.expert_path(backbone, expert_of)
    checkpoint, encoder = open_checkpoint(path), suite.backbones[backbone]
    return Evaluator(
        build_image_encoder(encoder, checkpoint.shapes),
        checkpoint,
        mean=encoder.mean,
        std=encoder.std,
        device=device,
        precision=precision,
        batch_size=batch_size,
    )


def _answers(
    suite: Suite, backbone: str, task: str, split: Split, evaluator: Evaluator, max_images: int | None
) -> _Answers:
    images, num_classes = cached_split(suite, task, split), len(suite.task(task).classes)
    head = load_head(suite.head_path(backbone, task), num_classes=num_classes, embed_dim=evaluator.embed_dim)
    evaluator.predict(images.view(0, min(len(images), evaluator.batch_size))[0], *head)  # libraries start up
    classes, labels, seconds = [], [], 0.0
    for pixels, some_labels in spread(images, max_images):
        started = time.perf_counter()
        classes.append(evaluator.predict(pixels, *head).cpu())
        seconds += time.perf_counter() - started
        labels.append(some_labels)
    return _Answers(torch.cat(classes), torch.cat(labels), seconds)


def spread(
    images: ImageSplit, count: int | None
) -> Iterator[tuple[UInt8[Tensor, "images height width 3"], Int64[Tensor, " images"]]]:
    """So many images of a split and their labels, evenly spread: files are often in the order of their classes."""
    total = len(images)
    chosen = range(total) if count is None or count >= total else [i * total // count for i in range(count)]
    for start in range(0, len(chosen), READ_AT_ONCE):
        some = chosen[start : start + READ_AT_ONCE]
        if len(chosen) == total:
            yield images.view(some[0], some[-1] + 1)
        else:
            pixels, labels = zip(*(images.view(i, i + 1) for i in some), strict=True)
            yield torch.cat(pixels), torch.cat(labels)


def _compare(backbone: str, task: str, precision: str, found: _Answers, reference: _Answers) -> Agreement:
    return Agreement(
        backbone=backbone,
        task=task,
        precision=precision,
        images=len(found.labels),
        same=int((found.classes == reference.classes).sum()),
        correct=int((found.classes == found.labels).sum()),
        reference_correct=int((reference.classes == reference.labels).sum()),
        seconds=found.seconds,
        reference_seconds=reference.seconds,
    )
