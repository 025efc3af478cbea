"""What a trial costs beyond its evaluation: raymerge's trials on evaluators that do nothing, against Tune's own.

    python benchmarks/trial_overhead.py [--trials 120] [--repeats 3]

Prints seconds per trial of both in turn and the ratio of the medians. The raymerge side is the whole path of a sweep
(driver, OptunaSearch, Tune, dispatcher, evaluator actors, shards of 20 tasks, Parquet) with encoders left out; the Tune
side is a class trainable with reused actors that reports once.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raymerge import cluster, tuning
from raymerge.driver import Sweep
from raymerge.records import Cell, EvalJob, Scored
from raymerge.result_schema import RunContext
from raymerge.results import ResultsWriter
from raymerge.suites import Suite, suite_from_json
from raymerge.sweep_spec import SweepSpec

NUM_TASKS = 20
CONCURRENT = 2


class NoEvaluation:
    """An evaluator that answers at once."""

    def ready(self, backbones: list[str]) -> str:
        return "none"

    def run(self, job: EvalJob) -> Scored:
        return Scored((job.stop - job.start) // 2, job.stop - job.start, 0.0)


class Healthy:
    """A pool of evaluators that nothing happens to."""

    error = None

    def step(self) -> None: ...


class NoMerges:
    """MergeJobs for which every merge is there already."""

    def is_merged(self, merge: Any) -> bool:
        return True

    def want(self, merges: Any) -> None: ...
    def take_failures(self) -> dict[str, str]:
        return {}

    def held(self) -> list[str]:
        return []

    def release(self, merge_ids: Any) -> None: ...


class NoTrial(tune.Trainable):
    def setup(self, config: dict[str, Any]) -> None: ...
    def step(self) -> dict[str, Any]:
        return {"done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True


def make_suite() -> Suite:
    tasks = [{"name": f"T{i}", "classes": ["a", "b"], "images": {"val": 100, "test": 100}} for i in range(NUM_TASKS)]
    backbone = {"zero_shot": "none", "mean": [0.5] * 3, "std": [0.5] * 3}
    value = {"format": 1, "name": "none", "profile": "none", "seed": 0, "backbones": {"none": backbone}, "tasks": tasks}
    return suite_from_json(value, Path("none"))


def raymerge_trials(num_trials: int) -> float:
    """Seconds per trial of a sweep whose evaluators do nothing."""
    suite = make_suite()
    methods = ("task-arithmetic", "ties", "tsv-m", "iso-c")
    spec = SweepSpec.model_validate(
        {
            "name": "overhead",
            "suite": "none",
            "num_tasks": [NUM_TASKS],
            "methods": list(methods),
            "search": {"trials": num_trials // len(methods), "prune": None},
        }
    )
    cells = [Cell("none", tuple(task.name for task in suite.tasks), method) for method in methods]
    evaluators = [ray.remote(num_cpus=1)(NoEvaluation).remote() for _ in range(CONCURRENT)]
    ray.get([evaluator.ready.remote([]) for evaluator in evaluators])
    _, dispatcher = cluster.start_dispatcher()
    for number, evaluator in enumerate(evaluators):
        dispatcher.join.remote(str(number), evaluator)
    # evaluators know no merged update: theirs is answered with nothing
    with tempfile.TemporaryDirectory() as folder:
        context = RunContext("overhead", "", "none", "none", 0, "", "normalized_accuracy", "fp32")
        writer = ResultsWriter(folder, context)
        sweep = Sweep(spec, suite, cells, finished={}, on_record=writer.append)
        for merge_id in {m.merge_id for m in sweep.wanted_merges()}:
            dispatcher.publish.remote(merge_id, [])
        started = time.monotonic()
        no_merges: Any = NoMerges()
        tuning.run_tune(sweep, no_merges, dispatcher, Healthy(), max_trials=lambda: CONCURRENT, stopping=lambda: False)
        elapsed = time.monotonic() - started
    for actor in (*evaluators, dispatcher):
        ray.kill(actor)
    return elapsed / len(sweep.records)


def tune_trials(num_trials: int) -> float:
    """Seconds per trial of Tune alone."""
    with tempfile.TemporaryDirectory() as folder, tuning.quiet_tune():
        tuner = tune.Tuner(
            tune.with_resources(NoTrial, {"CPU": 1}),
            tune_config=tune.TuneConfig(num_samples=num_trials, reuse_actors=True, max_concurrent_trials=CONCURRENT),
            run_config=tune.RunConfig(
                name="noop",
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        started = time.monotonic()
        tuner.fit()
        return (time.monotonic() - started) / num_trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with cluster.connected(None):
        tune_trials(4)  # warm up: the first trial of a cluster starts its processes
        ours, theirs = [], []
        for _ in range(arguments.repeats):
            ours.append(raymerge_trials(arguments.trials))
            theirs.append(tune_trials(arguments.trials))
            print(f"raymerge {ours[-1]:.4f} s/trial   no-op Tune {theirs[-1]:.4f} s/trial")
    pairs = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"median ratio {statistics.median(ours) / statistics.median(theirs):.2f} "
        f"(pairs {pairs[0]:.2f} to {pairs[-1]:.2f}), {arguments.trials} trials of {NUM_TASKS} tasks"
    )


if __name__ == "__main__":
    main()
