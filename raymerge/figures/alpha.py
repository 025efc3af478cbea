"""Fig. 8: how methods depend on alpha."""

from typing import TYPE_CHECKING

import altair as alt

from raymerge.charts import Chart, inline, titled, told_apart
from raymerge.figures._curves import PARAMETERS, best_alpha, searched
from raymerge.figures._figure import SWEEP, Choice, Figure, Tables, counts, in_order, method_title
from raymerge.figures._lines import num_tasks_title

if TYPE_CHECKING:
    import pandas

WIDTH, HEIGHT = 230, 180
ABLATED = ("spectrum-interpolation", "truncated-iso-c", "single-task-iso-c")
"""Methods that have a figure of their own."""


def draw(tables: Tables, choice: Choice) -> Chart:
    curves = tables.need("searches over alpha", SWEEP, "curves", split="val", stage="search", task=None)
    if choice.backbone is not None:
        curves = tables.of_backbone(curves, choice)
    curves = tables.of_counts(curves, choice)
    shown = curves_of_alpha(curves)
    caption = (
        "Mean over tasks, validation split; parameters other than alpha as validation chose. Ring: the best alpha."
    )
    columns = len(counts(shown))
    return titled(alpha_chart(shown), FIGURE.title, caption, columns * WIDTH + 80)


def curves_of_alpha(curves: "pandas.DataFrame") -> "pandas.DataFrame":
    """Of every cell the searched points with the parameters of its best one, which `is_best`; no cell of one alpha."""
    points = searched(curves[~curves["method"].isin(ABLATED)])
    cell = ["backbone", "num_tasks", "method"]
    best = best_alpha(points, cell)
    kept = points.merge(best[[*cell, *PARAMETERS]], on=[*cell, *PARAMETERS])  # pandas takes two nulls for equal
    kept = kept.merge(best[[*cell, "alpha"]].rename(columns={"alpha": "best"}), on=cell)
    several = kept.groupby(cell)["alpha"].transform("nunique") > 1
    return kept.assign(is_best=kept["alpha"] == kept["best"])[several]


def alpha_chart(rows: "pandas.DataFrame") -> Chart:
    """A row of panels for every backbone, a column for every number of tasks; rows of `curves_of_alpha`."""
    methods = in_order(rows["method"])
    names = [method_title(method) for method in methods]
    shown = rows[["backbone", "num_tasks", "alpha", "is_best"]].assign(
        name=[method_title(method) for method in rows["method"]],
        tasks=[num_tasks_title(int(number)) for number in rows["num_tasks"]],
        percent=100 * rows["score"],
    )
    channels = told_apart(names, "name", orient="bottom", columns=6, symbolSize=90)
    base = alt.Chart(width=WIDTH, height=HEIGHT).encode(
        x=alt.X("alpha:Q", title="\u03b1"),
        y=alt.Y("percent:Q", title="Normalized accuracy (%)", scale=alt.Scale(zero=False)),
        tooltip=["name:N", "alpha:Q", "percent:Q"],
    )
    marker = {"color": channels["color"], "shape": channels["shape"]}
    ring = base.mark_point(filled=False, size=130, strokeWidth=1.6, shape="circle", opacity=1)
    panels = alt.layer(
        base.mark_line(strokeWidth=1.5).encode(color=channels["color"], strokeDash=channels["strokeDash"]),
        base.mark_point(filled=True, size=26, opacity=1).encode(**marker),
        ring.encode(color=channels["color"]).transform_filter("datum.is_best"),
        data=inline(shown.drop(columns="num_tasks")),
    )
    column = alt.Column("tasks:N", sort=[num_tasks_title(number) for number in counts(rows)], title=None)
    backbones = list(dict.fromkeys(rows["backbone"]))
    if len(backbones) == 1:
        return panels.facet(column=column, spacing=14)
    return panels.facet(row=alt.Row("backbone:N", sort=backbones, title=None), column=column, spacing=14)


FIGURE = Figure(
    name="alpha",
    paper="Fig. 8",
    title="Sensitivity to the scaling coefficient",
    description="Validation accuracy of every method over alpha, the chosen alpha marked.",
    tables=("curves",),
    options=("backbone", "num_tasks"),
    draw=draw,
)
