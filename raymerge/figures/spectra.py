"""Fig. 1: what merging does to the singular values of one layer."""

import altair as alt

from raymerge.charts import Chart, inline, titled
from raymerge.errors import UsageError
from raymerge.figures import _spectrum as spectrum
from raymerge.figures._figure import Figure
from raymerge.figures._tables import ANALYSIS, Choice, Frame, Tables, counts

WIDTH, HEIGHT = 330, 240
AXIS = 60
EXAMPLE_BLOCK = 4
EXAMPLE_KIND = "attn.out_proj"


def example_layer(layers: list[str], wanted: str | None = None) -> str:
    """The layer that is called so, or the only one whose name has `wanted` in it; without it the paper's example.

    Names may leave out "model.visual.". The example is the output projection of block 4, or of the middle block where
    there is no block 4.

    Raises:
        UsageError: no layer, or several, are called so.
    """
    if wanted is None:
        examples = [layer for layer in layers if spectrum.kind_of(layer) == EXAMPLE_KIND] or layers
        in_block = [layer for layer in examples if spectrum.block_of(layer) == EXAMPLE_BLOCK]
        return (in_block or examples[len(examples) // 2 :])[0]
    found = [layer for layer in layers if wanted in (layer, spectrum.short_layer(layer))]
    found = found or [layer for layer in layers if wanted in layer]
    if not found:
        raise UsageError(f"--layer: none of {len(layers)} layers has '{wanted}' in its name; one is {layers[0]}.")
    if len(found) > 1:
        raise UsageError(f"--layer: '{wanted}' is in {len(found)} names; the first is {found[0]}.")
    return found[0]


def layer_chart(frame: Frame, width: int | float = WIDTH, height: int | float = HEIGHT) -> Chart:
    """The spectra of one layer: rows of `spectra`, with what `_spectrum.named` adds."""
    shown = spectrum.thin(frame, ["line"])
    shown = shown.assign(number=shown["index"] + 1)[["name", "line", "matrix", "number", "singular_value"]]
    base = alt.Chart(width=width, height=height).encode(
        x=alt.X("number:Q", title="Index of the singular value", scale=alt.Scale(nice=False, zero=False)),
        y=spectrum.y_axis(frame["singular_value"]),
        **spectrum.channels(spectrum.names_of(shown), orient="bottom", columns=4),
        detail="line:N",
        tooltip=["line:N", "number:Q", "singular_value:Q"],
    )
    is_single = shown["matrix"] == "task"
    return alt.layer(
        base.mark_line(clip=True, strokeWidth=0.8).properties(data=inline(shown[is_single])),
        base.mark_line(clip=True, strokeWidth=2.4).properties(data=inline(shown[~is_single])),
    )


def draw(tables: Tables, choice: Choice) -> Chart:
    merged = tables.need("singular values of merged matrices", ANALYSIS, "spectra", matrix=spectrum.MERGED)
    merged = tables.of_count(tables.of_backbone(merged, choice), choice)
    backbone, (num_tasks,) = merged["backbone"].iloc[0], counts(merged)
    layer = example_layer(list(dict.fromkeys(merged["layer"])), choice.layer)
    shown = spectrum.named(tables.some("spectra", backbone=backbone, layer=layer), num_tasks)
    about = f"{backbone}, {num_tasks} tasks, {spectrum.short_layer(layer)}."
    caption = about + spectrum.fraction_note(shown)
    return titled(layer_chart(shown), "Singular values of task matrices and of their merges", caption, WIDTH + AXIS)


FIGURE = Figure(
    name="spectra",
    paper="Fig. 1",
    title="Singular values of one layer",
    description="Singular values of one layer: single tasks, Task Arithmetic, Iso-C and Iso-CTS.",
    tables=("spectra",),
    options=("backbone", "num_tasks", "layer"),
    draw=draw,
)
