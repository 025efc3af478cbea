"""How long a sweep takes on N GPUs, by arithmetic: evaluation, driver and merging overlap, and the longest decides.

What cannot overlap is left out: merges before the first trial, and the last shards of the last cells.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymerge.plan import SuiteInfo, make_plan, reference_methods
from raymerge.records import SPLITS, Split
from raymerge.sweep_spec import SweepSpec

IMAGES_PER_S: Mapping[str, float] = {"ViT-B-32": 3750.0, "ViT-B-16": 940.0, "ViT-L-14": 200.0}
"""Of one GPU that sustains 33 TFLOP/s. Assumed: 8.8, 35 and 162 GFLOP per image."""
SWITCH_S = 0.05
"""Other weights on one evaluator. Assumed for a GPU that holds the update already."""
TRIAL_S = 0.035
"""Of the driver, measured on two busy cores with 64 evaluators (docs/performance.md)."""
_ISO_CTS, _TIES, _SUM = 1073.0, 388.0, 82.0
MERGE_S: Mapping[str, float] = {
    "weight-averaging": _SUM,
    "task-arithmetic": _SUM,
    "ties": _TIES,
    "consensus-ta": _TIES,
    "tsv-m": _ISO_CTS,
    "iso-c": _ISO_CTS,
    "iso-cts": _ISO_CTS,
}
"""Of the merges of one cell with 20 tasks on ViT-L/14, measured on two busy cores (docs/performance.md): Iso-CTS, TIES
and Task Arithmetic. The others are put beside the one they resemble; one that is not listed costs as much as the most
expensive."""
SIZES: Mapping[str, float] = {"ViT-B-32": 0.289, "ViT-B-16": 0.284, "ViT-L-14": 1.0}
"""Parameters of an image tower, relative to ViT-L/14; a backbone that is not listed counts as one."""
MERGE_TASKS = 20


@dataclass(frozen=True)
class Work:
    """The most that a sweep has to do on one backbone.

    trials: all stages, references included.
    shards: of all trials together.
    merge_s: seconds of all its merges, one after the other.
    """

    backbone: str
    images: int
    trials: int
    shards: int
    merge_s: float


@dataclass(frozen=True)
class Costs:
    """What things cost.

    images_per_s: of one GPU, by backbone.
    switch_s: other weights on one evaluator.
    trial_s: of the driver, which has no parallel part.
    merges_at_once: on the CPUs that evaluators leave.
    """

    images_per_s: Mapping[str, float]
    switch_s: float = SWITCH_S
    trial_s: float = TRIAL_S
    merges_at_once: int = 4


@dataclass(frozen=True)
class GridTime:
    """Seconds that a sweep cannot be faster than, on so many GPUs."""

    gpus: int
    evaluating_s: float
    driver_s: float
    merging_s: float

    @property
    def seconds(self) -> float:
        return max(self.evaluating_s, self.driver_s, self.merging_s)

    @property
    def bound(self) -> str:
        """What decides."""
        times = {"evaluating": self.evaluating_s, "driver": self.driver_s, "merging": self.merging_s}
        return max(times, key=lambda name: times[name])


def grid_time(work: Sequence[Work], costs: Costs, gpus: int) -> GridTime:
    """How long a sweep takes on so many GPUs, one evaluator on each.

    A trial is spread over as many GPUs as it has shards, and each of them has to set its weights.
    """
    encoding = sum(w.images / costs.images_per_s[w.backbone] for w in work)
    switches = sum(w.trials * min(gpus, w.shards / w.trials) for w in work if w.trials)
    return GridTime(
        gpus,
        (encoding + costs.switch_s * switches) / gpus,
        costs.trial_s * sum(w.trials for w in work),
        sum(w.merge_s for w in work) / costs.merges_at_once,
    )


def stops_at(work: Sequence[Work], costs: Costs, max_gpus: int) -> int:
    """With how many GPUs a sweep takes, but for one percent, what it takes with the most."""
    least = grid_time(work, costs, max_gpus).seconds
    return next(n for n in range(1, max_gpus + 1) if grid_time(work, costs, n).seconds <= 1.01 * least)


def work_of(spec: SweepSpec, suite: SuiteInfo, merge_s: Mapping[str, float] = MERGE_S) -> list[Work]:
    """What a sweep has to do at most, by backbone.

    Args:
        merge_s: seconds of the merges of one cell with 20 tasks on ViT-L/14, by method.
    Raises:
        SweepFileError: the sweep names a backbone or task that the suite lacks.
    """
    plan = make_plan(spec, suite, {})
    limit = spec.evaluation.max_images
    images = {
        task.name: {split: min(limit or task.images[split], task.images[split]) for split in SPLITS}
        for task in suite.tasks
    }

    def shards(tasks: Sequence[str], split: Split) -> int:
        return sum(math.ceil(images[task][split] / spec.evaluation.shard_images) for task in tasks)

    found = []
    for reference in plan.references:
        trials = len(reference_methods()) * len(SPLITS)
        num_shards = len(reference_methods()) * sum(shards(reference.tasks, split) for split in SPLITS)
        num_images, seconds = reference.images, 0.0
        for planned in plan.cells:
            cell = planned.cell
            if cell.backbone != reference.backbone or cell.method in reference_methods():
                continue
            num_val = planned.max_trials + planned.num_calibrations
            trials += num_val + 1
            num_shards += num_val * shards(cell.tasks, "val") + shards(cell.tasks, "test")
            num_images += planned.max_images
            size = SIZES.get(cell.backbone, 1.0) * cell.num_tasks / MERGE_TASKS
            seconds += size * merge_s.get(cell.method, max(merge_s.values()))
        found.append(Work(reference.backbone, num_images, trials, num_shards, seconds))
    return found
