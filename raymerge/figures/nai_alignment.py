"""Fig. 3: tasks gain from merging what their matrices share with the merged one."""

from raymerge.charts import Chart
from raymerge.figures._figure import Figure
from raymerge.figures._heatmap import pairs_chart, side
from raymerge.figures._panels import beside, panel
from raymerge.figures._scatter import PANEL, nai_scatter
from raymerge.figures._tables import ANALYSIS, RULES, SWEEP, Choice, Tables, counts, first_tasks

METHODS = ("task-arithmetic", "iso-c")


def draw(tables: Tables, choice: Choice) -> Chart:
    wanted = {"method": METHODS, "rank_rule": choice.rule}
    nai = tables.need("NAI of Task Arithmetic or Iso-C", SWEEP, "nai", defined=("nai", "sar"), **wanted)
    nai = tables.of_count(tables.of_backbone(nai, choice), choice)
    backbone, (num_tasks,) = nai["backbone"].iloc[0], counts(nai)
    chosen = {"backbone": backbone, "num_tasks": num_tasks, "rank_rule": choice.rule}
    correlations = tables.some("correlations", quantity="sar", method=METHODS, **chosen)
    scatter = nai_scatter(
        nai, correlations, "sar", "Subspace alignment ratio (SAR), mean over layers", height=side(num_tasks)
    )

    what = f"alignments of tasks for {num_tasks} tasks of {backbone}"
    pairs = tables.need(what, ANALYSIS, "alignments", kind="task-task", layer=None, **chosen)
    tasks = first_tasks(pairs["source"], num_tasks)
    heat = pairs_chart(pairs, "sar", tasks, "SAR, mean over layers", x_title="Subspace of", y_title="Task matrix of")
    return beside(
        panel(scatter, "(a) NAI against alignment of task and merged matrices"),
        panel(heat, "(b) Alignment between tasks"),
        title="Normalized accuracy improvement and subspace alignment",
        caption=f"{backbone}, {num_tasks} tasks. NAI on the test split, at the alpha that validation chose; "
        f"ranks by the rule of the {RULES[choice.rule]}.",
        width=PANEL + side(len(tasks)) + 150,
    )


FIGURE = Figure(
    name="nai-alignment",
    paper="Fig. 3",
    title="NAI and subspace alignment",
    description="NAI of every task against its alignment with the merged matrices; alignment between tasks.",
    tables=("nai", "alignments"),
    options=("backbone", "num_tasks", "rank_rule"),
    draw=draw,
)
