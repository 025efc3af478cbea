"""Tune's side of the driver without Tune: who gets which trial, when processes die and when evaluators join."""

import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest.mock import Mock

import fake_sweep
import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.search import Searcher

from raymerge.driver import Sweep
from raymerge.errors import ClusterError, OutputError
from raymerge.merge_jobs import MergeJobs
from raymerge.records import EvalJob, TaskScore, TrialRecord, content_id
from raymerge.tuning import MAX_CRASHES, FinishedTrials, _Bridge, deaths_survived


class FakeDispatcher:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.jobs: dict[str, Sequence[EvalJob]] = {}
        """By trial, as submitted."""
        self.failed: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        dispatcher = self

        class Method:
            def remote(self, *arguments: Any) -> None:
                dispatcher.calls.append((name, arguments))
                if name == "submit":
                    trial_id, jobs = arguments
                    assert trial_id not in dispatcher.jobs, "once"
                    dispatcher.jobs[trial_id] = jobs
                if name == "fail":
                    dispatcher.failed[arguments[0]] = arguments[1]

        return Method()

    def forgotten(self) -> list[str]:
        return [trial_id for name, arguments in self.calls if name == "forget" for trial_id in arguments[0]]


class AllMerged(MergeJobs):
    """Every merge is there already."""

    def __init__(self) -> None: ...
    def is_merged(self, merge: Any) -> bool:
        return True

    def want(self, merges: Any) -> None: ...
    def take_failures(self) -> dict[str, str]:
        return {}

    def held(self) -> list[str]:
        return []

    def release(self, merge_ids: Any) -> None: ...


@dataclass
class FakePool:
    error: Exception | None = None
    found: Exception | None = None
    """What the next step finds."""
    num_steps: int = 0

    def step(self) -> None:
        self.num_steps += 1
        self.error = self.error or self.found


@dataclass
class World:
    max_trials: int = 3
    stopping: bool = False
    spec: Any = field(default_factory=fake_sweep.spec_of)

    def __post_init__(self) -> None:
        self.dispatcher = FakeDispatcher()
        self.pool = FakePool()
        self.sweep: Sweep
        self.sweep, self.records = fake_sweep.start(self.spec)
        self.bridge = _Bridge(
            self.sweep, AllMerged(), self.dispatcher, self.pool, lambda: self.max_trials, lambda: self.stopping
        )
        self.running: dict[str, str] = {}
        """Tune's id and ours."""
        self.num_suggested = 0

    def suggest(self) -> Any:
        """Our id of the trial that a process gets, None or FINISHED."""
        tune_id = f"tune{self.num_suggested}"
        self.num_suggested += 1
        suggested = self.bridge.suggest(tune_id)
        if not isinstance(suggested, dict):
            return suggested
        assert suggested["trial_id"] not in self.running.values()
        self.running[tune_id] = suggested["trial_id"]
        return suggested["trial_id"]

    def fill(self) -> list[str]:
        """Suggest until there is nothing to suggest."""
        found = []
        while (trial_id := self.suggest()) is not None:
            assert trial_id != Searcher.FINISHED
            found.append(trial_id)
        return found

    def tune_id(self, trial_id: str) -> str:
        return next(tune_id for tune_id, known in self.running.items() if known == trial_id)

    def crash(self, trial_id: str) -> None:
        self.bridge.complete(self.running_out(trial_id), {}, crashed=True)

    def running_out(self, trial_id: str) -> str:
        tune_id = self.tune_id(trial_id)
        del self.running[tune_id]
        return tune_id

    def result(self, trial_id: str, scores: Sequence[TaskScore], **more: Any) -> dict[str, Any]:
        result = {"num_scored": len(scores), "scores": [asdict(s) for s in scores], "trial_error": None}
        return {**result, "occupancy": None, **more}

    def scores(self, trial_id: str) -> list[TaskScore]:
        """Of all tasks of a trial that was submitted, by its weights alone."""
        found: dict[str, TaskScore] = {}
        for job in self.dispatcher.jobs[trial_id]:
            known = found.get(job.task, TaskScore(job.task, 0, 0))
            part = int(content_id([job.weights_id, job.task, job.split, job.start]), 16) % (job.stop - job.start) + 1
            found[job.task] = TaskScore(job.task, known.correct + part, known.total + job.stop - job.start)
        return list(found.values())

    def end(self, trial_id: str, **more: Any) -> None:
        result = self.result(trial_id, self.scores(trial_id), done=True, **more)
        self.bridge.complete(self.running_out(trial_id), result, crashed=False)


def test_as_many_trials_as_processes():
    world = World(max_trials=3)
    first = world.fill()
    assert len(first) == 3
    assert ("open_gate", (3,)) in world.dispatcher.calls
    assert world.suggest() is None
    world.end(first[0])
    assert len(world.fill()) == 1
    assert world.bridge.error is None


def test_evaluators_that_join_bring_more_trials():
    world = World(max_trials=2)
    assert len(world.fill()) == 2
    world.max_trials = 5
    assert len(world.fill()) == 3
    world.max_trials = 2
    assert world.fill() == []
    world.max_trials = 5
    assert world.fill() == [], "processes of those that left are still there"
    world.max_trials = 6
    assert len(world.fill()) == 1


def test_a_trial_whose_process_died_gets_another_one():
    world = World(max_trials=2)
    first, second = world.fill()
    world.crash(first)
    assert world.pool.num_steps == 1, "it may be the dispatcher that died"
    assert world.suggest() == first
    assert world.suggest() is None
    assert world.dispatcher.forgotten() == [], "its shards go on"
    world.end(first)
    assert world.dispatcher.forgotten() == [first]
    assert second in world.running.values()
    assert whole_sweep(world)[first].status == "finished"


def test_a_process_that_takes_over_tells_all_scores_again():
    """Those that are known already change nothing."""
    world = World(max_trials=1)
    (first,) = world.fill()
    scores = world.scores(first)
    assert len(scores) > 1
    assert world.bridge.report(world.tune_id(first), world.result(first, scores[:1], done=False))
    world.crash(first)
    assert world.suggest() == first
    assert world.bridge.report(world.tune_id(first), world.result(first, scores[:1], done=False))
    world.end(first)
    record = whole_sweep(world)[first]
    assert len(record.scores) == len(scores)
    assert {s.task: (s.correct, s.total) for s in record.scores} == {s.task: (s.correct, s.total) for s in scores}


def test_a_trial_that_costs_too_many_processes_fails():
    world = World(max_trials=2)
    first, _ = world.fill()
    for _ in range(MAX_CRASHES - 1):
        world.crash(first)
        assert world.suggest() == first
    world.crash(first)
    record = next(record for record in world.records if record.trial_id == first)
    assert (record.status, record.error) == ("failed", "the process that coordinated the trial died")
    assert world.dispatcher.forgotten() == [first]
    assert world.suggest() != first
    assert world.bridge.error is None


def test_a_dispatcher_that_died_ends_the_sweep():
    world = World(max_trials=2)
    first, second = world.fill()
    world.pool.found = ClusterError("the cluster does not answer (gone).")
    world.crash(first)
    assert world.suggest() == Searcher.FINISHED
    assert world.bridge.error is world.pool.found
    assert second in world.dispatcher.forgotten()
    assert world.records == []


def test_an_error_of_the_pool_ends_the_sweep():
    world = World(max_trials=2)
    first, second = world.fill()
    world.pool.error = ClusterError("no evaluator for 15 minutes.")
    assert not world.bridge.report(world.tune_id(first), world.result(first, [], done=False))
    assert world.suggest() == Searcher.FINISHED
    assert world.bridge.error is world.pool.error
    assert sorted(world.dispatcher.forgotten()) == sorted([first, second])


def test_an_error_while_the_next_trial_is_looked_for_lets_the_running_ones_go(monkeypatch):
    world = World(max_trials=3)
    running = [world.suggest(), world.suggest()]
    full = OutputError("out: could not save trial x. Make room there.")
    monkeypatch.setattr(world.sweep, "next_trial", Mock(side_effect=full))
    assert world.suggest() == Searcher.FINISHED
    assert world.bridge.error is full
    assert sorted(world.dispatcher.forgotten()) == sorted(running), "Tune waits for them"


def test_stopping_forgets_what_runs():
    world = World(max_trials=2)
    running = world.fill()
    world.stopping = True
    assert world.suggest() == Searcher.FINISHED
    assert sorted(world.dispatcher.forgotten()) == sorted(running)
    assert (world.bridge.error, world.records) == (None, [])


def test_the_occupancy_of_a_trial_is_recorded():
    world = World(max_trials=2)
    first, second = world.fill()
    world.end(first, occupancy=0.75)
    world.end(second)
    assert [record.occupancy for record in world.records] == [0.75, None]


def outcomes(records: Mapping[str, TrialRecord]) -> Mapping[str, Any]:
    return {
        trial_id: (r.status, {s.task: (s.correct, s.total) for s in r.scores}, r.index)
        for trial_id, r in records.items()
    }


def whole_sweep(world: World, seed: int = 0, crash_rate: float = 0.0) -> dict[str, TrialRecord]:
    """Go on to the end with trials in any order, processes that die and evaluators that come and go."""
    chance = random.Random(seed)
    crashes: dict[str, int] = {}
    while True:
        suggested = world.suggest()
        assert world.bridge.error is None
        if suggested == Searcher.FINISHED:
            assert not world.running
            return {record.trial_id: record for record in world.records}
        if suggested is not None:
            continue
        world.max_trials = chance.randint(1, 4)
        ready = [t for t in world.running.values() if t in world.dispatcher.jobs]
        assert ready, "somebody can go on"
        trial_id = chance.choice(ready)
        if chance.random() < crash_rate and crashes.get(trial_id, 0) < MAX_CRASHES - 1:
            crashes[trial_id] = crashes.get(trial_id, 0) + 1
            world.crash(trial_id)
            continue
        tune_id, scores = world.tune_id(trial_id), world.scores(trial_id)
        for count in range(1, len(scores)):
            if not world.bridge.report(tune_id, world.result(trial_id, scores[count - 1 : count], done=False)):
                world.bridge.complete(
                    world.running_out(trial_id), world.result(trial_id, scores[count - 1 : count]), crashed=False
                )
                break
        else:
            world.end(trial_id)


@pytest.mark.parametrize("seed", range(3))
def test_crashes_change_no_number(seed):
    assert outcomes(whole_sweep(World(), seed, 0.3)) == outcomes(whole_sweep(World(), 100))


# --- trials that Tune has finished with ---------------------------------------------------------------------------


class TuneTrial:
    def __init__(self, status: str = "RUNNING") -> None:
        self.status = status
        self.actor: Any = "actor"
        self._default_result_or_future: Any = "future"

    def set_ray_actor(self, actor: Any) -> None:
        self.actor = actor


class TuneController:
    def __init__(self, *trials: TuneTrial) -> None:
        self._trials = list(trials)
        self._trial_to_actor = dict.fromkeys(trials, "actor")
        self._stopped_trials: set[TuneTrial] = set()
        self._trials_to_cache = set(trials)

    def stop(self, trial: TuneTrial) -> None:
        trial.status = "TERMINATED"
        self._stopped_trials.add(trial)
        del self._trial_to_actor[trial]


def test_a_trial_is_forgotten_once_tune_is_done_with_it():
    first, second = TuneTrial(), TuneTrial()
    controller = TuneController(first, second)
    finished = FinishedTrials()
    finished.note(controller, first)
    finished.forget()
    assert (first.actor, controller._trials) == ("actor", [first, second]), "Tune still works on it"
    first.status = "TERMINATED"
    finished.forget()
    assert controller._trials == [first, second], "its process is still its own"
    controller.stop(first)
    finished.forget()
    assert (first.actor, first._default_result_or_future) == (None, None)
    assert (controller._trials, controller._stopped_trials, controller._trials_to_cache) == ([second], set(), {second})
    assert second.actor == "actor"


def test_the_last_trial_stays():
    first, second = TuneTrial(), TuneTrial()
    controller = TuneController(first)
    finished = FinishedTrials()
    finished.note(controller, first)
    controller.stop(first)
    finished.forget()
    assert controller._trials == [first]
    assert first.actor is None
    controller._trials.append(second)
    finished.note(controller, second)
    controller._trial_to_actor[second] = "actor"
    controller.stop(second)
    finished.forget()
    finished.forget()
    assert controller._trials == [first]


def test_tune_takes_an_actor_that_was_killed_for_memory_for_a_dead_one(monkeypatch):
    assert callable(RayActorManager._actor_task_failed), "or a sweep ends where memory runs out"
    told: list[Any] = []

    def record(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        told.append((manager, tracked_actor_task, exception))

    monkeypatch.setattr(RayActorManager, "_actor_task_failed", record)
    manager, task = RayActorManager.__new__(RayActorManager), object()
    killed, other = OutOfMemoryError("2 worker(s) were killed"), ValueError("a bug")
    of_a_task = RayTaskError("step", "Traceback ...", killed).as_instanceof_cause()
    assert isinstance(of_a_task, OutOfMemoryError)
    with deaths_survived():
        manager._actor_task_failed(tracked_actor_task=task, exception=killed)
        manager._actor_task_failed(task, other)
        manager._actor_task_failed(task, exception=of_a_task)
    assert [(who, what) for who, what, _ in told] == [(manager, task)] * 3
    death, *others = (error for _, _, error in told)
    assert isinstance(death, RayActorError)
    assert "2 worker(s) were killed" in str(death)
    assert others == [other, of_a_task], "the actor lives"
    assert RayActorManager._actor_task_failed is record


def test_other_internals_of_tune_are_no_error(caplog):
    caplog.set_level("DEBUG", logger="raymerge.tuning")
    trial, other = TuneTrial(), TuneTrial()
    without = TuneController(trial, other)
    without.stop(trial)
    del without._stopped_trials
    finished = FinishedTrials()
    finished.note(object(), TuneTrial("TERMINATED"))
    finished.note(object(), object())
    finished.note(without, trial)
    finished.forget()
    assert without._trials == [trial, other], "all or nothing"
    assert [record.levelname for record in caplog.records] == ["DEBUG"] * 3
    finished.forget()
    assert len(caplog.records) == 3, "it is not tried again"


ALIVE = """
import gc, sys

from ray.tune.experiment import Trial

from raymerge import cluster, tuning
from raymerge.bench import cluster as bench

counts = []


class Watched(tuning.FinishedTrials):
    def forget(self):
        super().forget()
        gc.collect()
        counts.append(sum(isinstance(value, Trial) for value in gc.get_objects()))


tuning.FinishedTrials = Watched
if __name__ == "__main__":
    with cluster.connected(None):
        found = bench.simulate(40, 2, shard_s=0.0, per_process=2, noop=4)
    print(found.trials, max(counts))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_tune_keeps_no_trial_that_has_ended():
    done = subprocess.run([sys.executable, "-c", ALIVE], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    trials, most = (int(number) for number in done.stdout.split())
    assert trials == 40 + 10 + 3 * 4, "ten cells and their tests, references of three backbones"
    assert most <= 6, "those that run, wait or end"
