"""The cells of a sweep, and where the search of each may look."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raymerge.errors import SweepFileError, did_you_mean
from raymerge.method_settings import Linspace, Range, Setting, explicit_settings
from raymerge.methods._method import FixedAlpha, Interval, Method
from raymerge.records import Cell
from raymerge.sweep_spec import SweepSpec


@dataclass(frozen=True)
class Dimension:
    """One searched number: a value of [low, high] on a grid of `step`, any of it without one, or one of `values`.

    The grid is what trials are named by: snap a suggestion before it becomes a point.
    """

    name: str
    low: float
    high: float
    """The last grid point, so that the grid ends here exactly."""
    step: float | None = None
    values: tuple[float, ...] | None = None
    """The values in ascending order, where they were listed or `step` is not a round number."""

    @property
    def is_continuous(self) -> bool:
        return self.values is None and self.step is None

    def grid(self) -> tuple[float, ...]:
        """Every value, in ascending order."""
        assert not self.is_continuous, f"{self.name} is continuous: the sweep file should have been refused"
        return self.values or grid_values(Interval(self.low, self.high, self.step))

    @property
    def size(self) -> int | float:
        """How many values there are; infinite without a grid."""
        return math.inf if self.is_continuous else len(self.grid())

    def snap(self, value: float) -> float:
        """The nearest value, the smaller of two."""
        if self.is_continuous:
            return min(max(value, self.low), self.high)
        return min(self.grid(), key=lambda known: abs(known - value))

    def at(self, fraction: float) -> float:
        """The value that lies at a fraction, 0 <= fraction < 1, of the way through."""
        if self.is_continuous:
            return self.low + fraction * (self.high - self.low)
        grid = self.grid()
        return grid[min(int(fraction * len(grid)), len(grid) - 1)]


@dataclass(frozen=True)
class SearchSpace:
    """Where the trials of a cell may lie."""

    alpha: Dimension
    """Of size 1 where alpha is fixed."""
    params: Mapping[str, Dimension]
    """The searched structural parameters."""
    fixed: Mapping[str, float | str]
    """The structural parameters that every trial shares."""
    per_task: Dimension | None = None
    """The values among which every task chooses for itself before alpha is searched."""

    @property
    def num_points(self) -> int | float:
        """How many points there are; infinite where a dimension is continuous."""
        return self.alpha.size * self.num_merges

    @property
    def num_merges(self) -> int | float:
        """How many different merged updates those points need: alpha is never part of one."""
        return math.prod(dimension.size for dimension in self.params.values())


@functools.cache
def grid_values(interval: Interval) -> tuple[float, ...]:
    """The values of an interval with a step, each the float nearest to low + i * step in exact arithmetic.

    0.1 to 3.0 by 0.1 gives the floats of the published grid, AlphaGrid(3.0, 30).values(), and not 0.30000000000000004.
    """
    values = Range(low=interval.low, high=interval.high, step=interval.step).values()
    assert values is not None, "an interval without step has no grid"
    return values


def search_space(spec: SweepSpec, method: Method, num_tasks: int) -> SearchSpace:
    """Where the cells of one method are searched; under policy paper alpha alone, over the published grid.

    A method that the sweep does not list is searched as it declares.
    """
    settings = explicit_settings(method, spec.methods.get(method.name, {}), spec.search.policy)
    if isinstance(method.alpha, FixedAlpha):
        settings["alpha"] = method.alpha.at(num_tasks)
    alpha = _dimension("alpha", settings.pop("alpha"))
    fixed = {name: setting for name, setting in settings.items() if isinstance(setting, float | str)}
    searched = {name: setting for name, setting in settings.items() if name not in fixed}
    dimensions = {name: _dimension(name, setting) for name, setting in searched.items()}
    per_task = dimensions.pop(method.per_task_parameter.name, None) if method.per_task_parameter else None
    return SearchSpace(alpha, dimensions, fixed, per_task)


def _dimension(name: str, setting: Setting) -> Dimension:
    if isinstance(setting, Range):
        high = (setting.values() or (setting.high,))[-1]
        return Dimension(name, setting.low, high, setting.step)
    assert not isinstance(setting, str), f"{name} is no number"
    if isinstance(setting, Linspace):
        values = setting.values()
    else:
        values = setting if isinstance(setting, tuple) else (setting,)
    return Dimension(name, values[0], values[-1], values=values)


def sweep_cells(spec: SweepSpec, suite_backbones: Iterable[str], suite_tasks: Sequence[str]) -> list[Cell]:
    """The cells of a sweep: by backbone, then number of tasks, then method, each as the sweep file orders them.

    Args:
        suite_tasks: in the suite's order, of which `num_tasks` takes the first.
    Raises:
        SweepFileError: the suite has no such backbone or task, or fewer tasks. One line for each.
    """
    known = list(suite_backbones)
    backbones = known if spec.backbones is None else list(spec.backbones)
    where = f"sweep '{spec.name}': suite '{spec.suite}' has"
    problems = [f"{where} no backbone '{b}'. {did_you_mean(b, known)}" for b in backbones if b not in known]
    problems += [
        f"{where} no task '{task}'. {did_you_mean(task, suite_tasks)}"
        for task in spec.tasks or ()
        if task not in suite_tasks
    ]
    problems += [
        f"{where} {len(suite_tasks)} tasks, 'num_tasks' asks for {size}; ask for at most {len(suite_tasks)}."
        for size in spec.num_tasks or ()
        if size > len(suite_tasks)
    ]
    if problems:
        raise SweepFileError("\n".join(problems))
    task_sets = [spec.tasks] if spec.tasks else [tuple(suite_tasks[:size]) for size in spec.num_tasks or ()]
    return [Cell(backbone, tasks, method) for backbone in backbones for tasks in task_sets for method in spec.methods]
