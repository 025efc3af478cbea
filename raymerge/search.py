"""Search policies: which points of a cell to try next. The only module that imports optuna.

A policy is a generator. It yields a batch of suggestions and is sent their records, in the same order; nothing of a
batch is told before all of it is known. So what it suggests depends on the seed and on accuracies alone, never on the
number of workers or on which of them was faster, and a killed sweep resumes by replaying its policies over the stored
records.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from ray.tune.search.optuna import OptunaSearch

from raymerge.records import Point, Stage, TrialRecord
from raymerge.search_space import Dimension, SearchSpace
from raymerge.selection import Objective, objective_value
from raymerge.sweep_spec import SearchSettings

MAX_ASKS = 8
"""Asks per wanted point before a sampler that repeats itself is believed to have converged."""


@dataclass(frozen=True)
class Suggestion:
    point: Point
    stage: Stage


Search = Generator[list[Suggestion], list[TrialRecord], None]


@dataclass(frozen=True)
class CellSearch:
    """The search of one cell, as a policy sees it."""

    space: SearchSpace
    settings: SearchSettings
    seed: int
    """Of the sampler, for this cell alone."""
    fixed: Mapping[str, Any]
    """The parameters that every trial of the policy shares, those chosen per task among them."""

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Everything searched, alpha last: points that differ in alpha alone share their merged update."""
        return (*self.space.params.values(), self.space.alpha)

    def suggest(self, values: Mapping[str, float]) -> Suggestion:
        params = {name: value for name, value in values.items() if name != self.space.alpha.name}
        return Suggestion(Point(values[self.space.alpha.name], {**self.fixed, **params}), "search")

    def grid(self) -> Iterator[Suggestion]:
        """Every point, alpha ascending within each choice of the structural parameters."""
        names = [dimension.name for dimension in self.dimensions]
        grids = [dimension.grid() for dimension in self.dimensions]
        return (self.suggest(dict(zip(names, values, strict=True))) for values in itertools.product(*grids))


def search_cell(space: SearchSpace, settings: SearchSettings, *, seed: int) -> Search:
    """The whole search of one cell: first what every task chooses for itself, then the policy of the sweep.

    Ends early, with nothing searched, when a choice per task fails.
    """
    fixed: dict[str, Any] = dict(space.fixed)
    if (choice := space.per_task) is not None:
        params = [{**fixed, choice.name: value} for value in choice.grid()]
        records = yield [Suggestion(Point(1.0, setting), "calibration") for setting in params]
        if any(record.status != "finished" for record in records):
            return
        fixed[choice.name] = choose_per_task(records, choice.grid())
    policy = POLICIES[settings.policy] if space.num_points > 1 else grid_search
    yield from policy(CellSearch(space, settings, seed, fixed))


def choose_per_task(records: Sequence[TrialRecord], values: Sequence[float]) -> tuple[float, ...]:
    """For every task the value with its highest accuracy, the first of several (the published rule for TALL masks)."""
    accuracies = [{score.task: score.accuracy for score in record.scores} for record in records]
    chosen = []
    for task in records[0].cell.tasks:
        column = [accuracy[task] for accuracy in accuracies]
        chosen.append(values[column.index(max(column))])
    return tuple(chosen)


def grid_search(cell: CellSearch) -> Search:
    """Every combination of the grid, `batch` at a time."""
    points = cell.grid()
    while batch := list(itertools.islice(points, cell.settings.batch)):
        yield batch


def paper_search(cell: CellSearch) -> Search:
    """The published search: alpha ascending, stopped once the average accuracy has not risen `patience` times.

    The counter starts anew at every strict improvement over the best so far, which starts at 0. Selection is by
    normalized accuracy, which early stopping does not look at.
    """
    best, waited = 0.0, 0
    for suggestion in cell.grid():
        (record,) = yield [suggestion]
        if record.status == "finished" and record.average_accuracy > best:
            best, waited = record.average_accuracy, 0
        else:
            waited += 1
        if waited >= cell.settings.patience:
            return


def tpe_search(cell: CellSearch) -> Search:
    """Optuna's TPE through OptunaSearch, asked for batches and told every outcome in the order of asking.

    The first batch covers the space evenly. A point that was tried before is told its known value at once and costs
    nothing, so `trials` counts different points.
    """
    settings = cell.settings
    if cell.space.num_points <= settings.trials:
        yield from grid_search(cell)
        return
    study = _Study(cell.dimensions, min(settings.batch, settings.trials), cell.seed, settings.objective)
    known: dict[tuple[float, ...], TrialRecord] = {}
    while len(known) < settings.trials:
        size = min(settings.batch, settings.trials - len(known))
        batch: dict[tuple[float, ...], Suggestion] = {}
        asked: list[tuple[str, tuple[float, ...]]] = []
        for _ in range(MAX_ASKS * size):
            ask_id, values = study.ask()
            key = tuple(values.values())
            if key in known:
                study.tell(ask_id, known[key])
                continue
            asked.append((ask_id, key))
            batch[key] = cell.suggest(values)
            if len(batch) == size:
                break
        if not batch:  # the sampler only repeats itself: it has converged
            return
        records = yield list(batch.values())
        known |= zip(batch, records, strict=True)
        for ask_id, key in asked:
            study.tell(ask_id, known[key])


POLICIES: dict[str, Callable[[CellSearch], Search]] = {"grid": grid_search, "paper": paper_search, "tpe": tpe_search}


class _Study:
    """OptunaSearch under our own trial ids, over positions in lists of values where there are lists."""

    def __init__(self, dimensions: Sequence[Dimension], num_start: int, seed: int, objective: Objective):
        self._dimensions = dimensions
        self._objective: Objective = objective
        self._asked = 0
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `multivariate` is marked experimental
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=num_start, multivariate=len(dimensions) > 1
            )
        self._search = OptunaSearch(
            {dimension.name: _distribution(dimension) for dimension in dimensions},
            metric="objective",
            mode="max",
            sampler=sampler,
            points_to_evaluate=_even_start(dimensions, num_start),
        )

    def ask(self) -> tuple[str, dict[str, float]]:
        ask_id = str(self._asked)
        self._asked += 1
        found = self._search.suggest(ask_id)
        assert found is not None
        values = {d.name: found[d.name] if d.is_continuous else d.grid()[found[d.name]] for d in self._dimensions}
        return ask_id, values

    def tell(self, ask_id: str, record: TrialRecord) -> None:
        value = objective_value(record, self._objective)
        if math.isnan(value):  # failed, or not comparable because an expert is never right
            self._search.on_trial_complete(ask_id, None, error=True)
        elif record.status == "finished":
            self._search.on_trial_complete(ask_id, {"objective": value})
        else:  # TPE ranks pruned trials by how far they came and what they had then
            self._search.on_trial_result(ask_id, {"objective": value, "training_iteration": len(record.scores)})
            self._search.on_trial_complete(ask_id, None)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.is_continuous:
        return FloatDistribution(dimension.low, dimension.high)
    return IntDistribution(0, len(dimension.grid()) - 1)  # positions: only the grid's own floats name trials


def _even_start(dimensions: Sequence[Dimension], num: int) -> list[dict[str, int | float]]:
    """`num` points spread evenly (Hammersley): alpha, the last, at the middles of equal parts, the others by radical
    inverses."""
    points = []
    for i in range(num):
        fractions = [*(_radical_inverse(i + 1, base) for base in _BASES[: len(dimensions) - 1]), (i + 0.5) / num]
        pairs = zip(dimensions, fractions, strict=True)
        points.append({d.name: d.at(f) if d.is_continuous else int(f * len(d.grid())) for d, f in pairs})
    return points


_BASES = (2, 3, 5, 7, 11, 13)


def _radical_inverse(i: int, base: int) -> float:
    """The digits of i in `base`, mirrored at the point: 1, 2, 3 in base 2 are 0.5, 0.25, 0.75."""
    value, weight = 0.0, 1 / base
    while i:
        i, digit = divmod(i, base)
        value, weight = value + digit * weight, weight / base
    return value
