"""The charts of the page as Vega-Lite specifications without data: the page has the rows once, and hands them out.

The page sets parameters of a chart: `column`, the position of a column of Table 1, and `shown`, the titles of the
merging methods to draw; and the height of one that says in `usermeta` what that depends on. Merging methods look as in
every chart of raymerge. What they are measured against is black and grey.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal

import altair as alt

from raymerge.charts import Chart, named_scale, themed
from raymerge.html_report.rows import EXPERTS, OUTCOMES, ZERO_SHOT
from raymerge.renderers import label
from raymerge.report import SearchRange

INK, GREY = "#222222", "#6b6b6b"
HEIGHT = 340
"""Pixels; charts are as wide as the page lets them be."""

ROW_HEIGHTS = {"task": 7, "method": 11}
"""Pixels that a task takes, and every method drawn for it."""

_DASHES = ([3, 2], [1, 0])
"""Of the zero-shot model, and of the experts."""


def objective_title(objective: str) -> str:
    words = "relative to the experts " if objective == "normalized_accuracy" else ""
    return f"Validation accuracy {words}(%)"


def _specification(draw: Callable[..., Chart]) -> Callable[..., dict[str, Any]]:
    """What the page embeds of a chart. The page itself says what is to be said to a screen reader."""

    @wraps(draw)
    def specification(*args: Any) -> dict[str, Any]:
        spec = themed(draw(*args)).to_dict()
        del spec["$schema"]
        spec["config"]["aria"] = False
        spec["config"]["legend"]["layout"] = {"bottom": {"direction": "vertical", "anchor": "start"}}
        return spec

    return specification


def _of_column(rows: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(rows)).transform_filter("datum.column == column")


def _column() -> alt.Parameter:
    return alt.param(name="column", value=0)


def _shown(methods: Sequence[str]) -> alt.Parameter:
    return alt.param(name="shown", value=list(methods))


def _method(methods: Sequence[str], kind: Literal["color", "shape"], **legend: Any) -> dict[str, Any]:
    """The encoding by which a method is told from others. One legend shows colours and shapes of all of them."""
    channel = {"color": alt.Color, "shape": alt.Shape}[kind]
    shown = _legend(symbolStrokeWidth=0, symbolOpacity=1, **legend)
    return {kind: channel("method:N", scale=named_scale(methods, kind), legend=shown)}


def _dashes(methods: Sequence[str]) -> alt.Parameter:
    """A parameter that has the dash of every method: a scale would come with a legend of symbols drawn in dashes."""
    scale = named_scale(methods, "strokeDash").to_dict()
    return alt.param(name="dashes", value=dict(zip(scale["domain"], map(list, scale["range"]), strict=True)))


_DASHED = {"expr": "dashes[datum.method]"}


def _legend(**options: Any) -> alt.Legend:
    return alt.Legend(title=None, orient="bottom", **options)


def _number(name: str, title: str, shape: str = ".1f") -> alt.Tooltip:
    return alt.Tooltip(f"{name}:Q", title=title, format=shape)


def _text(name: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{name}:N", title=title)


_TASK_TOOLTIP = [
    _text("task", "Task"),
    _text("method", "Method"),
    _number("accuracy", "Test accuracy (%)"),
    _number("relative", "Relative to the expert (%)"),
]


_MERGED = "datum.kind == 'merged' && indexof(shown, datum.method) >= 0"


@_specification
def bars(methods: Sequence[str], highest: int) -> Chart:
    """Horizontal, so that names of tasks and any number of methods have room."""
    chart = _of_column("tasks")
    task = {"field": "task", "type": "nominal", "title": None, "sort": alt.EncodingSortField("position", op="min")}
    length = alt.X("accuracy:Q", title="Test accuracy (%)", scale=alt.Scale(domain=[0, highest], nice=False))
    shown = {"values": {"expr": "shown"}}
    merged = chart.transform_filter(_MERGED).encode(
        y=alt.Y(**task, axis=alt.Axis(grid=False, ticks=False, domain=False)),
        x=length,
        yOffset=alt.YOffset("method:N", sort=list(methods)),
        tooltip=_TASK_TOOLTIP,
        **_method(methods, "color", **shown),
    )
    bars = merged.mark_bar(height={"band": 0.62})
    ends = merged.mark_point(size=50, opacity=1, stroke=INK, strokeWidth=0.8).encode(
        **_method(methods, "shape", **shown)
    )
    names = [ZERO_SHOT, EXPERTS]
    look = {
        "stroke": alt.Stroke("method:N", scale=alt.Scale(domain=names, range=[GREY, INK]), legend=_legend()),
        "strokeDash": alt.StrokeDash("method:N", scale=alt.Scale(domain=names, range=_DASHES), legend=_legend()),
    }
    references = (
        chart.transform_filter("datum.kind == 'reference'")
        .mark_rule(strokeWidth=2)
        .encode(
            y=alt.Y(**task, bandPosition=0.02),
            y2=alt.Y2("task", bandPosition=0.98),
            x=length,
            tooltip=_TASK_TOOLTIP[:3],
            **look,
        )
    )
    return (
        alt.layer(bars, references, ends)
        .properties(width="container", height=HEIGHT, usermeta={"rows": ROW_HEIGHTS})
        .add_params(_column(), _shown(methods))
    )


_AROUND = "2 * PI * datum.position / datum.count"
"""Where a task stands, clockwise from the top."""
HALF_WIDTH, HALF_HEIGHT = 1.75, 1.2
"""Of the radar chart, in radii; beyond the circle are the names of tasks."""


def _at(radius: str) -> dict[str, str]:
    return {"x": f"{radius} * sin({_AROUND})", "y": f"{radius} * cos({_AROUND})"}


def _placed(**others: Any) -> dict[str, Any]:
    """Encodings of a mark at x and y, in radii from the middle."""
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-HALF_WIDTH, HALF_WIDTH], nice=False))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[-HALF_HEIGHT, HALF_HEIGHT], nice=False))
    return {"x": x, "y": y, **others}


@_specification
def radar(methods: Sequence[str], highest: int) -> Chart:
    chart = _of_column("tasks")
    lines = chart.transform_calculate(**_at(f"datum.accuracy / {highest}"))

    def polygon(which: str, **look: Any) -> alt.Chart:
        return (
            lines.transform_filter(which)
            .mark_line(interpolate="linear-closed", **look)
            .encode(**_placed(order="position:Q", detail="method:N"))
        )

    references = [
        polygon(f"datum.method == '{name}'", stroke=colour, strokeDash=dash, strokeWidth=1.6)
        for name, colour, dash in zip((ZERO_SHOT, EXPERTS), (GREY, INK), _DASHES, strict=True)
    ]
    shown = {"values": {"expr": "shown"}}
    color = _method(methods, "color", **shown)
    merged = polygon(_MERGED, strokeWidth=1.8, strokeDash=_DASHED).encode(**color)
    corners = (
        lines.transform_filter(_MERGED)
        .mark_point(size=34, opacity=1)
        .encode(**_placed(tooltip=_TASK_TOOLTIP, **color, **_method(methods, "shape", **shown)))
    )
    return (
        alt.layer(*_radar_grid(chart, highest), *references, merged, corners)
        .properties(width="container", height=HEIGHT, usermeta={"aspect": HALF_HEIGHT / HALF_WIDTH})
        .add_params(_column(), _shown(methods), _dashes(methods))
    )


def _radar_grid(chart: alt.Chart, highest: int) -> list[alt.Chart]:
    """Spokes, rings at quarters of `highest`, two of them labelled, and the names of tasks."""
    light = "#dcdcdc"
    spokes = chart.transform_aggregate(position="min(position)", count="min(count)", groupby=["task"])
    lines = spokes.transform_calculate(**_at("1")).mark_rule(color=light)
    rings = [
        spokes.transform_calculate(**_at(str(share)))
        .mark_line(color=light, strokeWidth=1, interpolate="linear-closed")
        .encode(**_placed(order="position:Q"))
        for share in (0.25, 0.5, 0.75, 1)
    ]
    labelled = [{"x": 0, "y": share, "text": f"{share * highest:.3g} %"} for share in (0.5, 1)]
    marks = alt.Chart(alt.InlineData(labelled)).mark_text(fontSize=10, color=GREY, align="left", dx=3, dy=6)
    side = f"sin({_AROUND})"
    names = spokes.transform_calculate(**_at("1.07")).mark_text(
        fontSize=11,
        color=INK,
        align={"expr": f"abs({side}) < 0.15 ? 'center' : {side} > 0 ? 'left' : 'right'"},
        baseline={"expr": f"abs({side}) < 0.15 ? cos({_AROUND}) > 0 ? 'bottom' : 'top' : 'middle'"},
    )
    return [
        lines.encode(**_placed(x2=alt.datum(0), y2=alt.datum(0))),
        *rings,
        marks.encode(**_placed(text="text:N")),
        names.encode(**_placed(text="task:N")),
    ]


def _trial_tooltip(objective: str) -> list[alt.Tooltip]:
    return [
        _text("method", "Method"),
        _number("alpha", "Alpha", ".4~g"),
        _text("parameters", "Parameters"),
        _number("value", objective_title(objective), ".2f"),
        _number("accuracy", "Validation accuracy (%)", ".2f"),
        _number("number", "Trial", "d"),
    ]


def _curves(chart: alt.Chart, methods: Sequence[str], x: alt.X, y: alt.Y, tooltip: list[alt.Tooltip]) -> list[Chart]:
    """Lines with markers and a ring around what is chosen; rows that are not `on_line` are dots."""
    color, shape = _method(methods, "color"), _method(methods, "shape")
    on_line = chart.transform_filter("datum.on_line !== false")
    line = on_line.mark_line(strokeDash=_DASHED).encode(x=x, y=y, **color)
    markers = on_line.mark_point(size=50, opacity=1).encode(x=x, y=y, tooltip=tooltip, **color, **shape)
    others = chart.transform_filter("datum.on_line === false").mark_point(size=22, opacity=0.4)
    chosen = chart.transform_filter("datum.chosen")
    ring = chosen.mark_point(size=250, filled=False, stroke=INK, strokeWidth=1.8, opacity=1)
    end = chosen.transform_filter("datum.end !== null").mark_text(color=INK, fontSize=11, fontWeight="bold", dy=-17)
    return [
        others.encode(x=x, y=y, tooltip=tooltip, **color, **shape),
        line,
        markers,
        ring.encode(x=x, y=y, tooltip=tooltip),
        end.encode(x=x, y=y, text=alt.value("end of range")),
    ]


def _objective(name: str, objective: str, padding: int = 0) -> alt.Y:
    return alt.Y(f"{name}:Q", title=objective_title(objective), scale=alt.Scale(zero=False, padding=padding))


@_specification
def alphas(methods: Sequence[str], objective: str) -> Chart:
    x = alt.X("alpha:Q", title="Alpha", scale=alt.Scale(zero=True), axis=alt.Axis(grid=False, tickCount=10))
    layers = _curves(_of_column("trials"), methods, x, _objective("value", objective), _trial_tooltip(objective))
    return alt.layer(*layers).properties(width="container", height=HEIGHT).add_params(_column(), _dashes(methods))


@_specification
def parameter(name: str, methods: Sequence[str], objective: str, searched: SearchRange) -> Chart:
    scale = alt.Scale(domain=list(searched[:2]), zero=False, nice=False, padding=26)
    x = alt.X("setting:Q", title=label(name), scale=scale, axis=alt.Axis(grid=False, tickCount=10, format=".3~g"))
    y = _objective("value", objective, padding=24)
    tooltip = [
        _text("method", "Method"),
        _number("setting", label(name), ".4~g"),
        _number("value", objective_title(objective), ".2f"),
        _number("alpha", "Alpha of the best trial", ".4~g"),
        _number("trials", "Trials", "d"),
    ]
    chart = _of_column("parameters").transform_filter(f"datum.parameter === '{name}'")
    alphas = chart.transform_calculate(text="'α ' + format(datum.alpha, '.3~g')").mark_text(
        color=GREY, fontSize=11, dy=17
    )
    layers = [*_curves(chart, methods, x, y, tooltip), alphas.encode(x=x, y=y, text="text:N")]
    return alt.layer(*layers).properties(width="container", height=HEIGHT - 60).add_params(_column(), _dashes(methods))


@_specification
def history(methods: Sequence[str], objective: str) -> Chart:
    whole = "datum.value == floor(datum.value) ? datum.label : ''"  # of two trials there is none in between
    axis = alt.Axis(grid=False, tickMinStep=1, tickCount=12, format="d", labelExpr=whole)
    x = alt.X("number:Q", title="Trial", scale=alt.Scale(zero=False, nice=False, padding=12), axis=axis)
    color = _method(methods, "color")
    chart = _of_column("trials")
    line = chart.mark_line(interpolate="step-after", strokeDash=_DASHED).encode(
        x=x, y=_objective("best", objective), **color
    )
    markers = chart.mark_point(size=34, opacity=0.75).encode(
        x=x,
        y=_objective("value", objective),
        tooltip=_trial_tooltip(objective),
        **color,
        **_method(methods, "shape"),
    )
    return alt.layer(markers, line).properties(width="container", height=HEIGHT).add_params(_column(), _dashes(methods))


@_specification
def costs(methods: Sequence[str]) -> Chart:
    outcomes = list(OUTCOMES.values())
    return (
        alt.Chart(alt.NamedData("costs"))
        .transform_calculate(place=f"indexof({outcomes}, datum.outcome)")
        .mark_bar(stroke=INK, strokeWidth=0.8)
        .encode(
            y=alt.Y("method:N", title=None, sort=list(methods), axis=alt.Axis(ticks=False, domain=False)),
            x=alt.X("sum(images):Q", title="Images", axis=alt.Axis(format=",d", tickCount=5)),
            color=alt.Color(
                "outcome:N",
                scale=alt.Scale(domain=outcomes, range=["#4a7fb0", "#ffffff", INK]),
                legend=_legend(symbolType="square"),
            ),
            order="place:Q",
            tooltip=[
                _text("method", "Method"),
                _text("outcome", "Trials that"),
                _number("trials", "Trials", "d"),
                _number("images", "Images", ",d"),
                _number("evaluator_s", "Evaluator time (s)", ",.1f"),
            ],
        )
        .properties(width="container", height=24 * len(methods))
    )
