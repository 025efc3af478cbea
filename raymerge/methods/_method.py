"""What a method file declares. No torch here: sweep files are checked against declarations alone."""

from collections.abc import Callable, Mapping, Sequence
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
    alpha is searched. `choices` is not None for a parameter that is one of these words; it is only ever set by hand.
    """

    name: str
    default: float | str
    search: Interval | None = None
    low: float = 0.0
    high: float = 1.0
    per_task: tuple[float, ...] | None = None
    choices: tuple[str, ...] | None = None
    description: str = ""


@dataclass(frozen=True)
class Use:
    """What a task tensor is going to be merged for: one of `num_tasks` tasks, under a setting of the parameters."""

    num_tasks: int
    setting: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A merging method as data: METHOD in every file of this folder.

    Tensor arguments hold one slice per task along dimension 0 and are read only. What comes back has the shape and
    dtype of one slice. Alpha is nobody's business here: the sweep applies it.

    merge(factors, **params): one tensor's update. For `matrices="svd"` it is called for matrices only, the other
        tensors being merged as `others` says; for `matrices="all"` for every tensor, whatever its shape.
    factorise(task_tensors) -> factors: everything that depends on neither alpha nor a parameter. None: the identity.
    task_factors(task_tensors, uses) -> list, one item per task: what of a task depends on no other task, so that
        nested sets of tasks share it. `uses` are all that the items will be asked for. factorise then gets those of
        its tasks as the keyword `task_factors`.
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
    kind: Literal["merging", "single-task", "zero-shot", "experts"] = "merging"
    """One update for all tasks; for each task what `merge` makes of its own expert alone; no update at all; or for each
    task its own expert. The last two are what accuracies are compared with."""
    parameters: tuple[Parameter, ...] = ()
    matrices: Literal["svd", "all"] = "all"
    others: Literal["mean", "sum"] = "mean"
    """What becomes of tensors that are no matrices, for `matrices="svd"`."""
    plans: bool = False
    """Whether factorise takes the keyword `uses`: all that its result will be merged for. Empty: anything."""
    moments: bool = False
    """Whether task_factors and factorise take the keyword `moments`: per task, the second moments of the inputs of
    the matrix, shaped to broadcast against it (1, cols) or (rows, 1)."""
    merge: Callable[..., Any] | None = None
    factorise: Callable[..., Any] | None = None
    task_factors: Callable[..., Any] | None = None
    statistic: Callable[..., Any] | None = None
    task_update: Callable[..., Any] | None = None

    def factors(
        self, task_tensors: Any, *, uses: Sequence[Use] = (), task_factors: Any = None, moments: Any = None
    ) -> Any:
        """What `merge` takes: `factorise` with the keywords that this method asks for, or the task tensors as such."""
        if self.factorise is None:
            return task_tensors
        extra = {
            **({"uses": uses} if self.plans else {}),
            **({"task_factors": task_factors} if self.task_factors is not None else {}),
            **({"moments": moments} if self.moments else {}),
        }
        return self.factorise(task_tensors, **extra)

    @property
    def is_reference(self) -> bool:
        """Whether accuracies are compared with it: then nothing about it is searched."""
        return self.kind in ("zero-shot", "experts")

    @property
    def has_update_per_task(self) -> bool:
        return self.kind in ("single-task", "experts")

    @property
    def per_task_parameter(self) -> Parameter | None:
        return next((p for p in self.parameters if p.per_task is not None), None)

    @property
    def searched_parameters(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.search is not None)
