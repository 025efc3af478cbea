"""Folders of results as sweeps leave them, with accuracies that somebody made up."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import fake_sweep

from raymerge.driver import Weights
from raymerge.output import open_output
from raymerge.published import published_average
from raymerge.records import Cell, ServiceStats, TrialRecord
from raymerge.results import ResultsWriter, RunContext, write_summary
from raymerge.search_space import sweep_cells
from raymerge.suites import Backbone, Suite, Task
from raymerge.summary import summarise
from raymerge.sweep_spec import SweepSpec, resolve, spec_hash

PUBLISHED_TASKS: Sequence[str] = json.loads(
    (Path(__file__).parent.parent / "raymerge" / "published" / "table1.json").read_text()
)["tasks"]
BACKBONES = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
NODE = {"id": "n1", "host": "gpu-1", "ip": "10.0.0.1", "cpus": 16.0, "gpus": 2.0, "devices": ["H200"], "versions": {}}


def published_suite(backbones: Sequence[str] = BACKBONES, images: int = 1000) -> Suite:
    """The names of the published collection, so that its cells have published averages; no files."""
    tasks = tuple(Task(name, ("a", "b"), {"val": images, "test": images}) for name in PUBLISHED_TASKS)
    encoders = {name: Backbone(name, "zero.pt") for name in backbones}
    return Suite("tall-masks", "paper-legacy", 0, Path("/nowhere"), encoders, tasks)


def near_published(shift: Callable[[str], float] = lambda method: 0.0) -> fake_sweep.Accuracy:
    """Accuracies whose averages over tasks are the published ones; those of the zero-shot model over the first 8.

    Of merging methods they fall off on both sides of alpha = 0.6. Tasks lie 5 points above and below in turns.

    Args:
        shift: added to every accuracy of a method.
    """

    def accuracy(weights: Weights, task: str, split: str) -> float:
        merge = weights.merge
        method, tasks = ("zero-shot", PUBLISHED_TASKS[:8]) if merge is None else (merge.method, merge.tasks)
        if method == "fine-tuned":
            return 0.95 + shift(method)
        published = published_average(Cell(weights.backbone, tuple(tasks), method))
        assert published is not None
        lost = 0.0 if method in ("zero-shot", "weight-averaging") else (weights.alpha - 0.6) ** 2 / 4
        return published.accuracy + shift(method) + 0.05 * (-1) ** PUBLISHED_TASKS.index(task) - lost

    return accuracy


def write_results(
    folder: Path,
    spec: SweepSpec,
    records: Sequence[TrialRecord],
    suite: Suite,
    *,
    finished: bool = True,
) -> None:
    """A folder of results.

    Args:
        finished: whether there is a summary and the run has ended; without, as a killed sweep leaves it.
    """
    context = RunContext(
        spec.name,
        spec_hash(spec),
        suite.name,
        suite.profile,
        suite.seed,
        "f1f1",
        spec.search.objective,
        "fp32",
    )
    with open_output(folder, sweep=spec.name, spec=resolve(spec), spec_hash=spec_hash(spec)) as output:
        output.begin("f1f1")
        output.start_run(nodes=[NODE])
        writer = ResultsWriter(folder, context)
        for record in records:
            writer.append(record)
        if finished:
            cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
            write_summary(folder, summarise(records, cells, spec.search.objective), context)
            output.end_run("finished", ServiceStats(num_evaluators=2, images=1000, busy_s=90.0, present_s=100.0))
