"""One chart grammar for figures and reports: the look of every chart, and a chart as a file.

Methods keep their colour, dash and marker in every chart. The colours are Okabe and Ito's, which people with any
colour vision tell apart; dashes and markers do the same in grey.
"""

import html
import io
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt

from raymerge.errors import OutputError, UsageError
from raymerge.methods import declared_methods
from raymerge.whole_file import whole_file

if TYPE_CHECKING:
    import pandas

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
"""Okabe and Ito 2008, the yellow replaced by one that shows on white."""
DASHES = ((1, 0), (6, 2), (2, 2), (8, 2, 2, 2))
MARKERS = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke", "triangle-left")
SEQUENTIAL = "viridis"
"""Of heat maps: even in lightness, so it survives grey print."""
PNG_SCALE = 2
"""Pixels per point."""
POINTS_PER_CHARACTER = 5.6
"""Of captions and labels, on average."""

INK = "#222222"
"""Of text."""

Chart = Any
"""alt.Chart, alt.LayerChart, ...: whatever altair makes of them."""

_CONFIG: Mapping[str, Any] = {
    "background": "white",
    "font": "Helvetica, Arial, Liberation Sans, sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "gridColor": "#e4e4e4"}
    | {"labelFlush": False}
    | dict.fromkeys(("labelColor", "titleColor"), INK)
    | dict.fromkeys(("domainColor", "tickColor"), "#888888"),
    "legend": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "symbolStrokeWidth": 2,
        "symbolSize": 80,
        "labelLimit": 240,
    },
    "header": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"}
    | dict.fromkeys(("labelColor", "titleColor"), INK),
    "title": {"fontSize": 14, "anchor": "start", "fontWeight": "bold", "color": INK}
    | {"subtitleFontSize": 12, "subtitleColor": "#555555", "subtitlePadding": 4, "offset": 10},
    "line": {"strokeWidth": 2},
    "point": {"size": 60, "filled": True},
}


def themed(chart: Chart) -> Chart:
    """The chart in the look of all charts; call it once, on the outermost."""
    return chart.configure(**_CONFIG)


def named_scale(names: Sequence[str], channel: str) -> alt.Scale:
    """The scale that gives names, such as titles of methods, their `color`, `strokeDash` or `shape`.

    A declared method has the same one whichever others are drawn beside it; other names get those of their position.
    """
    values: Sequence[Any] = {"color": COLOURS, "strokeDash": DASHES, "shape": MARKERS}[channel]
    titles = [method.title for method in declared_methods().values()]
    positions = [titles.index(name) if name in titles else position for position, name in enumerate(names)]
    if channel == "strokeDash":  # so that two methods of one colour differ in it
        positions = [position // len(COLOURS) + position % len(DASHES) for position in positions]
    return alt.Scale(domain=list(names), range=[values[position % len(values)] for position in positions])


def marked_lines(
    base: alt.Chart,
    names: Sequence[str],
    field: str,
    *,
    colours: Sequence[str] = (),
    width: int | float = 2,
    size: int | float = 45,
    **legend: Any,
) -> list[Chart]:
    """The layers of a line for every name, with a marker at every point; the legend shows the markers.

    Args:
        base: with x and y.
        names: in the order of the legend.
        field: of the data, that holds the name.
        colours: instead of those of `named_scale`, one for every name.
        width, size: of lines and markers.
        legend: properties of alt.Legend.
    """
    colour = alt.Scale(domain=list(names), range=list(colours)) if colours else named_scale(names, "color")
    shown = alt.Legend(**{"title": None, "symbolSize": 90, **legend})
    named = {"shorthand": f"{field}:N", "sort": list(names), "legend": shown}
    markers = base.mark_point(size=size, filled=True, opacity=1).encode(
        color=alt.Color(**named, scale=colour), shape=alt.Shape(**named, scale=named_scale(names, "shape"))
    )
    # a layer each: dashes as a channel would get into the legend, as outlines of its markers
    looks = zip(names, colour.to_dict()["range"], named_scale(names, "strokeDash").to_dict()["range"], strict=True)
    lines = [
        base.mark_line(color=colour, strokeDash=dash, strokeWidth=width).transform_filter(
            alt.FieldEqualPredicate(field=field, equal=name)
        )
        for name, colour, dash in looks
    ]
    return [*lines, markers]


def inline(*frames: "pandas.DataFrame") -> alt.InlineData:
    """The rows of frames as data of a chart, in six digits, which no screen or paper exceeds; NaN is null."""
    data = alt.InlineData(values=[])
    data["values"] = [row for frame in frames for row in _rows(frame)]  # not by the constructor, which checks each row
    return data


def _rows(frame: "pandas.DataFrame") -> list[dict[str, Any]]:
    columns = [[_plain(value) for value in frame[name]] for name in frame.columns]
    return [dict(zip(frame.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if isinstance(value, (str, bool, int)) else None


def titled(chart: Chart, title: str, caption: str, width: int | float) -> Chart:
    """The chart under a title, and a caption as wide as the chart: what is shown, by which rule, of which split.

    Args:
        width: of the chart, in points.
    """
    lines = textwrap.wrap(caption, max(20, int(width / POINTS_PER_CHARACTER)), break_on_hyphens=False)
    return chart.properties(title=alt.TitleParams(title, subtitle=lines))


def to_html(chart: Chart, title: str) -> str:
    """A page of its own, with all it needs inside: it loads nothing."""
    page = themed(chart).to_html(inline=True, embed_options={"actions": False})
    return page.replace(
        "<head>",
        f'<head>\n  <meta name="viewport" content="width=device-width">\n  <title>{html.escape(title)}</title>',
        1,
    )


def _image(form: str, **options: Any) -> Callable[[Chart, str], bytes]:
    def convert(chart: Chart, title: str) -> bytes:
        sink = io.BytesIO()
        themed(chart).save(sink, format=form, **options)
        return sink.getvalue()

    return convert


def _svg(chart: Chart, title: str) -> bytes:
    sink = io.StringIO()
    themed(chart).save(sink, format="svg")
    return sink.getvalue().encode()


def _json(chart: Chart, title: str) -> bytes:
    return (json.dumps(themed(chart).to_dict(), indent=1) + "\n").encode()


FORMATS: Mapping[str, Callable[[Chart, str], bytes]] = {
    ".html": lambda chart, title: to_html(chart, title).encode(),
    ".svg": _svg,
    ".png": _image("png", scale_factor=PNG_SCALE),
    ".pdf": _image("pdf"),
    ".json": _json,
}
"""How a chart becomes a file, by its ending; .json is the Vega-Lite specification."""


def check_chart_path(path: Path) -> None:
    """Whether a chart can be saved there, before there is one.

    Raises:
        UsageError: the ending stands for no format.
        OutputError: the folder is missing, or the path is one.
    """
    if path.suffix.lower() not in FORMATS:
        found = f"ends in '{path.suffix}'" if path.suffix else "has no ending"
        raise UsageError(f"{path}: {found}, expected one of {', '.join(FORMATS)}.")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected the name of a file.")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; make it, or name another one.")


def save_chart(chart: Chart, path: Path, title: str) -> None:
    """Write a chart in the format that the ending stands for; the file is whole or absent.

    Args:
        title: of the page, for .html.
    Raises:
        UsageError, OutputError: as `check_chart_path`; the disk is full, or not ours.
    """
    check_chart_path(path)
    write_content(path, FORMATS[path.suffix.lower()](chart, title), "-o")


def write_content(path: Path, content: bytes, option: str) -> None:
    """Write a file, whole or not at all.

    Args:
        option: of the command line that names the place.
    Raises:
        OutputError: the disk is full, or not ours.
    """
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); name another place with {option}.") from None
