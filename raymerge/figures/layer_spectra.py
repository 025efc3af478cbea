"""Fig. 7: the singular values of every layer."""

from typing import Any

import altair as alt

from raymerge.charts import Chart, inline, titled
from raymerge.figures import _spectrum as spectrum
from raymerge.figures._figure import Figure
from raymerge.figures._tables import ANALYSIS, Choice, Frame, Tables, counts

WIDTH, HEIGHT = 130, 64
MAX_POINTS = 48
"""Of a line in so small a panel."""


def draw(tables: Tables, choice: Choice) -> Chart:
    merged = tables.need("singular values of merged matrices", ANALYSIS, "spectra", matrix=spectrum.MERGED)
    merged = tables.of_count(tables.of_backbone(merged, choice), choice)
    backbone, (num_tasks,) = merged["backbone"].iloc[0], counts(merged)
    shown = spectrum.named(tables.some("spectra", backbone=backbone), num_tasks)
    shown = spectrum.thin(shown, ["layer", "line"], MAX_POINTS)
    layers = list(shown["layer"].unique())
    sizes = shown.groupby("layer")["index"].transform("max") + 1
    shown = shown.assign(
        position=(shown["index"] + 1) / sizes,
        block=shown["layer"].map({layer: block_title(layer) for layer in layers}),
        kind=shown["layer"].map({layer: spectrum.kind_of(layer) for layer in layers}),
    )
    caption = (
        f"{backbone}, {num_tasks} tasks. Across: index of the singular value / number of values. "
        f"Grey: from the smallest to the largest value of the tasks' own matrices.{spectrum.fraction_note(shown)}"
    )
    kinds = len(shown["kind"][shown["block"].notna()].unique())
    return titled(all_layers_chart(shown), FIGURE.title, caption, kinds * WIDTH + 140)


def block_title(layer: str) -> str | None:
    block = spectrum.block_of(layer)
    return None if block is None else f"block {block}"


def all_layers_chart(rows: Frame) -> Chart:
    """Small panels: a row for every block, a column for every kind of matrix; the other matrices below.

    Args:
        rows: what `_spectrum.named` returns, with position (0..1), block and kind.
    """
    in_blocks = rows["block"].notna()
    names = spectrum.names_of(rows)
    y = spectrum.y_axis(rows["singular_value"], title=None)
    parts = []
    if in_blocks.any():
        kinds = list(dict.fromkeys(rows["kind"][in_blocks]))
        blocks = list(dict.fromkeys(rows["block"][in_blocks]))
        header = alt.Header(labelAngle=0, labelAlign="left", labelFontSize=11)
        parts.append(
            _panels(rows[in_blocks], names, y).facet(
                row=alt.Row("block:N", sort=blocks, title="Singular value", header=header),
                column=alt.Column("kind:N", sort=kinds, title=None),
                spacing={"row": 6, "column": 18},
            )
        )
    if not in_blocks.all():
        others = list(dict.fromkeys(rows["kind"][~in_blocks]))
        parts.append(
            _panels(rows[~in_blocks], names, y).facet(column=alt.Column("kind:N", sort=others, title=None), spacing=18)
        )
    return alt.vconcat(*parts, spacing=16)


def _panels(rows: Frame, names: list[str], y: alt.Y) -> Chart:
    """One panel, to be repeated."""
    x = alt.X(
        "position:Q",
        title=None,
        scale=alt.Scale(domain=[0, 1], nice=False),
        axis=alt.Axis(values=[0, 0.5, 1], format="~g", labelFontSize=10),
    )
    is_single = rows["matrix"] == "task"
    by = ["block", "kind", "position"]
    ranges = rows[is_single].groupby(by, sort=False, dropna=False)["singular_value"].agg(["min", "max"]).reset_index()
    bands = ranges.assign(name=spectrum.SINGLE).rename(columns={"min": "singular_value"})
    lines = rows[~is_single][[*by, "name", "singular_value"]]
    shared: dict[str, Any] = spectrum.channels(names, orient="bottom", columns=4)
    base = alt.Chart(width=WIDTH, height=HEIGHT).encode(x=x, y=y, **shared)
    band = base.mark_area(clip=True, opacity=1, strokeWidth=0).encode(y2="max:Q")
    line = base.mark_line(clip=True, strokeWidth=1.6).encode(tooltip=["name:N", "singular_value:Q"])
    return alt.layer(
        band.transform_filter(f"datum.name === '{spectrum.SINGLE}'"),
        line.transform_filter(f"datum.name !== '{spectrum.SINGLE}'"),
        data=inline(bands, lines),
    )


FIGURE = Figure(
    name="layer-spectra",
    paper="Fig. 7",
    title="Singular values of all layers",
    description="Singular values of every layer: single tasks, Task Arithmetic, Iso-C and Iso-CTS.",
    tables=("spectra",),
    options=("backbone", "num_tasks"),
    draw=draw,
)
