"""Every chart of the page with its words: title, caption, what it shows in a sentence, and the table of its data."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raymerge.html_report import drawings, readings
from raymerge.html_report.drawings import objective_title
from raymerge.html_report.rows import Row, Rows
from raymerge.renderers import label
from raymerge.report import SearchRange, Table1, is_reference


@dataclass(frozen=True)
class Field:
    """A column of the table of a chart's data."""

    name: str
    title: str
    kind: Literal["text", "number"] = "number"
    digits: int | None = None
    """Of numbers, behind the point; None: as they are."""


@dataclass(frozen=True)
class Figure:
    name: str
    """Also the id of its element."""
    title: str
    caption: str
    readings: tuple[str, ...]
    """One for every column of Table 1, or a single one where the figure shows them all."""
    rows: Literal["tasks", "trials", "parameters", "costs"]
    charts: tuple[Mapping[str, Any], ...]
    """Specifications, side by side where there is room."""
    fields: tuple[Field, ...] = ()
    """Of the table; none: it has tasks down and methods across."""
    only: Mapping[str, str] | None = None
    """Values that the rows of the table have to have."""
    by_column: bool = True
    """Whether it shows one column of Table 1 at a time."""


def figures_by_column(
    rows: Rows, table: Table1, objective: str, ranges: Mapping[tuple[str, str], SearchRange]
) -> tuple[Figure, ...]:
    """Those that there is something to draw in.

    Args:
        ranges: of parameters, as `parameter_ranges` returns them.
    """
    merging = [table.title(method) for method in table.methods if not is_reference(method)]

    def read(reading: Callable[[int], str]) -> tuple[str, ...]:
        return tuple(reading(column) for column in range(len(table.columns)))

    drawn = []
    if rows.tasks:
        best = [_best(table, column) for column in range(len(table.columns))]
        drawn.append(_tasks(rows, merging, read(lambda column: readings.of_tasks(rows, column, best[column]))))
    if searched := _drawn(rows.trials, merging):
        drawn.append(_alphas(searched, objective, read(lambda column: readings.of_alphas(rows, column))))
        for name in dict.fromkeys(row["parameter"] for row in rows.parameters):
            of_name = read(lambda column, name=name: readings.of_parameter(rows, column, name))
            mine = _drawn([row for row in rows.parameters if row["parameter"] == name], merging)
            drawn.append(_parameter(name, mine, objective, _widest(ranges, name), of_name))
        drawn.append(_history(searched, objective, read(lambda column: readings.of_history(rows, column))))
    return tuple(drawn)


def costs_figure(rows: Sequence[Row]) -> Figure:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return Figure(
        name="costs",
        title="Images by method",
        caption="Images that went through an encoder, by what became of their trial.",
        readings=(readings.of_costs(rows),),
        rows="costs",
        charts=(drawings.costs(methods),),
        fields=(
            Field("method", "Method", "text"),
            Field("outcome", "Trials that", "text"),
            Field("trials", "Trials"),
            Field("images", "Images"),
            Field("evaluator_s", "Evaluator time (s)", digits=1),
        ),
        by_column=False,
    )


def _tasks(rows: Rows, methods: Sequence[str], read: tuple[str, ...]) -> Figure:
    highest = max(row["accuracy"] for row in rows.tasks)
    round_number = max(10, 10 * math.ceil(highest / 10))
    return Figure(
        name="tasks",
        title="Task by task",
        caption="Test accuracy in percent. Bars and coloured lines are merged models; the dashed grey line is the "
        "zero-shot model, the black one the expert of the task.",
        readings=read,
        rows="tasks",
        charts=(drawings.bars(methods, round_number), drawings.radar(methods, round_number)),
    )


def _alphas(methods: Sequence[str], objective: str, read: tuple[str, ...]) -> Figure:
    return Figure(
        name="alphas",
        title="Accuracy over alpha",
        caption="Trials of the search that were evaluated on all tasks of the validation split. A line goes through "
        "the best trial at each alpha; fainter dots are trials with other parameters. A ring marks the chosen trial; "
        "one at the end of its range is labelled.",
        readings=read,
        rows="trials",
        charts=(drawings.alphas(methods, objective),),
        fields=(
            Field("method", "Method", "text"),
            Field("alpha", "Alpha"),
            Field("parameters", "Parameters", "text"),
            Field("value", objective_title(objective), digits=2),
            Field("accuracy", "Validation accuracy (%)", digits=2),
            Field("chosen", "Chosen", "text"),
        ),
    )


def _parameter(
    name: str, methods: Sequence[str], objective: str, searched: SearchRange, read: tuple[str, ...]
) -> Figure:
    return Figure(
        name=f"parameter-{name}",
        title=f"Accuracy over {label(name)}",
        caption=f"The best trial at each {label(name)}, with its alpha below. Where few trials had a value, one with a "
        "poor alpha may be its best; the table says how many there were. A ring marks the chosen trial.",
        readings=read,
        rows="parameters",
        charts=(drawings.parameter(name, methods, objective, searched),),
        fields=(
            Field("method", "Method", "text"),
            Field("setting", label(name)),
            Field("value", objective_title(objective), digits=2),
            Field("alpha", "Alpha of the best trial"),
            Field("trials", "Trials"),
            Field("chosen", "Chosen", "text"),
        ),
        only={"parameter": name},
    )


def _history(methods: Sequence[str], objective: str, read: tuple[str, ...]) -> Figure:
    return Figure(
        name="history",
        title="Best so far",
        caption="Over the trials of each search in the order they were suggested. Trials that were stopped early or "
        "failed count, but have no dot.",
        readings=read,
        rows="trials",
        charts=(drawings.history(methods, objective),),
        fields=(
            Field("method", "Method", "text"),
            Field("number", "Trial"),
            Field("value", objective_title(objective), digits=2),
            Field("best", "Best so far (%)", digits=2),
        ),
    )


def _drawn(rows: Sequence[Row], order: Sequence[str]) -> list[str]:
    present = {row["method"] for row in rows}
    return [title for title in order if title in present]


def _best(table: Table1, column: int) -> str | None:
    ranks = table.ranks(table.columns[column])
    return next((table.title(method) for method, rank in ranks.items() if rank == "best"), None)


def _widest(ranges: Mapping[tuple[str, str], SearchRange], name: str) -> SearchRange:
    """What all methods together search of a parameter."""
    found = [searched for (_, parameter), searched in ranges.items() if parameter == name]
    return min(low for low, _, _ in found), max(high for _, high, _ in found), 0.0
