"""The sweep as a state machine: which trial is next, what its outcome means, when it is over. No ray, no torch.

An executor (serial.py, tuning.py) asks for the next trial, runs it anywhere, and brings back scores. Everything that
decides a number happens here, in an order that does not depend on the executor.
"""

import itertools
import math
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from raymerge.merge_request import Family, Merge, families_of
from raymerge.methods import METHODS
from raymerge.records import Accuracies, Cell, Point, Split, Stage, TaskReference, TaskScore, TrialRecord, content_id
from raymerge.search import Search, Suggestion, search_cell
from raymerge.search_space import SearchSpace, search_space
from raymerge.selection import select_best
from raymerge.suites import Suite
from raymerge.sweep_spec import SweepSpec

MAX_MERGED_AHEAD = 16
"""A cell with no more structural settings than this has all of them merged at once, from one factorisation."""


@dataclass(frozen=True)
class Weights:
    """theta_0 + alpha * update; `merge` is None for theta_0 itself."""

    backbone: str
    merge: Merge | None = None
    alpha: float = 0.0

    @cached_property
    def weights_id(self) -> str:
        return content_id([self.backbone, self.merge and self.merge.merge_id, self.alpha])


@dataclass(frozen=True)
class Trial:
    """A point of a cell on one split: the weights of every task, in the order in which tasks are reported."""

    trial_id: str
    cell: Cell
    point: Point
    stage: Stage
    split: Split
    generation: int
    index: int
    weights: Mapping[str, Weights]
    rival: tuple[float, ...] | None = None
    """Objective per task, in the order of `weights`, of the best earlier trial of the cell; None: never stop early."""

    @cached_property
    def merges(self) -> tuple[Merge, ...]:
        return _merges_of(self.weights)


@dataclass
class _Running:
    trial: Trial
    scores: dict[str, TaskScore]
    known: frozenset[str]
    """Tasks whose scores did not have to be evaluated."""
    started: float = field(default_factory=time.monotonic)
    complete: bool = False
    occupancy: float | None = None


@dataclass(eq=False)
class _CellState:
    cell: Cell
    position: int
    """Among all cells, references first."""
    search: Search
    merges_ahead: tuple[Merge, ...] = ()
    is_listed: bool = True
    """Whether the sweep lists the cell; otherwise it is there for the references of others alone."""
    batch: list[Trial] = field(default_factory=list)
    waiting: list[Trial] = field(default_factory=list)
    """Trials of the batch that were not handed out and are not known yet; see `Sweep._set_waiting`."""
    wanted: dict[str, Merge] | None = None
    """By id, the merges of the waiting trials; None: to be found anew."""
    best: TrialRecord | None = None
    """Of the trials of this batch and the earlier ones."""
    kept: frozenset[str] = frozenset()
    """Ids of the merges that the cell can ask for again."""
    generation: int = -1
    finished: bool = False

    @property
    def urgency(self) -> tuple[bool, int, int]:
        """Cells in the order they are served: what others are compared with first, then the least far.

        Were another trial handed out before the references it waits for, it might take the place they need.
        """
        return (not _is_reference(self.cell), self.generation, self.position)


class Sweep:
    """All cells of a sweep, advanced by whoever executes trials.

    Records, new or found again, reach the search policies batch by batch in the order of suggestion. New ones are
    also passed to `on_record`, each exactly once.

    A sweep has thousands of records and a hundred cells, so nothing that happens once per trial may go through all of
    either: what follows from them is kept up to date instead, and only cells that something happened to are looked at.
    """

    def __init__(
        self,
        spec: SweepSpec,
        suite: Suite,
        cells: Sequence[Cell],
        *,
        finished: Mapping[str, TrialRecord],
        on_record: Callable[[TrialRecord], None],
        device: str = "",
        published: Accuracies | None = None,
    ):
        """
        Args:
            finished: records of an earlier run by trial id; failed ones are tried again. Those of other numerics,
                such as another precision, are none of this sweep's, and left alone.
            on_record: makes a new record durable before it returns.
            device: what evaluates, for the records.
            published: accuracies of the experts to divide by, by backbone, task and split; None: the measured ones.
        """
        self.spec = spec
        self.suite = suite
        self.cells = tuple(cells)
        self.device = device
        self._on_record = on_record
        self._published = published
        self._val_images = {task.name: task.images["val"] for task in suite.tasks}
        finished = {key: r for key, r in finished.items() if key == self.trial_id(r.cell, r.point, r.split)}
        self._cell_of = {trial_id: record.cell for trial_id, record in finished.items()}
        """Of everything that an earlier run left, failed trials included."""
        self._asked: set[str] = set()
        """Trials of all batches so far."""
        self._records = {trial_id: r for trial_id, r in finished.items() if r.status != "failed"}
        self._running: dict[str, _Running] = {}
        self._scores: dict[tuple[str, str, Split], TaskScore] = {}
        """Of zero-shot models and experts, by weights; those of a merged model are of use to its own trial alone."""
        self._known_references: dict[tuple[str, str, Split], TaskReference] = {}
        self._shared_references: dict[tuple[str, tuple[str, ...], Split, int], dict[str, TaskReference]] = {}
        """Of a task set, those of its first tasks in reporting order: the records hold them in common."""
        self._broken_merges: dict[str, str] = {}
        self._broken_references: dict[tuple[str, Split], str] = {}
        self._kept: Counter[str] = Counter()
        """By id of a merge, how many cells can ask for it again."""
        self._ended: list[Cell] = []
        references = [c for c in reference_cells(suite, cells) if c not in cells]
        self._states = [self._start(cell, i, is_listed=False) for i, cell in enumerate(references)]
        self._states += [self._start(cell, i) for i, cell in enumerate(cells, start=len(references))]
        self._state_of = {state.cell: state for state in self._states}
        self._num_unfinished = len(self._states)
        self._open: list[_CellState] = []
        """Cells with waiting trials, by urgency."""
        self._stirred = set(range(len(self._states)))
        """Positions of the cells that may be able to move."""
        for record in self._records.values():
            if _is_reference(record.cell):
                self._remember(self._weights(record.cell, record.point, record.stage), record.scores, record.split)
        self._advance()

    # --- what an executor calls ---------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return not self._running and not self._num_unfinished

    @property
    def records(self) -> Mapping[str, TrialRecord]:
        """Every record so far by trial id, failed ones included."""
        return self._records

    @cached_property
    def families(self) -> list[Family]:
        """Merges that are known from the start, those that share work together. The same however much is done."""
        return families_of(merge for state in self._states for merge in state.merges_ahead)

    def finished_cells(self) -> list[Cell]:
        """Of the cells of the sweep, in the order in which they ended."""
        return list(self._ended)

    def strays(self) -> list[str]:
        """Trials of an earlier run that the search of their cell, which has ended, did not ask for.

        After a failure a search goes on elsewhere. Once the trial that failed is mended, what it tried there is no part
        of the search any more, and counts for nothing: or else the choice would depend on what had gone wrong.
        """
        return [
            trial_id
            for trial_id, cell in self._cell_of.items()
            if trial_id not in self._asked and (state := self._state_of.get(cell)) and state.finished
        ]

    def next_trial(self, is_merged: Callable[[Merge], bool] = lambda merge: True) -> Trial | None:
        """The next trial to run; None while all that is left waits for outcomes.

        Cells take turns, the one that is least far first, so that no policy's barrier leaves workers idle. Trials
        that `may_run` go first; the others are handed out too, in the order in which they will be ready.
        """
        if not self._open:
            return None
        ordered = ((state, trial) for state in self._open for trial in state.waiting)
        first = (self._open[0], self._open[0].waiting[0])
        state, trial = next((pair for pair in ordered if self.may_run(pair[1], is_merged)), first)
        self._set_waiting(state, [other for other in state.waiting if other is not trial])
        scores = self._known_scores(trial)
        self._running[trial.trial_id] = _Running(trial, scores, frozenset(scores))
        return trial

    def may_run(self, trial: Trial, is_merged: Callable[[Merge], bool]) -> bool:
        """Whether all that a trial needs is there: its merges, and the accuracies it is compared with."""
        known = _is_reference(trial.cell) or self._references(trial) is not None
        return known and all(is_merged(merge) for merge in trial.merges)

    def wanted_merges(self) -> list[Merge]:
        """The merges that trials need which are not running yet, in the order they are needed."""
        wanted: dict[str, Merge] = {}
        for state in self._open:
            if state.wanted is None:
                merges = itertools.chain.from_iterable(trial.merges for trial in state.waiting)
                # whichever comes first is merged together with all that are merged ahead
                state.wanted = {merge.merge_id: merge for merge in (*state.waiting[0].merges, *state.merges_ahead)}
                state.wanted |= {merge.merge_id: merge for merge in merges}
            wanted |= state.wanted
        return list(wanted.values())

    def unneeded_merges(self, merge_ids: Sequence[str]) -> list[str]:
        """Those of `merge_ids` that no unfinished cell can ask for again."""
        return [merge_id for merge_id in merge_ids if not self._kept[merge_id]]

    def missing_tasks(self, trial_id: str) -> list[str]:
        """The tasks of a running trial whose scores are not known, in reporting order."""
        running = self._running[trial_id]
        return [task for task in running.trial.weights if task not in running.scores]

    def report(self, trial_id: str, scores: Sequence[TaskScore]) -> bool:
        """Take scores of a running trial, in any order. Returns whether it is worth going on."""
        running = self._running[trial_id]
        running.scores |= {score.task: score for score in scores}
        return self._stop_after(running) is None

    def running_state(self, trial_id: str) -> tuple[Trial, Mapping[str, TaskScore], Mapping[str, TaskReference]] | None:
        """A running trial, its scores so far, and what they are compared with; None when it does not run."""
        running = self._running.get(trial_id)
        return running and (running.trial, running.scores, self._references(running.trial) or {})

    def complete(self, trial_id: str, occupancy: float | None = None) -> None:
        """Every score of the trial is in, or `report` said to stop.

        Args:
            occupancy: share of their time that evaluators were busy while it ran, where that is known.
        """
        running = self._running[trial_id]
        running.complete, running.occupancy = True, occupancy
        missing = self.missing_tasks(trial_id)
        assert not missing or self._stop_after(running) is not None, f"no score of {missing} in {running.trial.cell}"
        if _is_reference(running.trial.cell):
            self._remember(running.trial.weights, running.scores.values(), running.trial.split)
        self._advance()

    def fail(self, trial_id: str, error: str) -> None:
        """The trial could not be evaluated."""
        self._close(self._running.pop(trial_id), "failed", (), error)
        self._advance()

    def fail_merge(self, merge_id: str, error: str) -> None:
        """The merge cannot be computed: every trial that needs it fails, now or later."""
        self._broken_merges[merge_id] = error
        self._stirred.update(state.position for state in self._open)
        self._advance()

    # --- searches -----------------------------------------------------------------------------------------------

    def _start(self, cell: Cell, position: int, *, is_listed: bool = True) -> _CellState:
        space = search_space(self.spec, METHODS.declaration(cell.method), cell.num_tasks)
        state = _CellState(cell, position, self._search(cell, space), _merges_ahead(cell, space), is_listed)
        self._keep_merges(state)
        return state

    def _search(self, cell: Cell, space: SearchSpace) -> Search:
        """The search of a cell, then its best point on the test split."""
        settings = self.spec.search
        seed = int(content_id([settings.seed, cell.backbone, cell.tasks, cell.method], length=8), 16)
        search = search_cell(space, settings, seed=seed)
        records: list[TrialRecord] = []
        try:
            batch = next(search)
            while True:
                outcome = yield batch
                records += outcome
                batch = search.send(outcome)
        except StopIteration:
            best = select_best(records, settings.objective)
        if best is not None:
            yield [Suggestion(best.point, "test")]

    def _advance(self) -> None:
        """Move every cell as far as known scores carry it: always the first that can, until none can."""
        while self._close_complete() or self._stirred:
            first = min(self._stirred, default=None)
            if first is not None and not self._advance_cell(self._states[first]):
                self._stirred.discard(first)

    def _close_complete(self) -> bool:
        """Close trials whose scores and references are known; their records go to the policies by batch."""
        complete = [running for running in self._running.values() if running.complete]
        closed = False
        for running in complete:
            error = self.reason_to_fail(running.trial)
            if error is None and self._references(running.trial) is None:
                continue
            closed = True
            del self._running[running.trial.trial_id]
            if self._references(running.trial) is not None:
                self._close_scored(running)
            else:  # it has its scores, and will never have what to compare them with
                self._close(running, "failed", (), error)
        return closed

    def _advance_cell(self, state: _CellState) -> bool:
        if state.finished:
            return False
        left = []
        for trial in state.waiting:
            error = self.reason_to_fail(trial)
            scores = self._known_scores(trial)
            if error is not None:
                self._close(_Running(trial, {}, frozenset()), "failed", (), error)
            elif len(scores) == len(trial.weights) and self._references(trial) is not None:
                self._close_scored(_Running(trial, scores, frozenset(scores)))
            else:
                left.append(trial)
        moved = len(left) < len(state.waiting)
        if moved:
            self._set_waiting(state, left)
        if any(trial.trial_id not in self._records for trial in state.batch):
            return moved
        try:
            if state.generation < 0:
                batch = next(state.search)
            else:
                batch = state.search.send([self._records[trial.trial_id] for trial in state.batch])
        except StopIteration:
            state.batch, state.finished = [], True
            self._num_unfinished -= 1
            if state.is_listed:
                self._ended.append(state.cell)
            self._keep_merges(state)
            return True
        state.generation += 1
        rival = self._rival(state)
        state.batch = [self._trial(state, suggestion, i, rival) for i, suggestion in enumerate(batch)]
        for trial in state.batch:
            self._asked.add(trial.trial_id)
            if record := self._records.get(trial.trial_id):
                self._compare_with_best(state, record)
        self._set_waiting(state, [trial for trial in state.batch if trial.trial_id not in self._records])
        self._keep_merges(state)
        return True

    def _set_waiting(self, state: _CellState, trials: list[Trial]) -> None:
        if state.waiting:
            self._open.remove(state)
        state.waiting, state.wanted = trials, None
        if trials:
            insort(self._open, state, key=lambda other: other.urgency)

    def _compare_with_best(self, state: _CellState, record: TrialRecord) -> bool:
        """Whether the record is the new best of its cell."""
        best = state.best
        state.best = select_best([record] if best is None else [best, record], self.spec.search.objective)
        return state.best is not best

    def _keep_merges(self, state: _CellState) -> None:
        """Note what a cell can ask for again, from now on."""
        merges = itertools.chain(state.merges_ahead, *(trial.merges for trial in state.batch))
        if state.best is not None:  # what the test split would ask for
            merges = itertools.chain(merges, _merges_of(self._weights(state.cell, state.best.point, "test")))
        kept = frozenset() if state.finished else frozenset(merge.merge_id for merge in merges)
        self._kept.update(kept - state.kept)
        for merge_id in state.kept - kept:
            self._kept[merge_id] -= 1
            if not self._kept[merge_id]:
                del self._kept[merge_id]
        state.kept = kept

    def _trial(self, state: _CellState, suggestion: Suggestion, index: int, rival: TrialRecord | None) -> Trial:
        cell, point = state.cell, suggestion.point
        split: Split = "test" if suggestion.stage == "test" else "val"
        stage: Stage = suggestion.stage if state.is_listed else "reference"
        weights = self._weights(cell, point, suggestion.stage)
        rival_values = None
        if rival is not None and suggestion.stage == "search":
            scores = {score.task: score for score in rival.scores}
            rival_values = tuple(self._task_objective(scores[task], rival.references[task]) for task in weights)
        return Trial(
            self.trial_id(cell, point, split), cell, point, stage, split, state.generation, index, weights, rival_values
        )

    def trial_id(self, cell: Cell, point: Point, split: Split) -> str:
        """Content id of what determines a trial's scores."""
        spec = self.spec
        suite = [self.suite.name, self.suite.profile, self.suite.seed]
        numerics = [spec.evaluation.precision, spec.evaluation.max_images]
        return content_id([suite, cell.backbone, cell.tasks, cell.method, point.as_dict(), split, numerics])

    def _weights(self, cell: Cell, point: Point, stage: Stage) -> dict[str, Weights]:
        """What every task of a trial is evaluated with, the task with the most images first."""
        kind = METHODS.declaration(cell.method).kind
        tasks = sorted(cell.tasks, key=lambda task: -self._val_images[task])
        if kind == "experts":
            return {task: _expert(cell.backbone, task, point.alpha) for task in tasks}

        def merged(task: str | None) -> Weights:
            merge = Merge(cell.backbone, cell.tasks, cell.method, point.params, task)
            return Weights(cell.backbone, merge, point.alpha)

        if stage == "calibration":
            return {task: merged(task) for task in tasks}
        if kind == "single-task":
            return {
                task: Weights(cell.backbone, _single_task_merge(cell, task, point.params), point.alpha)
                for task in tasks
            }
        return dict.fromkeys(tasks, _zero_shot(cell.backbone) if kind == "zero-shot" else merged(None))

    # --- stopping early -----------------------------------------------------------------------------------------

    def _rival(self, state: _CellState) -> TrialRecord | None:
        """What the trials of a new batch have to keep up with."""
        is_pruned = self.spec.search.prune is not None and self.spec.search.policy != "paper"
        return state.best if is_pruned else None

    def _stop_after(self, running: _Running) -> int | None:
        """After how many tasks the trial became hopeless, by tasks in reporting order; None while it is not."""
        trial, prune = running.trial, self.spec.search.prune
        references = self._references(trial)
        if trial.rival is None or prune is None or references is None:
            return None
        behind = 0.0
        first = max(1, math.ceil(prune.after * len(trial.weights)))
        for count, (task, rival) in enumerate(zip(trial.weights, trial.rival, strict=True), start=1):
            if task not in running.scores or count == len(trial.weights):
                return None
            behind += rival - self._task_objective(running.scores[task], references[task])
            if count >= first and behind / count > prune.margin:
                return count
        return None

    def _task_objective(self, score: TaskScore, reference: TaskReference) -> float:
        if self.spec.search.objective == "accuracy":
            return score.accuracy
        # an expert that is never right compares with nothing: no trial is stopped for its sake
        return score.accuracy / reference.expert_accuracy if reference.expert_accuracy else math.nan

    # --- scores, references, records ----------------------------------------------------------------------------

    def _remember(self, weights: Mapping[str, Weights], scores: Iterable[TaskScore], split: Split) -> None:
        """Keep scores that other trials ask for too."""
        for score in scores:
            self._scores[weights[score.task].weights_id, score.task, split] = score
        self._stirred.update(state.position for state in self._open if _is_reference(state.cell))

    def _known_scores(self, trial: Trial) -> dict[str, TaskScore]:
        if not _is_reference(trial.cell):
            return {}
        found = {t: self._scores.get((w.weights_id, t, trial.split)) for t, w in trial.weights.items()}
        # scores that an earlier run left have no predictions
        needs_predictions = self.spec.evaluation.stores_predictions_of(trial.split)
        return {t: score for t, score in found.items() if score and (score.predictions or not needs_predictions)}

    def _references(self, trial: Trial, count: int | None = None) -> dict[str, TaskReference] | None:
        """What the trial's accuracies, or the first `count`, are compared with; None until all of it is measured.

        The same dict for every trial on these tasks: not to be changed.
        """
        cell = trial.cell
        key = (cell.backbone, cell.tasks, trial.split, cell.num_tasks if count is None else count)
        if (shared := self._shared_references.get(key)) is not None:
            return shared
        references: dict[str, TaskReference] = {}
        for task in trial.weights:
            reference = self._reference(cell.backbone, task, trial.split)
            if reference is None:
                return None
            references[task] = reference
        self._shared_references[key] = dict(itertools.islice(references.items(), count))
        return self._shared_references[key]

    def _reference(self, backbone: str, task: str, split: Split) -> TaskReference | None:
        key = (backbone, task, split)
        if key not in self._known_references:
            expert = self._scores.get((_expert(backbone, task).weights_id, task, split))
            zero_shot = self._scores.get((_zero_shot(backbone).weights_id, task, split))
            if expert is None or zero_shot is None:
                return None
            if self._published is None:
                self._known_references[key] = TaskReference(expert.accuracy, zero_shot.accuracy)
            else:
                self._known_references[key] = TaskReference(self._published[key], zero_shot.accuracy, "published")
        return self._known_references[key]

    def reason_to_fail(self, trial: Trial) -> str | None:
        """Why a trial can never run, if so."""
        for merge in trial.merges:
            if error := self._broken_merges.get(merge.merge_id):
                return error
        if error := self._broken_references.get((trial.cell.backbone, trial.split)):
            return f"the accuracies it is compared with are missing: {error}"
        return None

    def _close_scored(self, running: _Running) -> None:
        stop_after = self._stop_after(running)
        # what ran beyond the decision to stop depends on timing, and is left out
        scores = tuple(running.scores[task] for task in list(running.trial.weights)[:stop_after])
        self._close(running, "finished" if stop_after is None else "pruned", scores)

    def _close(self, running: _Running, status: Any, scores: tuple[TaskScore, ...], error: str | None = None) -> None:
        """Record the outcome of a trial; its scores are those of the tasks that are reported first."""
        trial = running.trial
        new = [score for score in scores if score.task not in running.known]
        record = TrialRecord(
            trial_id=trial.trial_id,
            cell=trial.cell,
            point=trial.point,
            stage=trial.stage,
            split=trial.split,
            status=status,
            scores=scores,
            references=self._references(trial, len(scores)) or {},
            generation=trial.generation,
            index=trial.index,
            seconds=time.monotonic() - running.started,
            images=sum(score.total for score in new),
            occupancy=running.occupancy,
            device=self.device,
            error=error,
            finished_at=time.time(),
        )
        self._on_record(record)
        record = record.without_predictions()
        self._records[record.trial_id] = record
        state = self._state_of[trial.cell]
        self._stirred.add(state.position)
        if self._compare_with_best(state, record):
            self._keep_merges(state)
        if status == "failed" and _is_reference(trial.cell):
            self._broken_references.setdefault((trial.cell.backbone, trial.split), error or "")
            self._stirred.update(other.position for other in self._open)


def reference_cells(suite: Suite, cells: Sequence[Cell]) -> list[Cell]:
    """Per backbone, the zero-shot model and the experts on every task that any cell uses."""
    found = []
    for backbone in dict.fromkeys(cell.backbone for cell in cells):
        used = {task for cell in cells if cell.backbone == backbone for task in cell.tasks}
        tasks = tuple(task.name for task in suite.tasks if task.name in used)
        found += [Cell(backbone, tasks, _method_of_kind(kind)) for kind in ("zero-shot", "experts")]
    return found


def _merges_of(weights: Mapping[str, Weights]) -> tuple[Merge, ...]:
    """Every merge once."""
    return tuple({w.merge.merge_id: w.merge for w in weights.values() if w.merge}.values())


@cache
def _method_of_kind(kind: str) -> str:
    return next(name for name in METHODS if METHODS.declaration(name).kind == kind)


def _is_reference(cell: Cell) -> bool:
    return METHODS.declaration(cell.method).is_reference


@cache
def _zero_shot(backbone: str) -> Weights:
    return Weights(backbone)


@cache
def _expert(backbone: str, task: str, alpha: float = 1.0) -> Weights:
    """The expert of a task, which does not depend on the other tasks of a cell."""
    return Weights(backbone, Merge(backbone, (task,), _method_of_kind("experts"), {}, task), alpha)


def _merges_ahead(cell: Cell, space: SearchSpace) -> tuple[Merge, ...]:
    """All structural settings of a cell when they are few and known from the start, else none."""
    if _is_reference(cell) or space.per_task is not None or space.num_merges > MAX_MERGED_AHEAD:
        return ()
    settings = itertools.product(*(dimension.grid() for dimension in space.params.values()))
    params = [{**space.fixed, **dict(zip(space.params, values, strict=True))} for values in settings]
    if METHODS.declaration(cell.method).kind == "single-task":
        return tuple(_single_task_merge(cell, task, setting) for setting in params for task in cell.tasks)
    return tuple(Merge(cell.backbone, cell.tasks, cell.method, setting) for setting in params)


def _single_task_merge(cell: Cell, task: str, params: Mapping[str, Any]) -> Merge:
    """Of the expert of a task alone, which does not depend on the other tasks of a cell."""
    return Merge(cell.backbone, (task,), cell.method, params)
