"""Reading and writing checkpoints and heads in the published layout, tensor by tensor, without executing pickles.

A state dict file holds fp32 tensors under keys with the prefix `model.`; a head file holds one pickled module of the
class `src.models.modeling.ClassificationHead`, which is read through an allow-list of exactly the paths under which
that class is known. Both may be safetensors files instead, as `raymerge suite convert` writes them.
"""

import contextlib
import hashlib
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch
from jaxtyping import Float
from torch import Tensor

from raymerge.errors import CheckpointError
from raymerge.linalg import all_finite
from raymerge.model_file import write_safetensors
from raymerge.safe_loading import check_is_data, load_without_code
from raymerge.whole_file import whole_file

HEAD_CLASS = "src.models.modeling.ClassificationHead"
HEAD_CLASSES = (HEAD_CLASS, "src.modeling.ClassificationHead")
"""Of the published code, and of Task Arithmetic's, which it comes from."""
PREFIX = "model."
"""What the published files put before every key of the CLIP model."""


class Checkpoint:
    """A memory-mapped state dict: names and shapes at once, values when asked for."""

    def __init__(self, path: Path):
        """Map `path` (.pt or .safetensors).

        Raises:
            CheckpointError: the file is missing, truncated, holds other things than tensors, or needs code to load.
        """
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint file.")
        check_is_data(path)
        if path.suffix == ".safetensors":
            self._tensors: Mapping[str, Tensor] = _LazySafetensors(path)
        else:
            self._tensors = _load_state_dict(path)

    @classmethod
    def of_tensors(cls, label: str, tensors: Mapping[str, Tensor]) -> "Checkpoint":
        """A state dict that is in memory already. `label` stands for its path in messages."""
        checkpoint = cls.__new__(cls)
        checkpoint.path, checkpoint._tensors = Path(label), tensors
        return checkpoint

    @property
    def names(self) -> list[str]:
        return sorted(self._tensors)

    @cached_property
    def parameters(self) -> list[str]:
        """Names of the floating-point tensors. Integers, such as position ids, are no parameters."""
        return [name for name in self.names if self.dtype(name).is_floating_point]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._tensors[name].shape) for name in self.names}

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def metadata(self) -> Mapping[str, str]:
        """The strings stored beside the tensors of a safetensors file; none elsewhere."""
        return self._tensors.metadata if isinstance(self._tensors, _LazySafetensors) else {}

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored; it may alias the mapped file, so never write to it."""
        return self._tensors[name]


def open_checkpoint(path: Path) -> Checkpoint:
    """`Checkpoint(path)`; the last ones stay open, because a worker merges many shards of the same files."""
    try:
        stat = path.stat()
    except OSError:
        return Checkpoint(path)  # raises the error that names the file
    return _open_unchanged(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _open_unchanged(path: Path, size: int, mtime_ns: int) -> Checkpoint:
    return Checkpoint(path)


class _LazySafetensors(Mapping[str, Tensor]):
    def __init__(self, path: Path):
        try:
            self._file = safetensors.safe_open(path, framework="pt")
            self._names = list(self._file.keys())
            self.metadata: Mapping[str, str] = self._file.metadata() or {}
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error}). Fetch it again.") from None

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _load_state_dict(path: Path) -> Mapping[str, Tensor]:
    content = load_without_code(path)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected a dict of tensors (a state dict).")
    return content


def check_layout(expert: Checkpoint, zero_shot: Checkpoint, expert_name: str) -> None:
    """Compare the keys and shapes of an expert with those of the zero-shot model.

    Raises:
        CheckpointError: naming the expert, the key, what was found and what was expected.
    """
    missing = sorted(set(zero_shot.names) - set(expert.names))
    extra = sorted(set(expert.names) - set(zero_shot.names))
    if missing or extra:
        what = f"lacks '{missing[0]}'" if missing else f"has '{extra[0]}', which the zero-shot model lacks"
        raise CheckpointError(
            f"{expert.path}: expert '{expert_name}' {what} ({len(missing)} keys missing, {len(extra)} unexpected). "
            "Is it of another backbone?"
        )
    expected = zero_shot.shapes
    for name, shape in expert.shapes.items():
        if shape != expected[name]:
            raise CheckpointError(
                f"{expert.path}: expert '{expert_name}': '{name}' is {shape}, zero-shot is {expected[name]}. "
                "Is it of another backbone?"
            )


def check_checkpoint(expert: Checkpoint, zero_shot: Checkpoint, expert_name: str) -> None:
    """Compare an expert with the zero-shot model it was fine-tuned from: keys, shapes, dtypes, finite values.

    The float dtype may differ. Tensors of integers have to be equal.

    Raises:
        CheckpointError: naming the expert, the key, what was found and what was expected.
    """
    check_layout(expert, zero_shot, expert_name)
    parameters = set(zero_shot.parameters)
    for name in expert.names:
        if name in parameters:
            check_values(expert, name, f"expert '{expert_name}'")
        elif not torch.equal(expert.tensor(name), zero_shot.tensor(name)):
            raise CheckpointError(
                f"{expert.path}: expert '{expert_name}': '{name}' holds integers ({zero_shot.dtype(name)}), which are "
                "shared with the zero-shot model, and differs from them. Was it fine-tuned from another model?"
            )


def check_values(checkpoint: Checkpoint, name: str, owner: str) -> None:
    """Raise CheckpointError unless the tensor is floating point, of 16 bits or more, and finite."""
    value = checkpoint.tensor(name)
    if not value.is_floating_point() or value.dtype.itemsize < 2:  # there is no arithmetic for 8 bits
        raise CheckpointError(
            f"{checkpoint.path}: {owner}: '{name}' has dtype {value.dtype}, expected a float dtype of 16 bits or more."
        )
    if not all_finite(value):
        bad = int((~torch.isfinite(value)).sum())
        raise CheckpointError(
            f"{checkpoint.path}: {owner}: '{name}' has {bad} NaN or infinite values of {value.numel()}. "
            "Fetch or train it again."
        )


def save_state_dict(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state dict as `torch.save` does, under a temporary name first."""
    content = OrderedDict((name, tensor.detach().cpu().clone().contiguous()) for name, tensor in tensors.items())
    _save(path, content)


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors that are in memory to a safetensors file, as `write_safetensors` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    write_safetensors(path, kinds, tensors.__getitem__, lambda: metadata)


def save_head(
    path: Path,
    weight: Float[Tensor, "classes dim"],
    bias: Float[Tensor, " classes"] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a head: a safetensors file, or exactly as the published ones are, a pickled Linear of a foreign class path.

    Args:
        path: `head_<Task>Val.pt`, or `.safetensors`.
        weight: exp(logit_scale) times the unit text embedding of every class.
        bias: None: zeros.
        metadata: what a safetensors file says beside.
    """
    bias = torch.zeros(weight.shape[0], dtype=weight.dtype) if bias is None else bias
    if path.suffix == ".safetensors":
        save_safetensors(path, {"weight": weight, "bias": bias}, {**(metadata or {}), "normalize": "true"})
        return
    with _published_head_class() as head_class:
        head = head_class(weight.shape[1], weight.shape[0])
        head.weight = torch.nn.Parameter(weight.detach().cpu().clone().contiguous())
        head.bias = torch.nn.Parameter(bias.detach().cpu().clone().contiguous())
        head.normalize = True
        _save(path, head)


def load_head(
    path: Path, *, num_classes: int, embed_dim: int
) -> tuple[Float[Tensor, "{num_classes} {embed_dim}"], Float[Tensor, " {num_classes}"]]:
    """Weight and bias of a head file that fits a task and a backbone.

    Raises:
        CheckpointError: as `read_head`, or the shape is another.
    """
    weight, bias = read_head(path)
    if weight.shape != (num_classes, embed_dim) or bias.shape != (num_classes,):
        raise CheckpointError(
            f"{path}: the head is {tuple(weight.shape)}, expected ({num_classes}, {embed_dim}) "
            "(classes of the task, embedding size of the backbone). Does it belong to this task and backbone?"
        )
    return weight, bias


def read_head(path: Path) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Weight and bias of a head file, in float32, of whatever shape they have.

    Raises:
        CheckpointError: missing or truncated file, foreign class, NaN, or features not to be normalised.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such head file.")
    if path.suffix == ".safetensors":
        tensors = Checkpoint(path)
        parameters: Mapping[str, Any] = {name: tensors.tensor(name) for name in tensors.names}
        normalize = tensors.metadata().get("normalize") == "true"
    else:
        head = load_without_code(path, dict.fromkeys(HEAD_CLASSES, _HeadState))
        if not isinstance(head, _HeadState):
            raise CheckpointError(f"{path}: holds {type(head).__name__}, expected a pickled {HEAD_CLASS}.")
        parameters, normalize = head.parameters, head.normalize is True
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or not normalize:
        raise CheckpointError(f"{path}: not a head with weight, bias and normalize=True. Fetch it again.")
    weight, bias = weight.detach().float(), bias.detach().float()
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise CheckpointError(f"{path}: the head has NaN or infinite values. Fetch it again.")
    return weight, bias


class _HeadState:
    """Receives the state of a pickled head instead of its class."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.parameters: dict[str, Tensor] = dict(state.get("_parameters", {}))
        self.normalize = state.get("normalize")


@contextlib.contextmanager
def _published_head_class() -> Iterator[type]:
    """A Linear subclass that pickles under the published class path, while the context lasts."""
    module_name, _, class_name = HEAD_CLASS.rpartition(".")
    head_class = type(class_name, (torch.nn.Linear,), {"__module__": module_name})
    parts = module_name.split(".")
    modules = {".".join(parts[: i + 1]): types.ModuleType(".".join(parts[: i + 1])) for i in range(len(parts))}
    setattr(modules[module_name], class_name, head_class)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield head_class
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:  # given a path, torch stores its name inside, and no two files are equal
        torch.save(content, file)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
