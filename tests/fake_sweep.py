"""A suite without files, accuracies without models, and an executor that does things in any order it likes."""

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from raymerge.driver import Sweep, Trial, Weights
from raymerge.merge_request import Merge
from raymerge.records import Split, TaskScore, TrialRecord, content_id
from raymerge.search_space import sweep_cells
from raymerge.suites import Backbone, Suite, Task
from raymerge.sweep_spec import SweepSpec

TASKS = tuple(
    Task(name, ("a", "b"), {"val": val, "test": test})
    for name, val, test in (("T0", 40, 50), ("T1", 80, 20), ("T2", 60, 20), ("T3", 100, 30))
)
"""Reported in the order T3, T1, T2, T0."""
REPORTED = ("T3", "T1", "T2", "T0")
BACKBONE = Backbone("vit", "zero.pt", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SUITE = Suite("fake", "full", 0, Path("/nowhere"), {"vit": BACKBONE}, TASKS)

METHODS: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "fine-tuned": {},
    "weight-averaging": {},
    "ties": {"alpha": {"low": 0.2, "high": 1.8, "step": 0.4}},
    "consensus-ta": {"alpha": {"low": 0.2, "high": 1.8, "step": 0.4}, "mask_lambda": [0.2, 0.4]},
    "iso-cts": {"alpha": {"low": 0.2, "high": 1.8, "step": 0.4}, "common_space_fraction": [0.2, 0.5, 0.8]},
}
PAPER_METHODS = {**METHODS, "iso-cts": {"alpha": METHODS["iso-cts"]["alpha"]}}


def spec_of(
    methods: Mapping[str, Any] | Sequence[str] = METHODS,
    num_tasks: Sequence[int] = (2, 4),
    evaluation: Mapping[str, Any] | None = None,
    **search: Any,
) -> SweepSpec:
    search = {"trials": 6, "batch": 2, **search}
    if search.get("policy") == "paper" and methods is METHODS:
        methods = PAPER_METHODS
    return SweepSpec.model_validate(
        {
            "name": "x",
            "suite": "fake",
            "num_tasks": list(num_tasks),
            "methods": methods,
            "search": search,
            "evaluation": evaluation or {},
        }
    )


Accuracy = Callable[[Weights, str, str], float]


def accuracy(weights: Weights, task: str, split: str) -> float:
    """Of a merged model a curve of alpha with a peak, a little different for every task and split."""
    noise = int(content_id([weights.weights_id, task, split]), 16) / 2**64 / 20
    merge = weights.merge
    if merge is None:
        return 0.3 + noise
    if merge.method == "fine-tuned":
        return 0.9 + noise
    best = 0.5 + int(content_id([merge.method, task]), 16) / 2**64
    return 0.2 + 0.6 * math.exp(-((weights.alpha - best) ** 2)) + noise


def score(weights: Weights, task: str, split: Split, accuracy: Accuracy = accuracy, suite: Suite = SUITE) -> TaskScore:
    total = suite.task(task).images[split]
    return TaskScore(task, round(accuracy(weights, task, split) * total), total)


class FakeExecutor:
    """Several trials at once, their scores and the merges in random order."""

    def __init__(
        self,
        sweep: Sweep,
        *,
        seed: int = 0,
        limit: int = 1,
        accuracy: Accuracy = accuracy,
        broken_merge: Callable[[Merge], str | None] = lambda merge: None,
        broken_trial: Callable[[Trial], str | None] = lambda trial: None,
        waits: bool = True,
    ):
        """
        Args:
            limit: trials in flight.
            broken_merge, broken_trial: the error, if any.
            waits: for references and merges; without, trials run as soon as they are handed out.
        """
        self.sweep = sweep
        self.random = random.Random(seed)
        self.limit = limit
        self.accuracy = accuracy
        self.broken_merge = broken_merge
        self.broken_trial = broken_trial
        self.waits = waits
        self.merged: dict[str, Merge] = {}
        self.running: dict[str, Trial] = {}
        self.asked: list[Trial] = []
        """Every trial that was handed out."""
        self.evaluated: list[tuple[str, str, str]] = []
        """Weights, task and split of every score that was really computed."""
        self.released: dict[str, Merge] = {}
        self.wanted_again: list[Merge] = []
        """Merges that were wanted after they were said not to be needed any more."""
        self.released_when_asked: dict[str, list[Merge]] = {}
        """Of every trial, those of its merges that had been released and not been merged again."""

    def run(self) -> None:
        """To the end of the sweep."""
        while not self.sweep.done:
            actions = [self._merge, self._take, self._score]
            self.random.shuffle(actions)
            assert any(action() for action in actions), "nothing can be done, and the sweep is not done"
        assert self.sweep.next_trial() is None
        assert not self.running

    def _is_merged(self, merge: Merge) -> bool:
        return not self.waits or merge.merge_id in self.merged

    def _merge(self) -> bool:
        wanted = [*self.sweep.wanted_merges(), *(m for trial in self.running.values() for m in trial.merges)]
        self._note(wanted)
        missing = [merge for merge in wanted if merge.merge_id not in self.merged]
        if not missing or not self.waits:
            return False
        merge = self.random.choice(missing)
        if error := self.broken_merge(merge):
            self.sweep.fail_merge(merge.merge_id, error)
            self._drop_hopeless()
        else:
            self.merged[merge.merge_id] = merge
            self.released.pop(merge.merge_id, None)
        return True

    def _take(self) -> bool:
        if len(self.running) >= self.limit:
            return False
        trial = self.sweep.next_trial(self._is_merged)
        if trial is None:
            return False
        assert trial.trial_id not in self.running
        self._note(trial.merges)
        self.asked.append(trial)
        self.released_when_asked[trial.trial_id] = [m for m in trial.merges if m.merge_id in self.released]
        self.running[trial.trial_id] = trial
        self._drop_hopeless()
        return True

    def _score(self) -> bool:
        ready = [t for t in self.running.values() if not self.waits or self.sweep.may_run(t, self._is_merged)]
        if not ready:
            return False
        trial = self.random.choice(ready)
        if error := self.broken_trial(trial):
            del self.running[trial.trial_id]
            self.sweep.fail(trial.trial_id, error)
            self._drop_hopeless()
            return True
        missing = self.sweep.missing_tasks(trial.trial_id)
        chosen = self.random.sample(missing, self.random.randint(min(1, len(missing)), len(missing)))
        scores = [score(trial.weights[task], task, trial.split, self.accuracy, self.sweep.suite) for task in chosen]
        self.evaluated += [(trial.weights[task].weights_id, task, trial.split) for task in chosen]
        go_on = self.sweep.report(trial.trial_id, scores)
        if not go_on or len(chosen) == len(missing):
            del self.running[trial.trial_id]
            self.sweep.complete(trial.trial_id)
            for merge_id in self.sweep.unneeded_merges(list(self.merged)):
                self.released[merge_id] = self.merged.pop(merge_id)
        return True

    def _drop_hopeless(self) -> None:
        for trial in list(self.running.values()):
            if error := self.sweep.reason_to_fail(trial):
                del self.running[trial.trial_id]
                self.sweep.fail(trial.trial_id, error)

    def _note(self, merges: Collection[Merge]) -> None:
        self.wanted_again += [merge for merge in merges if merge.merge_id in self.released]


def start(
    spec: SweepSpec, finished: Mapping[str, TrialRecord] | None = None, suite: Suite = SUITE
) -> tuple[Sweep, list[TrialRecord]]:
    """A sweep and the list that its records go to."""
    records: list[TrialRecord] = []
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    return Sweep(spec, suite, cells, finished=finished or {}, on_record=records.append, device="fake"), records


def run(spec: SweepSpec, finished: Mapping[str, TrialRecord] | None = None, **executor: Any) -> list[TrialRecord]:
    """The new records of a whole sweep."""
    sweep, records = start(spec, finished)
    FakeExecutor(sweep, **executor).run()
    return records
