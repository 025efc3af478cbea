"""NAI of every task against something that may explain it."""

import json
from dataclasses import dataclass
from typing import Any

import altair as alt

from raymerge.charts import Chart, inline, named_scale
from raymerge.figures._figure import in_order, method_title
from raymerge.figures._labels import FONT_SIZE, places
from raymerge.figures._tables import Frame, Series

NAI = "Normalized accuracy improvement (NAI)"
PANEL = 330
MARGIN = 0.09
"""Around the points, of the span that they take."""


@dataclass(frozen=True)
class _Axis:
    """From numbers to pixels and back."""

    field: str
    title: str
    low: float
    high: float
    pixels: int | float

    @classmethod
    def around(cls, values: Series, title: str, pixels: int | float) -> "_Axis":
        low, high = float(values.min()), float(values.max())
        margin = MARGIN * (high - low) or 0.5
        return cls(str(values.name), title, low - margin, high + margin, pixels)

    def to_pixels(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low) * self.pixels

    def to_value(self, pixels: int | float) -> float:
        return self.low + pixels / self.pixels * (self.high - self.low)

    @property
    def scale(self) -> alt.Scale:
        return alt.Scale(domain=[self.low, self.high], nice=False)


def nai_scatter(
    rows: Frame,
    correlations: Frame,
    quantity: str,
    title: str,
    width: int | float = PANEL,
    *,
    height: int | float,
) -> Chart:
    """A point per method and task, with the name of the task; the legend says how NAI and the quantity correlate.

    Args:
        rows: method, task, nai and the quantity, both defined.
        correlations: method, num_points, pearson.
        title: of the quantity.
    """
    names = [method_title(method) for method in in_order(rows["method"])]
    shown = rows.assign(name=[method_title(method) for method in rows["method"]])
    across = _Axis.around(rows[quantity], title, width)
    up = _Axis.around(rows["nai"], NAI, height)
    notes = {method_title(r["method"]): pearson_note(r["pearson"], r["num_points"]) for r in _records(correlations)}
    told = f"datum.label + ({json.dumps(notes)}[datum.label] || '')"
    legend = alt.Legend(title=None, orient="bottom", columns=1, labelLimit=width, labelExpr=told)
    points = (
        alt.Chart(inline(shown), width=width, height=height)
        .mark_point(filled=True, size=60, opacity=1)
        .encode(
            x=alt.X(quantity, type="quantitative", title=title, scale=across.scale, axis=alt.Axis(tickCount=6)),
            y=alt.Y("nai", type="quantitative", title=NAI, scale=up.scale),
            color=alt.Color("name:N", scale=named_scale(names, "color"), sort=names, legend=legend),
            shape=alt.Shape("name:N", scale=named_scale(names, "shape"), sort=names, legend=legend),
            tooltip=["task:N", "name:N", "nai:Q", f"{quantity}:Q", "accuracy:Q", "expert_accuracy:Q"],
        )
    )
    return alt.layer(*_labels(rows, across, up), points)


def pearson_note(pearson: float, num_points: int) -> str:
    """`: Pearson r = 0.88 (n = 8)`; nothing is said of an r that is not defined."""
    return "" if pearson != pearson else f": Pearson r = {pearson:.2f} (n = {num_points})".replace("-", "\u2212")


def _labels(rows: Frame, across: _Axis, up: _Axis) -> list[Chart]:
    """Names of tasks, and lines to those that had to be written at a distance."""
    xs, ys = [float(v) for v in rows[across.field]], [float(v) for v in rows[up.field]]
    points = [(across.to_pixels(x), up.to_pixels(y)) for x, y in zip(xs, ys, strict=True)]
    found = places(points, list(rows["task"]), across.pixels, up.pixels)
    labels = rows[["task", across.field, up.field]].assign(
        label_x=[across.to_value(place.x) for place in found],
        label_y=[up.to_value(place.y) for place in found],
        align=[place.align for place in found],
        line_x=[across.to_value(place.line_x) for place in found],
        line_y=[up.to_value(place.line_y) for place in found],
    )
    is_far = [place.is_far for place in found]

    def at(x: str, y: str) -> dict[str, Any]:
        return {
            "x": alt.X(x, type="quantitative", title=across.title, scale=across.scale),
            "y": alt.Y(y, type="quantitative", title=up.title, scale=up.scale),
        }

    lines = alt.Chart(inline(labels[is_far])).mark_rule(color="#a0a0a0", strokeWidth=0.7)
    texts = alt.Chart(inline(labels)).mark_text(fontSize=FONT_SIZE, color="#444444", align=alt.expr("datum.align"))
    return [
        lines.encode(**at(across.field, up.field), x2="line_x", y2="line_y"),
        texts.encode(**at("label_x", "label_y"), text="task:N"),
    ]


def _records(frame: Frame) -> list[dict[Any, Any]]:
    return frame.to_dict("records")
