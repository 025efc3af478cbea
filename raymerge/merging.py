"""Merging, tensor by tensor: task matrices from mapped checkpoints, through a method, into updates.

An update is what alpha multiplies: theta = theta_0 + alpha * update. Tensors that no expert changed are left out of
it, their update being exactly zero. At most one tensor of every checkpoint is in memory at a time, and it is let go
before the next is read.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from raymerge.checkpoints import Checkpoint, open_checkpoint
from raymerge.errors import MergeInputError
from raymerge.linalg import check_task_tensors, stored
from raymerge.merge_request import SHARD_BYTES, MergeRequest, Output
from raymerge.methods import METHODS
from raymerge.methods._method import Method, Use
from raymerge.notes import about

Update = dict[str, Tensor]

SHARD_COST = 1e8
MAX_SHARDS = 64
"""Shards depend on the zero-shot model and the method alone, never on the workers, the experts or the outputs, so that
cached shards stay valid."""


@dataclass(frozen=True)
class Models:
    """The models of a merge, open: what of them is read when is up to whoever merges.

    moments: per expert, the second moments of the inputs of its matrices; none for methods that need none.
    """

    zero_shot: Checkpoint
    experts: tuple[Checkpoint, ...]
    moments: tuple[Checkpoint, ...] = ()


def is_matrix(name: str, ndim: int) -> bool:
    """Whether the SVD methods treat a tensor as a matrix (the published rule: 2-D and not text_projection)."""
    return ndim == 2 and "text_projection" not in name


def shards_of(request: MergeRequest) -> list[list[str]]:
    """The tensors of the model in groups of similar cost, the costliest first."""
    zero_shot = open_checkpoint(request.zero_shot)
    shapes = {name: shape for name, shape in zero_shot.shapes.items() if name in zero_shot.parameters}
    uses_svd = METHODS[request.method].matrices == "svd"

    def cost(name: str) -> float:
        shape = shapes[name]
        work = min(shape) if uses_svd and is_matrix(name, len(shape)) else 1
        return float(math.prod(shape)) * work

    num_bytes = 4 * sum(map(math.prod, shapes.values()))
    wanted = math.ceil(max(sum(map(cost, shapes)) / SHARD_COST, num_bytes / SHARD_BYTES))
    groups: list[list[str]] = [[] for _ in range(min(wanted, MAX_SHARDS, len(shapes)))]
    loads = [0.0] * len(groups)
    for name in sorted(shapes, key=lambda n: (-cost(n), n)):  # longest processing time first
        lightest = loads.index(min(loads))
        groups[lightest].append(name)
        loads[lightest] += cost(name)
    return [group for _, group in sorted(zip(loads, groups, strict=True), key=lambda pair: -pair[0])]


def open_models(request: MergeRequest) -> Models:
    """Map the files of a request.

    Raises:
        CheckpointError: a file is missing, truncated, or holds other things than tensors.
    """
    experts, moments = (tuple(map(open_checkpoint, paths)) for paths in (request.experts, request.moments))
    return Models(open_checkpoint(request.zero_shot), experts, moments)


def read_statistics(request: MergeRequest) -> list[Any]:
    """What a flat-vector method must know of the whole task vectors, one entry per output; None when nothing.

    Raises:
        CheckpointError: a file cannot be read.
        MergeInputError: a setting is out of range, or a task vector is not finite, naming the tensor.
    """
    if METHODS[request.method].statistic is None:
        return [None] * len(request.outputs)
    return statistics_of(open_models(request), request.method, request.outputs)


def statistics_of(models: Models, method_name: str, outputs: Sequence[Output]) -> list[Any]:
    """`read_statistics` of models that are open."""
    method, place = METHODS[method_name], ""
    if method.statistic is None:
        return [None] * len(outputs)

    def passes(tasks: tuple[int, ...] | None) -> Iterator[Tensor]:
        nonlocal place
        for name in models.zero_shot.parameters:
            place = f"'{name}', "
            yield task_tensors_of(models, name, tasks)
        place = ""

    try:
        return [method.statistic(partial(passes, output.tasks), **output.setting) for output in outputs]
    except MergeInputError as error:
        raise MergeInputError(f"{place}merged by {method_name}: {error}") from None


def merge_shard(request: MergeRequest, names: Sequence[str], statistics: Sequence[Any]) -> list[Update]:
    """The updates of some tensors, one dict per output of the request.

    Args:
        statistics: of `read_statistics`.
    Raises:
        CheckpointError: a file cannot be read.
        MergeInputError: a task vector is not finite, naming the tensor.
    """
    updates: list[Update] = [{} for _ in request.outputs]
    models = open_models(request)
    merged = merge_tensors(models, request.method, names, request.outputs, statistics, planned=request.planned)
    for name, values in merged:
        for update, value in zip(updates, values, strict=True):
            update[name] = value
    return updates


def merge_tensors(
    models: Models,
    method_name: str,
    names: Sequence[str],
    outputs: Sequence[Output],
    statistics: Sequence[Any],
    *,
    planned: Sequence[Output] = (),
    device: torch.device | None = None,
) -> Iterator[tuple[str, list[Tensor]]]:
    """The updates of tensors, one after another: name, and one value per output. Unchanged tensors are left out.

    Args:
        statistics: of `statistics_of`.
        planned: `MergeRequest.planned`.
        device: where to compute; the values come back to the CPU. None: the CPU.
    Raises:
        MergeInputError: a task vector is not finite, or the method needs input moments that are missing, naming the
            tensor.
    """
    method = METHODS[method_name]
    for name in names:
        task_tensors = task_tensors_of(models, name)
        if not stored(task_tensors).any():  # text leftovers: the update is exactly zero, whatever the method
            continue
        try:
            with about(name):
                if device is not None:
                    task_tensors = task_tensors.to(device)
                if method.matrices == "svd" and not is_matrix(name, task_tensors.ndim - 1):
                    values = _merge_others(method, task_tensors, outputs)
                else:
                    moments = _moments(models, name, task_tensors) if method.moments else None
                    values = merge_tensor(method, task_tensors, outputs, statistics, planned=planned, moments=moments)
        except MergeInputError as error:
            raise MergeInputError(f"'{name}', merged by {method_name}: {error}") from None
        del task_tensors
        yield name, [value.cpu() for value in values]


def _merge_others(method: Method, task_tensors: Float[Tensor, "tasks ..."], outputs: Sequence[Output]) -> list[Tensor]:
    """What becomes of a tensor that is no matrix to a method for matrices."""
    check_task_tensors(task_tensors)
    chosen = (_chosen(task_tensors, output.tasks) for output in outputs)
    return [part.mean(dim=0) if method.others == "mean" else part.sum(dim=0) for part in chosen]


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever the process allows: TF32 and bfloat16 would go uncertified."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


@_full_precision()
def merge_tensor(
    method: Method,
    task_tensors: Float[Tensor, "tasks ..."],
    outputs: Sequence[Output],
    statistics: Sequence[Any],
    *,
    planned: Sequence[Output] = (),
    moments: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The updates of one tensor that the method merges itself, one per output, on the device of the task tensors.

    Args:
        statistics: per output, of `statistics_of`; None for methods that need none.
        planned: `MergeRequest.planned`.
        moments: for methods that need them, of every task's inputs, (1, cols) or (rows, 1) each.
    Raises:
        MergeInputError: a value is not finite.
    """
    values, num_tasks = [], len(task_tensors)
    shared = None
    if method.task_factors is not None:
        uses = [use_of(output, num_tasks) for output in planned or outputs]
        extra = {"moments": moments} if method.moments else {}
        shared = method.task_factors(task_tensors, uses, **extra)
    factors: dict[tuple[int, ...] | None, Any] = {}
    for output, statistic in zip(outputs, statistics, strict=True):
        extra = {} if statistic is None else {"statistic": statistic}
        chosen = _chosen(task_tensors, output.tasks)
        if output.task is not None:
            assert method.task_update is not None, f"{method.name} has no update per task"
            values.append(method.task_update(chosen, output.task, **output.setting, **extra))
            continue
        assert method.merge is not None, f"{method.name} does not merge"
        if output.tasks not in factors:
            factors.clear()  # outputs of the same tasks follow each other
            factors[output.tasks] = method.factors(
                chosen,
                uses=[use_of(other, num_tasks) for other in planned if other.tasks == output.tasks],
                task_factors=None if shared is None else of_tasks(shared, output.tasks),
                moments=None if moments is None else of_tasks(moments, output.tasks),
            )
        values.append(method.merge(factors[output.tasks], **output.setting, **extra))
    return values


def use_of(output: Output, num_tasks: int) -> Use:
    """What an output of a request with so many experts is to a method."""
    return Use(num_tasks if output.tasks is None else len(output.tasks), output.setting)


def _chosen(task_tensors: Tensor, tasks: tuple[int, ...] | None) -> Tensor:
    if tasks is None:
        return task_tensors
    if tasks == tuple(range(len(tasks))):  # the first tasks, as nested sets are: no copy
        return task_tensors[: len(tasks)]
    return task_tensors[list(tasks)]


def of_tasks(items: Sequence[Any], tasks: tuple[int, ...] | None) -> list[Any]:
    """Those items, one per expert of a request, that an output takes."""
    return list(items) if tasks is None else [items[task] for task in tasks]


def task_tensors_of(models: Models, name: str, tasks: tuple[int, ...] | None = None) -> Float[Tensor, "tasks ..."]:
    """theta_t - theta_0 in float32, subtracted in the widest precision at hand. Takes no memory where none differs."""
    base = models.zero_shot.tensor(name)
    values = [expert.tensor(name) for expert in of_tasks(models.experts, tasks)]
    if all(value.dtype == base.dtype and torch.equal(value, base) for value in values):
        return torch.zeros(()).expand(len(values), *base.shape)
    task_tensors = torch.empty(len(values), *base.shape)
    for task_tensor, value in zip(task_tensors, values, strict=True):
        wide = torch.promote_types(torch.promote_types(value.dtype, base.dtype), torch.float32)
        task_tensor.copy_(value.to(wide) - base.to(wide))
    return task_tensors


def _moments(models: Models, name: str, task_tensors: Tensor) -> list[Tensor]:
    """The second moments of every expert's inputs to a matrix, on the device of its task tensors."""
    if not models.moments:
        raise MergeInputError("there are no input moments: collect them with 'raymerge stats'.")
    shape, found = tuple(task_tensors.shape[1:]), []
    for moments in models.moments:
        if name not in set(moments.names):
            raise MergeInputError(
                f"{moments.path} has no input moments of it: no linear layer of the image tower, or collected from "
                "another backbone; collect them with 'raymerge stats'."
            )
        value = moments.tensor(name)
        if value.ndim != 2 or tuple(value.shape) not in ((1, shape[1]), (shape[0], 1)):
            raise MergeInputError(
                f"{moments.path} holds moments of shape {tuple(value.shape)} for a matrix {shape}, expected "
                f"{(1, shape[1])} or {(shape[0], 1)}: collect them with 'raymerge stats'."
            )
        found.append(value.to(task_tensors.device))
    return found
