"""How far a sweep is: cells, trials, images per second, time left, what evaluators do, and which methods lead."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raymerge.methods import declared_methods
from raymerge.plan import SweepInfo, make_plan
from raymerge.records import Cell, ServiceStats, TrialRecord
from raymerge.selection import objective_value

RATE_WINDOW_S = 20.0
MIN_RATE_RECORDS = 8
"""Records the rate is taken over even if they are older than the window, for trials that take long."""
MIN_ELAPSED_S, MIN_FRACTION = 3.0, 0.02
"""What must have passed and been done before the time left is more than a guess."""


class Tally:
    """How far a sweep is, kept up to date record by record."""

    def __init__(self, sweep: SweepInfo, clock: Callable[[], float] = time.monotonic):
        plan = make_plan(sweep.spec, sweep.suite, sweep.records)
        limit = sweep.spec.evaluation.max_images
        sizes = {task.name: task.images["val"] for task in sweep.suite.tasks}
        self._val_images = {name: size if limit is None else min(limit, size) for name, size in sizes.items()}
        self._sweep = sweep
        self._clock = clock
        self._started = clock()
        self._left = {cell.cell: cell.max_images_left for cell in plan.cells}
        self._references_left = sum(reference.images_left for reference in plan.references)
        self._left_at_start = self.images_left
        self._recent: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._best: dict[tuple[str, int], dict[str, tuple[float, float]]] = {}
        self.cells = [cell.cell for cell in plan.cells]
        ended = sweep.finished_cells()
        self.finished = {cell.cell for cell in plan.cells if cell.is_tested} | set(ended)
        self._num_ended = len(ended)
        self.trials: Counter[str] = Counter()
        """By status, those of earlier runs included."""
        self.stats = ServiceStats()
        """What evaluators have done in this run."""
        self.working: Sequence[Any] = ()
        """What each of them does now: `raymerge.dispatcher.Working`."""
        self.hosts: Mapping[str, str] = {}
        self._observed: deque[tuple[float, ServiceStats]] = deque()
        self._declared = declared_methods()
        for record in sweep.records.values():
            self._count(record)

    def add(self, record: TrialRecord) -> list[Cell]:
        """Count a new record. Returns the cells that are finished since the last one."""
        self._count(record)
        self._recent.append((self._clock(), record.images))
        while len(self._recent) > MIN_RATE_RECORDS and self._recent[1][0] < self._clock() - RATE_WINDOW_S:
            self._recent.popleft()
        cell = record.cell
        if cell in self._left and record.status != "failed" and record.split == "val":
            left = self._left[cell] - sum(self._val_images[task] for task in cell.tasks)
            self._left[cell] = max(0, left)
        if self._declared[cell.method].is_reference:
            self._references_left = max(0, self._references_left - record.images)
        ended = self._sweep.finished_cells()
        new = ended[self._num_ended :]
        self._num_ended = len(ended)
        if record.split == "test":
            new.append(cell)
        new = [cell for cell in dict.fromkeys(new) if cell in self._left and cell not in self.finished]
        for cell in new:
            self._left[cell] = 0
        self.finished |= set(new)
        return sorted(new, key=self.cells.index)

    def observe(self, observation: Any, hosts: Mapping[str, str]) -> None:
        """Take note of what evaluators do, and where: a `raymerge.dispatcher.Observation`."""
        self.stats, self.working, self.hosts = observation.stats, observation.working, hosts
        self._observed.append((self._clock(), observation.stats))
        while len(self._observed) > 1 and self._observed[0][0] < self._clock() - RATE_WINDOW_S:
            self._observed.popleft()

    @property
    def occupancy(self) -> float | None:
        """Share of their time that evaluators were busy over the last seconds; None while there is nothing to say."""
        if not self._observed:
            return None
        recent = self.stats.since(self._observed[0][1]).occupancy if len(self._observed) > 1 else None
        return self.stats.occupancy if recent is None else recent

    @property
    def images_left(self) -> int:
        """At most, pruning apart."""
        return self._references_left + sum(self._left.values())

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def images_per_s(self) -> float:
        """Over the last seconds: what was finished since the oldest remembered record."""
        elapsed = self._clock() - self._recent[0][0]
        return sum(images for _, images in list(self._recent)[1:]) / elapsed if elapsed > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """The time the rest takes if it goes on like this; None while that is anybody's guess."""
        done = self._left_at_start - self.images_left
        if self.elapsed_s < MIN_ELAPSED_S or done <= 0 or done < MIN_FRACTION * self._left_at_start:
            return None
        return self.elapsed_s * self.images_left / done

    def leaders(self) -> dict[tuple[str, int], list[tuple[str, float]]]:
        """Best merging methods by backbone and number of tasks: title and average validation accuracy."""
        columns = dict.fromkeys((cell.backbone, cell.num_tasks) for cell in self.cells)
        return {
            column: [
                (self._declared[method].title, accuracy)
                for method, (_, accuracy) in sorted(self._best[column].items(), key=lambda item: -item[1][0])
            ]
            for column in columns
            if column in self._best
        }

    def _count(self, record: TrialRecord) -> None:
        self.trials[record.status] += 1
        searched = record.split == "val" and record.status == "finished" and record.stage == "search"
        if searched and self._declared[record.cell.method].kind == "merging":
            best = self._best.setdefault((record.cell.backbone, record.cell.num_tasks), {})
            value = objective_value(record, self._sweep.spec.search.objective)
            if value > best.get(record.cell.method, (-1.0, 0.0))[0]:
                best[record.cell.method] = (value, record.average_accuracy)
