"""Fig. 5a: how many directions of Iso-C it takes."""

from typing import Any

import altair as alt

from raymerge.charts import Chart, inline, titled
from raymerge.figures._curves import SEARCH, best, of_tasks, searched
from raymerge.figures._figure import Figure
from raymerge.figures._labels import FONT_SIZE, spread
from raymerge.figures._lines import num_tasks_title
from raymerge.figures._tables import ABLATIONS, Choice, Frame, Tables, counts

WIDTH, HEIGHT = 330, 260
LABELS = 90
METHOD = "truncated-iso-c"
GREY, DARK = "#b8b8b8", "#0072B2"


def draw(tables: Tables, choice: Choice) -> Chart:
    curves = tables.need("NAI of truncated Iso-C", ABLATIONS, "curves", method=METHOD, defined=["nai"], **SEARCH)
    curves = tables.of_count(tables.of_backbone(curves, choice), choice)
    averages = best(searched(curves), ["rank_fraction"])
    caption = (
        f"{curves['backbone'].iloc[0]}, {num_tasks_title(counts(curves)[0])}; validation split, at every share of "
        "directions the alpha with the best average. Thick: mean over tasks."
    )
    return titled(truncation_chart(averages, of_tasks(curves, averages)), FIGURE.title, caption, WIDTH + LABELS + 60)


def truncation_chart(averages: Frame, tasks: Frame) -> Chart:
    """NAI over the share of directions kept: rows of `curves`, one average for every share, and what is behind it."""
    thin = tasks.sort_values("rank_fraction")
    thick = averages.sort_values("rank_fraction")
    low = min(float(thin["nai"].min()), float(thick["nai"].min()), 0.0)
    high = max(float(thin["nai"].max()), float(thick["nai"].max()))
    domain = [low - 0.03 * (high - low), high + 0.05 * (high - low)]
    y: dict[str, Any] = {
        "title": "Normalized accuracy improvement (NAI)",
        "scale": alt.Scale(domain=domain, nice=False),
    }
    x = alt.X("rank_fraction:Q", title="Directions kept, k / r", scale=alt.Scale(domain=[0, 1]))
    base = alt.Chart(width=WIDTH, height=HEIGHT).encode(x=x, y=alt.Y("nai:Q", **y))
    tooltip = ["rank_fraction:Q", "nai:Q", "alpha:Q"]
    of_one = base.mark_line(color=GREY, strokeWidth=1).encode(detail="task:N", tooltip=["task:N", *tooltip])
    mean = base.mark_line(color=DARK, strokeWidth=3, point=alt.OverlayMarkDef(size=60, color=DARK))
    return alt.layer(
        of_one.properties(data=inline(thin[["task", "rank_fraction", "nai", "alpha"]])),
        *_end_labels(thin, domain, y),
        mean.encode(tooltip=tooltip).properties(data=inline(thick[["rank_fraction", "nai", "alpha"]])),
    )


def _end_labels(rows: Frame, domain: list[float], y: dict[str, Any]) -> list[Chart]:
    """Names of tasks at the right ends of their lines."""
    ends = rows.groupby("task", sort=False).tail(1)[["task", "rank_fraction", "nai"]]
    per_pixel = (domain[1] - domain[0]) / HEIGHT
    moved = spread([float(nai) for nai in ends["nai"]], 1.15 * FONT_SIZE * per_pixel, *domain)
    labels = inline(ends.assign(label=moved))
    at_edge = {"x": alt.value(WIDTH + 22), "y": alt.Y("label:Q", **y)}
    texts = alt.Chart(labels).mark_text(align="left", fontSize=FONT_SIZE, color="#444444", baseline="middle")
    links = alt.Chart(labels).mark_rule(color=GREY, strokeWidth=0.7)
    return [
        links.encode(x="rank_fraction:Q", x2=alt.value(WIDTH + 19), y=alt.Y("nai:Q", **y), y2="label"),
        texts.encode(**at_edge, text="task:N"),
    ]


FIGURE = Figure(
    name="truncation",
    paper="Fig. 5a",
    title="Iso-C with its first directions only",
    description="NAI over the share of Iso-C's directions that are kept, mean over tasks and every task.",
    tables=("curves",),
    options=("backbone", "num_tasks"),
    draw=draw,
)
