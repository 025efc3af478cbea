"""What a simulated sweep needs of Ray: sleeping evaluators on nodes as large as wanted, and no-op Tune trials."""

import contextlib
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from raymerge import cluster, tuning
from raymerge.bench.sleeping import OneOfSeveral, SleepingEvaluators
from raymerge.driver import Sweep
from raymerge.evaluator_pool import EvaluatorPool, Node
from raymerge.merge_jobs import MergeJobs
from raymerge.merge_request import Merge
from raymerge.records import ServiceStats


class SimulatedView(cluster.RayView):
    """A cluster with room for so many evaluators, several of which share a process."""

    def __init__(self, dispatcher: Any, num_evaluators: int, per_process: int, shard_s: float):
        super().__init__(dispatcher, self._start_one)
        host: Any = ray.remote(num_cpus=0)(SleepingEvaluators)
        self.hosts = [host.remote(shard_s) for _ in range(math.ceil(num_evaluators / per_process))]
        self._num_evaluators = num_evaluators
        self._per_process = per_process
        self._numbers = itertools.count()

    def nodes(self) -> list[Node]:
        first, *_ = super().nodes()
        return [replace(first, resources={"CPU": float(self._num_evaluators)})]

    def kill(self, handle: cluster.Started) -> None:
        """Others live in the same process."""

    def _start_one(self, node_id: str) -> cluster.Started:
        number = next(self._numbers)
        evaluator = OneOfSeveral(self.hosts[number // self._per_process % len(self.hosts)], number)
        return cluster.Started(evaluator, evaluator.ready.remote([]))


class InstantMerges(MergeJobs):
    """Every merge is there as soon as it is wanted, and empty."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._published: set[str] = set()

    def is_merged(self, merge: Merge) -> bool:
        self.want([merge])
        return True

    def want(self, merges: Sequence[Merge]) -> None:
        for merge in merges:
            if merge.merge_id not in self._published:
                self._published.add(merge.merge_id)
                self._dispatcher.publish.remote(merge.merge_id, [])

    def take_failures(self) -> dict[str, str]:
        return {}

    def held(self) -> list[str]:
        return list(self._published)

    def release(self, merge_ids: Sequence[str]) -> None:
        self._published.difference_update(merge_ids)


@contextlib.contextmanager
def simulated_cluster(
    num_evaluators: int, per_process: int, shard_s: float
) -> Iterator[tuple[EvaluatorPool, Callable[[Sweep], ServiceStats]]]:
    """Sleeping evaluators that serve, and a function that runs a sweep on them.

    The function returns what evaluators have done at the moment when the sweep was done.
    """
    name, dispatcher = cluster.start_dispatcher("simulated")
    view = SimulatedView(dispatcher, num_evaluators, per_process, shard_s)
    pool = EvaluatorPool(view, name, {"CPU": 1.0}, num_evaluators, reserved=lambda cpus: 0.0)

    def run(sweep: Sweep) -> ServiceStats:
        stats: list[ServiceStats] = []

        def stopping() -> bool:
            if sweep.done and not stats:  # before Tune tidies up, while evaluators have nothing to do
                stats.append(view.observe().stats)
            return False

        smallest = min(cell.num_tasks for cell in sweep.cells)
        tuning.run_tune(
            sweep,
            InstantMerges(dispatcher),
            dispatcher,
            pool,
            max_trials=lambda: tuning.num_trials(pool.joined.num_wanted, smallest),
            stopping=stopping,
        )
        return stats[0]

    try:
        pool.begin()
        yield pool, run
    finally:
        pool.close()
        for actor in (*view.hosts, dispatcher):
            ray.kill(actor)


Completions = list[tuple[float, float]]
"""When trials were complete, and the processor time that the process which runs Tune had used by then."""


def now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def noop_trials(num_trials: int, num_concurrent: int, num_reports: int = 1) -> Completions:
    """Run trials of Tune alone that do nothing but report, in reused actors.

    In a process of its own, so that what Tune keeps of them is nobody else's memory.
    """
    run: Any = ray.remote(num_cpus=0)(_noop_trials)
    (completions,) = cluster.get([run.remote(num_trials, num_concurrent, num_reports)])
    return completions


class NoTrial(tune.Trainable):
    """Does nothing, once all processes are there: else Tune starts and ends them for as long as the trials last."""

    def setup(
        self, config: dict[str, Any], folder: Path = Path(), num_processes: int = 1, num_reports: int = 1
    ) -> None:
        self._folder, self._num_processes = folder, num_processes
        self._num_reports = self._num_left = num_reports
        (folder / str(os.getpid())).touch()

    def step(self) -> dict[str, Any]:
        while len(list(self._folder.iterdir())) < self._num_processes:
            time.sleep(0.01)
        self._num_left -= 1
        return {"done": not self._num_left}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._num_left = self._num_reports
        return True


class _Watch(FIFOScheduler):
    def __init__(self, completions: Completions):
        super().__init__()
        self._completions = completions

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._completions.append(now())


def _noop_trials(num_trials: int, num_concurrent: int, num_reports: int) -> Completions:
    completions: Completions = []
    with tempfile.TemporaryDirectory(prefix="raymerge-tune-") as folder, tuning.quiet_tune():
        processes = Path(folder, "processes")
        processes.mkdir()
        trial = tune.with_parameters(
            NoTrial, folder=processes, num_processes=min(num_concurrent, num_trials), num_reports=num_reports
        )
        tune.Tuner(
            tune.with_resources(trial, tuning.on_this_node()),
            tune_config=tune.TuneConfig(
                num_samples=num_trials,
                reuse_actors=True,
                max_concurrent_trials=num_concurrent,
                scheduler=_Watch(completions),
            ),
            run_config=tune.RunConfig(
                name="noop",
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    return completions
