"""SerialExecutor: a whole sweep in this process, with readable tracebacks and the same results as on a cluster."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raymerge.driver import Sweep
from raymerge.errors import RaymergeError
from raymerge.merge_request import Group, group_merges, request_for
from raymerge.merging import merge_shard, read_statistics, shards_of
from raymerge.records import EvalJob, Failed, Scored, TaskScore, task_score
from raymerge.shards import jobs_of
from raymerge.suites import moments_dir
from raymerge.worker import EvalWorker, WorkerSetup


class SerialExecutor:
    """Runs the trials of a sweep one after another."""

    def __init__(self, setup: WorkerSetup, moments: Path | None = None):
        """
        Args:
            moments: folder of input moments; None: that of the suite in the cache.
        """
        self._setup = setup
        self._moments = moments or moments_dir(setup.suite)
        self._updates: dict[str, Sequence[Mapping[str, np.ndarray]]] = {}
        self._failed: set[str] = set()
        self._worker = EvalWorker(setup, fetch=lambda update: update)

    def run(self, sweep: Sweep) -> None:
        while not sweep.done:
            self._merge(sweep)
            trial = sweep.next_trial()
            if trial is None:
                assert sweep.done, "nothing to run, nothing running, and not done"
                return
            trial_id = trial.trial_id
            for task in sweep.missing_tasks(trial_id):
                jobs = list(jobs_of(trial, [task], self._setup.suite, self._setup.settings))
                outcome = self._score(task, jobs)
                if isinstance(outcome, Failed):
                    sweep.fail(trial_id, outcome.error)
                    break
                if not sweep.report(trial_id, [outcome]):
                    sweep.complete(trial_id)
                    break
            else:
                sweep.complete(trial_id)
            for merge_id in sweep.unneeded_merges(list(self._updates)):
                del self._updates[merge_id]

    def _score(self, task: str, jobs: Sequence[EvalJob]) -> TaskScore | Failed:
        shards: list[Scored] = []
        for job in jobs:
            update = self._updates[job.update_id] if job.update_id else None
            outcome = self._worker.run(EvalJob(**{**vars(job), "update": update}))
            if isinstance(outcome, Failed):
                return outcome
            assert isinstance(outcome, Scored), "updates are in this process"
            shards.append(outcome)
        return task_score(task, shards)

    def _merge(self, sweep: Sweep) -> None:
        known = self._updates.keys() | self._failed
        wanted = [merge for merge in sweep.wanted_merges() if merge.merge_id not in known]
        for group in group_merges(wanted, self._setup.suite, sweep.families):
            try:
                updates = self._compute(group)
            except RaymergeError as error:
                for merge in group.merges:
                    self._failed.add(merge.merge_id)
                    sweep.fail_merge(merge.merge_id, str(error))
                continue
            for merge, update in zip(group.merges, updates, strict=True):
                self._updates[merge.merge_id] = [{name: value.numpy() for name, value in update.items()}]

    def _compute(self, group: Group) -> list[dict]:
        request = request_for(self._setup.suite, group, self._moments)
        statistics = read_statistics(request)
        updates: list[dict] = [{} for _ in group.merges]
        for names in shards_of(request):
            for update, part in zip(updates, merge_shard(request, names, statistics), strict=True):
                update |= part
        return updates
