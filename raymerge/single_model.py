"""Accuracies of one checkpoint on the tasks of a suite, in this process."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from raymerge.backbones import build_image_encoder
from raymerge.checkpoints import check_layout, load_head, open_checkpoint
from raymerge.evaluation import Evaluator
from raymerge.images import cached_split, decoded_split
from raymerge.records import Split, TaskScore
from raymerge.suites import Suite

READ_AT_ONCE = 1024
"""Images that are in memory together."""


def evaluate_model(
    suite: Suite,
    model: Path,
    backbone: str,
    tasks: Sequence[str],
    split: Split,
    *,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int | None = None,
    max_images: int | None = None,
    from_raw: bool = False,
    report: Callable[[str, float], None] = lambda what, share: None,
) -> list[TaskScore]:
    """Score one model with the head of every task.

    Args:
        model: a checkpoint with the keys of the suite's zero-shot model, such as `raymerge merge` writes.
        from_raw: decode and resize the raw images, instead of reading those that were cached.
    Raises:
        CheckpointError: the model or a head is missing, damaged, or of another backbone.
        DataError: images are missing or damaged.
    """
    checkpoint = open_checkpoint(model)
    check_layout(checkpoint, open_checkpoint(suite.zero_shot_path(backbone)), model.name)
    encoder = suite.backbones[backbone]
    evaluator = Evaluator(
        build_image_encoder(encoder, checkpoint.shapes),
        checkpoint,
        mean=encoder.mean,
        std=encoder.std,
        device=device,
        precision=precision,
        batch_size=batch_size,
    )
    scores = []
    for number, name in enumerate(tasks):
        started = time.monotonic()
        task = suite.task(name)
        images = (decoded_split if from_raw else cached_split)(suite, name, split)
        head = load_head(suite.head_path(backbone, name), num_classes=len(task.classes), embed_dim=evaluator.embed_dim)
        total, correct = min(len(images), max_images or len(images)), 0
        for start in range(0, total, READ_AT_ONCE):
            report(f"{name}, {start} of {total} images", (number + start / total) / len(tasks))
            correct += evaluator.count_correct(*images.read(start, min(start + READ_AT_ONCE, total)), *head)
        scores.append(TaskScore(name, correct, total, time.monotonic() - started))
    return scores
