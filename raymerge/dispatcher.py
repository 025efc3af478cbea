"""Dispatcher: one queue of shards for all running trials, and the evaluators that empty it. An async Ray actor.

One shard is in flight per evaluator, and the trial that was submitted first is served first: measured best of several
ways to share evaluators (docs/performance.md). An evaluator that dies is restarted by Ray and its shard queued again.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import RayActorError, RayError

from raymerge.records import EvalJob, Failed, Scored, TaskScore

MAX_ATTEMPTS = 3
"""Evaluators a shard may cost before its trial fails: it is probably the shard that kills them."""
RESTART_TIMEOUT_S = 300.0
ALL_LOST = "every evaluator died and none could be started again"


@dataclass(order=True)
class _Entry:
    """A shard in the queue; the trial that came first is served first, and its shards in order."""

    order: int
    rank: int
    trial_id: str = field(compare=False)
    job: EvalJob = field(compare=False)
    attempts: int = field(default=0, compare=False)


@dataclass
class _Ticket:
    """One trial in the queue."""

    submitted: bool = False
    remaining: dict[str, int] = field(default_factory=dict)
    """Shards to come, by task."""
    scores: dict[str, TaskScore] = field(default_factory=dict)
    fresh: list[TaskScore] = field(default_factory=list)
    """Complete scores nobody has asked for yet."""
    error: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def num_left(self) -> int:
        """Tasks that are not scored."""
        return sum(count > 0 for count in self.remaining.values())

    @property
    def done(self) -> bool:
        return self.error is not None or (self.submitted and not self.num_left)


@dataclass(frozen=True)
class Progress:
    """News of a trial: the tasks scored since the last call, or why it failed."""

    scores: list[TaskScore]
    num_scored: int
    done: bool
    error: str | None = None


@dataclass(frozen=True)
class DispatcherStats:
    images: int
    busy_s: tuple[float, ...]
    """Time each evaluator spent on shards."""
    wall_s: float
    """Since the first shard was queued."""


class Dispatcher:
    def __init__(self, evaluators: Sequence[Any], backbones: Sequence[str]):
        """
        Args:
            evaluators: handles of EvalWorker actors that are ready.
            backbones: what a restarted evaluator loads before it is ready again.
        """
        self._evaluators = list(evaluators)
        self._backbones = list(backbones)
        self._queue: asyncio.PriorityQueue[_Entry] = asyncio.PriorityQueue()
        self._tickets: dict[str, _Ticket] = {}
        self._forgotten: set[str] = set()
        self._updates: dict[str, asyncio.Future[list[Any]]] = {}
        self._num_submitted = 0
        self._images = 0
        self._busy_s = [0.0] * len(self._evaluators)
        self._started: float | None = None
        self._waited_for: set[str] = set()
        self._num_expected: int | None = None
        self._gate = asyncio.Event()
        self._servers: list[asyncio.Task[None]] = []
        self._num_serving = len(self._evaluators)

    async def start(self) -> None:
        """Begin to serve: one coroutine per evaluator."""
        self._servers = [asyncio.create_task(self._serve(i)) for i in range(len(self._evaluators))]

    # Calls of an async actor may begin in another order than they were made in. So none of these may rely on an
    # earlier one: a ticket is opened by whoever comes first, and a shard waits for its update.

    async def publish(self, update_id: str, shards: Sequence[Any]) -> None:
        """Make a merged update known: references to its shards, owned by a process that outlives the sweep."""
        self._update(update_id).set_result(list(shards))

    async def release(self, update_ids: Sequence[str]) -> None:
        for update_id in update_ids:
            self._updates.pop(update_id, None)

    async def submit(self, trial_id: str, jobs: Sequence[EvalJob]) -> None:
        """Queue the shards of a trial, in order."""
        ticket = self._ticket(trial_id)
        if ticket is None:
            return
        self._started = self._started or time.monotonic()
        self._num_submitted += 1
        ticket.submitted = True
        ticket.changed.set()
        for rank, job in enumerate(jobs):
            ticket.remaining[job.task] = ticket.remaining.get(job.task, 0) + 1
            self._queue.put_nowait(_Entry(self._num_submitted, rank, trial_id, job))

    async def fail(self, trial_id: str, error: str) -> None:
        """End a trial that cannot be run."""
        if ticket := self._ticket(trial_id):
            self._fail(ticket, error)

    async def open_gate(self, num_expected: int) -> None:
        """Give out no news until so many trials are waited for; the first call decides."""
        if self._num_expected is None:
            self._num_expected = num_expected
        self._check_gate()

    def _check_gate(self) -> None:
        if self._num_expected is not None and len(self._waited_for) >= self._num_expected:
            self._gate.set()

    async def progress(self, trial_id: str) -> Progress:
        """Wait for news of a trial."""
        self._waited_for.add(trial_id)
        self._check_gate()
        await self._gate.wait()
        ticket = self._ticket(trial_id)
        if ticket is None:
            return Progress([], 0, True)
        if not self._num_serving:
            self._fail(ticket, ALL_LOST)
        while not ticket.fresh and not ticket.done:
            ticket.changed.clear()
            await ticket.changed.wait()
        fresh, ticket.fresh = ticket.fresh, []
        num_left, done = ticket.num_left, ticket.done
        return Progress(fresh, len(ticket.remaining) - num_left, done, ticket.error)

    async def forget(self, trial_ids: Sequence[str]) -> None:
        """Drop what is left of some trials."""
        for trial_id in trial_ids:
            self._forgotten.add(trial_id)
            if ticket := self._tickets.pop(trial_id, None):
                self._fail(ticket, "stopped")  # wakes up who waits for it

    def _ticket(self, trial_id: str) -> _Ticket | None:
        """The ticket of a trial, a new one if need be; None when it was forgotten, because the trial has ended."""
        if trial_id in self._forgotten:
            return None
        return self._tickets.setdefault(trial_id, _Ticket())

    def _update(self, update_id: str) -> asyncio.Future[list[Any]]:
        if update_id not in self._updates:
            self._updates[update_id] = asyncio.get_running_loop().create_future()
        return self._updates[update_id]

    async def stats(self) -> DispatcherStats:
        wall_s = time.monotonic() - self._started if self._started else 0.0
        return DispatcherStats(self._images, tuple(self._busy_s), wall_s)

    async def _serve(self, index: int) -> None:
        """Hand shards to one evaluator until it is lost for good."""
        alive = True
        while alive:
            entry = await self._queue.get()
            if entry.trial_id not in self._tickets:  # stopped early
                continue
            job = entry.job
            started = time.monotonic()
            try:
                if job.update_id is not None:
                    job = replace(job, update=await self._update(job.update_id))
                outcome = await self._evaluators[index].run.remote(job)
            except RayActorError as error:
                self._requeue(entry, error)
                alive = await self._restarted(index)
                continue
            except Exception as error:  # a bug: the trial fails, the sweep goes on
                outcome = Failed(f"{job.backbone}/{job.task} ({job.split}): {type(error).__name__}: {_reason(error)}")
            self._busy_s[index] += time.monotonic() - started
            self._take(entry, outcome)
        self._num_serving -= 1
        if not self._num_serving:
            for ticket in self._tickets.values():
                self._fail(ticket, ALL_LOST)

    def _requeue(self, entry: _Entry, error: RayActorError) -> None:
        entry.attempts += 1
        job = entry.job
        if entry.attempts < MAX_ATTEMPTS:
            self._queue.put_nowait(entry)
        else:
            what = f"{job.backbone}/{job.task} ({job.split})"
            self._take(entry, Failed(f"{what}: {entry.attempts} evaluators died on it ({_reason(error)})"))

    async def _restarted(self, index: int) -> bool:
        """Wait until Ray has started a dead evaluator anew; False when that does not succeed in time."""
        deadline = time.monotonic() + RESTART_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                await self._evaluators[index].ready.remote(self._backbones)
            except RayError:
                await asyncio.sleep(1.0)
            else:
                return True
        return False

    def _take(self, entry: _Entry, outcome: Scored | Failed) -> None:
        ticket = self._tickets.get(entry.trial_id)
        if ticket is None:
            return
        task = entry.job.task
        if isinstance(outcome, Failed):
            self._fail(ticket, outcome.error)
            return
        self._images += outcome.total
        known = ticket.scores.get(task, TaskScore(task, 0, 0))
        ticket.scores[task] = TaskScore(
            task, known.correct + outcome.correct, known.total + outcome.total, known.seconds + outcome.seconds
        )
        ticket.remaining[task] -= 1
        if not ticket.remaining[task]:
            ticket.fresh.append(ticket.scores[task])
            ticket.changed.set()

    @staticmethod
    def _fail(ticket: _Ticket, error: str) -> None:
        ticket.error = ticket.error or error
        ticket.changed.set()


def _reason(error: BaseException) -> str:
    cause = getattr(error, "cause", None)
    text = str(cause if isinstance(cause, BaseException) else error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
