"""Table 1 from a finished or interrupted sweep: which number stands where, which is best, what deserves a warning.

How it looks is for `renderers`. Everything here is a fraction 0..1; percent begins there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from raymerge.folder import Location
from raymerge.methods import declared_methods
from raymerge.methods._method import FixedAlpha, Interval, Method

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
            if merges(method) and entry.accuracy is not None:
                printed[method] = tenths(entry.accuracy)
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
        found = {}
        for method in self.methods:
            entries = [e for column in self.columns if (e := self.entry(method, column)).alpha is not None]
            if entries and not is_reference(method):
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
    def from_output(cls, output_dir: Location) -> "Table1":
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


def is_reference(method: str) -> bool:
    """Whether accuracies are compared with it: then it made no choice worth reporting."""
    declared = declared_methods()
    return method in declared and declared[method].is_reference


def merges(method: str) -> bool:
    """Whether it gives one model for all tasks: only then it can be the best."""
    declared = declared_methods()
    return method not in declared or declared[method].kind == "merging"


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal, as in the paper."""
    return f"{100 * fraction:.1f}"


def tenths(fraction: float) -> int:
    """A fraction in tenths of a percent, as `percent` prints it."""
    return round(float(percent(fraction)) * 10)


SearchRange = tuple[float, float, float]
"""Smallest and largest value, and the distance of neighbours; 0: there is no grid."""


def alpha_ranges(spec: Mapping[str, Any]) -> dict[str, SearchRange]:
    """Where a resolved sweep looks for alpha, by method; methods whose alpha is not searched are absent."""
    ranges = {}
    for method, settings in _declared_methods_of(spec):
        if isinstance(method.alpha, FixedAlpha):
            continue
        if found := _search_range(method.alpha.search, settings.get("alpha")):
            ranges[method.name] = found
    return ranges


def parameter_ranges(spec: Mapping[str, Any]) -> dict[tuple[str, str], SearchRange]:
    """Where a resolved sweep looks for parameters, by method and parameter, as `alpha_ranges`."""
    ranges = {}
    for method, settings in _declared_methods_of(spec):
        for parameter in method.searched_parameters:
            if parameter.search and (found := _search_range(parameter.search, settings.get(parameter.name))):
                ranges[method.name, parameter.name] = found
    return ranges


def range_end(value: float, searched: Sequence[float]) -> Literal["lower", "upper"] | None:
    """At which end of a `SearchRange` a value lies, if at any: what is best there may lie beyond."""
    low, high, step = searched
    tolerance = step / 2 or 1e-9 * (high - low)
    if abs(value - low) < tolerance:
        return "lower"
    return "upper" if abs(value - high) < tolerance else None


def _declared_methods_of(spec: Mapping[str, Any]) -> Iterator[tuple[Method, Mapping[str, Any]]]:
    declared = declared_methods()
    for name, settings in _methods_of(spec).items():
        if name in declared:
            yield declared[name], settings or {}


def _search_range(declared: Interval, setting: Any) -> SearchRange | None:
    """The range that a setting of a sweep file stands for; None: one value, or two, which are all ends."""
    if isinstance(setting, (int, float)):
        return None
    if setting is None:
        low, high, step = declared.low, declared.high, declared.step or 0.0
    elif isinstance(setting, Mapping) and "num" in setting:
        start, high, num = setting.get("start") or 0.0, setting["stop"], setting["num"]
        step = (high - start) / num if start == 0 else (high - start) / max(num - 1, 1)
        low = step if start == 0 else start
    elif isinstance(setting, Mapping):
        low, high, step = setting["low"], setting["high"], setting.get("step") or 0.0
    elif len(setting) > 2:
        low, high, step = min(setting), max(setting), 0.0
    else:
        return None
    if step:
        high = low + math.floor((high - low) / step + 1e-9) * step  # the last point of the grid
    return (low, high, step) if low < high else None


def parameter_warnings(table: Table1, spec: Mapping[str, Any]) -> list[str]:
    """One for every chosen parameter that lies at an end of where the sweep looked for it."""
    ranges = parameter_ranges(spec)
    return [
        _edge_warning(entry, name, value, side, ranges[entry.method, name])
        for entry in table.entries.values()
        for name, value in entry.params.items()
        if (entry.method, name) in ranges
        and isinstance(value, float)
        and (side := range_end(value, ranges[entry.method, name]))
    ]


def _edge_warnings(entries: Sequence[Entry], ranges: Mapping[str, Sequence[float]]) -> list[str]:
    return [
        _edge_warning(entry, "alpha", entry.alpha, side, ranges[entry.method])
        for entry in entries
        if entry.alpha is not None and entry.method in ranges and (side := range_end(entry.alpha, ranges[entry.method]))
    ]


def _edge_warning(entry: Entry, name: str, value: float, side: str, searched: Sequence[float]) -> str:
    return (
        f"{entry.method} on {entry.backbone}, {entry.num_tasks} tasks: {name} {value:.4g} is the {side} end of its "
        f"search range ({searched[0]:.4g} to {searched[1]:.4g}); widen methods.{entry.method}.{name}."
    )


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
