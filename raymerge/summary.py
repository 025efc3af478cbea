"""One row per cell: the point that validation chose, what it scores on test, and the published figure."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from raymerge.published import PublishedAverage, published_average
from raymerge.records import Cell, Point, TrialRecord
from raymerge.selection import Objective, objective_value, select_best


@dataclass(frozen=True)
class SummaryRow:
    """Averages are over the tasks of the cell, fractions 0..1; None where nothing was measured."""

    cell: Cell
    status: Literal["finished", "failed", "missing"]
    error: str | None = None
    """Why the status is not "finished"."""
    point: Point | None = None
    """Chosen on validation, never on test."""
    val_accuracy: float | None = None
    val_normalized_accuracy: float | None = None
    test_accuracy: float | None = None
    test_normalized_accuracy: float | None = None
    num_finished: int = 0
    """Trials of the cell in any stage, by status."""
    num_pruned: int = 0
    num_failed: int = 0
    published: PublishedAverage | None = None
    val_trial_id: str | None = None
    test_trial_id: str | None = None


def summarise(records: Iterable[TrialRecord], cells: Sequence[Cell], objective: Objective) -> list[SummaryRow]:
    """One row for each of `cells`, in their order.

    A cell is finished when the point chosen by `select_best` has a finished test trial. A cell that needs no choice
    may have a test trial alone. It is failed when the test trial failed, or when no validation trial finished and one
    failed; otherwise it is missing.
    """
    by_cell: dict[Cell, list[TrialRecord]] = {cell: [] for cell in cells}
    for record in records:
        if record.cell in by_cell:
            by_cell[record.cell].append(record)
    return [_summarise_cell(cell, by_cell[cell], objective) for cell in cells]


def _summarise_cell(cell: Cell, records: list[TrialRecord], objective: Objective) -> SummaryRow:
    chosen = select_best(records, objective)
    tests = [r for r in records if r.split == "test" and (chosen is None or _same_point(r, chosen))]
    finished = [r for r in tests if r.status == "finished"]
    known = {r.trial_id: not math.isnan(objective_value(r, objective)) for r in finished}
    test = max(finished, key=lambda r: (known[r.trial_id], r.finished_at, r.trial_id), default=None)
    failures = tests if chosen else records
    if test:
        status, error = "finished", None
    elif failed := [r for r in failures if r.status == "failed"]:
        last = max(failed, key=lambda r: (r.finished_at, r.trial_id))
        status, error = "failed", last.error or "no reason recorded"
    else:
        status, error = "missing", "its test trial has not run" if chosen else "no trial has finished"
    counts = Counter(record.status for record in records)
    winner = chosen or test
    return SummaryRow(
        cell=cell,
        status=status,
        error=error,
        point=winner.point if winner else None,
        val_accuracy=_average(chosen, "accuracy"),
        val_normalized_accuracy=_average(chosen, "normalized_accuracy"),
        test_accuracy=_average(test, "accuracy"),
        test_normalized_accuracy=_average(test, "normalized_accuracy"),
        num_finished=counts["finished"],
        num_pruned=counts["pruned"],
        num_failed=counts["failed"],
        published=published_average(cell),
        val_trial_id=chosen.trial_id if chosen else None,
        test_trial_id=test.trial_id if test else None,
    )


def _same_point(record: TrialRecord, other: TrialRecord) -> bool:
    return record.point.as_dict() == other.point.as_dict()


def _average(record: TrialRecord | None, objective: Objective) -> float | None:
    value = math.nan if record is None else objective_value(record, objective)
    return None if math.isnan(value) else value
