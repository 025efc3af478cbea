"""Fig. 2: how alike task vectors are, and how little their likeness to the merged update explains."""

from raymerge.charts import Chart
from raymerge.figures._figure import Figure
from raymerge.figures._heatmap import pairs_chart, side
from raymerge.figures._panels import beside, panel
from raymerge.figures._scatter import PANEL, nai_scatter
from raymerge.figures._tables import ANALYSIS, Choice, Tables, counts, first_tasks

METHODS = ("task-arithmetic", "iso-c")


def draw(tables: Tables, choice: Choice) -> Chart:
    pairs = tables.need("cosines of tasks", ANALYSIS, "cosines", kind="task-task", layer=None)
    pairs = tables.of_backbone(pairs, choice)
    backbone = pairs["backbone"].iloc[0]
    what = f"cosines with a merge on {backbone}"
    merged = tables.need(what, ANALYSIS, "cosines", backbone=backbone, kind="task-merged", layer=None)
    (num_tasks,) = counts(tables.of_count(merged, choice))
    tasks = first_tasks(pairs["source"], num_tasks)
    pairs = pairs[pairs["source"].isin(tasks) & pairs["target"].isin(tasks)]
    size = side(len(tasks))
    heat = pairs_chart(pairs, "cosine", tasks, "Cosine similarity of task vectors")

    chosen = {"backbone": backbone, "num_tasks": num_tasks, "method": METHODS}
    nai = tables.some("nai", **chosen).dropna(subset=["nai", "cosine"]).drop_duplicates(["method", "task"])
    title = "Cosine similarity of task vectors"
    caption = f"{backbone}, {num_tasks} tasks; all parameters of the image encoder as one vector."
    if nai.empty:
        return beside(heat, title=title, caption=caption, width=size)
    correlations = tables.some("correlations", quantity="cosine", **chosen)
    scatter = nai_scatter(
        nai, correlations, "cosine", "Cosine similarity of task vector and merged update", height=size
    )
    return beside(
        panel(heat, "(a) Between tasks"),
        panel(scatter, "(b) NAI against similarity to the merged update"),
        title=title,
        caption=f"{caption} NAI on the test split, at the alpha that validation chose.",
        width=size + PANEL + 150,
    )


FIGURE = Figure(
    name="cosines",
    paper="Fig. 2",
    title="Cosine similarity of task vectors",
    description="Cosine similarity between task vectors, and NAI against that of task vector and merged update.",
    tables=("cosines",),
    options=("backbone", "num_tasks"),
    draw=draw,
)
