"""Fig. 5b, c: alignment and accuracy as more tasks are merged."""

import altair as alt

from raymerge.charts import Chart
from raymerge.figures._figure import Figure, in_order, method_title, nearest_fraction
from raymerge.figures._lines import lines, zoomed
from raymerge.figures._panels import beside, panel
from raymerge.figures._tables import ANALYSIS, RULES, SWEEP, Choice, Frame, Tables, counts

WIDTH, HEIGHT = 300, 230
METHODS = ("task-arithmetic", "iso-c", "iso-cts")


def draw(tables: Tables, choice: Choice) -> Chart:
    alignments = tables.need(
        f"alignments by the rule of the {RULES[choice.rule]}",
        ANALYSIS,
        "alignments",
        kind="task-merged",
        target=METHODS,
        rank_rule=choice.rule,
        layer=None,
    )
    alignments = tables.of_backbone(alignments, choice)
    backbone = alignments["backbone"].iloc[0]
    tested = tables.need(
        f"test accuracy of Task Arithmetic, Iso-C or Iso-CTS on {backbone}",
        SWEEP,
        "curves",
        backbone=backbone,
        method=METHODS,
        stage="test",
        task=None,
        is_chosen=True,
    )
    shown, fraction = with_one_fraction(alignments)
    note = "" if fraction is None else f" Iso-CTS with common-space fraction {fraction:g}."
    return beside(
        panel(alignment_chart(shown), "(a) Subspace alignment"),
        panel(accuracy_chart(tested), "(b) Accuracy"),
        title="More tasks",
        caption=f"{backbone}. (a) Mean over tasks and layers, ranks by the rule of the {RULES[choice.rule]}.{note} "
        "(b) Mean over tasks, test split, at the point that validation chose.",
        width=2 * WIDTH + 140,
        shares_legend=True,
    )


def with_one_fraction(rows: Frame) -> tuple[Frame, float | None]:
    """Rows of `alignments` with the common-space fraction of Iso-CTS that is the method's own, and which that is."""
    is_cts = rows["target"] == "iso-cts"
    if not is_cts.any():
        return rows, None
    fraction = nearest_fraction(rows[is_cts])
    return rows[~is_cts | (rows["common_space_fraction"] == fraction)], fraction


def alignment_chart(rows: Frame) -> Chart:
    """SAR over the number of tasks: rows of `alignments`."""
    means = rows.groupby(["target", "num_tasks"], sort=False)["sar"].mean().reset_index()
    return _over_counts(means.rename(columns={"target": "method"}), "sar", "SAR, mean over tasks and layers")


def accuracy_chart(rows: Frame) -> Chart:
    """Accuracy in percent over the number of tasks: averages of `curves`; of several sweeps the first."""
    first = rows.drop_duplicates(["method", "num_tasks"])
    return _over_counts(first.assign(accuracy=100 * first["accuracy"]), "accuracy", "Test accuracy (%)")


def _over_counts(rows: Frame, value: str, title: str) -> Chart:
    return lines(
        rows.assign(name=[method_title(method) for method in rows["method"]]),
        alt.X("num_tasks:Q", axis=alt.Axis(values=counts(rows), format="d"), **zoomed("Number of tasks")),
        alt.Y(f"{value}:Q", **zoomed(title)),
        [method_title(method) for method in in_order(rows["method"])],
        width=WIDTH,
        height=HEIGHT,
        tooltip=["name:N", "num_tasks:Q", f"{value}:Q"],
    )


FIGURE = Figure(
    name="task-counts",
    paper="Fig. 5b, c",
    title="More tasks",
    description="Subspace alignment and test accuracy of Task Arithmetic, Iso-C and Iso-CTS over the number of tasks.",
    tables=("alignments", "curves"),
    options=("backbone", "rank_rule"),
    draw=draw,
)
