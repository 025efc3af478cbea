"""Singular values as lines: which, in what colours, and how many points of them."""

import math
import re
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from raymerge.charts import named_scale
from raymerge.figures._figure import in_order, method_title, nearest_fraction
from raymerge.figures._tables import Frame, Series, first_tasks

SINGLE = "Single tasks"
GREY = "#a8a8a8"
MAX_POINTS = 200
"""Of a line: more would not be seen."""
DECADES = 4
"""Of a logarithmic axis, at most: what lies deeper is noise of training."""

FLATNESS = 1e-4
"""Relative to the largest value: a spectrum this level is a straight line."""

MERGED = ("task-arithmetic", "iso-c", "iso-cts")


def thinned(num_values: int, max_points: int = MAX_POINTS) -> list[int]:
    """Positions 0..num_values-1 to draw: the first quarter of the points one by one, the others evenly to the end."""
    if num_values <= max_points:
        return list(range(num_values))
    dense = max_points // 4
    rest = max_points - dense
    step = (num_values - 1 - dense) / (rest - 1)
    return [*range(dense), *(round(dense + step * i) for i in range(rest))]


def thin(frame: Frame, by: Sequence[str], max_points: int = MAX_POINTS) -> Frame:
    """The rows of every spectrum whose `index` is to be drawn; `by` are the columns that tell spectra apart.

    Of a flat spectrum the ends.
    """
    values = frame.groupby(list(by), dropna=False, sort=False)["singular_value"]
    index, sizes = frame["index"].to_numpy(int), values.transform("size").to_numpy()
    is_flat = values.transform("min") > (1 - FLATNESS) * values.transform("max")
    is_drawn = (index == 0) | (index == sizes - 1)
    for size in set(sizes.tolist()):
        is_drawn |= ~is_flat.to_numpy() & (sizes == size) & np.isin(index, thinned(size, max_points))
    return frame[is_drawn]


def named(frame: Frame, num_tasks: int) -> Frame:
    """The spectra of one sum and of its tasks, the first of the suite, with `name` and `line` to draw them by.

    Of Iso-CTS one common-space fraction, the method's own where it is there.
    """
    import pandas

    singles = frame[frame["matrix"] == "task"]
    merged = frame[(frame["num_tasks"] == num_tasks).fillna(False) & frame["matrix"].isin(MERGED)]
    cts = merged["matrix"] == "iso-cts"
    if cts.any():
        merged = merged[~cts | (merged["common_space_fraction"] == nearest_fraction(merged[cts]))]
    tasks = first_tasks(singles["task"].unique(), num_tasks)
    chosen: Frame = pandas.concat([singles[singles["task"].isin(tasks)], merged])
    titles = {matrix: SINGLE if matrix == "task" else method_title(matrix) for matrix in chosen["matrix"].unique()}
    return chosen.assign(
        name=chosen["matrix"].map(titles), line=chosen["task"].where(chosen["matrix"] == "task", chosen["matrix"])
    )


def fraction_note(frame: Frame) -> str:
    """The end of a caption: with which common-space fraction Iso-CTS was drawn, if it was."""
    fractions = frame["common_space_fraction"].dropna()
    return f" Iso-CTS with common-space fraction {fractions.iloc[0]:g}." if len(fractions) else ""


def names_of(frame: Frame) -> list[str]:
    """Of what `named` returned, in the order of the legend."""
    singles = [SINGLE] if (frame["matrix"] == "task").any() else []
    return singles + [method_title(m) for m in in_order(m for m in frame["matrix"].unique() if m != "task")]


def channels(names: Sequence[str], **legend: Any) -> dict[str, Any]:
    """Colours and dashes of lines by their `name`; single tasks are grey and thin."""
    methods = [name for name in names if name != SINGLE]
    grey: dict[str, Any] = {"color": GREY, "strokeDash": [1, 0]}
    shown = alt.Legend(title=None, symbolType="stroke", symbolSize=320, **legend)

    def scale(channel: str) -> alt.Scale:
        found = named_scale(methods, channel).to_dict()
        first = [(SINGLE, grey[channel])] if SINGLE in names else []
        pairs = [*first, *zip(found["domain"], found["range"], strict=True)]
        return alt.Scale(domain=[name for name, _ in pairs], range=[value for _, value in pairs])

    return {
        "color": alt.Color("name:N", scale=scale("color"), legend=shown),
        "strokeDash": alt.StrokeDash("name:N", scale=scale("strokeDash"), legend=shown),
    }


def y_axis(values: Series, title: str | None = "Singular value") -> alt.Y:
    """Logarithmic, from the largest of the values down to the smallest, or as deep as DECADES."""
    positive = values[values > 0]
    top = float(positive.max())
    domain = [max(float(positive.min()) / 1.2, top / 10**DECADES), top * 1.3]
    return alt.Y(
        "singular_value:Q",
        title=title,
        scale=alt.Scale(type="log", domain=domain, nice=False),
        axis=alt.Axis(values=log_ticks(*domain), format="~g"),
    )


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers; where there are less than three, twice and five times these, too."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers, more = ([m * 10.0**e for e in exponents for m in steps] for steps in ((1,), (1, 2, 5)))
    powers, more = ([tick for tick in ticks if low <= tick <= high] for ticks in (powers, more))
    return powers if len(powers) > 2 else more


def short_layer(layer: str) -> str:
    return layer.removeprefix("model.visual.")


def block_of(layer: str) -> int | None:
    found = re.search(r"resblocks\.(\d+)\.", layer)
    return int(found.group(1)) if found else None


def kind_of(layer: str) -> str:
    """`attn.in_proj`, `mlp.c_fc`, ... for a matrix of a block; the layer's own name for another."""
    if block_of(layer) is None:
        return short_layer(layer)
    return re.sub(r"^.*resblocks\.\d+\.", "", layer).removesuffix("weight").rstrip("._")
