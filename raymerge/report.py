"""Table 1 from a finished or interrupted sweep: which number stands where, which is best, what deserves a warning.

How it looks is for `renderers`. Everything here is a fraction 0..1; percent begins there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymerge.methods import declared_methods
from raymerge.methods._method import FixedAlpha, Method

if TYPE_CHECKING:
    import pandas

NOT_RUN = "not run"

Rank = Literal["best", "second"]
Column = tuple[str, int]
"""Backbone and number of tasks."""


@dataclass(frozen=True)
class Entry:
    """One cell of the table. Averages over tasks, as fractions; None where there is no number."""

    method: str
    backbone: str
    num_tasks: int
    status: Literal["finished", "failed", "missing"]
    error: str | None
    alpha: float | None
    params: Mapping[str, float | str | tuple[float, ...]]
    val_accuracy: float | None
    val_normalized_accuracy: float | None
    accuracy: float | None
    normalized_accuracy: float | None
    published_accuracy: float | None
    published_normalized_accuracy: float | None


@dataclass(frozen=True)
class Table1:
    """Methods down, backbones and numbers of tasks across."""

    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    entries: Mapping[tuple[str, str, int], Entry]
    """By method, backbone, number of tasks; a combination may be absent."""
    warnings: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """What else is known of the sweep, one line each."""

    def entry(self, method: str, column: Column) -> Entry:
        found = self.entries.get((method, *column))
        nothing = dict.fromkeys(
            ["alpha", *(f"{kind}{name}" for kind in _KINDS for name in ("accuracy", "normalized_accuracy"))]
        )
        return found or Entry(method, *column, status="missing", error=NOT_RUN, params={}, **nothing)

    def title(self, method: str) -> str:
        declared = declared_methods()
        return declared[method].title if method in declared else method

    def ranks(self, column: Column) -> dict[str, Rank]:
        """Best and second best accuracy of a column among merging methods.

        Compared as printed, in tenths of a percent: numbers a reader cannot tell apart share a rank.
        """
        printed: dict[str, int] = {}
        for method in self.methods:
            entry = self.entry(method, column)
            if _merges(method) and entry.accuracy is not None:
                printed[method] = round(float(percent(entry.accuracy)) * 10)
        places = sorted(set(printed.values()), reverse=True)[:2]
        names: tuple[Rank, ...] = ("best", "second")
        return {method: names[places.index(value)] for method, value in printed.items() if value in places}

    @property
    def notes(self) -> dict[str, int]:
        """Number of every reason for which a cell has no accuracy, in reading order from 1."""
        numbers: dict[str, int] = {}
        for method in self.methods:
            for column in self.columns:
                if (reason := self.entry(method, column).error) is not None:
                    numbers.setdefault(reason, len(numbers) + 1)
        return numbers

    @property
    def chosen(self) -> dict[str, tuple[str, ...]]:
        """Merging methods with something chosen or set, and the names of it: alpha first, then parameters."""
        found, declared = {}, declared_methods()
        for method in self.methods:
            entries = [e for column in self.columns if (e := self.entry(method, column)).alpha is not None]
            if entries and not (method in declared and declared[method].is_reference):
                found[method] = ("alpha", *dict.fromkeys(name for e in entries for name in sorted(e.params)))
        return found

    @classmethod
    def from_summary(
        cls,
        frame: "pandas.DataFrame",
        methods: Sequence[str] | None = None,
        alpha_ranges: Mapping[str, Sequence[float]] | None = None,
    ) -> "Table1":
        """The table of a summary as `results.load` returns it.

        Args:
            methods: which rows, in which order; None: all, in the order they are declared.
            alpha_ranges: smallest and largest alpha that was searched, and the distance of neighbours (0: none), by
                method, as `alpha_ranges` reads them from a sweep.
        """
        entries = {(e.method, e.backbone, e.num_tasks): e for e in map(_entry, frame.to_dict("records"))}
        present = list(dict.fromkeys(method for method, _, _ in entries))
        if methods is None:
            declared = [name for name in declared_methods() if name in present]
            methods = [*declared, *(name for name in present if name not in declared)]
        backbones = dict.fromkeys(backbone for _, backbone, _ in entries)
        sizes = {name: sorted({n for _, backbone, n in entries if backbone == name}) for name in backbones}
        return cls(
            methods=tuple(methods),
            columns=tuple((backbone, n) for backbone in backbones for n in sizes[backbone]),
            entries=entries,
            warnings=tuple(_edge_warnings([e for e in entries.values() if e.method in methods], alpha_ranges or {})),
        )

    @classmethod
    def from_output(cls, output_dir: str | Path) -> "Table1":
        """The table of an output folder. Without a summary, as after a kill, of the trials that are there.

        Raises:
            UsageError: there are no results.
        """
        from raymerge import output, results
        from raymerge.provenance import RUNS, occupancy_line

        manifest = output.read_manifest(output_dir)
        spec = manifest["spec"] if manifest else {}
        frame = results.current_summary(output_dir)
        table = cls.from_summary(frame, methods=_order(spec, frame), alpha_ranges=alpha_ranges(spec))
        line = occupancy_line(manifest.get(RUNS, [])) if manifest else None
        return replace(table, remarks=(line,)) if line else table


def _merges(method: str) -> bool:
    """Whether it gives one model for all tasks: only then it can be the best."""
    declared = declared_methods()
    return method not in declared or declared[method].kind == "merging"


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal, as in the paper."""
    return f"{100 * fraction:.1f}"


def alpha_ranges(spec: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Smallest and largest alpha and step (0: none) of every method of a resolved sweep whose alpha is searched."""
    ranges = {}
    declared = declared_methods()
    for name, settings in _methods_of(spec).items():
        if name in declared and (found := _alpha_range(declared[name], (settings or {}).get("alpha"))):
            ranges[name] = found
    return ranges


def _alpha_range(method: Method, setting: Any) -> tuple[float, float, float] | None:
    if isinstance(method.alpha, FixedAlpha) or isinstance(setting, (int, float)):
        return None
    if setting is None:
        search = method.alpha.search
        low, high, step = search.low, search.high, search.step or 0.0
    elif isinstance(setting, Mapping) and "num" in setting:
        start, high, num = setting.get("start") or 0.0, setting["stop"], setting["num"]
        step = (high - start) / num if start == 0 else (high - start) / max(num - 1, 1)
        low = step if start == 0 else start
    elif isinstance(setting, Mapping):
        low, high, step = setting["low"], setting["high"], setting.get("step") or 0.0
    elif len(setting) > 2:
        low, high, step = min(setting), max(setting), 0.0
    else:  # two values are all ends
        return None
    if step:
        high = low + math.floor((high - low) / step + 1e-9) * step  # the last point of the grid
    return (low, high, step) if low < high else None


def _edge_warnings(entries: Sequence[Entry], ranges: Mapping[str, Sequence[float]]) -> list[str]:
    warnings = []
    for entry in entries:
        if entry.alpha is None or entry.method not in ranges:
            continue
        low, high, step = ranges[entry.method]
        tolerance = step / 2 or 1e-9 * (high - low)
        for edge, side in ((low, "lower"), (high, "upper")):
            if abs(entry.alpha - edge) < tolerance:
                warnings.append(
                    f"{entry.method} on {entry.backbone}, {entry.num_tasks} tasks: alpha {entry.alpha:.4g} is the "
                    f"{side} end of its search range ({low:.4g} to {high:.4g}); widen methods.{entry.method}.alpha."
                )
    return warnings


_KINDS = ("", "val_", "published_")


def _entry(row: Mapping[Any, Any]) -> Entry:
    parameters = {p.name for method in declared_methods().values() for p in method.parameters}
    values = {name: _plain(row.get(name)) for name in parameters}
    return Entry(
        method=row["method"],
        backbone=row["backbone"],
        num_tasks=int(row["num_tasks"]),
        status=row["status"],
        error=_plain(row["error"]),
        alpha=_plain(row["alpha"]),
        params={name: value for name, value in sorted(values.items()) if value is not None},
        val_accuracy=_plain(row["val_accuracy"]),
        val_normalized_accuracy=_plain(row["val_normalized_accuracy"]),
        accuracy=_plain(row["test_accuracy"]),
        normalized_accuracy=_plain(row["test_normalized_accuracy"]),
        published_accuracy=_plain(row["published_accuracy"]),
        published_normalized_accuracy=_plain(row["published_normalized_accuracy"]),
    )


def _plain(value: Any) -> Any:
    """A value of a pandas row: lists of one are their value, null in any of its forms is None."""
    if value is None or isinstance(value, str):
        return value
    if hasattr(value, "__len__"):
        values = tuple(float(v) for v in value)
        return values[0] if len(values) == 1 else values
    number = float(value)
    return None if math.isnan(number) else number


def _order(spec: Mapping[str, Any], frame: "pandas.DataFrame") -> list[str] | None:
    """The order of the sweep file, as far as the summary has rows for it."""
    named = list(_methods_of(spec))
    present = list(dict.fromkeys(frame["method"]))
    return [*(n for n in named if n in present), *(n for n in present if n not in named)] if named else None


def _methods_of(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    methods = spec.get("methods") or {}
    return methods if isinstance(methods, Mapping) else dict.fromkeys(methods)
