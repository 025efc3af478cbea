"""A sweep on evaluators that sleep: what driver, search, Tune, dispatcher and Parquet cost, and what they keep.

The whole path of a sweep but encoders and merges, beside trials of Ray Tune that do nothing, in the same cluster.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymerge.bench.proc import child_named, memory_of
from raymerge.bench.simulated import Completions, noop_trials, now, simulated_cluster
from raymerge.driver import Sweep
from raymerge.records import Cell, ServiceStats, TrialRecord
from raymerge.result_schema import RunContext
from raymerge.results import ResultsWriter
from raymerge.suites import Suite, suite_from_json
from raymerge.sweep_spec import SweepSpec
from raymerge.tuning import num_trials

NUM_TASKS = 20
METHODS = ("task-arithmetic", "ties", "tsv-m", "iso-c")
TRIALS_PER_CELL = 60
"""Suggestions of Optuna, as in a thorough search; a test of the best point follows."""
MIN_CELLS = 20
"""Cells have fewer trials where there are few trials: a cell waits for the outcomes of a batch, as in any sweep, and
others have to be there meanwhile."""
BATCH = 4
WARM_UP = 200
"""Trials after which nothing more should be kept. Fewer where there are few trials: a quarter."""


@dataclass(frozen=True)
class Memory:
    """Resident bytes of the driver and of Ray's GCS at one moment."""

    driver: int
    gcs: int


@dataclass(frozen=True)
class Simulated:
    """One sweep.

    trials: that were recorded, references and tests included.
    concurrent: trials at once, on both sides.
    trial_s, trial_cpu_s: seconds per trial after the warm-up, and processor time of the driver.
    quarter_s, quarter_cpu_s: the same in each quarter of the trials.
    noop_s, noop_cpu_s: the same of a trial of Tune alone that reports once, before and after the sweep.
    reporting_s, reporting_cpu_s: the same of one that reports as often as a trial has tasks.
    wall_s, work_s: of the whole sweep, and what evaluators spent on shards, added up.
    occupancy, steady_occupancy: of the whole sweep, which begins with processes that start, and after the warm-up.
    rows: written to Parquet.
    memory: before the sweep, after the warm-up, at the end.
    """

    evaluators: int
    processes: int
    shard_s: float
    trials: int
    concurrent: int
    trial_s: float
    trial_cpu_s: float
    quarter_s: tuple[float, ...]
    quarter_cpu_s: tuple[float, ...]
    noop_s: tuple[float, float]
    noop_cpu_s: tuple[float, float]
    reporting_s: tuple[float, float]
    reporting_cpu_s: tuple[float, float]
    wall_s: float
    work_s: float
    occupancy: float | None
    steady_occupancy: float | None
    rows: int
    memory: tuple[Memory, Memory, Memory]

    @property
    def overhead_s(self) -> float:
        """Per trial, beyond the evaluation that evaluators shared."""
        return (self.wall_s - self.work_s / self.evaluators) / self.trials

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.wall_s

    @property
    def ratio(self) -> float:
        """Of a trial to one that reports once; says something where shards take no time.

        To the faster half of those: Tune alone is slow at times, by ending and starting processes, which would flatter.
        """
        return self.trial_s / min(self.noop_s)

    @property
    def reporting_ratio(self) -> float:
        """Of a trial to one that does nothing but report task by task."""
        return self.trial_s / min(self.reporting_s)

    @property
    def cpu_ratio(self) -> float:
        """Of processor time to that of one that reports once; other work on the machine changes it less."""
        return self.trial_cpu_s / min(self.noop_cpu_s)

    @property
    def driver_growth(self) -> int:
        """Bytes that the driver grew by over the sweep."""
        return self.memory[2].driver - self.memory[0].driver

    @property
    def driver_growth_per_trial(self) -> float:
        """Bytes, after the warm-up."""
        return (self.memory[2].driver - self.memory[1].driver) / (self.trials - warm_up(self.trials))

    def as_dict(self) -> dict[str, Any]:
        """JSON-like, with what follows from the figures."""
        names = (
            "overhead_s",
            "rows_per_s",
            "ratio",
            "reporting_ratio",
            "cpu_ratio",
            "driver_growth",
            "driver_growth_per_trial",
        )
        memory = [{"driver": m.driver, "gcs": m.gcs} for m in self.memory]
        return {**self.__dict__, "memory": memory, **{name: getattr(self, name) for name in names}}


def warm_up(num_trials: int) -> int:
    return min(WARM_UP, num_trials // 4)


def steady_s(completions: Completions, first: int) -> tuple[float, float]:
    """Seconds and processor time per trial from the `first` on."""
    return _per_trial(completions, first, len(completions) - 1)


def quarters(completions: Completions) -> list[tuple[float, float]]:
    """Seconds and processor time per trial in each quarter."""
    edges = [round(k * (len(completions) - 1) / 4) for k in range(5)]
    return [_per_trial(completions, first, last) for first, last in itertools.pairwise(edges)]


def _per_trial(completions: Completions, first: int, last: int) -> tuple[float, float]:
    (start, start_cpu), (end, end_cpu) = completions[first], completions[last]
    return (end - start) / (last - first), (end_cpu - start_cpu) / (last - first)


def simulate(
    min_trials: int,
    num_evaluators: int,
    *,
    shard_s: float,
    per_process: int,
    noop: int,
    report: Callable[[str], None] = lambda _: None,
) -> Simulated:
    """Run one simulated sweep on the cluster that is connected, between trials of Tune alone.

    Args:
        min_trials: suggestions of Optuna over all cells; references and tests come on top.
        shard_s: seconds of a shard; every fourth evaluator takes twice as long.
        per_process: evaluators that share a process.
        noop: trials of Tune alone, before the sweep and after it; a quarter as many that report task by task.
    """
    concurrent = num_trials(num_evaluators, NUM_TASKS)
    spec, suite, cells = _sweep_of(min_trials)
    title = f"{num_evaluators} evaluators, {shard_s:g} s a shard"

    def tune_alone(num_trials: int, num_reports: int) -> tuple[float, float]:
        report(f"{title}: {num_trials} trials of Tune alone, {num_reports} reports each")
        return steady_s(noop_trials(num_trials, concurrent, num_reports), warm_up(num_trials))

    def references() -> list[tuple[float, float]]:
        return [tune_alone(noop, 1), tune_alone(max(4, noop // 4), NUM_TASKS)]

    before = references()
    completions: Completions = []
    memory: list[Memory] = []
    warm: list[ServiceStats] = []
    rows = 0
    with (
        tempfile.TemporaryDirectory(prefix="raymerge-bench-") as folder,
        simulated_cluster(num_evaluators, per_process, shard_s) as (pool, run),
    ):
        context = RunContext("simulated", "", suite.name, suite.profile, 0, "", "normalized_accuracy", "fp32")
        writer = ResultsWriter(folder, context)

        def save(record: TrialRecord) -> None:
            nonlocal rows
            writer.append(record)
            rows += 1 + len(record.scores)
            completions.append(now())
            if len(completions) == warm_up(min_trials):
                memory.append(_memory())
                warm.append(pool.view.observe().stats)
            if len(completions) % 500 == 0:
                report(f"{title}: {len(completions)} trials")

        report(f"{title}: sweeping")
        sweep = Sweep(spec, suite, cells, finished={}, on_record=save)
        memory.append(_memory())
        started = time.monotonic()
        stats = run(sweep)
        wall_s = completions[-1][0] - started
        memory.append(_memory())
        processes = -(-pool.joined.most // per_process)
    after = references()
    trial_s, trial_cpu_s = steady_s(completions, warm_up(len(completions)))
    quarter_s, quarter_cpu_s = zip(*quarters(completions), strict=True)
    return Simulated(
        evaluators=num_evaluators,
        processes=processes,
        shard_s=shard_s,
        trials=len(completions),
        concurrent=concurrent,
        trial_s=trial_s,
        trial_cpu_s=trial_cpu_s,
        quarter_s=quarter_s,
        quarter_cpu_s=quarter_cpu_s,
        noop_s=(before[0][0], after[0][0]),
        noop_cpu_s=(before[0][1], after[0][1]),
        reporting_s=(before[1][0], after[1][0]),
        reporting_cpu_s=(before[1][1], after[1][1]),
        wall_s=wall_s,
        work_s=stats.busy_s,
        occupancy=stats.occupancy if shard_s else None,
        steady_occupancy=stats.since(warm[0]).occupancy if shard_s else None,
        rows=rows,
        memory=(memory[0], memory[1], memory[2]),
    )


def _sweep_of(min_trials: int) -> tuple[SweepSpec, Suite, list[Cell]]:
    """As many cells as the trials take, 20 tasks each, over as many backbones as that makes."""
    per_cell = min(TRIALS_PER_CELL, max(BATCH, min_trials // MIN_CELLS))
    num_cells = -(-min_trials // per_cell)
    backbones = [f"B{i}" for i in range(-(-num_cells // len(METHODS)))]
    suite = _suite(backbones)
    tasks = tuple(task.name for task in suite.tasks)
    cells = [Cell(backbone, tasks, method) for backbone in backbones for method in METHODS][:num_cells]
    spec = SweepSpec.model_validate(
        {
            "name": "simulated",
            "suite": suite.name,
            "num_tasks": [NUM_TASKS],
            "methods": {method: {"alpha": {"low": 0.01, "high": 3.0, "step": 0.01}} for method in METHODS},
            "search": {"trials": per_cell, "batch": BATCH, "prune": None},
        }
    )
    return spec, suite, cells


def _suite(backbones: Sequence[str]) -> Suite:
    tasks = [{"name": f"T{i}", "classes": ["a", "b"], "images": {"val": 1024, "test": 1024}} for i in range(NUM_TASKS)]
    backbone = {"zero_shot": "none", "mean": [0.5] * 3, "std": [0.5] * 3}
    value = {"format": 1, "name": "simulated", "profile": "none", "seed": 0, "tasks": tasks}
    return suite_from_json({**value, "backbones": dict.fromkeys(backbones, backbone)}, Path("none"))


def _memory() -> Memory:
    gcs = child_named("gcs_server")
    return Memory(memory_of(os.getpid()).get("VmRSS", 0), memory_of(gcs).get("VmRSS", 0) if gcs else 0)
