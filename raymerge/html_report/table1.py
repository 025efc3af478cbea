"""Table 1 as the page shows it, and what was chosen, and our averages beside the published ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raymerge import renderers
from raymerge.html_report import readings
from raymerge.html_report.plain_tables import Table, shortened
from raymerge.renderers import DASH
from raymerge.report import Entry, Rank, Table1, is_reference, percent
from raymerge.verdict import CLOSE_TENTHS, REPRODUCED_TENTHS, VERDICTS, Comparison, Verdict


@dataclass(frozen=True)
class Number:
    """A cell of Table 1."""

    text: str
    relative: str | None = None
    rank: Rank | None = None
    note: int | None = None
    published: str | None = None
    difference: str | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Line:
    """A row of Table 1, or of what was chosen."""

    title: str
    cells: tuple[Number | str, ...]
    is_reference: bool = False
    names: str = ""
    """What the values of the cells are called."""


@dataclass(frozen=True)
class ResultsTable:
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    """Backbones, and the numbers of tasks below each."""
    starts: frozenset[int]
    """Positions of the columns where a backbone begins."""
    lines: tuple[Line, ...]
    chosen: tuple[Line, ...]
    notes: tuple[str, ...]
    """Why numbers are missing."""
    texts: tuple[tuple[str, str], ...]
    """The table to copy, by the name of its format."""

    @classmethod
    def of(cls, table: Table1) -> "ResultsTable":
        names = [backbone for backbone, _ in table.columns]
        sizes = {name: tuple(f"{n} tasks" for backbone, n in table.columns if backbone == name) for name in names}
        return cls(
            groups=tuple(sizes.items()),
            starts=frozenset(names.index(name) for name in sizes),
            lines=tuple(_line(table, method) for method in table.methods),
            chosen=tuple(_chosen_line(table, method) for method in table.chosen),
            notes=tuple(f"({number}) {renderers.one_line(shortened(why))}" for why, number in table.notes.items()),
            texts=(("LaTeX", renderers.latex(table)), ("Markdown", renderers.markdown(table))),
        )


@dataclass(frozen=True)
class Compared:
    """Our averages beside the published ones."""

    summary: str
    tolerance: str
    table: Table


def entries_of(table: Table1) -> list[Entry]:
    return [table.entry(method, column) for method in table.methods for column in table.columns]


def _line(table: Table1, method: str) -> Line:
    cells = tuple(_number(table, table.entry(method, column)) for column in table.columns)
    return Line(table.title(method), cells, is_reference(method))


def _number(table: Table1, entry: Entry) -> Number:
    published = None if entry.published_accuracy is None else percent(entry.published_accuracy)
    if entry.accuracy is None:
        note = None if entry.error is None else table.notes[entry.error]
        return Number("failed" if entry.status == "failed" else DASH, note=note, published=published)
    comparison = _comparison(entry)
    return Number(
        percent(entry.accuracy),
        relative=None if entry.normalized_accuracy is None else percent(entry.normalized_accuracy),
        rank=table.ranks((entry.backbone, entry.num_tasks)).get(entry.method),
        difference=None if comparison is None else readings.signed(comparison.difference_tenths / 10),
        verdict=None if comparison is None else comparison.verdict,
        published=published,
    )


def _chosen_line(table: Table1, method: str) -> Line:
    names = table.chosen[method]
    cells = tuple(renderers.choice_text(table.entry(method, column), names) for column in table.columns)
    return Line(table.title(method), cells, names=", ".join(map(renderers.label, names)))


def _comparison(entry: Entry) -> Comparison | None:
    if entry.accuracy is None or entry.published_accuracy is None:
        return None
    return Comparison(entry.accuracy, entry.published_accuracy)


def comparisons(table: Table1) -> list[tuple[Entry, Comparison]]:
    return [(entry, found) for entry in entries_of(table) if (found := _comparison(entry))]


def verdict_counts(found: Sequence[tuple[Entry, Comparison]]) -> str:
    counts = Counter(comparison.verdict for _, comparison in found)
    texts = [f"{counts[verdict]} {'differ' if verdict == 'differs' else verdict}" for verdict in VERDICTS]
    return f"{', '.join(texts)}, of {len(found)} averages"


def compared(table: Table1) -> Compared | None:
    found = comparisons(table)
    if not found:
        return None
    limits = REPRODUCED_TENTHS / 10, CLOSE_TENTHS / 10
    rows = tuple(
        (
            table.title(entry.method),
            entry.backbone,
            entry.num_tasks,
            (entry.accuracy, percent(comparison.accuracy)),
            (entry.published_accuracy, percent(comparison.published)),
            (comparison.difference_tenths, readings.signed(comparison.difference_tenths / 10)),
            comparison.verdict,
        )
        for entry, comparison in sorted(found, key=lambda pair: -abs(pair[1].difference_tenths))
    )
    return Compared(
        summary=f"{verdict_counts(found)}.",
        tolerance=f"Reproduced: within {limits[0]:g} percentage points of the published average, both as printed. "
        f"Close: within {limits[1]:g}. Differs: beyond. The paper finds common-space fractions of 0.5 to 0.9 within "
        "half a point of each other. A whole point lies between two of its own figures for one model, Task Arithmetic "
        "on ViT-B-16 and 8 tasks (75.4 in Table 1, 76.4 in Fig. 3a), as another test split of one dataset would "
        "explain. Published: Table 1 of arXiv:2502.04959.",
        table=Table(
            "Test accuracy in percent, averaged over tasks, and the published average; the largest differences first.",
            ("Method", "Backbone", "Tasks", "Measured", "Published", "Difference", "Verdict"),
            rows,
            frozenset({2, 3, 4, 5}),
        ),
    )
