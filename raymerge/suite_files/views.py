"""What the commands of `raymerge suite` print: tables for people, and rows for JSON."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from raymerge.suite_files.convert import Conversion
from raymerge.suite_files.fetch import Fetched
from raymerge.suite_files.verify import Finding
from raymerge.suites import fusionbench
from raymerge.suites.published import PublishedSuite

MARKS = {"present": "ok", "missing": "missing", "broken": "broken"}


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Group:
    """A table below a line of text, which may be wider."""
    grid = Table()
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return Group(Text(title, overflow="fold"), grid)


def size_of(num_bytes: int) -> str:
    """A size for people.

    >>> size_of(0), size_of(2_345), size_of(453_794_820), size_of(27_404_963_920)
    ('0 MB', '0 MB', '454 MB', '27.4 GB')
    """
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"


def fetched_row(entry: Fetched) -> dict[str, Any]:
    wanted = entry.wanted
    about = {"backbone": wanted.backbone, "task": wanted.task, "kind": wanted.kind}
    return {**about, "status": entry.status, "file": str(entry.path), "bytes": entry.num_bytes}


def fetched_table(found: PublishedSuite, done: Sequence[Fetched]) -> Group:
    rows = []
    for backbone in dict.fromkeys(entry.wanted.backbone for entry in done):
        own = [entry for entry in done if entry.wanted.backbone == backbone]
        counts = Counter(entry.status for entry in own)
        fetched = sum(entry.num_bytes for entry in own if entry.status == "fetched")
        cells = [str(counts[status]) for status in ("fetched", "there already", "not offered")]
        rows.append([backbone, cells[0], size_of(fetched), *cells[1:]])
    columns = ("Backbone", "fetched", "size", "there already", "not offered")
    return table(f"Files of {found.name} ({found.profile}) in {found.root}", columns, rows, columns[1:])


def conversion_row(entry: Conversion) -> dict[str, Any]:
    return {
        "backbone": entry.backbone,
        "task": entry.task,
        "kind": entry.kind,
        "status": entry.status,
        "made_from": entry.made_from,
        "file": str(entry.path),
        "bytes": entry.num_bytes,
        "num_tensors": entry.num_tensors,
        "num_completed": entry.num_completed,
        "num_dropped": entry.num_dropped,
        "problem": entry.problem or None,
    }


def conversion_table(done: Sequence[Conversion], folder: Path) -> Group:
    rows = []
    for backbone in dict.fromkeys(entry.backbone for entry in done):
        for kind in ("zero-shot", "expert", "head"):
            own = [entry for entry in done if (entry.backbone, entry.kind) == (backbone, kind)]
            for status in dict.fromkeys(entry.status for entry in own):
                some = [entry for entry in own if entry.status == status]
                numbers = _range(entry.num_tensors for entry in some), size_of(sum(entry.num_bytes for entry in some))
                made_from = ", ".join(sorted({entry.made_from for entry in some if entry.made_from}))
                rows.append([backbone, kind, str(len(some)), status, *numbers, made_from, _changes(some)])
    columns = ("Backbone", "Kind", "files", "", "tensors", "size", "From", "Changes")
    return table(f"Converted files in {folder}", columns, rows, ("files", "tensors", "size"))


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return "–".join(str(value) for value in dict.fromkeys((found[0], found[-1])))


def _changes(entries: Sequence[Conversion]) -> str:
    counts = {
        "from zero-shot": [entry.num_completed for entry in entries],
        "dropped": [entry.num_dropped for entry in entries],
    }
    return ", ".join(f"{_range(values)} {what}" for what, values in counts.items() if any(values))


def finding_row(finding: Finding) -> dict[str, Any]:
    fetched = finding.fetched
    return {
        "backbone": finding.backbone,
        "task": finding.task,
        "kind": finding.kind,
        "status": finding.status,
        "file": str(finding.path),
        "origin": finding.origin,
        "bytes": fetched and fetched.num_bytes,
        "sha256": fetched and fetched.sha256,
        "problem": finding.problem or None,
        "note": finding.note or None,
    }


def findings_table(backbone: str, findings: Sequence[Finding]) -> Group:
    by_item = {(finding.kind, finding.task): finding for finding in findings}
    rows = [["(zero-shot)", _cell(by_item[("zero-shot", None)]), ""]]
    for task in dict.fromkeys(finding.task for finding in findings if finding.task):
        rows.append([task, _cell(by_item[("expert", task)]), _cell(by_item[("head", task)])])
    return table(backbone, ("Task", "Checkpoint", "Head"), rows)


def _cell(finding: Finding) -> str:
    told = finding.status == "present" and finding.origin != "source"
    return MARKS[finding.status] + (f", {finding.origin}" if told else "")


def head_cells(row: Mapping[str, Any]) -> list[str]:
    return [row["task"], "built" if row["is_new"] else "there", row["file"]]


def remarks(findings: Sequence[Finding], extra: Sequence[Path], quick: bool) -> Iterable[str]:
    for finding in findings:
        if finding.note:
            yield f"note: {finding.note}"
    if extra:
        shown = ", ".join(path.name for path in extra[:3]) + (", ..." if len(extra) > 3 else "")
        yield f"{len(extra)} other files lie there, which are not read: {shown}"
    counts = Counter(finding.status for finding in findings)
    depth = "names, shapes and sizes" if quick else "names, shapes, values and hashes"
    told = ", ".join(f"{counts[status]} {status}" for status in MARKS if counts[status])
    yield f"{len(findings)} files checked ({depth}): {told}"


def notes_on(found: PublishedSuite, chosen: Mapping[str, Sequence[str]]) -> list[str]:
    """What a user should know of some tasks, by backbone, of a suite."""
    is_letters = found.option == fusionbench.NAME and any("EMNIST" in names for names in chosen.values())
    return [f"fusionbench: {fusionbench.NOTE}"] if is_letters else []


def after_fetching(
    found: PublishedSuite, done: Sequence[Fetched], chosen: Mapping[str, Sequence[str]]
) -> Iterable[str]:
    """What to know and to do next."""
    if any(entry.is_unchecked for entry in done):
        yield "The hub could not be asked: what is there is what was fetched, but may have been replaced since."
    yield from (f"note: {note}." for note in notes_on(found, chosen))
    absent = any(entry.status == "not offered" and entry.wanted.kind == "zero-shot" for entry in done)
    if absent:
        yield "The collection has no zero-shot model there; the next command makes it of open_clip's weights."
    command = "convert" if absent or found.needs_conversion else "verify"
    yield f"next: raymerge suite {command} --suite {found.argument}"
