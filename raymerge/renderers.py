"""Table 1 as terminal text, SVG, Markdown, LaTeX, CSV and JSON.

Numbers are percent with one decimal where people read them, and full-precision fractions in CSV and JSON.
"""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from raymerge.report import Column, Entry, Rank, Table1, percent

DASH = "–"
SVG_WIDTH = 100
"""Characters."""
CAPTION = "Test accuracy in percent, averaged over tasks, and in parentheses relative to the experts."
LEGEND = "Best and second best merging method of a column: bold and underlined."
PUBLISHED = "In brackets: the published accuracy."


def terminal(table: Table1, *, published: bool = False) -> RenderableType:
    """A rich renderable; the caller prints it."""
    grid = Table()
    grid.add_column("Method", no_wrap=True)
    for backbone, num_tasks in table.columns:
        grid.add_column(f"{backbone}\n{num_tasks} tasks", justify="right", no_wrap=True)
    styles: dict[Rank | None, str] = {"best": "bold", "second": "underline", None: ""}
    for method in table.methods:
        names = table.chosen.get(method, ())
        row = [Text(table.title(method))]
        if names:
            row[0].append("\n" + ", ".join(label(name) for name in names), style="dim")
        for column in table.columns:
            entry = table.entry(method, column)
            head, tail = _number(table, entry, published)
            text = Text(head, style=styles[table.ranks(column).get(method)])
            text = Text.assemble(text, tail)
            if names:
                text.append("\n" + choice_text(entry, names), style="dim")
            row.append(text)
        grid.add_row(*row)
    lines = [*_footnotes(table), *table.remarks, *(f"Warning: {warning}" for warning in table.warnings)]
    return Group(Text(_caption(published)), grid, *(Text(line) for line in lines))


def svg(table: Table1, *, published: bool = False) -> str:
    """What `terminal` shows, as a picture that loads nothing from anywhere."""
    console = Console(record=True, file=io.StringIO(), width=SVG_WIDTH, color_system="truecolor", force_terminal=True)
    console.print(terminal(table, published=published))
    picture = console.export_svg(title="raymerge report", unique_id="table")
    return re.sub(r"@font-face\s*{.*?}", "", picture, flags=re.DOTALL)


def markdown(table: Table1, *, published: bool = False) -> str:
    def accuracy(method: str, column: Column) -> str:
        head, tail = _number(table, table.entry(method, column), published)
        wrap = {"best": "**{}**", "second": "<u>{}</u>"}.get(table.ranks(column).get(method, ""), "{}")
        return wrap.format(head) + tail

    header = [f"{backbone}, {num_tasks} tasks" for backbone, num_tasks in table.columns]
    parts = [
        f"{_caption(published)} {LEGEND}",
        _pipe_table(
            ["Method", *header],
            [[table.title(m), *(accuracy(m, column) for column in table.columns)] for m in table.methods],
        ),
    ]
    if rows := _choices(table):
        parts += ["Chosen on validation:", _pipe_table(["Method", *header], rows)]
    if notes := [*_footnotes(table), *table.remarks]:
        parts.append("\n".join(f"- {_escape_markdown(note)}" for note in notes))
    parts += [f"> **Warning:** {_escape_markdown(warning)}" for warning in table.warnings]
    return "\n\n".join(parts) + "\n"


def latex(table: Table1, *, published: bool = False) -> str:
    """Two tabulars for the `booktabs` package."""

    def accuracy(method: str, column: Column) -> str:
        entry = table.entry(method, column)
        if entry.accuracy is None:
            return "".join(_escape_latex(part) for part in _number(table, entry, published))
        wrap = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(table.ranks(column).get(method, ""), "%s")
        text = wrap % percent(entry.accuracy)
        if entry.normalized_accuracy is not None:
            text += rf"$_{{({percent(entry.normalized_accuracy)})}}$"
        return text + _bracket(entry, published)

    rows = [[_escape_latex(table.title(m)), *(accuracy(m, c) for c in table.columns)] for m in table.methods]
    parts = [f"% {_caption(published)} {LEGEND}", "% Needs \\usepackage{booktabs}.", *_tabular(table, rows)]
    if choices := _choices(table):
        escaped = [[_escape_latex(text).replace("α", r"$\alpha$") for text in row] for row in choices]
        parts += ["", "% Chosen on validation.", *_tabular(table, escaped)]
    parts += [f"% {one_line(line)}" for line in (*_footnotes(table), *(f"Warning: {w}" for w in table.warnings))]
    return "\n".join(parts) + "\n"


def to_csv(table: Table1) -> str:
    """One line per cell, fractions in full precision, empty where there is no number; a list is separated by spaces."""
    parameters = sorted({name for entry in table.entries.values() for name in entry.params})
    fields = [field.name for field in dataclasses.fields(Entry) if field.name != "params"]
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([*fields, *parameters])
    for entry in _entries(table):
        values = [getattr(entry, name) for name in fields] + [entry.params.get(name) for name in parameters]
        writer.writerow(" ".join(map(repr, v)) if isinstance(v, tuple) else v for v in values)
    return sink.getvalue()


def to_json(table: Table1) -> str:
    value: dict[str, Any] = {
        "methods": [{"name": method, "title": table.title(method)} for method in table.methods],
        "columns": [{"backbone": backbone, "num_tasks": num_tasks} for backbone, num_tasks in table.columns],
        "cells": [dataclasses.asdict(e) | {"rank": _rank(table, e)} for e in _entries(table)],
        "warnings": list(table.warnings),
    }
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


RENDERERS: dict[str, Callable[[Table1], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": to_csv,
    "json": to_json,
}
"""Renderers to text by the name of their format; `terminal` is apart, since it returns a rich renderable."""


def _entries(table: Table1) -> list[Entry]:
    return [table.entry(method, column) for method in table.methods for column in table.columns]


def _rank(table: Table1, entry: Entry) -> Rank | None:
    return table.ranks((entry.backbone, entry.num_tasks)).get(entry.method)


def _caption(published: bool) -> str:
    return f"{CAPTION} {PUBLISHED}" if published else CAPTION


def _number(table: Table1, entry: Entry, published: bool) -> tuple[str, str]:
    """The accuracy, which may be emphasised, and what follows it."""
    if entry.accuracy is None:
        head = "failed" if entry.status == "failed" else DASH
        note = f" ({table.notes[entry.error]})" if entry.error is not None else ""
        return head, note + _bracket(entry, published)
    tail = "" if entry.normalized_accuracy is None else f" ({percent(entry.normalized_accuracy)})"
    return percent(entry.accuracy), tail + _bracket(entry, published)


def _bracket(entry: Entry, published: bool) -> str:
    known = published and entry.published_accuracy is not None
    return f" [{percent(entry.published_accuracy)}]" if known and entry.published_accuracy is not None else ""


def _footnotes(table: Table1) -> list[str]:
    return [f"({number}) {one_line(reason)}" for reason, number in table.notes.items()]


def _choices(table: Table1) -> list[list[str]]:
    return [
        [
            f"{table.title(method)} ({', '.join(map(label, names))})",
            *(choice_text(table.entry(method, column), names) for column in table.columns),
        ]
        for method, names in table.chosen.items()
    ]


def label(name: str) -> str:
    """Of alpha or a parameter."""
    return "α" if name == "alpha" else name


def choice_text(entry: Entry, names: Sequence[str]) -> str:
    """The values that were chosen, in the order of `names`, which are those of `Table1.chosen`."""
    if entry.alpha is None:
        return DASH
    values = [entry.alpha if name == "alpha" else entry.params.get(name) for name in names]
    return ", ".join(value_text(value) for value in values)


def value_text(value: float | str | tuple[float, ...] | None) -> str:
    """Alpha or a parameter, in three digits."""
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):  # chosen by every task for itself
        low, high = f"{min(value):.3g}", f"{max(value):.3g}"
        return low if low == high else f"{low} to {high}"
    return f"{value:.3g}"


def _pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    escaped = [[_escape_markdown(text) for text in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _tabular(table: Table1, rows: Sequence[Sequence[str]]) -> list[str]:
    backbones = list(dict.fromkeys(backbone for backbone, _ in table.columns))
    top, rules, position = [""], [], 2
    for backbone in backbones:
        width = sum(name == backbone for name, _ in table.columns)
        top.append(rf"\multicolumn{{{width}}}{{c}}{{{_escape_latex(backbone)}}}")
        rules.append(rf"\cmidrule(lr){{{position}-{position + width - 1}}}")
        position += width
    return [
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(top).strip() + r" \\",
        " ".join(rules),
        " & ".join(["Method", *(f"{num_tasks} tasks" for _, num_tasks in table.columns)]) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def one_line(text: str) -> str:
    return " ".join(text.split())


def _escape_markdown(text: str) -> str:
    return one_line(text).replace("|", r"\|")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    DASH: "--",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
