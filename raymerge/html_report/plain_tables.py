"""Tables and lists of the page besides Table 1: costs, runs, failures, where the numbers come from."""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymerge import renderers
from raymerge.html_report.contents import Contents
from raymerge.html_report.rows import OUTCOMES, Row
from raymerge.provenance import RUNS
from raymerge.renderers import DASH
from raymerge.report import Table1, percent

MAX_FAILURES = 300
"""How many reasons are listed; the results have them all."""
MAX_ERROR_CHARACTERS = 2000


@dataclass(frozen=True)
class Table:
    """A plain table; a cell is text, or a number and the text that stands for it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    numbers: frozenset[int] = frozenset()
    """Columns of numbers."""
    total: tuple[Any, ...] | None = None


# --- costs and failures ----------------------------------------------------------------------------------------------


def costs(rows: Sequence[Row]) -> Table:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [_cost_line(method, [row for row in rows if row["method"] == method]) for method in methods]
    return Table(
        "What the trials of each method cost, over all columns and stages. Evaluator time is what evaluators spent on "
        "its images. A trial takes from its submission to its last score, and others run meanwhile. Busy is the share "
        "of their time that all evaluators worked while trials of the method ran.",
        (
            "Method",
            *(outcome.capitalize() for outcome in OUTCOMES.values()),
            "Images",
            "Evaluator time (s)",
            "Mean time of a trial (s)",
            "Evaluators busy (%)",
        ),
        tuple(lines),
        frozenset(range(1, 8)),
        total=_cost_line("All", rows) if rows else None,
    )


def _cost_line(title: str, rows: Sequence[Row]) -> tuple[Any, ...]:
    trials = sum(row["trials"] for row in rows)
    counts = [sum(row["trials"] for row in rows if row["outcome"] == outcome) for outcome in OUTCOMES.values()]
    known = [row for row in rows if row["occupancy"] is not None]
    busy = sum(row["occupancy"] * row["trials"] for row in known) / max(1, sum(row["trials"] for row in known))
    return (
        title,
        *((count, f"{count:,}") for count in counts),
        _whole(sum(row["images"] for row in rows)),
        _seconds(sum(row["evaluator_s"] for row in rows)),
        _seconds(sum(row["trial_s"] for row in rows) / trials, digits=2),
        (busy, percent(busy)) if known else (None, DASH),
    )


def runs(manifest: Mapping[str, Any]) -> Table:
    rows = []
    for run in manifest.get(RUNS, []):
        busy, present = run.get("busy_s"), run.get("present_s")
        share = min(1.0, busy / present) if busy is not None and present else None
        rows.append(
            (
                _time(run.get("started_at")),
                _time(run.get("ended_at")),
                str(run.get("outcome") or "unknown"),
                str(run.get("host") or DASH),
                _whole(run.get("evaluators")),
                _whole(run.get("images")),
                _seconds(busy),
                _seconds(present),
                (None, DASH) if share is None else (share, percent(share)),
            )
        )
    return Table(
        "The drivers that worked on this sweep. Busy and present are added up over evaluators; what is not known, as "
        f"of a driver that was killed, is {DASH}.",
        ("Started", "Ended", "Outcome", "Host", "Evaluators", "Images", "Busy (s)", "Present (s)", "Busy (%)"),
        tuple(rows),
        frozenset(range(4, 9)),
    )


def failed_cells(table: Table1) -> Table:
    rows = tuple(
        (table.title(entry.method), entry.backbone, entry.num_tasks, entry.status, shortened(entry.error or ""))
        for entry in (table.entry(method, column) for method in table.methods for column in table.columns)
        if entry.status != "finished"
    )
    return Table(
        "Cells without a result, and why.",
        ("Method", "Backbone", "Tasks", "Status", "Reason"),
        rows,
        frozenset({2}),
    )


def failed_trials(contents: Contents) -> Table:
    trials = contents.trials
    failed = trials[trials["status"] == "failed"].sort_values("finished_at")
    groups = failed.groupby(["method", "backbone", "num_tasks", "stage", "error"], sort=False, dropna=False)
    rows = tuple(
        (
            contents.table.title(str(method)),
            str(backbone),
            int(num_tasks),
            str(stage),
            _span(group["alpha"].min(), group["alpha"].max()),
            len(group),
            shortened(str(error)),
        )
        for (method, backbone, num_tasks, stage, error), group in itertools.islice(groups, MAX_FAILURES)
    )
    more = groups.ngroups - len(rows)
    return Table(
        "Failed trials, those of one cell and reason together."
        + (f" {more:,} more are in the results." if more else ""),
        ("Method", "Backbone", "Tasks", "Stage", "Alpha", "Trials", "Reason"),
        rows,
        frozenset({2, 4, 5}),
    )


def _span(low: float, high: float) -> tuple[float, str]:
    return float(low), renderers.value_text((float(low), float(high)))


def shortened(text: str) -> str:
    more = len(text) - MAX_ERROR_CHARACTERS
    return text if more <= 0 else f"{text[:MAX_ERROR_CHARACTERS]}… ({more:,} more characters)"


# --- where it comes from ---------------------------------------------------------------------------------------------


def provenance(contents: Contents) -> tuple[tuple[str, str], ...]:
    manifest, trials = contents.manifest, contents.trials
    facts = [("Results", contents.location), ("State", contents.explanation)]
    facts += [
        (title, _time(str(manifest[key])) if key.endswith("_at") else str(manifest[key]))
        for key, title in (
            ("spec_hash", "Hash of the sweep"),
            ("suite_fingerprint", "Fingerprint of weights, heads and images"),
            ("git_revision", "Revision of the code"),
            ("created_at", "First driver began"),
            ("opened_at", "Last driver began"),
        )
        if manifest.get(key)
    ]
    for name, title in (
        ("device", "Devices"),
        ("precision", "Precision"),
        ("denominators", "Accuracies of the experts"),
    ):
        if values := sorted(set(trials[name].dropna().astype(str)) - {""}):
            facts.append((title, ", ".join(values)))
    if hosts := manifest.get("hosts"):
        facts.append(("Hosts of drivers", ", ".join(map(str, hosts))))
    if choice := manifest.get("evaluation_choice"):
        facts.append(("What auto stands for", _flat(choice)))
    if versions := manifest.get("versions"):
        facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    return tuple(facts)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_flat(inner)}" for name, inner in value.items())
    return str(value)


def nodes(manifest: Mapping[str, Any]) -> Table:
    found = {str(node.get("id")): node for run in manifest.get(RUNS, []) for node in run.get("nodes") or []}
    rows = tuple(
        (
            str(node.get("host")),
            _whole(node.get("cpus")),
            _whole(node.get("gpus")),
            ", ".join(map(str, node.get("devices") or [])),
            _flat(node.get("versions") or {}) or "as the driver",
        )
        for node in found.values()
    )
    return Table("Nodes of all runs.", ("Host", "CPUs", "GPUs", "Devices", "Versions"), rows, frozenset({1, 2}))


def as_yaml(spec: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    if not spec:
        return ""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    sink = io.StringIO()
    yaml.dump(dict(spec), sink)
    return sink.getvalue()


# --- numbers and times -----------------------------------------------------------------------------------------------


def _whole(count: float | int | None) -> tuple[float | int | None, str]:
    return (None, DASH) if count is None else (count, f"{count:,.0f}")


def _seconds(seconds: float | int | None, digits: int = 1) -> tuple[float | int | None, str]:
    return (None, DASH) if seconds is None else (seconds, f"{seconds:,.{digits}f}")


def _time(iso: str | None) -> str:
    return iso.replace("T", " ").replace("+00:00", " UTC") if iso else DASH
