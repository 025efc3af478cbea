"""Fig. 8: how methods depend on alpha."""

import altair as alt

from raymerge.charts import INK, Chart, inline, marked_lines, titled
from raymerge.figures._curves import CELL, SEARCH, best, searched
from raymerge.figures._figure import Figure, in_order, method_title
from raymerge.figures._lines import num_tasks_title
from raymerge.figures._tables import SWEEP, Choice, Frame, Tables, counts

WIDTH, HEIGHT = 230, 180
ABLATED = ("spectrum-interpolation", "truncated-iso-c", "single-task-iso-c")
"""Methods that have a figure of their own."""


def draw(tables: Tables, choice: Choice) -> Chart:
    curves = tables.need("searches over alpha", SWEEP, "curves", task=None, **SEARCH)
    if choice.backbone is not None:
        curves = tables.of_backbone(curves, choice)
    shown = curves_of_alpha(tables.of_counts(curves, choice))
    if shown.empty:
        raise tables.lack("method with several alphas", SWEEP, "curves")
    about = ", ".join(dict.fromkeys(shown["backbone"]))
    caption = (
        f"{about}; mean over tasks, validation split; at every alpha the best of the other parameters. "
        "Ring: the best alpha."
    )
    return titled(alpha_chart(shown), FIGURE.title, caption, len(counts(shown)) * (WIDTH + 14) + 60)


def curves_of_alpha(curves: Frame) -> Frame:
    """Of every cell and alpha the best point, and whether it `is_best` of its cell; no cell with one alpha only."""
    points = searched(curves[~curves["method"].isin(ABLATED)])
    found = best(points, [*CELL, "alpha"])
    chosen = best(found, CELL)[[*CELL, "alpha"]].assign(is_best=True)
    found = found.merge(chosen, on=[*CELL, "alpha"], how="left")
    several = found.groupby(list(CELL))["alpha"].transform("nunique") > 1
    return found.assign(is_best=found["is_best"].notna())[several]


def alpha_chart(rows: Frame) -> Chart:
    """A row of panels for every backbone, a column for every number of tasks; rows of `curves_of_alpha`."""
    names = [method_title(method) for method in in_order(rows["method"])]
    shown = rows[["backbone", "alpha", "is_best"]].assign(
        name=[method_title(method) for method in rows["method"]],
        tasks=[num_tasks_title(int(number)) for number in rows["num_tasks"]],
        percent=100 * rows["score"],
    )
    base = alt.Chart(width=WIDTH, height=HEIGHT).encode(
        x=alt.X("alpha:Q", title="\u03b1"),
        y=alt.Y("percent:Q", title="Normalized accuracy (%)", scale=alt.Scale(zero=False)),
        tooltip=["name:N", "alpha:Q", "percent:Q"],
    )
    ring = base.mark_point(filled=False, size=120, strokeWidth=1.2, shape="circle", opacity=1, color=INK)
    panels = alt.layer(
        *marked_lines(base, names, "name", width=1.5, size=26, orient="bottom", columns=6),
        ring.transform_filter("datum.is_best"),
        data=inline(shown),
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
