"""The four tables as Arrow schemas, and the way between a TrialRecord and its rows.

A parameter is one column: float64, or a string for one that is a word; null where a method has no such parameter. One
that every task chooses for itself is the value of the row's task in `evaluations`, and the list over `tasks` elsewhere
(of length one while all tasks share a value). `trials.point` repeats alpha and parameters exactly, as JSON. Partition
columns (backbone, num_tasks, method) live in folder names, not in the files of `evaluations`, `trials` and
`predictions`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from raymerge import methods
from raymerge.records import Cell, Point, TaskReference, TaskScore, TrialRecord
from raymerge.selection import Objective, objective_value
from raymerge.summary import SummaryRow

RESULTS_VERSION = 1
"""Raised when a column changes its name, type or meaning; new columns do not raise it."""

VERSION_KEY = "raymerge_results_version"

PARTITIONS = pa.schema([("backbone", pa.string()), ("num_tasks", pa.int32()), ("method", pa.string())])

_STRINGS = pa.list_(pa.string())
_CLASSES = pa.list_(pa.int32())
_TIME = pa.timestamp("us", tz="UTC")

_SWEEP = [
    ("trial_id", pa.string()),
    ("sweep", pa.string()),
    ("spec_hash", pa.string()),
    ("suite", pa.string()),
    ("profile", pa.string()),
    ("suite_seed", pa.int64()),
    ("suite_fingerprint", pa.string()),
    ("tasks", _STRINGS),
]


@dataclass(frozen=True)
class RunContext:
    """What all trials of a sweep share; repeated in every row, so that a row can be read on its own."""

    sweep: str
    spec_hash: str
    suite: str
    profile: str
    suite_seed: int | None
    suite_fingerprint: str
    objective: Objective
    precision: str
    denominators: Literal["measured", "published"] = "measured"
    """Whose accuracies of the experts normalized accuracies divide by."""


@dataclass(frozen=True)
class Schemas:
    """File schemas of this installation: the parameter columns are the union over the declared methods."""

    per_task: Mapping[str, bool]
    """Parameter name -> does any method let every task choose it? Sorted by name."""
    words: frozenset[str] = frozenset()
    """The parameters that are words."""

    @classmethod
    def declared(cls) -> "Schemas":
        per_task: dict[str, bool] = {}
        words: dict[str, bool] = {}
        for method in methods.declared_methods().values():
            for parameter in method.parameters:
                name, is_word = parameter.name, parameter.choices is not None
                per_task[name] = per_task.get(name, False) or parameter.per_task is not None
                assert words.setdefault(name, is_word) is is_word, f"{name} is a word for some methods only"
        schemas = cls({name: per_task[name] for name in sorted(per_task)}, frozenset(n for n in words if words[n]))
        for schema in (schemas.evaluations, schemas.trials, schemas.summary, schemas.predictions):
            assert len(set(schema.names)) == len(schema.names), f"a parameter has the name of a column: {schema.names}"
        return schemas

    @property
    def evaluations(self) -> pa.Schema:
        return _versioned(
            [
                *_SWEEP,
                ("task", pa.string()),
                ("stage", pa.string()),
                ("split", pa.string()),
                ("status", pa.string()),
                ("alpha", pa.float64()),
                *[(name, self._type(name)) for name in self.per_task],
                ("correct", pa.int64()),
                ("total", pa.int64()),
                ("accuracy", pa.float64()),
                ("expert_accuracy", pa.float64()),
                ("zero_shot_accuracy", pa.float64()),
                ("normalized_accuracy", pa.float64()),
                ("nai", pa.float64()),
                ("reference_source", pa.string()),
                ("evaluation_s", pa.float64()),
                ("device", pa.string()),
                ("precision", pa.string()),
                ("finished_at", _TIME),
            ]
        )

    @property
    def trials(self) -> pa.Schema:
        return _versioned(
            [
                *_SWEEP,
                ("stage", pa.string()),
                ("split", pa.string()),
                ("status", pa.string()),
                ("error", pa.string()),
                ("generation", pa.int64()),
                ("index", pa.int64()),
                ("alpha", pa.float64()),
                *self._lists,
                ("point", pa.string()),
                ("objective", pa.string()),
                ("objective_value", pa.float64()),
                ("average_accuracy", pa.float64()),
                ("average_normalized_accuracy", pa.float64()),
                ("denominators", pa.string()),
                ("num_scored", pa.int64()),
                ("trial_s", pa.float64()),
                ("images", pa.int64()),
                ("occupancy", pa.float64()),
                ("device", pa.string()),
                ("precision", pa.string()),
                ("finished_at", _TIME),
            ]
        )

    @property
    def summary(self) -> pa.Schema:
        return _versioned(
            [
                *[(column, kind) for column, kind in _SWEEP if column not in ("trial_id", "suite_fingerprint")],
                *[(field.name, field.type) for field in PARTITIONS],
                ("status", pa.string()),
                ("error", pa.string()),
                ("alpha", pa.float64()),
                *self._lists,
                ("val_accuracy", pa.float64()),
                ("val_normalized_accuracy", pa.float64()),
                ("test_accuracy", pa.float64()),
                ("test_normalized_accuracy", pa.float64()),
                ("denominators", pa.string()),
                ("num_finished", pa.int64()),
                ("num_pruned", pa.int64()),
                ("num_failed", pa.int64()),
                ("published_accuracy", pa.float64()),
                ("published_normalized_accuracy", pa.float64()),
                ("val_trial_id", pa.string()),
                ("test_trial_id", pa.string()),
            ]
        )

    @property
    def predictions(self) -> pa.Schema:
        return _versioned(
            [
                *_SWEEP,
                ("task", pa.string()),
                ("stage", pa.string()),
                ("split", pa.string()),
                ("status", pa.string()),
                ("alpha", pa.float64()),
                ("predicted", _CLASSES),
                ("labels", _CLASSES),
                ("device", pa.string()),
                ("precision", pa.string()),
                ("finished_at", _TIME),
            ]
        )

    @property
    def _lists(self) -> list[tuple[str, pa.DataType]]:
        return [
            (name, pa.list_(pa.float64()) if listed else self._type(name)) for name, listed in self.per_task.items()
        ]

    def _type(self, name: str) -> pa.DataType:
        return pa.string() if name in self.words else pa.float64()

    def evaluations_table(self, record: TrialRecord, context: RunContext) -> pa.Table:
        rows = []
        for score in record.scores:
            reference = record.references.get(score.task)
            rows.append(
                {
                    **_shared(record, context),
                    **self._parameters_of_task(record, score.task),
                    "task": score.task,
                    "correct": score.correct,
                    "total": score.total,
                    "accuracy": score.accuracy,
                    "expert_accuracy": reference and reference.expert_accuracy,
                    "zero_shot_accuracy": reference and reference.zero_shot_accuracy,
                    "normalized_accuracy": reference and _ratio(score.accuracy, reference.expert_accuracy),
                    "nai": reference
                    and _ratio(
                        score.accuracy - reference.zero_shot_accuracy,
                        reference.expert_accuracy - reference.zero_shot_accuracy,
                    ),
                    "reference_source": reference and reference.source,
                    "evaluation_s": score.seconds,
                }
            )
        return pa.Table.from_pylist(rows, schema=self.evaluations)

    def predictions_table(self, record: TrialRecord, context: RunContext) -> pa.Table:
        """One row per task whose score has predictions."""
        rows = [
            {
                **_shared(record, context),
                "task": score.task,
                "predicted": _read_classes(score.predictions.predicted),
                "labels": _read_classes(score.predictions.labels),
            }
            for score in record.scores
            if score.predictions is not None
        ]
        return pa.Table.from_pylist(rows, schema=self.predictions)

    def trials_table(self, record: TrialRecord, context: RunContext) -> pa.Table:
        row = {
            **_shared(record, context),
            **self._parameters(record.point),
            "error": record.error,
            "generation": record.generation,
            "index": record.index,
            "point": json.dumps(record.point.as_dict(), sort_keys=True),
            "objective": context.objective,
            "objective_value": _or_null(objective_value(record, context.objective)),
            "average_accuracy": _or_null(objective_value(record, "accuracy")),
            "average_normalized_accuracy": _or_null(objective_value(record, "normalized_accuracy")),
            "denominators": context.denominators,
            "num_scored": len(record.scores),
            "trial_s": record.seconds,
            "images": record.images,
            "occupancy": record.occupancy,
        }
        return pa.Table.from_pylist([row], schema=self.trials)

    def summary_table(self, rows: Sequence[SummaryRow], context: RunContext | None) -> pa.Table:
        return pa.Table.from_pylist([self._summary_row(row, context) for row in rows], schema=self.summary)

    def _summary_row(self, row: SummaryRow, context: RunContext | None) -> dict[str, Any]:
        names = [name for name in self.summary.names if name not in self.per_task]
        own = {name: getattr(row, name) for name in names if hasattr(row, name)}
        shared = {name: getattr(context, name) for name in names if hasattr(context, name)} if context else {}
        return {
            **own,
            **shared,
            "tasks": list(row.cell.tasks),
            "backbone": row.cell.backbone,
            "num_tasks": row.cell.num_tasks,
            "method": row.cell.method,
            "alpha": row.point and row.point.alpha,
            **(self._parameters(row.point) if row.point else {}),
            "published_accuracy": row.published and row.published.accuracy,
            "published_normalized_accuracy": row.published and row.published.normalized_accuracy,
        }

    def _parameters(self, point: Point) -> dict[str, float | str | list[float]]:
        if unknown := set(point.params) - set(self.per_task):
            raise KeyError(f"no method declares {sorted(unknown)}, so the results have no column for it")
        return {
            name: _as_list(value) if self.per_task[name] else value if name in self.words else float(value)
            for name, value in point.params.items()
        }

    def _parameters_of_task(self, record: TrialRecord, task: str) -> dict[str, float | str]:
        values: dict[str, float | str] = {}
        for name, value in self._parameters(record.point).items():
            if isinstance(value, list):
                value = value[0] if len(value) == 1 else value[record.cell.tasks.index(task)]
            values[name] = value
        return values


TRIAL_FIELDS = [
    "trial_id",
    "tasks",
    "stage",
    "split",
    "status",
    "error",
    "generation",
    "index",
    "point",
    "num_scored",
    "trial_s",
    "images",
    "occupancy",
    "device",
    "finished_at",
]
EVALUATION_FIELDS = [
    "trial_id",
    "task",
    "correct",
    "total",
    "expert_accuracy",
    "zero_shot_accuracy",
    "reference_source",
    "evaluation_s",
]
"""The columns that `read_record` needs, besides the partitions of a trial."""


def read_record(trial: Mapping[str, Any], evaluations: Iterable[Mapping[str, Any]]) -> TrialRecord:
    """The record that was written. References of tasks without a score are not kept."""
    cell = Cell(trial["backbone"], tuple(trial["tasks"]), trial["method"])
    rows = list(evaluations)
    return TrialRecord(
        trial_id=trial["trial_id"],
        cell=cell,
        point=_read_point(trial["point"]),
        stage=trial["stage"],
        split=trial["split"],
        status=trial["status"],
        scores=tuple(TaskScore(r["task"], r["correct"], r["total"], r["evaluation_s"]) for r in rows),
        references={
            r["task"]: TaskReference(r["expert_accuracy"], r["zero_shot_accuracy"], r["reference_source"])
            for r in rows
            if r["reference_source"] is not None
        },
        generation=trial["generation"],
        index=trial["index"],
        seconds=trial["trial_s"],
        images=trial["images"],
        occupancy=trial["occupancy"],
        device=trial["device"],
        error=trial["error"],
        finished_at=trial["finished_at"] / 1e6,
    )


def _versioned(fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(fields, metadata={VERSION_KEY: str(RESULTS_VERSION)})


def _shared(record: TrialRecord, context: RunContext) -> dict[str, Any]:
    """Columns that mean the same in `evaluations`, `predictions` and `trials`."""
    return {
        "trial_id": record.trial_id,
        "sweep": context.sweep,
        "spec_hash": context.spec_hash,
        "suite": context.suite,
        "profile": context.profile,
        "suite_seed": context.suite_seed,
        "suite_fingerprint": context.suite_fingerprint,
        "tasks": list(record.cell.tasks),
        "stage": record.stage,
        "split": record.split,
        "status": record.status,
        "alpha": float(record.point.alpha),
        "device": record.device,
        "precision": context.precision,
        "finished_at": round(record.finished_at * 1e6),
    }


def _read_classes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<i4")


def _read_point(text: str) -> Point:
    """The point as it was written, which the columns alone cannot tell: one value for all tasks, or one for each."""
    values = json.loads(text)
    alpha = values.pop("alpha")
    return Point(alpha, {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _as_list(value: Any) -> list[float]:
    return [float(v) for v in value] if isinstance(value, (tuple, list)) else [float(value)]


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value
