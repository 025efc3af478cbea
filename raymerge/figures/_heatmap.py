"""A number for every pair of tasks."""

from collections.abc import Sequence

import altair as alt

from raymerge.charts import SEQUENTIAL, Chart, inline
from raymerge.figures._tables import Frame

SIDE = 300
MIN_CELL = 18
MAX_WRITTEN = 10
"""Tasks: with more, numbers do not fit into the cells."""


def side(num_tasks: int) -> int:
    return max(SIDE, MIN_CELL * num_tasks)


def pairs_chart(
    rows: Frame,
    value: str,
    tasks: Sequence[str],
    title: str,
    *,
    x_title: str | None = None,
    y_title: str | None = None,
) -> Chart:
    """Source tasks down, target tasks across. A task with itself would outshine all others: its cell is grey.

    Args:
        rows: source, target and the value, of these tasks.
        title: of the value.
    """
    itself = rows["source"] == rows["target"]
    low, high = (0.0, 1.0) if itself.all() else (float(rows[value][~itself].min()), float(rows[value][~itself].max()))
    size = side(len(tasks))
    scale = alt.Scale(scheme=SEQUENTIAL, domain=[low, high])
    legend = alt.Legend(title=title, orient="bottom", gradientLength=size, titleLimit=size, format=".2~f", tickCount=5)

    def axis(angle: int, heading: str | None) -> alt.Axis:
        look = {"labelFontSize": 11, "labelLimit": 130, "labelPadding": 4, "ticks": False, "domain": False}
        return alt.Axis(title=heading, labelAngle=angle, **look)

    base = alt.Chart(width=size, height=size).encode(
        x=alt.X("target:N", sort=list(tasks), axis=axis(-90, x_title)),
        y=alt.Y("source:N", sort=list(tasks), axis=axis(0, y_title)),
        tooltip=["source:N", "target:N", f"{value}:Q"],
    )
    pairs, selves = inline(rows[~itself]), inline(rows[itself])
    layers = [
        base.mark_rect().encode(color=alt.Color(f"{value}:Q", scale=scale, legend=legend)).properties(data=pairs),
        base.mark_rect(color="#e4e4e4").properties(data=selves),
    ]
    if len(tasks) <= MAX_WRITTEN:
        numbers = base.mark_text(fontSize=10).encode(text=alt.Text(f"{value}:Q", format=".2f"))
        is_bright = f"datum['{value}'] > {(low + high) / 2}"
        on_colour = alt.condition(is_bright, alt.value("#000000"), alt.value("#ffffff"))
        layers += [numbers.encode(color=on_colour).properties(data=pairs), numbers.properties(data=selves)]
    return alt.layer(*layers)
