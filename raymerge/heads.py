"""Heads built from class names and prompts by the text tower, and kept in the cache."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raymerge.backbones import pretrained_clip, tokenizer
from raymerge.checkpoints import save_head
from raymerge.errors import SuiteError
from raymerge.suites import Backbone, Suite, Task


def zero_shot_head(
    model: nn.Module, tokenize: Callable[[list[str]], Tensor], task: Task
) -> Float[Tensor, "classes dim"]:
    """Weight of a head: exp(logit scale) times the mean of each class's unit prompt embeddings, renormalised.

    Args:
        model: CLIP with its text tower.
    """
    from open_clip import build_zero_shot_classifier

    columns = build_zero_shot_classifier(
        model,
        tokenizer=tokenize,
        classnames=list(task.classes),
        templates=[_filled(template) for template in task.templates],
        num_classes_per_batch=10,
    )
    with torch.no_grad():
        return (model.logit_scale.exp() * columns.T).contiguous()  # type: ignore[operator]


def missing_heads(suite: Suite, backbone: str, tasks: Sequence[str]) -> list[str]:
    """The tasks whose head is neither published nor built."""
    return [task for task in tasks if not suite.head_path(backbone, task).is_file()]


def build_heads(
    suite: Suite, backbone: str, tasks: Sequence[str], report: Callable[[str, float], None] = lambda what, share: None
) -> list[Path]:
    """Build the heads that are missing. Returns their files.

    Raises:
        CheckpointError: the text tower cannot be had.
        SuiteError: a task has no prompts.
    """
    missing = missing_heads(suite, backbone, tasks)
    if not missing:
        return []
    for task in missing:
        if not suite.task(task).templates:
            raise SuiteError(
                f"{suite.head_path(backbone, task)}: no such head, and task '{task}' has no prompts to build it from; "
                "put the head there, or give the task 'templates:' in the suite's file."
            )
    encoder: Backbone = suite.backbones[backbone]
    model, tokenize = pretrained_clip(encoder), tokenizer(encoder)
    paths = []
    for number, task in enumerate(missing):
        report(f"{backbone}/{task}", number / len(missing))
        paths.append(suite.head_path(backbone, task))
        save_head(paths[-1], zero_shot_head(model, tokenize, suite.task(task)))
    return paths


def _filled(template: str) -> Callable[[str], str]:
    return lambda name: template.format(name)
