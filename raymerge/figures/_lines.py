"""Lines with a marker at every point, told apart by colour, dash and marker."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from raymerge.charts import Chart, inline, marked_lines
from raymerge.figures._tables import Frame

COUNT_COLOURS = ("#440154", "#31688e", "#35b779", "#a5a40e")


def lines(
    rows: Frame,
    x: alt.X,
    y: alt.Y,
    names: Sequence[str],
    *,
    width: int | float,
    height: int | float,
    tooltip: Sequence[str],
    colours: Sequence[str] = (),
    **legend: Any,
) -> Chart:
    """A line for every `name` of the rows.

    Args:
        names: in the order of the legend.
        colours: of the names, in their order; otherwise those of methods.
        legend: properties of alt.Legend.
    """
    base = alt.Chart(width=width, height=height).encode(x=x, y=y, tooltip=list(tooltip))
    look = {"orient": "bottom", "columns": 3, **legend}
    return alt.layer(*marked_lines(base, names, "name", colours=colours, **look), data=inline(rows))


def zoomed(title: str, **scale: Any) -> dict[str, Any]:
    """Title and scale of an axis that need not begin at zero, with room around the points."""
    return {"title": title, "scale": alt.Scale(zero=False, nice=False, padding=12, **scale)}


def num_tasks_title(number: int) -> str:
    return f"{number} tasks"


def count_colours(num_names: int) -> list[str]:
    """Of numbers of tasks: darker is fewer, and none is a method's."""
    return [COUNT_COLOURS[position % len(COUNT_COLOURS)] for position in range(num_names)]
