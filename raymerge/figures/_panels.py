"""Several panels as one figure."""

import altair as alt

from raymerge.charts import INK, Chart, titled

GAP = 36


def panel(chart: Chart, title: str) -> Chart:
    """A part of a figure under its own line, such as "(a) ..."; a mark rather than a title, so that lines align."""
    heading = alt.Chart(alt.InlineData(values=[{"text": title}])).mark_text(
        align="left", baseline="bottom", fontSize=13, color=INK
    )
    return alt.layer(chart, heading.encode(x=alt.value(0), y=alt.value(-10), text="text:N"))


def beside(*panels: Chart, title: str, caption: str, width: int | float, shares_legend: bool = False) -> Chart:
    """Panels from left to right.

    Args:
        width: of the caption.
        shares_legend: whether one legend serves all panels.
    """
    if len(panels) == 1:
        return titled(panels[0], title, caption, width)
    how = "shared" if shares_legend else "independent"
    row = alt.hconcat(*panels, spacing=GAP).resolve_scale(color=how, shape=how, strokeDash=how)
    return titled(row, title, caption, width)
