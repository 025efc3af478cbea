"""Fig. 9: what flattening the spectrum does to one task alone."""

import altair as alt

from raymerge.charts import Chart, inline, titled
from raymerge.figures._curves import SEARCH, best, of_tasks, searched
from raymerge.figures._figure import Figure
from raymerge.figures._tables import ABLATIONS, Choice, Frame, Tables, counts

WIDTH, HEIGHT = 104, 84
COLUMNS = (5, 6, 7, 4, 3)
"""Of panels; the first that leaves the fewest empty places."""
METHOD = "single-task-iso-c"
AVERAGE = "Average"
FLAT, EXPERT = "Iso-C of the task alone", "Expert"
COLOURS = {FLAT: "#0072B2", EXPERT: "#444444"}


def draw(tables: Tables, choice: Choice) -> Chart:
    curves = tables.need(
        "Iso-C of single tasks", ABLATIONS, "curves", method=METHOD, defined=["normalized_accuracy"], **SEARCH
    )
    curves = tables.of_backbone(curves, choice)
    # every task stands for itself, so the largest set has all of them
    number = choice.num_tasks or max(counts(curves))
    curves = tables.of_count(curves, Choice(num_tasks=number))
    averages = searched(curves)
    shown = with_experts(averages, of_tasks(curves, averages))
    alpha = best(averages, ["method"])["alpha"].iloc[0]
    (at_best,) = shown[(shown["task"] == AVERAGE) & (shown["alpha"] == alpha)].to_dict("records")
    loss = 100 * (at_best["expert_accuracy"] - at_best["accuracy"])
    caption = (
        f"{curves['backbone'].iloc[0]}, {number} tasks, validation split. The average at its best alpha, "
        f"{alpha:g}, is {abs(loss):.1f} points {'below' if loss >= 0 else 'above'} that of the experts."
    )
    columns = columns_for(len(shown["task"].unique()))
    return titled(single_task_chart(shown), FIGURE.title, caption, columns * (WIDTH + 14) + 60)


def columns_for(num_panels: int) -> int:
    return min(COLUMNS, key=lambda columns: -num_panels % columns)


def with_experts(averages: Frame, tasks: Frame) -> Frame:
    """The rows with the accuracy of the task's expert on the same split; an average has the average of the experts.

    Args:
        averages, tasks: rows of `curves`, all with normalized accuracy, which is accuracy / that of the expert.
    """
    import pandas

    tasks = tasks.assign(expert_accuracy=tasks["accuracy"] / tasks["normalized_accuracy"])
    experts = tasks.groupby("task")["expert_accuracy"].median()
    averages = averages.assign(task=AVERAGE, expert_accuracy=float(experts.mean()))
    columns = ["task", "alpha", "accuracy", "expert_accuracy"]
    return pandas.concat([averages[columns], tasks[columns]], ignore_index=True)


def single_task_chart(rows: Frame) -> Chart:
    """Accuracy over alpha: a panel for the average and for every task, with the accuracy of the expert as a line."""
    tasks = list(dict.fromkeys(rows["task"]))
    shown = rows.assign(percent=100 * rows["accuracy"], expert=100 * rows["expert_accuracy"])
    low = min(float(shown["percent"].min()), float(shown["expert"].min()))
    scale = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    dash = alt.Scale(domain=list(COLOURS), range=[[1, 0], [5, 3]])
    axis = alt.Axis(tickCount=4)
    look = {"title": None, "orient": "bottom", "symbolType": "stroke", "symbolSize": 320}
    legend = alt.Legend(**look)

    def line(field: str, name: str, chart: alt.Chart) -> Chart:
        return chart.encode(
            y=alt.Y(f"{field}:Q", title=None, scale=alt.Scale(domain=[max(0.0, low - 4), 104], nice=False), axis=axis),
            color=alt.Color("name:N", scale=scale, legend=legend),
            strokeDash=alt.StrokeDash("name:N", scale=dash, legend=legend),
            tooltip=["task:N", "alpha:Q", alt.Tooltip(f"{field}:Q", title=name)],
        ).transform_calculate(name=f"'{name}'")

    base = alt.Chart(width=WIDTH, height=HEIGHT).encode(
        x=alt.X("alpha:Q", title="\u03b1", axis=alt.Axis(tickCount=4, labelFontSize=10))
    )
    panels = alt.layer(
        line("expert", EXPERT, base.mark_line(strokeWidth=1.4)),
        line("percent", FLAT, base.mark_line(strokeWidth=2)),
        data=inline(shown[["task", "alpha", "percent", "expert"]]),
    )
    header = alt.Header(labelFontSize=11, title="Accuracy (%)", titleOrient="left", labelPadding=3)
    return panels.facet(
        facet=alt.Facet("task:N", sort=tasks, header=header),
        columns=columns_for(len(tasks)),
        spacing={"row": 16, "column": 14},
    )


FIGURE = Figure(
    name="single-task",
    paper="Fig. 9",
    title="Iso-C of single tasks",
    description="Accuracy of every task's own flattened update over alpha, beside that of its expert.",
    tables=("curves",),
    options=("backbone", "num_tasks"),
    draw=draw,
)
