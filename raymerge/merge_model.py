"""One whole merged model: inputs that are checked first, then theta_0 + alpha * update, one tensor after another.

At no time are more than one tensor of every checkpoint and one of the result in memory; see `merging`.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymerge import __version__
from raymerge.checkpoints import Checkpoint, check_checkpoint, check_layout, check_values, file_sha256, open_checkpoint
from raymerge.errors import CheckpointError, MergeInputError, OutputError
from raymerge.linalg import all_finite
from raymerge.merge_request import InputFiles, Output
from raymerge.merging import Models, merge_tensors, statistics_of
from raymerge.method_point import MethodPoint
from raymerge.model_file import DTYPES, METADATA_KEY, Kinds, write_safetensors
from raymerge.moment_files import check_moments
from raymerge.notes import collected
from raymerge.whole_file import made_directory

Report = Callable[[str, float], None]
"""Told what is being done and which fraction of it is behind."""

NOTES_ROOM = 1024
"""Bytes per tensor that are kept free for notes: the file's header is laid out before there are any."""


def unreported(what: str, fraction: float) -> None:
    """A Report that nobody reads."""


@dataclass(frozen=True)
class Inputs:
    """The models of a merge, open, by name and in order; input moments where the method needs them."""

    base: Checkpoint
    experts: Mapping[str, Checkpoint]
    moments: Mapping[str, Checkpoint] = field(default_factory=dict)

    @property
    def models(self) -> Models:
        return Models(self.base, tuple(self.experts.values()), tuple(self.moments.values()))


def open_inputs(files: InputFiles, report: Report = unreported) -> tuple[Inputs, dict[Path, str]]:
    """Open and check everything that a merge reads. Returns the SHA-256 of every file beside it.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not fit each other.
    """
    inputs = Inputs(open_checkpoint(files.base), {name: open_checkpoint(path) for name, path in files.experts.items()})
    _open_moments(files, inputs.base)  # before the large files are read
    check_models(inputs, report)
    hashes: dict[Path, str] = {}
    for path in dict.fromkeys([files.base, *files.experts.values()]):
        report(f"hashing {path.name}", len(hashes) / (1 + len(files.experts)))
        hashes[path] = file_sha256(path)
    moments = _open_moments(files, inputs.base, hashes)
    hashes |= {path: file_sha256(path) for path in files.moments.values()}
    return Inputs(inputs.base, inputs.experts, moments), hashes


def _open_moments(
    files: InputFiles, base: Checkpoint, hashes: Mapping[Path, str] | None = None
) -> dict[str, Checkpoint]:
    """Checked, and compared with the experts they were collected from once their hashes are known."""
    return {
        name: check_moments(
            path,
            expert_sha256=None if hashes is None else hashes[files.experts[name]],
            shapes=base.shapes,
            command=files.stats_command,
        )
        for name, path in files.moments.items()
    }


def check_models(inputs: Inputs, report: Report = unreported) -> None:
    """Check that models can be merged and the result stored: the names and shapes of all of them, then the values.

    Raises:
        CheckpointError: naming the model, the key, what was found and what was expected.
    """
    for name, expert in inputs.experts.items():
        check_layout(expert, inputs.base, name)
    for name in inputs.base.names:
        if name in (METADATA_KEY, "") or inputs.base.dtype(name) not in DTYPES:
            raise CheckpointError(
                f"{inputs.base.path}: '{name}' of dtype {inputs.base.dtype(name)} cannot be stored in a safetensors "
                "file. Leave it out of all models, or convert it."
            )
    if not inputs.base.parameters:
        raise CheckpointError(f"{inputs.base.path}: holds no floating-point tensor. Is it a model?")
    report("base model", 0.0)
    for name in inputs.base.parameters:
        check_values(inputs.base, name, "base model")
    for i, (name, expert) in enumerate(inputs.experts.items()):
        report(f"expert '{name}'", (1 + i) / (1 + len(inputs.experts)))
        check_checkpoint(expert, inputs.base, name)


class MergedModel:
    """The tensors of a merged model, each computed when it is asked for."""

    def __init__(
        self, inputs: Inputs, point: MethodPoint, *, device: torch.device | None = None, report: Report = unreported
    ):
        """
        Args:
            inputs: checked.
            device: where to compute; None: the CPU.
        """
        self.point = point
        self.changed: set[str] = set()
        """Tensors that an expert differs in, of those that were asked for."""
        self._base, self._models = inputs.base, inputs.models
        self._outputs = [Output(point.params)]
        self._device, self._report = device, report
        self._parameters = set(inputs.base.parameters)
        shapes = inputs.base.shapes
        if point.update_only:
            self.kinds: Kinds = {name: (torch.float32, shapes[name]) for name in inputs.base.parameters}
        else:
            self.kinds = {name: (inputs.base.dtype(name), shapes[name]) for name in inputs.base.names}
        self._sizes = {name: dtype.itemsize * torch.Size(shape).numel() for name, (dtype, shape) in self.kinds.items()}
        self._done_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Of all tensors of the result."""
        return sum(self._sizes.values())

    def tensor(self, name: str) -> Tensor:
        """One tensor of `kinds`. A tensor that is as in the base model may alias its file.

        Raises:
            MergeInputError: the method cannot merge it, or the dtype of the base model cannot hold it.
        """
        self._report(name, self._done_bytes / max(1, self.num_bytes))
        value = self._value(name)
        self._done_bytes += self._sizes[name]
        return value

    def _value(self, name: str) -> Tensor:
        base, update = self._base.tensor(name), self._update(name)
        if self.point.update_only:
            return torch.zeros(base.shape) if update is None else update
        if update is None:
            return base
        wide = torch.promote_types(base.dtype, torch.float32)
        alpha = self.point.alpha
        assert alpha is not None
        value = torch.add(base.to(wide), update.to(wide), alpha=alpha).to(base.dtype)
        if not all_finite(value):
            limit = torch.finfo(base.dtype).max
            raise MergeInputError(
                f"'{name}', merged by {self.point.method} with alpha {alpha:g}, has values beyond {limit:.5g}, the "
                f"largest of the base model's dtype {base.dtype}. Take a smaller alpha, or a base of a wider dtype."
            )
        return value

    def _update(self, name: str) -> Tensor | None:
        """None where no expert differs from the base model."""
        if name not in self._parameters:
            return None
        statistics, method = self._statistics, self.point.method
        merged = merge_tensors(self._models, method, [name], self._outputs, statistics, device=self._device)
        try:
            for _, (update,) in merged:
                self.changed.add(name)
                return update
        except torch.OutOfMemoryError:
            raise MergeInputError(
                f"'{name}' of {len(self._models.experts)} experts is too large for the memory of the GPU. Merge on the "
                "CPU (--device cpu)."
            ) from None
        return None

    @cached_property
    def _statistics(self) -> list[Any]:
        return statistics_of(self._models, self.point.method, self._outputs)


@dataclass(frozen=True)
class Written:
    """A merged model on the disk.

    metadata: the strings in the file.
    names: of its tensors.
    num_changed: how many of them an expert differs in.
    notes: all of them; the metadata have what fits.
    """

    path: Path
    sha256: str
    num_bytes: int
    metadata: Mapping[str, str]
    names: tuple[str, ...]
    num_changed: int
    notes: tuple[str, ...]

    @property
    def num_unchanged(self) -> int:
        return len(self.names) - self.num_changed


def write_model(
    path: Path,
    merged: MergedModel,
    origin: Mapping[str, str],
    *,
    on_complete: Callable[[], None] = lambda: None,
) -> Written:
    """Merge into a safetensors file. If anything fails, there is nothing new at `path` and in its folder.

    Args:
        origin: what the metadata say of the inputs, of `origin_of`.
        on_complete: of `whole_file`.
    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
        MergeInputError: as `MergedModel.tensor`.
    """
    room = NOTES_ROOM * len(merged.kinds)

    def metadata() -> dict[str, str]:
        return {**_described(merged.point), **origin, "notes": json.dumps(_fitting(notes, room))}

    with collected() as notes, _told_of(path, merged.num_bytes), made_directory(path.parent):
        sha256 = write_safetensors(path, merged.kinds, merged.tensor, metadata, room=room, on_complete=on_complete)
    return Written(
        path=path,
        sha256=sha256,
        num_bytes=path.stat().st_size,
        metadata=metadata(),
        names=tuple(merged.kinds),
        num_changed=len(merged.changed),
        notes=tuple(notes),
    )


def origin_of(files: InputFiles, hashes: Mapping[Path, str]) -> dict[str, str]:
    """What the metadata of a merged model say of its inputs: names of files and what is in them, but no folders."""

    def described(path: Path) -> dict[str, str]:
        return {"file": file_name(path), "sha256": hashes[path]}

    def listed(paths: Mapping[str, Path]) -> str:
        return json.dumps([{"name": name, **described(path)} for name, path in paths.items()])

    origin = {"base": json.dumps(described(files.base)), "experts": listed(files.experts)}
    return origin | ({"moments": listed(files.moments)} if files.moments else {})


def _described(point: MethodPoint) -> dict[str, str]:
    return {
        "format": "pt",  # what transformers and others insist on
        "raymerge_version": __version__,
        "method": point.method,
        "parameters": json.dumps(point.params),
        "update_only": json.dumps(point.update_only),
        **({} if point.alpha is None else {"alpha": json.dumps(point.alpha)}),
    }


def file_name(path: Path) -> str:
    """The name of a file as text; names of files need not be any."""
    return os.fsencode(path.name).decode(errors="replace")


def _fitting(notes: list[str], room: int) -> list[str]:
    """The first notes, as many as fit, and how many are left out."""
    left = room - 100
    for i, text in enumerate(notes):
        left -= 10 + len(json.dumps(json.dumps(text)))
        if left < 0:
            return [*notes[:i], f"and {len(notes) - i} more"]
    return notes


@contextmanager
def _told_of(path: Path, num_bytes: int) -> Iterator[None]:
    """Errors of the file system, as a sentence about the output."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}; it takes {num_bytes / 1e6:,.1f} MB). "
            "Make room for it, or choose another --output."
        ) from None
