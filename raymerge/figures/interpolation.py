"""Fig. 4: between Task Arithmetic and Iso-C, Sigma_beta = (1 - beta) Sigma_TA + beta sigma_bar I."""

import altair as alt

from raymerge.charts import DASHES, Chart, inline
from raymerge.figures import _spectrum as spectrum
from raymerge.figures._curves import SEARCH, best, searched
from raymerge.figures._figure import Figure
from raymerge.figures._lines import count_colours, lines, num_tasks_title, zoomed
from raymerge.figures._panels import beside, panel
from raymerge.figures._tables import ABLATIONS, ANALYSIS, RULES, Choice, Frame, Series, Tables, counts
from raymerge.figures.spectra import example_layer

WIDTH, HEIGHT = 230, 220
BETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the spectra."""
METHOD = "spectrum-interpolation"


def interpolated(values: Series, beta: float) -> Series:
    """(1 - beta) sigma_i + beta sigma_bar, of all singular values of one matrix."""
    return (1 - beta) * values + beta * values.mean()


def draw(tables: Tables, choice: Choice) -> Chart:
    curves = tables.need("NAI over beta", ABLATIONS, "curves", method=METHOD, task=None, defined=["nai"], **SEARCH)
    curves = tables.of_counts(tables.of_backbone(curves, choice), choice)
    backbone, numbers = curves["backbone"].iloc[0], counts(curves)
    spectra = tables.need(
        f"singular values of Task Arithmetic on {backbone}",
        ANALYSIS,
        "spectra",
        backbone=backbone,
        matrix="task-arithmetic",
        num_tasks=numbers[0],
    )
    layer = example_layer(list(dict.fromkeys(spectra["layer"])), choice.layer)
    alignments = tables.need(
        f"alignments over beta on {backbone}",
        ANALYSIS,
        "alignments",
        backbone=backbone,
        target=METHOD,
        kind="task-merged",
        rank_rule=choice.rule,
        layer=None,
        num_tasks=tuple(numbers),
    )
    return beside(
        panel(spectrum_chart(spectra[spectra["layer"] == layer]), "(a) Spectrum"),
        panel(alignment_chart(alignments), "(b) Subspace alignment"),
        panel(nai_chart(best(searched(curves), ["num_tasks", "beta"])), "(c) NAI"),
        title="From Task Arithmetic (\u03b2 = 0) to Iso-C (\u03b2 = 1)",
        caption=f"{backbone}. (a) {num_tasks_title(numbers[0])}, {spectrum.short_layer(layer)}. (b) Mean over tasks "
        f"and layers, ranks by the rule of the {RULES[choice.rule]}. (c) Mean over tasks, validation split, at every "
        "\u03b2 the alpha with the best normalized accuracy.",
        width=3 * WIDTH + 200,
    )


def spectrum_chart(rows: Frame) -> Chart:
    """Sigma_beta of one matrix; rows of `spectra`."""
    import pandas

    base = rows.assign(number=rows["index"] + 1)
    parts = [base.assign(beta=f"{b:g}", singular_value=interpolated(base["singular_value"], b)) for b in BETAS]
    shown = spectrum.thin(pandas.concat(parts), ["beta"])
    names = [f"{beta:g}" for beta in BETAS]
    # from the colour of Task Arithmetic to that of Iso-C
    colours = ["#CC79A7", "#a679b6", "#7f78b5", "#4a76b4", "#0072B2"]
    dashes = [*DASHES, (12, 2)][: len(names)]
    look = {"title": "\u03b2", "titleOrient": "left", "titlePadding": 8, "orient": "bottom", "columns": 5}
    legend = alt.Legend(symbolType="stroke", symbolSize=220, **look)
    return (
        alt.Chart(inline(shown[["beta", "number", "singular_value"]]), width=WIDTH, height=HEIGHT)
        .mark_line(clip=True)
        .encode(
            x=alt.X("number:Q", title="Index of the singular value", scale=alt.Scale(nice=False, zero=False)),
            y=spectrum.y_axis(shown["singular_value"]),
            color=alt.Color("beta:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
            strokeDash=alt.StrokeDash("beta:N", scale=alt.Scale(domain=names, range=dashes), legend=legend),
            tooltip=["beta:N", "number:Q", "singular_value:Q"],
        )
    )


def alignment_chart(rows: Frame) -> Chart:
    """SAR over beta, mean over tasks: rows of `alignments`, a line for every number of tasks."""
    shown = rows.groupby(["num_tasks", "beta"], sort=True)["sar"].mean().reset_index()
    return _over_beta(shown, "sar", "SAR, mean over tasks and layers")


def nai_chart(rows: Frame) -> Chart:
    """NAI over beta: averages over tasks of `curves`, one for every number of tasks and beta."""
    return _over_beta(rows, "nai", "NAI (validation)")


def _over_beta(rows: Frame, value: str, title: str) -> Chart:
    names = [num_tasks_title(number) for number in counts(rows)]
    shown = rows.assign(name=[num_tasks_title(int(number)) for number in rows["num_tasks"]])
    columns = [name for name in ("name", "beta", value, "alpha") if name in shown]
    return lines(
        shown[columns],
        alt.X("beta:Q", **zoomed("\u03b2")),
        alt.Y(f"{value}:Q", **zoomed(title)),
        names,
        width=WIDTH,
        height=HEIGHT,
        colours=count_colours(len(names)),
        tooltip=[f"{name}:{'N' if name == 'name' else 'Q'}" for name in columns],
    )


FIGURE = Figure(
    name="interpolation",
    paper="Fig. 4",
    title="From Task Arithmetic to Iso-C",
    description="Spectrum, subspace alignment and NAI between Task Arithmetic (beta = 0) and Iso-C (beta = 1).",
    tables=("spectra", "alignments", "curves"),
    options=("backbone", "num_tasks", "rank_rule", "layer"),
    draw=draw,
)
