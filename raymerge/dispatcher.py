"""Dispatcher: one queue of shards for all running trials, and the evaluators that empty it. An async Ray actor.

One call is in flight per evaluator, and the trial that was submitted first is served first: measured best of several
ways to share evaluators (docs/performance.md). A call is one shard, or several where they are short beside what a call
costs. Evaluators join and leave at any time; the shards of one that dies are queued again, before all others.
"""

import asyncio
import contextlib
import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError

from raymerge.errors import first_line
from raymerge.ray_metrics import ServiceMetrics
from raymerge.records import EvalJob, Failed, NotYet, Scored, ServiceStats, TaskScore, task_score

DEATHS = (RayActorError, OutOfMemoryError)
"""How a call says that its actor is dead; the second, when Ray killed it because its node ran out of memory."""
MAX_ATTEMPTS = 3
"""Evaluators a shard may cost before its trial fails: it is probably the shard that kills them."""
CALL_S = 0.003
"""What a call to an evaluator costs; work that takes no longer is not worth sharing."""
SHORT_S = 10 * CALL_S
"""Of work in one call, if its shards are shorter than that."""
MAX_AT_ONCE = 20
"""Shards in one call."""
TOGETHER_S = 0.1
"""How long news of a trial waits for more: every answer costs Tune a turn of its event loop, which trials share."""
ROOM_S = 30.0
"""How long evaluators may have no room for an update before its trial fails: others give theirs back meanwhile."""
IDLE_S = 1.0
"""After which an evaluator without work is asked whether it is alive, lest its death count against the next shard.

Before a shard that has lost its evaluator it is asked in any case: the whole node may be gone."""


@dataclass(order=True)
class _Entry:
    """A shard in the queue; the trial that came first is served first, and its shards in order."""

    order: int
    rank: int
    trial_id: str = field(compare=False)
    job: EvalJob = field(compare=False)
    attempts: int = field(default=0, compare=False)
    alone: bool = field(default=False, compare=False)
    """Whether it has to be the only shard of its call, so that what goes wrong is known to be its fault."""
    no_room_since: float | None = field(default=None, compare=False)
    """Since when evaluators have had no room for its update."""


@dataclass
class _Ticket:
    """One trial in the queue."""

    submitted: bool = False
    remaining: dict[str, int] = field(default_factory=dict)
    """Shards to come, by task."""
    shards: dict[str, dict[int, Scored]] = field(default_factory=dict)
    """Of tasks that are not scored, by their rank."""
    complete: list[TaskScore] = field(default_factory=list)
    """Scores of which no shard is missing, in the order they came."""
    error: str | None = None
    since: ServiceStats = field(default_factory=ServiceStats)
    """What evaluators had done when it was submitted."""
    occupancy: float | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    forgotten: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def num_left(self) -> int:
        """Tasks that are not scored."""
        return len(self.remaining) - len(self.complete)

    @property
    def done(self) -> bool:
        return self.error is not None or (self.submitted and not self.num_left)


@dataclass(frozen=True)
class Progress:
    """News of a trial: the tasks scored since those that were known, or why it failed."""

    scores: list[TaskScore]
    num_scored: int
    done: bool
    error: str | None = None
    occupancy: float | None = None
    """Of all evaluators from its submission to its end."""


@dataclass(frozen=True)
class Working:
    """What one evaluator does."""

    evaluator: str
    trial_id: str | None = None
    """None: it waits for work."""
    what: str = ""


@dataclass(frozen=True)
class Observation:
    """The evaluators at one moment."""

    stats: ServiceStats
    working: tuple[Working, ...] = ()
    lost: tuple[str, ...] = ()
    """Evaluators that have died since the last observation."""


@dataclass
class _Member:
    """An evaluator that serves."""

    handle: Any
    server: asyncio.Task[None] | None = None
    retiring: bool = False
    first_shard: float | None = None
    """When it began its first shard."""
    entries: list[_Entry] = field(default_factory=list)
    """What it works on."""
    started: float | None = None
    """Since when; None while the update of its shard is not there yet."""
    shard_s: float | None = None
    """What the longest shard of its last call took; None: nothing is known."""


class Dispatcher:
    def __init__(
        self, sweep: str = "", clock: Callable[[], float] = time.monotonic, together_s: float = TOGETHER_S
    ) -> None:
        self._metrics = ServiceMetrics(sweep)
        self._clock = clock
        self._together_s = together_s
        self._members: dict[str, _Member] = {}
        self._retired: set[str] = set()
        self._lost: list[str] = []
        self._queue: list[_Entry] = []
        """A heap."""
        self._work = asyncio.Condition()
        self._tickets: dict[str, _Ticket] = {}
        self._forgotten: set[str] = set()
        self._updates: dict[str, asyncio.Future[list[Any]]] = {}
        self._num_submitted = 0
        self._images = 0
        self._busy_s = 0.0
        self._past_s = 0.0
        """Time that evaluators were there which have left."""
        self._waited_for: set[str] = set()
        self._num_expected: int | None = None
        self._gate = asyncio.Event()

    # Calls of an async actor may begin in another order than they were made in. So no call may rely on an earlier one:
    # an evaluator may retire before it joins, a ticket is opened by whoever comes first, and a shard waits for its
    # update.

    async def join(self, evaluator_id: str, handle: Any) -> None:
        """Give shards to one more evaluator, which is ready."""
        if evaluator_id in self._retired:
            return
        member = _Member(handle)
        self._members[evaluator_id] = member
        member.server = asyncio.create_task(self._serve(evaluator_id, member))

    async def retire(self, evaluator_id: str) -> None:
        """Return once an evaluator has ended its shard; it gets no other."""
        self._retired.add(evaluator_id)
        if (member := self._members.get(evaluator_id)) and member.server:
            member.retiring = True
            async with self._work:
                self._work.notify_all()
            await asyncio.wait([member.server])

    async def observe(self) -> Observation:
        """What evaluators do, and which of them died since the last call."""
        lost, self._lost = self._lost, []
        working = [
            Working(name, m.entries[0].trial_id, _label(m.entries[0].job)) if m.entries else Working(name)
            for name, m in self._members.items()
        ]
        queued = sum(entry.trial_id in self._tickets for entry in self._queue)
        stats = replace(self._stats(), num_queued=queued)
        self._metrics.observe(stats)
        return Observation(stats, tuple(working), tuple(lost))

    def _stats(self) -> ServiceStats:
        now = self._clock()
        members = self._members.values()
        return ServiceStats(
            num_evaluators=len(members),
            num_busy=sum(bool(m.entries) for m in members),
            images=self._images,
            busy_s=self._busy_s + sum(now - m.started for m in members if m.started is not None),
            present_s=self._past_s + sum(now - m.first_shard for m in members if m.first_shard is not None),
        )

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
        self._num_submitted += 1
        ticket.submitted = True
        ticket.since = self._stats()
        ticket.changed.set()
        for rank, job in enumerate(jobs):
            ticket.remaining[job.task] = ticket.remaining.get(job.task, 0) + 1
            heapq.heappush(self._queue, _Entry(self._num_submitted, rank, trial_id, job))
        async with self._work:
            self._work.notify(len(jobs))

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

    async def progress(self, trial_id: str, num_known: int = 0) -> Progress:
        """Wait for news of a trial: scores beyond the first `num_known`, or its end."""
        self._waited_for.add(trial_id)
        self._check_gate()
        await self._gate.wait()
        ticket = self._ticket(trial_id)
        if ticket is None:
            return Progress([], 0, True)
        while len(ticket.complete) <= num_known and not ticket.done:
            ticket.changed.clear()
            await ticket.changed.wait()
        if not ticket.done and self._together_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._done(ticket), self._together_s)
        fresh = ticket.complete[num_known:]
        occupancy = ticket.occupancy
        if occupancy is None and ticket.submitted:  # it may be stopped after these scores
            occupancy = self._stats().since(ticket.since).occupancy
        return Progress(fresh, len(ticket.complete), ticket.done, ticket.error, occupancy)

    @staticmethod
    async def _done(ticket: _Ticket) -> None:
        while not ticket.done:
            ticket.changed.clear()
            await ticket.changed.wait()

    async def forget(self, trial_ids: Sequence[str]) -> None:
        """Drop what is left of some trials."""
        self._gate.set()  # no trial ends before it opens, unless all of them are to end
        for trial_id in trial_ids:
            self._forgotten.add(trial_id)
            if ticket := self._tickets.pop(trial_id, None):
                self._fail(ticket, "stopped")  # wakes up who waits for it
                ticket.forgotten.set()

    def _ticket(self, trial_id: str) -> _Ticket | None:
        """The ticket of a trial, a new one if need be; None when it was forgotten, because the trial has ended."""
        if trial_id in self._forgotten:
            return None
        return self._tickets.setdefault(trial_id, _Ticket())

    def _update(self, update_id: str) -> asyncio.Future[list[Any]]:
        if update_id not in self._updates:
            self._updates[update_id] = asyncio.get_running_loop().create_future()
        return self._updates[update_id]

    async def _serve(self, evaluator_id: str, member: _Member) -> None:
        """Hand shards to one evaluator until it retires or dies."""
        try:
            while True:
                idle_since = self._clock()
                if not (entries := await self._next(member)):
                    break
                is_suspect = self._clock() - idle_since > IDLE_S or any(entry.attempts for entry in entries)
                if is_suspect and not await self._is_alive(member):
                    self._lost.append(evaluator_id)
                    self._queue_again(entries)
                    break
                member.entries = entries
                member.first_shard = self._clock() if member.first_shard is None else member.first_shard
                if not await self._run(evaluator_id, member):
                    break
        finally:
            del self._members[evaluator_id]
            if member.first_shard is not None:
                self._past_s += self._clock() - member.first_shard
            async with self._work:
                self._work.notify_all()  # it may have been woken for a shard that it did not take, or leave several

    async def _run(self, evaluator_id: str, member: _Member) -> bool:
        """Have an evaluator score its shards, and take what comes of it. Returns whether it still lives."""
        entries = member.entries
        outcomes: list[Scored | Failed | NotYet | None] = []
        lives = True
        try:
            jobs = [await self._complete_job(entry) for entry in entries]
            entries = [entry for entry, job in zip(entries, jobs, strict=True) if job is not None]
            if entries:
                member.started = self._clock()
                outcomes = await member.handle.run.remote(*(job for job in jobs if job is not None))
        except DEATHS as error:
            lives = False
            self._lost.append(evaluator_id)
            outcomes = [self._requeued(entry, error) for entry in entries]
        except Exception as error:  # a bug: the trial fails, the sweep goes on
            if len(entries) == 1:
                outcomes = [Failed(f"{_label(entries[0].job)}: {type(error).__name__}: {first_line(error)}")]
            else:  # of which of them?
                outcomes = [None] * len(entries)
                self._queue_again(entries, alone=True)
        finally:
            scored = [outcome for outcome in outcomes if isinstance(outcome, Scored)]
            if scored:
                member.shard_s = max(outcome.seconds for outcome in scored)
            if member.started is not None:
                # what lies between its own clock and ours is waiting, and so is what an update did not come for
                elapsed = self._clock() - member.started
                is_known = all(isinstance(outcome, Scored | NotYet) for outcome in outcomes)
                self._busy_s += min(elapsed, sum(o.seconds for o in scored)) if is_known else elapsed
            member.entries, member.started = [], None
            for entry, outcome in zip(entries, outcomes, strict=False):  # none where the sweep has ended
                if isinstance(outcome, NotYet):
                    outcome = self._postponed(entry, outcome)
                if outcome is not None:
                    self._take(entry, outcome)
        return lives

    def _queue_again(self, entries: Sequence[_Entry], *, alone: bool = False) -> None:
        for entry in entries:
            entry.alone = entry.alone or alone
            heapq.heappush(self._queue, entry)

    @staticmethod
    async def _is_alive(member: _Member) -> bool:
        try:
            await member.handle.ready.remote([])
        except DEATHS:
            return False
        except Exception:  # it will say of the shard what is wrong
            return True
        return True

    async def _complete_job(self, entry: _Entry) -> EvalJob | None:
        """A job with its update, once that is there; None when its trial ends before, as it may never come then."""
        job, ticket = entry.job, self._tickets.get(entry.trial_id)
        if ticket is None:
            return None
        if job.update_id is None:
            return job
        update = self._update(job.update_id)
        if not update.done():
            forgotten = asyncio.ensure_future(ticket.forgotten.wait())
            await asyncio.wait([update, forgotten], return_when=asyncio.FIRST_COMPLETED)
            forgotten.cancel()
            if not update.done():
                return None
        return replace(job, update=update.result())

    async def _next(self, member: _Member) -> list[_Entry]:
        """The first shards that are still wanted, mostly one; none when the evaluator retires."""
        async with self._work:
            while not member.retiring:
                if entries := self._pop(member):
                    return entries
                await self._work.wait()
        return []

    def _pop(self, member: _Member) -> list[_Entry]:
        """Shards for one call: as many as are short, but every evaluator gets its part of what is worth sharing."""
        entries: list[_Entry] = []
        limit = 1
        if member.shard_s is not None:
            share = math.ceil(len(self._queue) / len(self._members))
            shard_s = max(member.shard_s, CALL_S / MAX_AT_ONCE)
            limit = min(MAX_AT_ONCE, int(SHORT_S / shard_s), max(share, int(CALL_S / shard_s)))
        while self._queue and len(entries) < max(1, limit):
            entry = self._queue[0]
            if entry.trial_id in self._tickets:
                is_single = entry.alone or not self._has_update(entry.job)  # which may be long in coming
                if entries and is_single:
                    break
                entries.append(entry)
                limit = 1 if is_single else limit
            heapq.heappop(self._queue)
        return entries

    def _has_update(self, job: EvalJob) -> bool:
        return job.update_id is None or self._update(job.update_id).done()

    def _requeued(self, entry: _Entry, error: Exception) -> Failed | None:
        """Queue the shard of an evaluator that died; or what becomes of it when it has cost too many."""
        entry.attempts += 1
        if entry.attempts < MAX_ATTEMPTS:
            self._queue_again([entry], alone=True)
            return None
        return Failed(f"{_label(entry.job)}: {entry.attempts} evaluators died on it ({first_line(error)})")

    def _postponed(self, entry: _Entry, outcome: NotYet) -> Failed | None:
        """Queue a shard again whose update was not there; or what becomes of it when there is no room for that."""
        if not outcome.no_room:
            entry.no_room_since = None
        elif entry.no_room_since is None:
            entry.no_room_since = self._clock()
        elif self._clock() - entry.no_room_since > ROOM_S:
            return Failed(f"{_label(entry.job)}: {outcome.no_room}")
        self._queue_again([entry])
        return None

    def _take(self, entry: _Entry, outcome: Scored | Failed) -> None:
        ticket = self._tickets.get(entry.trial_id)
        if ticket is None:
            return
        task = entry.job.task
        if isinstance(outcome, Failed):
            self._fail(ticket, outcome.error)
            return
        self._images += outcome.total
        shards = ticket.shards.setdefault(task, {})
        shards[entry.rank] = outcome
        ticket.remaining[task] -= 1
        if not ticket.remaining[task]:
            ticket.complete.append(task_score(task, [shards[rank] for rank in sorted(shards)]))
            del ticket.shards[task]
            if ticket.done:
                ticket.occupancy = self._stats().since(ticket.since).occupancy
            ticket.changed.set()

    @staticmethod
    def _fail(ticket: _Ticket, error: str) -> None:
        ticket.error = ticket.error or error
        ticket.changed.set()


def _label(job: EvalJob) -> str:
    return f"{job.backbone}/{job.task} ({job.split})"
