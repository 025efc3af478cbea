"""Heads built from class names and prompts by the text tower, and kept in the cache."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raymerge.backbones import pretrained_clip, tokenizer
from raymerge.checkpoints import PREFIX, open_checkpoint, save_head
from raymerge.errors import CheckpointError, SuiteError
from raymerge.suites import Suite, Task

TEXT_PROJECTION, IMAGE_PROJECTION = "text_projection", "visual.proj"
SAME = 1e-2
"""Largest relative difference of two copies of a matrix, one of which may have been rounded to 16 bits."""


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
        CheckpointError: the text tower cannot be had, or is of another model than the zero-shot one.
        SuiteError: a task has no prompts or classes, or the tokenizer is not CLIP's.
    """
    missing = missing_heads(suite, backbone, tasks)
    if not missing:
        return []
    for name in missing:
        task = suite.task(name)
        if not task.templates or not task.classes:
            lacking = "'templates:'" if task.classes else "'classes:', or its images,"
            raise SuiteError(
                f"{suite.head_path(backbone, name)}: no such head, and task '{name}' lacks {lacking} in the suite's "
                "file, so that none can be built; add them, or put the head there."
            )
    encoder = suite.backbones[backbone]
    report(f"loading the text tower of {backbone}", 0.0)
    tokenize, model = tokenizer(encoder), pretrained_clip(encoder)
    _check_is_zero_shot(suite, backbone, model)
    paths = []
    for number, name in enumerate(missing):
        report(f"{backbone}/{name}", number / len(missing))
        paths.append(suite.head_path(backbone, name))
        save_head(paths[-1], zero_shot_head(model, tokenize, suite.task(name)))
    return paths


def _check_is_zero_shot(suite: Suite, backbone: str, model: nn.Module) -> None:
    """Compare the pretrained model with the zero-shot checkpoint, if it is there: heads of another model fit, but err.

    Raises:
        CheckpointError: they are of different models.
    """
    path = suite.zero_shot_path(backbone)
    if not path.is_file():
        return
    zero_shot, state = open_checkpoint(path), model.state_dict()
    for name in (TEXT_PROJECTION, IMAGE_PROJECTION):
        if PREFIX + name in zero_shot.names:
            ours, theirs = zero_shot.tensor(PREFIX + name).float(), state[name].float()
            if ours.shape != theirs.shape or (ours - theirs).norm() > SAME * theirs.norm():
                raise CheckpointError(
                    f"{path}: its '{PREFIX + name}' is not that of the pretrained weights "
                    f"'{suite.backbones[backbone].pretrained}', so that heads built by these would not fit; give the "
                    "weights that the zero-shot model comes from as 'pretrained:', or the heads as files."
                )
            return


def _filled(template: str) -> Callable[[str], str]:
    return lambda name: template.replace("{}", name)  # other braces stay as they are
