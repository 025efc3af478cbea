"""Lines with a marker at every point, told apart by colour, dash and marker."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from raymerge.charts import Chart, inline, told_apart

if TYPE_CHECKING:
    import pandas

COUNT_COLOURS = ("#440154", "#31688e", "#35b779", "#a5a40e")


def lines(
    rows: "pandas.DataFrame",
    x: alt.X,
    y: alt.Y,
    names: Sequence[str],
    *,
    width: float,
    height: float,
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
    shape = {"orient": "bottom", "columns": 3, "symbolSize": 90, **legend}
    return (
        alt.Chart(inline(rows), width=width, height=height)
        .mark_line(point=alt.OverlayMarkDef(size=45, filled=True, opacity=1))
        .encode(x=x, y=y, **told_apart(names, "name", colours=colours, **shape), tooltip=list(tooltip))
    )


def zoomed(title: str, **scale: Any) -> dict[str, Any]:
    """Title and scale of an axis that need not begin at zero, with room around the points."""
    return {"title": title, "scale": alt.Scale(zero=False, nice=False, padding=12, **scale)}


def num_tasks_title(number: int) -> str:
    return f"{number} tasks"


def count_colours(num_names: int) -> list[str]:
    """Of numbers of tasks: darker is fewer, and none is a method's."""
    return [COUNT_COLOURS[position % len(COUNT_COLOURS)] for position in range(num_names)]
