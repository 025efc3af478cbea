"""The sweep as one Ray Tune experiment: Tune asks the driver for trials, runs them in reused actors, reports back.

A trial actor is a thin coordinator: it submits the shards of its trial to the dispatcher and reports scores as they
come in. It holds no model and must not import torch, whose import alone would cost more than ten trials.
"""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import ray
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raymerge import cluster, trackers
from raymerge.dispatcher import Progress
from raymerge.driver import Sweep, Trial
from raymerge.merge_jobs import MergeJobs
from raymerge.records import TaskScore
from raymerge.shards import jobs_of

MAX_CRASHES = 3
"""Processes a trial may lose before it fails."""

logger = logging.getLogger(__name__)


@runtime_checkable
class Health(Protocol):
    """The part of an EvaluatorPool that matters to trials."""

    @property
    def error(self) -> Exception | None:
        """Why no trial can go on, if so."""
        ...

    def step(self) -> None:
        """Look again now."""
        ...


class TrialCoordinator(tune.Trainable):
    """Waits for the scores of one trial at a time; the actor is reused by `reset_config`."""

    def setup(self, config: dict[str, Any], dispatcher: Any = None) -> None:
        self._dispatcher = dispatcher
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial_id = new_config["trial_id"]
        self._num_known = 0
        return True

    def step(self) -> dict[str, Any]:
        progress: Progress = ray.get(  # type: ignore[assignment]
            self._dispatcher.progress.remote(self._trial_id, self._num_known)
        )
        self._num_known = progress.num_scored
        return {
            "num_scored": progress.num_scored,
            "scores": [vars(score) for score in progress.scores],
            "trial_error": progress.error,
            "occupancy": progress.occupancy,
            "done": progress.done,
        }


class FinishedTrials:
    """Has Tune forget the trials that it has finished with, of which it keeps 0.1 MB each to the end of the experiment.

    A trial is noted as it completes, while Tune still works on it, and forgotten at the next call of `forget`. This
    reaches into Ray's own attributes: where another version lacks them, trials stay, and nothing else happens.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[Any, Any]] = []

    def note(self, controller: Any, trial: Any) -> None:
        self._noted.append((controller, trial))

    def forget(self) -> None:
        left = []
        for controller, trial in self._noted:
            try:
                if trial.status == "TERMINATED" and trial not in controller._trial_to_actor:
                    self._forget(controller, trial)
                else:
                    left.append((controller, trial))
            except Exception as error:
                logger.debug("Tune keeps a trial that has ended", exc_info=error)
        self._noted = left

    @staticmethod
    def _forget(controller: Any, trial: Any) -> None:
        """Drop what it holds, then the trial itself, which Tune would write down at the end of the experiment."""
        trial.set_ray_actor(None)
        trial._default_result_or_future = None  # of a remote call, whose answer nobody reads
        trials: list[Any] = controller._trials
        if len(trials) > 1:  # were there none at the end, Tune would look for them on disk
            by_state, to_write = controller._stopped_trials, controller._trials_to_cache
            trials.remove(trial)
            by_state.discard(trial)
            to_write.discard(trial)


class SweepSearcher(Searcher):
    """Tune's view of the driver: what to run next. The search itself is OptunaSearch, one per cell (search.py)."""

    def __init__(self, bridge: "_Bridge", finished: FinishedTrials):
        super().__init__(metric="num_scored", mode="max")
        self._bridge = bridge
        self._finished = finished

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._finished.forget()
        return self._bridge.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._bridge.complete(trial_id, result or {}, crashed=error)

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    # Tune's own experiment state is disposable: a sweep resumes from its Parquet
    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...
    def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None: ...
    def get_state(self) -> dict[str, Any]:
        return {}


class SweepScheduler(FIFOScheduler):
    """Tells the driver every score, and stops the trials that it calls hopeless."""

    def __init__(self, bridge: "_Bridge", finished: FinishedTrials):
        super().__init__()
        self._bridge = bridge
        self._finished = finished

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return TrialScheduler.CONTINUE if self._bridge.report(trial.trial_id, result) else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        self._finished.note(tune_controller, trial)


class _NoProgress(TrialProgressCallback):
    """In place of Tune's own, which keeps every trial, although it prints nothing at this verbosity."""

    def log_result(self, trial: Any, result: dict[str, Any], error: bool = False) -> None: ...
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None: ...


class _Bridge:
    """Between Tune's trial ids and the driver's.

    Tune reuses a trial's process only for a trial that waits for one, and keeps a single idle process. A waiting trial
    takes a free process away from under the one that was being started for it, which is then ended. So, lest Tune
    start and end processes all the time: trials are handed out before they can run, and wait in their processes; no
    trial ends before all processes have started (`Dispatcher.open_gate`); and once there are too few trials for all
    processes, the number that runs at once grows no more, unless evaluators join.
    """

    def __init__(
        self,
        sweep: Sweep,
        merges: MergeJobs,
        dispatcher: Any,
        pool: Health,
        max_trials: Callable[[], int],
        stopping: Callable[[], bool],
    ):
        self.error: Exception | None = None
        """What went wrong in the driver. Raised inside Tune it would come back as a traceback in a string."""
        self._sweep = sweep
        self._merges = merges
        self._dispatcher = dispatcher
        self._pool = pool
        self._max_trials = max_trials
        self._most = self._capacity = max_trials()
        self._asked_to_stop = stopping
        self._trial_ids: dict[str, str] = {}
        self._crashed: list[str] = []
        """Trials whose process died. Their shards go on; only somebody has to wait for them."""
        self._num_crashes: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._waiting: list[Trial] = []
        """Trials that were handed out before they could run."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its configuration for a `Tuner.restore` that nobody calls

    def suggest(self, tune_id: str) -> dict[str, Any] | str | None:
        """The configuration of a new Tune trial, None to be asked again, or FINISHED."""
        try:
            if not self._stopping():
                return self._suggest(tune_id)
        except Exception as error:
            self.error = error
        self._dispatcher.forget.remote(list(self._trial_ids.values()))  # Tune waits for them, and asks no more
        return Searcher.FINISHED

    def look(self, tune_id: str) -> trackers.State | None:
        """A running trial, for those who show it elsewhere."""
        state = self._sweep.running_state(self._trial_ids.get(tune_id, ""))
        return None if state is None else trackers.State(*state)

    def report(self, tune_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial should go on."""
        trial_id = self._trial_ids.get(tune_id)
        if trial_id is None or self._stopping():
            return False
        if error := result.get("trial_error"):
            self._errors[tune_id] = error
            return True  # it says itself that it is done
        return self._sweep.report(trial_id, [TaskScore(**score) for score in result["scores"]])

    def complete(self, tune_id: str, result: dict[str, Any], *, crashed: bool) -> None:
        """Take the last scores of a trial, which Tune does not show to the scheduler, and close it."""
        trial_id = self._trial_ids.get(tune_id)
        if trial_id is None or self._stopping():
            return
        try:
            if not crashed:
                self.report(tune_id, result)
            del self._trial_ids[tune_id]
            if crashed:
                self._pool.step()  # it may be the dispatcher that died, and then nothing else is wrong
                if self._stopping():
                    return
                self._num_crashes[trial_id] += 1
                if self._num_crashes[trial_id] < MAX_CRASHES:
                    self._crashed.append(trial_id)
                    return
            self._dispatcher.forget.remote([trial_id])
            message = self._errors.pop(tune_id, "the process that coordinated the trial died" if crashed else None)
            if message:
                self._sweep.fail(trial_id, message)
            else:
                self._sweep.complete(trial_id, occupancy=result.get("occupancy"))
            self._waiting = [trial for trial in self._waiting if trial.trial_id != trial_id]
            if unneeded := self._sweep.unneeded_merges(self._merges.held()):
                self._merges.release(unneeded)
                self._dispatcher.release.remote(unneeded)
        except Exception as error:
            self.error = error

    def _stopping(self) -> bool:
        self.error = self.error or self._pool.error
        return self.error is not None or self._asked_to_stop()

    def _suggest(self, tune_id: str) -> dict[str, Any] | str | None:
        for merge_id, error in self._merges.take_failures().items():
            self._sweep.fail_merge(merge_id, error)
        self._submit_ready()
        if self._sweep.done:
            return Searcher.FINISHED
        self._merges.want(self._sweep.wanted_merges())
        if (most := self._max_trials()) > self._most:
            self._capacity += most - self._most
            self._most = most
        if self._crashed and len(self._trial_ids) < self._capacity:
            trial_id = self._trial_ids[tune_id] = self._crashed.pop(0)
            return {"trial_id": trial_id}
        trial = None
        if len(self._trial_ids) < self._capacity:
            trial = self._sweep.next_trial(self._merges.is_merged)
        if trial is None:
            self._capacity = max(1, min(self._capacity, len(self._trial_ids) + 1))
            self._dispatcher.open_gate.remote(len(self._trial_ids))
            return None
        self._trial_ids[tune_id] = trial.trial_id
        self._waiting.append(trial)
        self._submit_ready()
        return {"trial_id": trial.trial_id}

    def _submit_ready(self) -> None:
        """Queue the trials whose merges and references are there now.

        From here, and not from the coordinators, so that evaluators never wait for Tune to start a trial.
        """
        for trial in list(self._waiting):
            if error := self._sweep.reason_to_fail(trial):
                self._dispatcher.fail.remote(trial.trial_id, error)
            elif self._sweep.may_run(trial, self._merges.is_merged):
                missing = self._sweep.missing_tasks(trial.trial_id)
                jobs = jobs_of(trial, missing, self._sweep.suite, self._sweep.spec.evaluation)
                self._dispatcher.submit.remote(trial.trial_id, list(jobs))
            else:
                continue
            self._waiting.remove(trial)


def num_trials(num_evaluators: int, num_tasks: int) -> int:
    """How many trials run at once: enough that evaluators find shards while one trial ends and the next begins."""
    return 2 + 2 * num_evaluators // num_tasks


def run_tune(
    sweep: Sweep,
    merges: MergeJobs,
    dispatcher: Any,
    pool: Health,
    *,
    max_trials: Callable[[], int],
    stopping: Callable[[], bool],
    tracked_by: Sequence[trackers.Tracker] = (),
) -> None:
    """Run the sweep to its end, or until `stopping` says so.

    Args:
        dispatcher: handle of a started Dispatcher actor.
        pool: its evaluators.
        max_trials: how many run at once, by now; each is a process of its own.
        tracked_by: shown every trial and its scores.
    """
    bridge = _Bridge(sweep, merges, dispatcher, pool, max_trials, stopping)
    finished = FinishedTrials()
    callbacks: list[Any] = [_NoProgress()]
    if tracked_by:
        callbacks.append(trackers.TrackerCallback(tracked_by, sweep.spec.name, bridge.look))
    with tempfile.TemporaryDirectory(prefix="raymerge-tune-") as scratch, quiet_tune(), deaths_survived():
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(TrialCoordinator, dispatcher=dispatcher), on_this_node()),
            tune_config=tune.TuneConfig(
                search_alg=SweepSearcher(bridge, finished),
                scheduler=SweepScheduler(bridge, finished),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                callbacks=callbacks,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    if bridge.error is not None:
        raise bridge.error


def on_this_node() -> dict[str, float]:
    """Resources that only the driver's node has: no trial is lost with another one."""
    here = cluster.this_node()
    (resources,) = (node.resources for node in cluster.alive_nodes() if node.node_id == here)
    addresses = [name for name in resources if name.startswith("node:") and name != cluster.HEAD]
    return {"memory": 1, **dict.fromkeys(addresses, 0.0001)}


@contextmanager
def deaths_survived() -> Iterator[None]:
    """Let Tune take an actor that Ray killed for its node's memory for what it is, a dead one, while the context lasts.

    It knows other errors of dead actors and gives up the whole experiment at this one. Where another version of Ray has
    no such method, nothing happens.
    """
    name = "_actor_task_failed"
    original = getattr(RayActorManager, name, None)
    if original is None:
        yield
        return

    def known(error: Any) -> Any:
        is_death = isinstance(error, OutOfMemoryError) and not isinstance(error, RayTaskError)
        return RayActorError(error_msg=str(error)) if is_death else error

    def failed(*arguments: Any, **named: Any) -> None:
        original(*map(known, arguments), **{key: known(value) for key, value in named.items()})

    setattr(RayActorManager, name, failed)
    try:
        yield
    finally:
        setattr(RayActorManager, name, original)


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Tune without its console output, its files per trial and its signal handler, while the context lasts."""
    settings = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three files per trial, and half of its cost
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a sweep handles signals itself
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
        "TUNE_MAX_PENDING_TRIALS_PG": "1000",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    tune_logger = logging.getLogger("ray.tune")
    level = tune_logger.level
    tune_logger.setLevel(logging.CRITICAL)  # it would print a traceback for every trial whose process died
    try:
        yield
    finally:
        tune_logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
