"""What a method file declares. No torch here: sweep files are checked against declarations alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Interval:
    """Where a search may look: [low, high], on a grid of `step` when one is given."""

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class AlphaGrid:
    """`linspace(0, stop, num + 1)[1:]`: the published grids leave out zero."""

    stop: float
    num: int

    def values(self) -> tuple[float, ...]:
        return tuple(self.stop * i / self.num for i in range(1, self.num + 1))


@dataclass(frozen=True)
class Alpha:
    """The scaling coefficient of a method: how to search it, and the grid of the published search."""

    search: Interval
    paper: AlphaGrid


@dataclass(frozen=True)
class FixedAlpha:
    """A method whose alpha is not searched: a number, or one over the number of tasks."""

    value: float | Literal["1/T"]

    def at(self, num_tasks: int) -> float:
        return 1 / num_tasks if self.value == "1/T" else float(self.value)


@dataclass(frozen=True)
class Parameter:
    """A structural parameter: changing it changes the merged update, so it is part of the merge key.

    `search` is None for a parameter that is only ever set by hand. `per_task` is not None for a parameter that
    every task chooses for itself among these values, each by its own validation accuracy with alpha = 1, before
    alpha is searched.
    """

    name: str
    default: float
    search: Interval | None = None
    low: float = 0.0
    high: float = 1.0
    per_task: tuple[float, ...] | None = None
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A merging method as data: METHOD in every file of this folder.

    Tensor arguments hold one slice per task along dimension 0 and are read only. What comes back has the shape and
    dtype of one slice. Alpha is nobody's business here: the sweep applies it.

    merge(factors, **params): one tensor's update. For `matrices="svd"` it is called for matrices only, the other
        tensors being averaged; for `matrices="all"` for every tensor, whatever its shape.
    factorise(task_tensors) -> factors: everything that depends on neither alpha nor a parameter. None: the identity.
    statistic(passes, **params) -> Any: what a flat-vector method must know of the whole task vector first.
        `passes()` starts another pass over all tensors, each of shape (tasks, ...). merge and task_update then get
        it as the keyword `statistic`.
    task_update(task_tensors, task, **params): the update that task number `task` is evaluated with while the
        per-task parameter is chosen; also the update of methods that keep one model per task (`merge` is None).
    """

    name: str
    title: str
    source: str
    alpha: Alpha | FixedAlpha
    kind: Literal["merging", "zero-shot", "experts"] = "merging"
    """One update for all tasks, no update at all, or one per task."""
    parameters: tuple[Parameter, ...] = ()
    matrices: Literal["svd", "all"] = "all"
    merge: Callable[..., Any] | None = None
    factorise: Callable[..., Any] | None = None
    statistic: Callable[..., Any] | None = None
    task_update: Callable[..., Any] | None = None

    @property
    def per_task_parameter(self) -> Parameter | None:
        return next((p for p in self.parameters if p.per_task is not None), None)

    @property
    def searched_parameters(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.search is not None)
