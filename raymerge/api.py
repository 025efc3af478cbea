"""`raymerge.merge`: merging from Python, in memory."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymerge.checkpoints import Checkpoint, file_sha256, open_checkpoint
from raymerge.errors import CheckpointError, UsageError
from raymerge.merge_model import Inputs, MergedModel, check_models
from raymerge.method_point import merging_method, point_of
from raymerge.moment_files import check_moments

Model = str | os.PathLike[str] | Mapping[str, Tensor]
"""A checkpoint file, .pt or .safetensors, or a state dict."""


def merge(
    base: Model,
    experts: Sequence[Model] | Mapping[str, Model],
    *,
    method: str,
    alpha: int | float | None = None,
    device: str | torch.device | None = None,
    moments: str | os.PathLike[str] | Sequence[Model] | Mapping[str, Model] | None = None,
    **params: Any,
) -> dict[str, Tensor]:
    """base + alpha * update, the update being what `method` makes of the experts.

    Args:
        base: the model that the experts were fine-tuned from.
        experts: with the keys and shapes of the base model. Names are for messages; without them, experts are
            called "0", "1", ...
        method: such as "iso-c"; see docs/methods.md.
        alpha: the scaling coefficient; None for a method that has a fixed one.
        device: where to compute; the CPU if None. The result is on the CPU.
        moments: input moments of every expert, for methods that need them: in the order or under the names of
            `experts`, or the folder of files <name>.safetensors.
        params: of the method; what is not given has its declared default.
    Returns:
        A state dict of its own with the keys, shapes and dtypes of the base model.
    Raises:
        UsageError: the method, a parameter or alpha is unknown, missing or out of range.
        CheckpointError: a model or moments are missing, damaged, or do not fit the others.
        MergeInputError: the method cannot merge these models, or the dtype of the base cannot hold the result.
    """
    declared = merging_method(method)
    named = _named(experts)
    if not named:
        raise UsageError("there are no experts to merge, expected at least one.")
    point = point_of(declared, params, alpha, len(named))
    where = _device(device)
    if declared.moments and moments is None:
        raise UsageError(f"method '{method}' needs input moments, which 'raymerge stats' collects: give moments=.")
    if moments is not None and not declared.moments:
        raise UsageError(f"method '{method}' uses no input moments; leave moments out.")
    opened = {name: _opened(model, f"expert {name}") for name, model in named.items()}
    inputs = Inputs(_opened(base, "base"), opened)
    check_models(inputs)
    if moments is not None:
        inputs = Inputs(inputs.base, opened, _moments(moments, named, inputs.base))
    merged = MergedModel(inputs, point, device=where)
    result = {name: merged.tensor(name) for name in merged.kinds}
    # what is unchanged may alias the base model
    return {name: value if name in merged.changed else value.clone() for name, value in result.items()}


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")  # as bad as any that does not compute in float64
    if found.type not in ("cpu", "cuda"):
        raise UsageError(f"device is {str(device)!r}, expected 'cpu' or 'cuda'.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device is {str(device)!r}, but torch finds no CUDA device on this machine.")
    return found


def _named(models: Sequence[Model] | Mapping[str, Model]) -> Mapping[str, Model]:
    if isinstance(models, Mapping):
        return models
    if isinstance(models, str | os.PathLike):
        raise UsageError(f"{os.fspath(models)!r} is one model, expected a list of them or a dict by name.")
    return {str(i): model for i, model in enumerate(models)}


def _opened(model: Model, label: str) -> Checkpoint:
    if isinstance(model, str | os.PathLike):
        return open_checkpoint(Path(model).expanduser())
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items()):
        raise CheckpointError(f"{label}: expected a path or a state dict, which holds tensors alone.")
    return Checkpoint.of_tensors(label, {name: value.detach().cpu() for name, value in model.items()})


def _moments(
    moments: str | os.PathLike[str] | Sequence[Model] | Mapping[str, Model],
    experts: Mapping[str, Model],
    base: Checkpoint,
) -> dict[str, Checkpoint]:
    """Those of every expert, checked: files against their expert if it is a file too."""
    if isinstance(moments, str | os.PathLike):
        found: Mapping[str, Model] = {name: Path(moments).expanduser() / f"{name}.safetensors" for name in experts}
    else:
        found = _named(moments)
    if found.keys() != experts.keys():
        raise UsageError(f"there are moments of {sorted(found)}, expected those of the experts, {sorted(experts)}.")
    checked: dict[str, Checkpoint] = {}
    for name, expert in experts.items():
        model = found[name]
        if isinstance(model, str | os.PathLike):
            sha256 = file_sha256(Path(expert).expanduser()) if isinstance(expert, str | os.PathLike) else None
            checked[name] = check_moments(Path(model).expanduser(), expert_sha256=sha256, shapes=base.shapes)
        else:
            checked[name] = _opened(model, f"moments {name}")  # the method looks at the values itself
    return checked
