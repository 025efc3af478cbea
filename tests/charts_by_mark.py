"""What a chart draws, read from its specification."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mark:
    """One mark of one layer, with the rows that it draws."""

    kind: str
    look: dict[str, Any]
    encoding: dict[str, Any]
    rows: list[dict[str, Any]]

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


def marks(chart: Any, kind: str | None = None) -> list[Mark]:
    """All marks, or those of a kind, in the order of drawing."""
    spec = chart.to_dict(validate=False)
    return [mark for mark in _marks(spec, spec.get("datasets", {}), {}, {}) if kind in (None, mark.kind)]


def encodings(chart: Any, channel: str) -> list[dict[str, Any]]:
    """What every mark says of a channel."""
    return [mark.encoding[channel] for mark in marks(chart) if channel in mark.encoding]


def legend_names(chart: Any) -> list[str]:
    """Of the first legend."""
    return next(e for e in encodings(chart, "color") if e.get("legend"))["scale"]["domain"]


def texts(chart: Any) -> list[str]:
    """Title and caption, a line each."""
    title = chart.to_dict(validate=False)["title"]
    return [title["text"], " ".join(title["subtitle"])]


def _marks(
    spec: dict[str, Any], datasets: dict[str, Any], data: dict[str, Any], encoding: dict[str, Any]
) -> Iterator[Mark]:
    data, encoding = spec.get("data", data), {**encoding, **spec.get("encoding", {})}
    inner = [spec["spec"]] if "spec" in spec else []
    for name in ("layer", "hconcat", "vconcat"):
        inner += spec.get(name, [])
    for part in inner:
        yield from _marks(part, datasets, data, encoding)
    if "mark" in spec:
        look = {"type": spec["mark"]} if isinstance(spec["mark"], str) else spec["mark"]
        rows = datasets[data["name"]] if "name" in data else data["values"]
        for transform in spec.get("transform", []):
            match transform:
                case {"filter": {"field": field, "equal": value}}:
                    rows = [row for row in rows if row[field] == value]
                case {"filter": "datum.is_best"}:
                    rows = [row for row in rows if row["is_best"]]
                case {"filter": str(text)}:
                    left, operator, right = text.split(" ", 2)
                    field, is_equal = left.removeprefix("datum."), operator == "==="
                    rows = [row for row in rows if (row[field] == right.strip("'")) is is_equal]
        yield Mark(look["type"], look, encoding, rows)
