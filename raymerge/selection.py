"""Which trial of a cell wins. The driver and the summary must agree, so the rule stands alone."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from raymerge.records import Point, TrialRecord

Objective = Literal["normalized_accuracy", "accuracy"]


def objective_value(record: TrialRecord, objective: Objective) -> float:
    """Mean over the scored tasks, as a fraction; NaN when no task, or a task without an expert accuracy, was scored."""
    if objective == "accuracy":
        return record.average_accuracy
    if any(not _known_expert(record, score.task) for score in record.scores):
        return math.nan
    return record.average_normalized_accuracy


def select_best(records: Iterable[TrialRecord], objective: Objective) -> TrialRecord | None:
    """The finished validation trial with the highest objective; None when there is none.

    Ties go to the smallest alpha, as in the published search (which moves only on a strict improvement), then to the
    smallest parameters in order of their names. A trial whose objective is unknown loses to every other. Trials on
    the test split are never looked at. The order of `records` does not matter.
    """
    candidates = (r for r in records if r.status == "finished" and r.split == "val" and r.stage != "calibration")
    return min(candidates, key=lambda record: _rank(record, objective), default=None)


def _rank(record: TrialRecord, objective: Objective) -> tuple[Any, ...]:
    value = objective_value(record, objective)
    return (math.inf if math.isnan(value) else -value, record.point.alpha, _sortable(record.point), record.trial_id)


def _sortable(point: Point) -> tuple[tuple[str, tuple[float | str, ...]], ...]:
    items = sorted(point.params.items())
    return tuple((name, tuple(value) if isinstance(value, (tuple, list)) else (value,)) for name, value in items)


def _known_expert(record: TrialRecord, task: str) -> bool:
    reference = record.references.get(task)
    return reference is not None and reference.expert_accuracy > 0
