"""Fig. 6: how much of Iso-CTS is common space."""

import altair as alt

from raymerge.charts import INK, Chart, inline, marked_lines, named_scale
from raymerge.figures._curves import SEARCH, best, searched
from raymerge.figures._figure import Figure, method_title
from raymerge.figures._lines import num_tasks_title
from raymerge.figures._panels import beside, panel
from raymerge.figures._tables import ABLATIONS, Choice, Frame, Tables, counts

WIDTH, HEIGHT = 220, 200
MIN_ALPHAS = 3
"""Tried at a fraction that is shown: a sampler leaves many with one."""
ROOM = 0.12
"""Above and below the widest panel's points, of their span."""


def draw(tables: Tables, choice: Choice) -> Chart:
    what = f"fractions of Iso-CTS with {MIN_ALPHAS} alphas each"
    curves = tables.need(what, ABLATIONS, "curves", method="iso-cts", defined=["common_space_fraction"], **SEARCH)
    curves = tables.of_counts(tables.of_backbone(curves, choice), choice)
    backbone, numbers = curves["backbone"].iloc[0], counts(curves)
    common = tables.some("curves", backbone=backbone, method="iso-c", num_tasks=tuple(numbers))
    of_cts = best(well_searched(searched(curves)), ["num_tasks", "common_space_fraction"])
    if of_cts.empty:
        raise tables.lack(what, ABLATIONS, "curves")
    of_iso_c = best(searched(common), ["num_tasks"])
    charts = fraction_charts(of_cts, of_iso_c)
    return beside(
        *(panel(chart, num_tasks_title(number)) for number, chart in charts.items()),
        title=FIGURE.title,
        caption=f"{backbone}; mean over tasks, validation split, at every fraction the alpha with the best normalized "
        "accuracy. Ring: the best of these. Iso-C is fraction 1.",
        width=len(charts) * (WIDTH + 70),
        shares_legend=True,
    )


def well_searched(points: Frame) -> Frame:
    """Points at fractions where enough was tried for a best alpha to mean something."""
    tried = points.groupby(["num_tasks", "common_space_fraction"])["alpha"].transform("nunique")
    return points[tried >= MIN_ALPHAS]


def fraction_charts(of_cts: Frame, of_iso_c: Frame) -> dict[int, Chart]:
    """Accuracy in percent over the fraction, a panel for every number of tasks; all panels span as many points.

    Args:
        of_cts: averages of `curves` with `score`, one for every number of tasks and fraction.
        of_iso_c: one for every number of tasks, or none.
    """
    panels = {}
    for number in counts(of_cts):
        cts, iso_c = (frame[frame["num_tasks"] == number] for frame in (of_cts, of_iso_c))
        values = [100 * float(value) for value in (*cts["accuracy"], *iso_c["accuracy"])]
        panels[number] = cts, iso_c, (min(values) + max(values)) / 2, max(values) - min(values)
    span = max(span for *_, span in panels.values()) * (1 + 2 * ROOM) or 1.0
    return {
        number: _panel(cts, iso_c, [middle - span / 2, middle + span / 2])
        for number, (cts, iso_c, middle, _) in panels.items()
    }


def _panel(cts: Frame, iso_c: Frame, domain: list[float]) -> Chart:
    names = [method_title("iso-cts"), method_title("iso-c")]
    colour = named_scale(names, "color").to_dict()["range"][1]
    columns = ["name", "fraction", "percent", "alpha"]

    def drawn(frame: Frame, name: str) -> Frame:
        fractions = frame["common_space_fraction"].fillna(1.0)  # Iso-C has none
        return frame.assign(name=name, fraction=fractions, percent=100 * frame["accuracy"])[columns]

    y = alt.Y("percent:Q", title="Validation accuracy (%)", scale=alt.Scale(domain=domain, nice=False))
    scale, axis = alt.Scale(domain=[0, 1.03], nice=False), alt.Axis(tickCount=5)
    x = alt.X("fraction:Q", title="Common-space fraction, k / r", scale=scale, axis=axis)
    base = alt.Chart(width=WIDTH, height=HEIGHT).encode(y=y, tooltip=["name:N", "fraction:Q", "percent:Q", "alpha:Q"])
    at_fraction = base.encode(x=x)
    ring = at_fraction.mark_point(filled=False, size=170, strokeWidth=1.4, shape="circle", opacity=1, color=INK)
    of_cts, of_iso_c, at_best = drawn(cts, names[0]), drawn(iso_c, names[1]), drawn(cts.nlargest(1, "score"), names[0])
    both = inline(of_cts, of_iso_c)
    return alt.layer(
        base.mark_rule(strokeDash=[6, 3], color=colour).properties(data=inline(of_iso_c)),
        *(
            layer.properties(data=both)
            for layer in marked_lines(at_fraction, names, "name", size=55, orient="bottom", columns=2)
        ),
        ring.properties(data=inline(at_best)),
    )


FIGURE = Figure(
    name="fraction",
    paper="Fig. 6",
    title="The common space of Iso-CTS",
    description="Accuracy of Iso-CTS over its common-space fraction, beside Iso-C, for every number of tasks.",
    tables=("curves",),
    options=("backbone", "num_tasks"),
    draw=draw,
)
