"""What all experts of a backbone start from: its zero-shot weights, and the frozen heads of the tasks."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from raymerge.backbones import pretrained_clip
from raymerge.checkpoints import PREFIX, Checkpoint, load_head, save_head, save_state_dict
from raymerge.errors import CheckpointError
from raymerge.finetuning.files import Output, writing
from raymerge.heads import build_heads
from raymerge.suites.demo.clip import published_state
from raymerge.suites.published import PublishedSuite
from raymerge.whole_file import whole_file


def prepare_backbone(
    output: Output, backbone: str, tasks: Sequence[str], report: Callable[[str, float], None] = lambda what, share: None
) -> Path:
    """Put the zero-shot weights and the heads of a backbone into the output. Returns the path of the weights.

    Weights that the suite lacks are those of the pretrained model; heads it lacks are built from prompts.

    Raises:
        CheckpointError: they cannot be had, or the output holds others.
        SuiteError: a head is missing, and its task has no prompts.
        OutputError: they cannot be written.
    """
    suite, path = output.suite, output.zero_shot(backbone)
    with writing(path):
        _put_zero_shot(suite, backbone, path)
        build_heads(suite, backbone, tasks, report)
        zero_shot = Checkpoint(path)
        for task in tasks:
            _put_head(suite, backbone, task, output.of_expert(backbone, task).head, zero_shot)
    return path


def load_frozen_head(
    suite: PublishedSuite, task: str, path: Path, zero_shot: Checkpoint
) -> Float[Tensor, "classes dim"]:
    """The weight of a head that fits a task and a backbone.

    Raises:
        CheckpointError: it does not fit, or has a bias.
    """
    try:
        embed_dim = zero_shot.shapes[PREFIX + "visual.proj"][1]
    except KeyError:
        raise CheckpointError(
            f"{zero_shot.path}: lacks '{PREFIX}visual.proj', so it is not of a vision transformer of CLIP."
        ) from None
    weight, bias = load_head(path, num_classes=len(suite.task(task).classes), embed_dim=embed_dim)
    if bias.any():
        raise CheckpointError(f"{path}: the head has a bias, which no published head has; give one without.")
    return weight


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: checkpoint.tensor(name) for name in checkpoint.names}


def _put_zero_shot(suite: PublishedSuite, backbone: str, path: Path) -> None:
    source = suite.zero_shot_path(backbone)
    if source.exists() and path.exists():
        if not path.samefile(source) and not _equal(tensors_of(Checkpoint(source)), tensors_of(Checkpoint(path))):
            raise CheckpointError(
                f"{path}: holds other zero-shot weights than {source}; experts of both would not fit together, so "
                "choose another --output."
            )
    elif source.exists():
        weights = Checkpoint(source)  # which is refused where it is not plain tensors
        if source.suffix == path.suffix:
            with source.open("rb") as original, whole_file(path) as file:
                shutil.copyfileobj(original, file)
        else:
            save_state_dict(path, tensors_of(weights))
    elif not path.exists():
        if suite.backbones[backbone].pretrained is None:
            raise CheckpointError(
                f"{source}: no such zero-shot weights, and backbone '{backbone}' has no 'pretrained:' to take them "
                "from; put them there, or name open_clip's weights in the suite file."
            )
        save_state_dict(path, published_state(pretrained_clip(suite.backbones[backbone])))  # type: ignore[arg-type]


def _put_head(suite: PublishedSuite, backbone: str, task: str, path: Path, zero_shot: Checkpoint) -> None:
    source = suite.head_path(backbone, task)
    if path.exists() and path.samefile(source):
        return
    weight = load_frozen_head(suite, task, source, zero_shot)
    if not path.exists():
        save_head(path, weight)
    elif not torch.equal(load_frozen_head(suite, task, path, zero_shot), weight):
        raise CheckpointError(
            f"{path}: is another head than {source}, as if classes or prompts had been changed since; choose another "
            "--output."
        )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
