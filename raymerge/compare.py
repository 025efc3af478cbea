"""Two sweeps over one suite, or two methods, cell by cell: how their test accuracies differ, and whether by chance."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymerge import results
from raymerge.errors import UsageError, did_you_mean
from raymerge.folder import Folder, Location
from raymerge.records import Split
from raymerge.significance import DRAWS, LEVEL, SEED, Counts, Estimate, holm, mcnemar, paired_bootstrap, unpaired

Key = tuple[str, int, str]
"""Backbone, number of tasks, method."""

_SUITE = ("suite", "profile", "suite_seed")


@dataclass(frozen=True)
class Answers:
    """Of one task: the classes that a model gave its images, and the true ones."""

    predicted: np.ndarray
    labels: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        return self.predicted == self.labels


@dataclass(frozen=True)
class Model:
    """The model that a cell has chosen, as it was scored on one split."""

    tasks: tuple[str, ...]
    correct: Counts
    """By task, in the order of `tasks`; so are the next ones."""
    total: Counts
    expert_accuracy: np.ndarray
    """NaN where it is not known."""
    precision: str
    answers: Mapping[str, Answers] = field(default_factory=dict)
    """By task; empty where they are not stored."""

    @property
    def accuracies(self) -> np.ndarray:
        return self.correct / self.total

    @property
    def accuracy(self) -> float:
        return float(self.accuracies.mean())

    @property
    def normalized_accuracy(self) -> float | None:
        known = (self.expert_accuracy > 0).all()
        return float((self.accuracies / self.expert_accuracy).mean()) if known else None


@dataclass(frozen=True)
class Side:
    """The models of a sweep."""

    name: str
    suite: Mapping[str, Any]
    """What its images depend on: suite, profile, suite_seed."""
    fingerprint: str
    models: Mapping[Key, Model]
    missing: Mapping[Key, str]
    """Cells without a model, and why."""

    @property
    def keys(self) -> list[Key]:
        return [*self.models, *self.missing]


@dataclass(frozen=True)
class TaskDifference:
    task: str
    images: int
    first_accuracy: float
    second_accuracy: float
    only_first: int | None = None
    """Images that only the first model classifies correctly; None where predictions are not stored."""
    only_second: int | None = None
    p: float | None = None
    """Of McNemar's test."""
    holm_p: float | None = None
    """The same, corrected for the number of tasks."""


@dataclass(frozen=True)
class CellDifference:
    """Fractions; differences are second minus first."""

    backbone: str
    num_tasks: int
    first_method: str
    second_method: str
    first_accuracy: float
    second_accuracy: float
    difference: float
    first_normalized_accuracy: float | None
    second_normalized_accuracy: float | None
    kind: Literal["paired", "unpaired"]
    low: float
    """Of the interval of `difference`."""
    high: float
    p: float | None
    """None where unpaired."""
    tasks: tuple[TaskDifference, ...]


@dataclass(frozen=True)
class LeftOut:
    """A cell that one side has no model of."""

    backbone: str
    num_tasks: int
    method: str
    side: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    first: str
    second: str
    methods: tuple[str, str] | None
    """Of the first and of the second; None: those of every cell."""
    split: Split
    cells: tuple[CellDifference, ...]
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-like."""
        return {**dataclasses.asdict(self), "level": LEVEL, "bootstrap": {"draws": DRAWS, "seed": SEED}}


def read_side(output_dir: Location, split: Split = "test") -> Side:
    """
    Raises:
        UsageError: there are no results, or none of a model on this split.
    """
    name = Folder.at(output_dir).name
    # the validation split has no predictions
    return side_of(name, results.read_tables(output_dir, predictions=split == "test"), split)


def side_of(name: str, tables: Mapping[str, pa.Table], split: Split = "test") -> Side:
    """The models of the tables that `results.read_tables` returns."""
    cells = {_key(row): row for row in tables["summary"].to_pylist()}
    chosen = {row[f"{split}_trial_id"]: key for key, row in cells.items() if row[f"{split}_trial_id"]}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in _of_trials(tables["evaluations"], chosen).to_pylist():
        rows.setdefault(row["trial_id"], []).append(row)
    if not rows:
        raise UsageError(f"{name}: no cell has a result on {split} yet. Let its sweep finish.")
    answers = _answers(_of_trials(tables["predictions"], chosen)) if "predictions" in tables else {}
    models = {key: _model(rows[trial], answers.get(trial, {})) for trial, key in chosen.items() if trial in rows}
    missing = {key: row["error"] or "no result" for key, row in cells.items() if key not in models}
    ((first, *_), *_) = rows.values()
    suite = {column: first[column] for column in _SUITE}
    return Side(name, suite, first["suite_fingerprint"], models, missing)


def _key(row: Mapping[str, Any]) -> Key:
    return row["backbone"], row["num_tasks"], row["method"]


def _of_trials(table: pa.Table, trial_ids: Mapping[str, Key]) -> pa.Table:
    return table.filter(pc.field("trial_id").isin(pa.array(list(trial_ids), pa.string())))


def _model(rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Answers]) -> Model:
    rows = sorted(rows, key=lambda row: row["task"])
    return Model(
        tasks=tuple(row["task"] for row in rows),
        correct=np.array([row["correct"] for row in rows]),
        total=np.array([row["total"] for row in rows]),
        expert_accuracy=np.array([row["expert_accuracy"] for row in rows], dtype=float),
        precision=rows[0]["precision"],
        answers=answers,
    )


def _answers(predictions: pa.Table) -> dict[str, dict[str, Answers]]:
    """By trial and task."""
    found: dict[str, dict[str, Answers]] = {}
    columns = [predictions[name] for name in ("trial_id", "task", "predicted", "labels")]
    for trial_id, task, predicted, labels in zip(*columns, strict=True):
        answers = Answers(predicted.values.to_numpy(), labels.values.to_numpy())
        found.setdefault(trial_id.as_py(), {})[task.as_py()] = answers
    return found


def compare(first: Side, second: Side, *, split: Split = "test", methods: tuple[str, str] | None = None) -> Comparison:
    """Every cell that both sides have.

    Args:
        methods: the one of the first side to compare with the one of the second; None: every method with itself.
    Raises:
        UsageError: the two have different images, or no cell in common.
    """
    _check_suites(first, second)
    pairs = _pairs(first, second, methods)
    common = [(one, other) for one, other in pairs if one in first.models and other in second.models]
    if not common:
        raise UsageError(f"{_both(first, second)}: no cell has a result on {split} in both.")
    cells = []
    for one, other in common:
        models = first.models[one], second.models[other]
        _check_images(f"{_both(first, second)}: {_name(one)}", *models)
        cells.append(_cell_difference(one, other, *models))
    left_out = [
        LeftOut(*key, side.name, side.missing.get(key, "no such cell"))
        for side, keys in ((first, [one for one, _ in pairs]), (second, [other for _, other in pairs]))
        for key in keys
        if key not in side.models
    ]
    remarks = _remarks(first, second, [(first.models[one], second.models[other]) for one, other in common], split)
    return Comparison(first.name, second.name, methods, split, tuple(cells), tuple(left_out), tuple(remarks))


def _both(first: Side, second: Side) -> str:
    return first.name if first.name == second.name else f"{first.name} and {second.name}"


def _name(key: Key) -> str:
    return f"{key[0]}, {key[1]} tasks, {key[2]}"


def _check_suites(first: Side, second: Side) -> None:
    for column in _SUITE:
        if first.suite[column] != second.suite[column]:
            raise UsageError(
                f"{_both(first, second)}: {column} is {first.suite[column]} in the first and {second.suite[column]} in "
                "the second, so they were tested on other images. Compare sweeps over one suite."
            )


def _check_images(where: str, first: Model, second: Model) -> None:
    if first.tasks != second.tasks:
        one, other = (
            " ".join(sorted({*a.tasks} - {*b.tasks})) or "none" for a, b in ((first, second), (second, first))
        )
        raise UsageError(
            f"{where}: only the first has the tasks {one}, only the second {other}. Compare equal task sets."
        )
    for task, one, other in zip(first.tasks, first.total, second.total, strict=True):
        if one != other:
            raise UsageError(
                f"{where}: {task} has {one} images in the first and {other} in the second. Compare sweeps over the "
                "same data, with the same evaluation.max_images."
            )
    for task in first.tasks if first.answers and second.answers else ():
        differ = first.answers[task].labels != second.answers[task].labels
        if differ.any():
            raise UsageError(
                f"{where}: {differ.sum()} of {len(differ)} labels of {task} differ, so these are other images, or in "
                "another order. Compare sweeps over the same data."
            )


def _pairs(first: Side, second: Side, methods: tuple[str, str] | None) -> list[tuple[Key, Key]]:
    """What is to be compared with what, in the order of the first side."""
    if methods is None:
        return [(key, key) for key in dict.fromkeys([*first.keys, *second.keys])]
    sides = list(zip((first, second), methods, strict=True))
    for side, method in sides:
        known = {name for _, _, name in side.keys}
        if method not in known:
            raise UsageError(f"{side.name}: no cell of method '{method}'. {did_you_mean(method, known)}")
    columns = dict.fromkeys(key[:2] for side, method in sides for key in side.keys if key[2] == method)
    return [((*column, methods[0]), (*column, methods[1])) for column in columns]


def _cell_difference(one: Key, other: Key, first: Model, second: Model) -> CellDifference:
    is_paired = bool(first.answers) and bool(second.answers)
    tasks, estimate = (_paired if is_paired else _unpaired)(first, second)
    return CellDifference(
        backbone=one[0],
        num_tasks=one[1],
        first_method=one[2],
        second_method=other[2],
        first_accuracy=first.accuracy,
        second_accuracy=second.accuracy,
        difference=second.accuracy - first.accuracy,
        first_normalized_accuracy=first.normalized_accuracy,
        second_normalized_accuracy=second.normalized_accuracy,
        kind="paired" if is_paired else "unpaired",
        low=estimate.low,
        high=estimate.high,
        p=estimate.p,
        tasks=tuple(tasks),
    )


def _paired(first: Model, second: Model) -> tuple[list[TaskDifference], Estimate]:
    hits = [(first.answers[task].hits, second.answers[task].hits) for task in first.tasks]
    only_first = np.array([(one & ~other).sum() for one, other in hits])
    only_second = np.array([(other & ~one).sum() for one, other in hits])
    p_values = [mcnemar(int(one), int(other)) for one, other in zip(only_first, only_second, strict=True)]
    tasks = [
        dataclasses.replace(task, only_first=int(one), only_second=int(other), p=p, holm_p=corrected)
        for task, one, other, p, corrected in zip(
            _unpaired(first, second)[0], only_first, only_second, p_values, holm(p_values), strict=True
        )
    ]
    return tasks, paired_bootstrap(only_first, only_second, first.total)


def _unpaired(first: Model, second: Model) -> tuple[list[TaskDifference], Estimate]:
    columns = (first.total.tolist(), first.accuracies.tolist(), second.accuracies.tolist())
    tasks = [TaskDifference(task, *values) for task, *values in zip(first.tasks, *columns, strict=True)]
    return tasks, unpaired(first.correct, second.correct, first.total)


def _remarks(first: Side, second: Side, pairs: Sequence[tuple[Model, Model]], split: Split) -> Iterator[str]:
    """What a reader has to know, a line each."""
    if split == "val":
        yield "Alpha and parameters were chosen on these images, so accuracies on val are optimistic."
    else:
        sides = (first, second)
        lacking = [[side.name for side, model in zip(sides, pair, strict=True) if not model.answers] for pair in pairs]
        if names := list(dict.fromkeys(name for names in lacking for name in names)):
            count = f"{sum(map(bool, lacking))} of {len(pairs)} cells"
            yield f"{' and '.join(names)}: no predictions are stored of {count}. {results.STORE_THEM}"
    if first.fingerprint != second.fingerprint:
        yield (
            "The two sweeps read other weights or heads, or one reads more of them than the other (suite_fingerprint "
            f"{first.fingerprint} and {second.fingerprint})."
        )
    for one, other in dict.fromkeys((one.precision, other.precision) for one, other in pairs):
        if one != other:
            yield f"The first is evaluated in {one}, the second in {other}."
    if any(not np.allclose(one.expert_accuracy, other.expert_accuracy, equal_nan=True) for one, other in pairs):
        yield "Normalized accuracies divide by other accuracies of the experts in the second than in the first."
