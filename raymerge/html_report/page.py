"""What the page says, ready to be laid out: every number is text already, and nothing here is HTML."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raymerge.html_report import plain_tables
from raymerge.html_report.contents import Contents
from raymerge.html_report.figures import Figure, costs_figure, figures_by_column
from raymerge.html_report.plain_tables import Table
from raymerge.html_report.rows import OUTCOMES, Rows, column_label
from raymerge.html_report.table1 import Compared, ResultsTable, compared, comparisons, entries_of, verdict_counts
from raymerge.report import Column, Table1, is_reference, parameter_ranges, parameter_warnings


@dataclass(frozen=True)
class Page:
    title: str
    lead: tuple[str, ...]
    """Sentences of the introduction."""
    alerts: tuple[str, ...]
    """What a reader must know before the numbers."""
    facts: tuple[tuple[str, str], ...]
    table1: ResultsTable
    warnings: tuple[str, ...]
    compared: Compared | None
    columns: tuple[str, ...]
    column: int
    """The one that is shown first."""
    methods: tuple[str, ...]
    """Titles of the merging methods."""
    shown: tuple[str, ...]
    """Those of them that are drawn task by task at first."""
    figures: tuple[Figure, ...]
    """Of one column at a time."""
    costs: Table
    costs_figure: Figure | None
    remarks: tuple[str, ...]
    runs: Table
    failed_cells: Table
    failed_trials: Table
    provenance: tuple[tuple[str, str], ...]
    nodes: Table
    spec: str
    """As YAML."""
    rows: Rows

    @classmethod
    def of(cls, contents: Contents) -> "Page":
        table, rows, manifest = contents.table, Rows.of(contents), contents.manifest
        column = _first_column(table)
        methods = tuple(table.title(method) for method in table.methods if not is_reference(method))
        objective = _objective(contents)
        warnings = (*table.warnings, *parameter_warnings(table, manifest.get("spec", {})))
        return cls(
            title=str(manifest.get("sweep") or contents.location.rstrip("/").rpartition("/")[2]),
            lead=_lead(table),
            alerts=_alerts(contents, len(warnings)),
            facts=_facts(contents, objective),
            table1=ResultsTable.of(table),
            warnings=warnings,
            compared=compared(table),
            columns=tuple(map(column_label, table.columns)),
            column=column,
            methods=methods,
            shown=_first_methods(table, column, methods),
            figures=figures_by_column(rows, table, objective, parameter_ranges(manifest.get("spec", {}))),
            costs=plain_tables.costs(rows.costs),
            costs_figure=costs_figure(rows.costs) if rows.costs else None,
            remarks=table.remarks,
            runs=plain_tables.runs(manifest),
            failed_cells=plain_tables.failed_cells(table),
            failed_trials=plain_tables.failed_trials(contents),
            provenance=plain_tables.provenance(contents),
            nodes=plain_tables.nodes(manifest),
            spec=plain_tables.as_yaml(manifest.get("spec", {})),
            rows=rows,
        )


def _lead(table: Table1) -> tuple[str, ...]:
    sentences = []
    best: dict[str, list[Column]] = {}
    for column in table.columns:
        for method, rank in table.ranks(column).items():
            if rank == "best":
                best.setdefault(method, []).append(column)
    if best:
        texts = [
            f"{table.title(method)} {_where(columns, table.columns)}"
            for method, columns in sorted(best.items(), key=lambda item: -len(item[1]))
        ]
        sentences.append(f"Best on test: {'; '.join(texts)}.")
    if found := comparisons(table):
        sentences.append(f"Beside the published figures: {verdict_counts(found)}.")
    return tuple(sentences)


def _where(columns: Sequence[Column], every: Sequence[Column]) -> str:
    """`on 8, 14 tasks` where there is one backbone, else `on ViT-B-32 (8, 14 tasks), ViT-L-14`."""
    if len(columns) == len(every) > 1:
        return "in every column"
    sizes = {name: [n for backbone, n in columns if backbone == name] for name, _ in columns}
    texts = {name: f"{', '.join(map(str, found))} tasks" for name, found in sizes.items()}
    if len({name for name, _ in every}) == 1:
        return f"on {', '.join(texts.values())}"
    whole = {name for name in sizes if len(sizes[name]) == sum(backbone == name for backbone, _ in every)}
    return f"on {', '.join(name if name in whole else f'{name} ({text})' for name, text in texts.items())}"


def _alerts(contents: Contents, num_warnings: int) -> tuple[str, ...]:
    alerts = []
    if contents.verdict != "finished":
        alerts.append(f"This sweep has not finished ({contents.explanation}). The page shows what is there.")
    entries = entries_of(contents.table)
    for status, words in (("failed", "failed"), ("missing", "have no result")):
        if count := sum(entry.status == status for entry in entries):
            alerts.append(f"{count} of {len(entries)} cells {words}: see Failures.")
    if num_warnings:
        verb = "lies" if num_warnings == 1 else "lie"
        alerts.append(
            f"{num_warnings} chosen value{'s' * (num_warnings != 1)} {verb} at the end of the range that was searched: "
            "see the warnings below Table 1."
        )
    return tuple(alerts)


def _facts(contents: Contents, objective: str) -> tuple[tuple[str, str], ...]:
    table, trials = contents.table, contents.trials
    counts = Counter(trials["status"])
    parts = [f"{counts[status]:,} {outcome}" for status, outcome in OUTCOMES.items() if counts[status]]
    done = sum(entry.status == "finished" for entry in entries_of(table))
    chosen = "accuracy relative to the experts" if objective == "normalized_accuracy" else "accuracy"
    facts = [
        ("Cells", f"{done:,} of {len(entries_of(table)):,} with a result"),
        ("Trials", f"{len(trials):,}: {', '.join(parts)}" if len(trials) else "none"),
        ("Images", f"{int(trials['images'].sum()):,}"),
        ("Chosen by", f"{chosen}, on validation"),
    ]
    if suite := _suite(contents):
        facts.insert(0, ("Suite", suite))
    return tuple(facts)


def _suite(contents: Contents) -> str:
    spec = contents.manifest.get("spec", {})
    if not spec.get("suite"):
        return ""
    parts = [str(spec["suite"]), *([f"profile {spec['profile']}"] if spec.get("profile") else [])]
    if len(contents.trials) and (seeds := contents.trials["suite_seed"].dropna()).size:
        parts.append(f"seed {int(seeds.iloc[0])}")
    return ", ".join(parts)


def _objective(contents: Contents) -> str:
    found = contents.trials["objective"].dropna()
    return str(found.iloc[0]) if len(found) else "normalized_accuracy"


def _first_column(table: Table1) -> int:
    """The largest set of tasks among the columns with the most results."""

    def weight(number: int) -> tuple[int, int, int]:
        column = table.columns[number]
        done = sum(table.entry(method, column).accuracy is not None for method in table.methods)
        return done, column[1], -number

    return max(range(len(table.columns)), key=weight)


def _first_methods(table: Table1, column: int, merging: Sequence[str]) -> tuple[str, ...]:
    ranked = {table.title(method) for method in table.ranks(table.columns[column])}
    return tuple(title for title in merging if title in ranked) or tuple(merging[:2])
