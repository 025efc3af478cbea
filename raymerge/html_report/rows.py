"""The rows behind the charts. Percent and seconds, as shown; a column of Table 1 is its position there.

Accuracies of test are those of the one test trial of a cell. Curves are made of finished trials of the search alone:
one that was stopped early has an average over some tasks, which no other average can be compared with.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymerge.html_report.contents import Contents, Frame
from raymerge.methods import declared_methods
from raymerge.renderers import label, value_text
from raymerge.report import Column, Entry, alpha_ranges, parameter_ranges, range_end

ZERO_SHOT, EXPERTS = "Zero-shot", "Fine-tuned"
"""Titles of the models that merged ones are measured against."""

Row = dict[str, Any]
CellKey = tuple[str, str, int]
"""Method, backbone, number of tasks."""


@dataclass(frozen=True)
class Rows:
    tasks: list[Row]
    """Test accuracy of one method on one task of one column, references included."""
    trials: list[Row]
    """Finished trials of the searches, in the order they were suggested."""
    parameters: list[Row]
    """The best trial of a method at each value of a parameter that was searched."""
    costs: list[Row]
    """What the trials of a method that ended in one way have cost."""

    @classmethod
    def of(cls, contents: Contents) -> "Rows":
        searched, tested = _chosen_trials(contents, "search"), _chosen_trials(contents, "test")
        chosen = {trial["trial_id"] for trial in searched.values()}
        return cls(
            tasks=_task_rows(contents, tested),
            trials=_trial_rows(contents, chosen),
            parameters=_parameter_rows(contents, chosen),
            costs=_cost_rows(contents),
        )


def packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows with the same keys, as `fields` once and lists of values."""
    fields = list(rows[0]) if rows else []
    return {"fields": fields, "rows": [[row[name] for name in fields] for row in rows]}


# --- accuracies by task ----------------------------------------------------------------------------------------------


def _task_rows(contents: Contents, tested: Mapping[CellKey, Row]) -> list[Row]:
    scores = contents.evaluations
    scores = scores[(scores["split"] == "test") & (scores["status"] == "finished")]
    rows: list[Row] = []
    for number, column in enumerate(contents.table.columns):
        merged: list[Row] = []
        for method in contents.table.methods:
            if _kind(method) == "merging" and (trial := tested.get((method, *column))) is not None:
                found = scores[scores["trial_id"] == trial["trial_id"]]
                merged += _scores_of(number, contents.table.title(method), trial["tasks"], found)
        tasks = next((trial["tasks"] for (_, *where), trial in tested.items() if tuple(where) == column), None)
        if tasks is not None:
            rows += _reference_rows(number, tasks, scores[scores["backbone"] == column[0]]) + merged
    return rows


def _scores_of(number: int, title: str, tasks: Sequence[str], scores: Frame) -> list[Row]:
    by_task = {row["task"]: row for row in scores.to_dict("records")}
    return [
        _task_row(number, title, "merged", tasks, task, row["accuracy"], row["normalized_accuracy"])
        for task in tasks
        if (row := by_task.get(task))
    ]


def _reference_rows(number: int, tasks: Sequence[str], scores: Frame) -> list[Row]:
    """Of the zero-shot model and the experts: measured by trials of their own, else as other trials were told."""
    rows = []
    for title, kind, told in ((ZERO_SHOT, "zero-shot", "zero_shot_accuracy"), (EXPERTS, "experts", "expert_accuracy")):
        own = scores[scores["method"].map(_kind) == kind].drop_duplicates("task").set_index("task")["accuracy"]
        others = scores.drop_duplicates("task").set_index("task")[told]
        for task in tasks:
            accuracy = own.get(task, others.get(task))
            if accuracy is not None and not math.isnan(accuracy):
                rows.append(_task_row(number, title, "reference", tasks, task, accuracy, None))
    return rows


def _task_row(
    number: int, title: str, kind: str, tasks: Sequence[str], task: str, accuracy: float, relative: float | None
) -> Row:
    return {
        "column": number,
        "kind": kind,
        "method": title,
        "task": task,
        "position": tasks.index(task),
        "count": len(tasks),
        "accuracy": _percent(accuracy),
        "relative": _percent(relative),
    }


# --- searches --------------------------------------------------------------------------------------------------------


_OF_A_TRIAL = ["trial_id", "status", "alpha", "point", "objective_value", "average_accuracy"]


def _trial_rows(contents: Contents, chosen: Collection[str]) -> list[Row]:
    trials = contents.trials
    search = trials[trials["stage"] == "search"].sort_values(["generation", "index"], kind="stable")
    ranges = alpha_ranges(contents.manifest.get("spec", {}))
    columns = {column: number for number, column in enumerate(contents.table.columns)}
    rows: list[Row] = []
    for (backbone, num_tasks, method), cell in search.groupby(["backbone", "num_tasks", "method"], sort=False):
        column = columns.get((str(backbone), int(num_tasks)))
        if column is None or method not in contents.table.methods or len(cell) < 2 or _kind(str(method)) != "merging":
            continue
        best, found = -math.inf, []
        for number, trial in enumerate(cell[_OF_A_TRIAL].to_dict("records"), start=1):
            if trial["status"] != "finished" or math.isnan(trial["objective_value"]):
                continue
            best = max(best, trial["objective_value"])
            point = json.loads(trial["point"])
            is_chosen = trial["trial_id"] in chosen
            found.append(
                {
                    "column": column,
                    "method": contents.table.title(str(method)),
                    "number": number,
                    "alpha": float(f"{point.pop('alpha'):.4g}"),
                    "parameters": ", ".join(f"{label(name)} {value_text(_plain(v))}" for name, v in point.items()),
                    "value": _percent(trial["objective_value"]),
                    "accuracy": _percent(trial["average_accuracy"]),
                    "best": _percent(best),
                    "chosen": is_chosen,
                    "end": range_end(trial["alpha"], ranges[str(method)]) if is_chosen and method in ranges else None,
                }
            )
        _mark_best_by_alpha(found)
        rows += found
    order = [contents.table.title(method) for method in contents.table.methods]
    return sorted(rows, key=lambda row: (row["column"], order.index(row["method"])))


def _mark_best_by_alpha(rows: Sequence[Row]) -> None:
    """Where trials have the same alpha and other parameters, the line goes through the best of them."""
    best: dict[float, Row] = {}
    for row in rows:
        if row["alpha"] not in best or row["value"] > best[row["alpha"]]["value"]:
            best[row["alpha"]] = row
    for row in rows:
        row["on_line"] = row is best[row["alpha"]]


def _parameter_rows(contents: Contents, chosen: Collection[str]) -> list[Row]:
    """Of parameters with a range that was searched; those that every task chooses for itself have none."""
    search = contents.trials
    search = search[(search["stage"] == "search") & (search["status"] == "finished")]
    rows: list[Row] = []
    for (method, name), searched in parameter_ranges(contents.manifest.get("spec", {})).items():
        for number, (backbone, num_tasks) in enumerate(contents.table.columns):
            cell = search[
                (search["method"] == method) & (search["backbone"] == backbone) & (search["num_tasks"] == num_tasks)
            ].dropna(subset=["objective_value", name])
            if cell[name].nunique() < 2:
                continue
            for value, group in cell.groupby(name):
                at_best = group.loc[group["objective_value"].idxmax()]
                is_chosen = bool(group["trial_id"].isin(chosen).any())
                rows.append(
                    {
                        "column": number,
                        "method": contents.table.title(method),
                        "parameter": name,
                        "setting": float(f"{value:.4g}"),
                        "value": _percent(at_best["objective_value"]),
                        "alpha": float(f"{at_best['alpha']:.4g}"),
                        "trials": len(group),
                        "chosen": is_chosen,
                        "end": range_end(float(value), searched) if is_chosen else None,
                    }
                )
    return rows


# --- costs -----------------------------------------------------------------------------------------------------------

OUTCOMES = {"finished": "finished", "pruned": "stopped early", "failed": "failed"}
"""What became of trials, and how it is called."""


def _cost_rows(contents: Contents) -> list[Row]:
    trials, scores = contents.trials, contents.evaluations
    # a score that a trial took over from another is there twice, with the seconds it took once
    measured = scores.drop_duplicates(["backbone", "method", "task", "split", "alpha", "correct", "evaluation_s"])
    evaluator_s = measured.groupby("trial_id")["evaluation_s"].sum()
    rows = []
    methods = [*contents.table.methods, *(m for m in trials["method"].unique() if m not in contents.table.methods)]
    for method in methods:
        for status, outcome in OUTCOMES.items():
            found = trials[(trials["method"] == method) & (trials["status"] == status)]
            if found.empty:
                continue
            occupancy = found["occupancy"].mean()
            rows.append(
                {
                    "method": contents.table.title(method),
                    "outcome": outcome,
                    "trials": len(found),
                    "images": int(found["images"].sum()),
                    "evaluator_s": float(evaluator_s.reindex(found["trial_id"]).sum()),
                    "trial_s": float(found["trial_s"].sum()),
                    "occupancy": None if math.isnan(occupancy) else float(occupancy),
                }
            )
    return rows


# --- common ----------------------------------------------------------------------------------------------------------


def _chosen_trials(contents: Contents, stage: str) -> dict[CellKey, Row]:
    """The finished trial of a stage at the point that a cell has chosen."""
    trials = contents.trials
    found: dict[CellKey, Row] = {}
    finished = trials[(trials["stage"] == stage) & (trials["status"] == "finished")].sort_values("finished_at")
    for trial in finished[["method", "backbone", "num_tasks", "trial_id", "tasks", "point"]].to_dict("records"):
        key = (str(trial["method"]), str(trial["backbone"]), int(trial["num_tasks"]))
        entry = contents.table.entries.get(key)
        if entry is not None and _is_at(trial, entry):
            found[key] = trial | {"tasks": list(trial["tasks"])}
    return found


def _is_at(trial: Mapping[Any, Any], entry: Entry) -> bool:
    point = {name: _plain(value) for name, value in json.loads(trial["point"]).items()}
    return point == {"alpha": entry.alpha, **entry.params}


def _plain(value: Any) -> float | str | tuple[float, ...]:
    """A value of a point as an `Entry` has it: a list of one is its value."""
    if isinstance(value, list):
        values = tuple(float(v) for v in value)
        return values[0] if len(values) == 1 else values
    return value if isinstance(value, str) else float(value)


def _kind(method: str) -> str:
    declared = declared_methods()
    return declared[method].kind if method in declared else "merging"


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None or math.isnan(fraction) else round(100 * fraction, 2)


def column_label(column: Column) -> str:
    return f"{column[0]}, {column[1]} tasks"
