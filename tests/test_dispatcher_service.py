"""The dispatcher shard by shard, with evaluators that answer when the test says so."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from raymerge.dispatcher import (
    IDLE_S,
    MAX_AT_ONCE,
    MAX_ATTEMPTS,
    ROOM_S,
    SHORT_S,
    Dispatcher,
    Observation,
    Progress,
    Working,
)
from raymerge.records import EvalJob, Failed, NotYet, Predictions, Scored, ServiceStats, TaskScore


class Method:
    """`actor.method.remote(...)`."""

    def __init__(self, function: Callable[..., Awaitable[Any]]):
        self.remote = function


class FakeEvaluator:
    """Holds every job until the test settles it."""

    def __init__(self) -> None:
        self.run = Method(self._run)
        self.ready = Method(self._ready)
        self.jobs: list[EvalJob] = []
        self.num_calls = 0
        self.num_asked = 0
        """How often it was asked whether it is alive."""
        self.is_dead: Exception | None = None
        """What whoever calls it is told, if it is."""
        self._outcome: asyncio.Future[Any] | None = None

    async def _run(self, *jobs: EvalJob) -> Any:
        assert self._outcome is None, "one call at a time"
        assert not self.is_dead
        self.jobs += jobs
        self.num_calls += 1
        self._outcome = asyncio.get_running_loop().create_future()
        try:
            outcome = await self._outcome
            return outcome if isinstance(outcome, list) else [outcome]
        finally:
            self._outcome = None

    async def _ready(self, backbones: list[str]) -> str:
        assert backbones == []
        self.num_asked += 1
        if self.is_dead is not None:
            raise self.is_dead
        return "cpu"

    @property
    def is_busy(self) -> bool:
        return self._outcome is not None

    @property
    def job(self) -> EvalJob:
        """What it works on."""
        assert self._outcome is not None
        return self.jobs[-1]

    async def settle(self, outcome: Any) -> None:
        """End the running job with an outcome or an exception, and let the dispatcher react."""
        assert self._outcome is not None
        if isinstance(outcome, BaseException):
            self._outcome.set_exception(outcome)
        else:
            self._outcome.set_result(outcome)
        await react()

    async def answer(self, correct: int = 1) -> None:
        await self.settle(Scored(correct, self.job.stop - self.job.start, 0.5))


async def react() -> None:
    """Let every coroutine run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def job(task: str, start: int = 0, stop: int = 10, update_id: str | None = None) -> EvalJob:
    return EvalJob("vit", task, "val", start, stop, f"w-{task}", 1.0, update_id)


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that is a coroutine."""

    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def join(dispatcher: Dispatcher, evaluator_id: str) -> FakeEvaluator:
    evaluator = FakeEvaluator()
    await dispatcher.join(evaluator_id, evaluator)
    await react()
    return evaluator


async def started(
    num_evaluators: int, *, gate: bool = True, clock: Clock | None = None, together_s: float = 0.0
) -> tuple[Dispatcher, list[FakeEvaluator]]:
    """A dispatcher and evaluators called e0, e1, ..."""
    dispatcher = Dispatcher(clock=clock or Clock(), together_s=together_s)
    evaluators = [await join(dispatcher, f"e{i}") for i in range(num_evaluators)]
    if gate:
        await dispatcher.open_gate(0)
    return dispatcher, evaluators


async def submit(dispatcher: Dispatcher, trial_id: str, jobs: Sequence[EvalJob]) -> None:
    await dispatcher.submit(trial_id, jobs)
    await react()


async def stats(dispatcher: Dispatcher) -> ServiceStats:
    return (await dispatcher.observe()).stats


async def news(dispatcher: Dispatcher, trial_id: str, num_known: int = 0) -> Progress:
    """What is known at once."""
    task = asyncio.create_task(dispatcher.progress(trial_id, num_known))
    await react()
    assert task.done(), "there is news"
    return task.result()


def answers(of: EvalJob) -> Predictions:
    """One byte an image: where it is."""
    images = bytes(range(of.start, of.stop))
    return Predictions(images, images[::-1])


# --- several shards in one call -------------------------------------------------------------------------------------


def short(num_jobs: int, seconds: float = 0.001) -> list[Scored]:
    return [Scored(1, 10, seconds)] * num_jobs


async def with_short_shards(num_evaluators: int, seconds: float = 0.001) -> tuple[Dispatcher, list[FakeEvaluator]]:
    """Evaluators that have scored one shard each, which took so long."""
    dispatcher, evaluators = await started(num_evaluators)
    await submit(dispatcher, "first", [job(f"F{i}") for i in range(num_evaluators)])
    for evaluator in evaluators:
        await evaluator.settle(short(1, seconds))
    return dispatcher, evaluators


@pytest.mark.parametrize(
    ("seconds", "num_shards", "expected"),
    [
        (0.0, 12, 12),
        (0.001, 12, 12),
        (0.005, 12, 6),
        (0.0101, 12, 2),
        (0.016, 12, 1),
        (9.0, 12, 1),
        (0.0, 50, MAX_AT_ONCE),
    ],
)
def test_as_many_shards_as_are_short_make_a_call(seconds, num_shards, expected):
    async def check() -> None:
        dispatcher, (a,) = await with_short_shards(1, seconds)
        await submit(dispatcher, "x", [job(f"T{i}") for i in range(num_shards)])
        assert [j.task for j in a.jobs[1:]] == [f"T{i}" for i in range(expected)]
        await a.settle(short(expected))
        assert (await news(dispatcher, "x")).num_scored == expected

    asyncio.run(check())
    assert (SHORT_S, MAX_AT_ONCE) == (0.03, 20)


@asynchronous
async def test_shards_that_take_no_time_are_not_worth_sharing():
    dispatcher, evaluators = await with_short_shards(3, 0.0)
    await submit(dispatcher, "x", [job(f"T{i}") for i in range(7)])
    assert [len(e.jobs) - 1 for e in evaluators] == [7, 0, 0]


@asynchronous
async def test_every_evaluator_gets_its_part_of_short_shards():
    dispatcher, evaluators = await with_short_shards(3, 0.002)
    await submit(dispatcher, "x", [job(f"T{i}") for i in range(7)])
    assert [len(e.jobs) - 1 for e in evaluators] == [3, 2, 1], "a third of what is left, each"
    await evaluators[2].settle(short(1))
    assert evaluators[2].job == job("T6")
    assert [e.num_calls for e in evaluators] == [2, 2, 3]


@asynchronous
async def test_a_call_of_several_shards_gives_every_task_its_own_outcome():
    dispatcher, (a,) = await with_short_shards(1)
    await dispatcher.submit("x", [job("T0"), job("T1", 0, 10), job("T1", 10, 20)])
    await submit(dispatcher, "y", [job("T0")])
    assert len(a.jobs) == 5, "of two trials"
    await a.settle([Scored(3, 10, 0.001), Scored(4, 10, 0.002), Scored(5, 10, 0.003), Failed("broken")])
    scores = (await news(dispatcher, "x")).scores
    assert [(s.task, s.correct, s.total) for s in scores] == [("T0", 3, 10), ("T1", 9, 20)]
    assert (await news(dispatcher, "y")).error == "broken"


@asynchronous
async def test_after_a_death_the_shards_of_a_call_come_one_by_one():
    dispatcher, (a,) = await with_short_shards(1)
    await submit(dispatcher, "x", [job(f"T{i}") for i in range(3)])
    assert len(a.jobs) == 4
    await a.settle(ActorDiedError())
    b = await join(dispatcher, "b")
    for i in range(3):
        assert b.jobs[i:] == [job(f"T{i}")], "no innocent one pays for its neighbour again"
        await b.settle(short(1))
    assert (await news(dispatcher, "x")).error is None


@asynchronous
async def test_a_bug_fails_the_trial_that_has_it_and_no_other_one_of_the_call():
    dispatcher, (a,) = await with_short_shards(1)
    await submit(dispatcher, "x", [job("T0")])
    await submit(dispatcher, "y", [job("T1")])
    await submit(dispatcher, "z", [job("T2")])
    await a.settle(short(1))  # x was there first, alone
    assert [j.task for j in a.jobs[2:]] == ["T1", "T2"]
    await a.settle(ValueError("a bug"))
    assert a.jobs[4:] == [job("T1")]
    await a.settle(ValueError("a bug"))
    await a.settle(short(1))
    assert (await news(dispatcher, "y")).error == "vit/T1 (val): ValueError: a bug"
    assert (await news(dispatcher, "z")).error is None


@asynchronous
async def test_a_shard_whose_update_is_late_keeps_no_other_waiting():
    dispatcher, (a,) = await with_short_shards(1)
    await submit(dispatcher, "x", [job("T0"), job("T1"), job("T2", update_id="u"), job("T3")])
    assert [j.task for j in a.jobs[1:]] == ["T0", "T1"]
    await a.settle(short(2))
    assert not a.is_busy
    await dispatcher.publish("u", ["shard"])
    await react()
    assert [j.task for j in a.jobs[3:]] == ["T2"]


@asynchronous
async def test_work_of_a_call_is_that_of_its_shards():
    clock = Clock()
    dispatcher, (a,) = await started(1, clock=clock)
    await submit(dispatcher, "x", [job("T0")])
    await a.settle(short(1, 0.0))
    await submit(dispatcher, "y", [job("T1"), job("T2"), job("T3")])
    clock.now += 0.5
    await a.settle([Scored(1, 10, 0.01), NotYet(), Scored(1, 10, 0.02)])
    assert (await stats(dispatcher)).busy_s == pytest.approx(0.03)
    assert a.job == job("T2"), "its update had not come"


# --- order and counts -----------------------------------------------------------------------------------------------


@asynchronous
async def test_trials_are_served_in_the_order_of_submission_and_their_shards_in_order():
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "first", [job("T0", 0, 10), job("T0", 10, 20), job("T1")])
    await submit(dispatcher, "second", [job("T2"), job("T3")])
    assert (a.job, b.job) == (job("T0", 0, 10), job("T0", 10, 20))
    await b.answer()
    assert b.job == job("T1")
    await b.answer()
    assert b.job == job("T2")
    await a.answer()
    assert a.job == job("T3")
    await a.answer()
    await b.answer()
    assert not a.is_busy
    assert not b.is_busy
    await submit(dispatcher, "third", [job("T4")])
    assert a.is_busy or b.is_busy, "they wait for more"


@asynchronous
async def test_a_task_is_news_once_all_its_shards_are_in():
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0", 0, 10), job("T0", 10, 16), job("T1", 0, 5)])
    waiting = asyncio.create_task(dispatcher.progress("x"))
    await b.answer(4)
    assert b.job.task == "T1"
    await react()
    assert not waiting.done()
    await b.answer(3)
    assert (await waiting) == Progress([TaskScore("T1", 3, 5, 0.5)], num_scored=1, done=False)
    waiting = asyncio.create_task(dispatcher.progress("x", 1))
    await react()
    assert not waiting.done(), "what is known is no news"
    await a.answer(7)
    assert (await waiting) == Progress([TaskScore("T0", 11, 16, 1.0)], num_scored=2, done=True)


@asynchronous
async def test_predictions_are_joined_in_the_order_of_the_images():
    """However late a shard is, and whoever had it first."""
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0", 0, 10), job("T1", 0, 4), job("T0", 10, 16), job("T0", 16, 20)])
    await b.settle(Scored(1, 4, 0.5, answers(b.job)))
    await b.settle(Scored(2, 6, 0.5, answers(b.job)))
    await a.settle(ActorDiedError())
    await b.settle(Scored(3, 4, 0.5, answers(b.job)))
    assert b.job == job("T0", 0, 10)
    await b.settle(Scored(4, 10, 0.5, answers(b.job)))
    first, second = (await news(dispatcher, "x")).scores
    assert (first.task, first.predictions) == ("T1", answers(job("T1", 0, 4)))
    assert (second.correct, second.total) == (9, 20)
    assert second.predictions is not None
    assert second.predictions.predicted == bytes(range(20))
    assert second.predictions.labels == bytes([*range(9, -1, -1), *range(15, 9, -1), *range(19, 15, -1)])


@asynchronous
async def test_news_waits_for_more_until_the_trial_is_done():
    dispatcher, (a,) = await started(1, together_s=600.0)
    await submit(dispatcher, "x", [job("T0"), job("T1"), job("T2")])
    waiting = asyncio.create_task(dispatcher.progress("x"))
    await a.answer(1)
    await a.answer(2)
    assert not waiting.done()
    await a.answer(3)
    assert waiting.done()
    progress = await waiting
    assert ([score.correct for score in progress.scores], progress.num_scored, progress.done) == ([1, 2, 3], 3, True)
    await submit(dispatcher, "y", [job("T0"), job("T1")])
    waiting = asyncio.create_task(dispatcher.progress("y"))
    await a.answer(1)
    assert not waiting.done()
    await dispatcher.forget(["y"])
    await react()
    assert (await waiting).done, "nobody waits for a trial that has ended"


@asynchronous
async def test_news_does_not_wait_for_ever():
    dispatcher, (a,) = await started(1, together_s=0.001)
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    waiting = asyncio.create_task(dispatcher.progress("x"))
    await a.answer(1)
    assert await waiting == Progress([TaskScore("T0", 1, 10, 0.5)], num_scored=1, done=False)
    waiting = asyncio.create_task(dispatcher.progress("x", 1))
    await a.answer(2)
    assert await waiting == Progress([TaskScore("T1", 2, 10, 0.5)], num_scored=2, done=True)


@asynchronous
async def test_news_can_be_read_again():
    """By a coordinator that takes the place of one that died."""
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0"), job("T1"), job("T2")])
    await a.answer(1)
    await a.answer(2)
    first, second = TaskScore("T0", 1, 10, 0.5), TaskScore("T1", 2, 10, 0.5)
    known = await news(dispatcher, "x", 1)
    assert known == Progress([second], num_scored=2, done=False)
    waiting = asyncio.create_task(dispatcher.progress("x", 2))
    await react()
    waiting.cancel()  # its process dies
    await react()
    assert await news(dispatcher, "x") == Progress([first, second], num_scored=2, done=False)
    await a.answer(3)
    assert await news(dispatcher, "x", 2) == Progress([TaskScore("T2", 3, 10, 0.5)], num_scored=3, done=True)
    assert await news(dispatcher, "x", 3) == Progress([], num_scored=3, done=True)
    assert len((await news(dispatcher, "x")).scores) == 3


@asynchronous
async def test_news_that_nobody_asked_for_are_kept():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    await a.answer(1)
    await a.answer(2)
    expected = [TaskScore("T0", 1, 10, 0.5), TaskScore("T1", 2, 10, 0.5)]
    assert await news(dispatcher, "x") == Progress(expected, num_scored=2, done=True)


@settings(max_examples=25)
@given(
    shards=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["T0", "T1", "T2"]), st.integers(1, 9)), max_size=20),
    num_evaluators=st.integers(1, 4),
    random=st.randoms(use_true_random=False),
)
def test_counts_add_up_in_any_order(shards, num_evaluators, random):
    async def check() -> None:
        clock = Clock()
        dispatcher, evaluators = await started(num_evaluators, clock=clock)
        present = {f"e{i}": evaluator for i, evaluator in enumerate(evaluators)}
        jobs: dict[str, list[EvalJob]] = {}
        expected: dict[str, dict[str, tuple[int, int]]] = {}
        for trial, task, size in shards:
            jobs.setdefault(f"trial{trial}", []).append(job(task, 0, size))
            known = expected.setdefault(f"trial{trial}", {}).get(task, (0, 0))
            expected[f"trial{trial}"][task] = (known[0] + size // 2, known[1] + size)
        for trial_id, own in jobs.items():
            await submit(dispatcher, trial_id, own)
        deaths = num_joined = 0
        while busy := [name for name, e in present.items() if e.is_busy]:
            name = random.choice(busy)
            clock.now += 0.1 + random.random()
            action = random.random()
            if action < 0.2 and deaths < MAX_ATTEMPTS - 1:
                deaths += 1
                await present.pop(name).settle(ActorDiedError())
                assert (await dispatcher.observe()).lost == (name,)
            elif action < 0.4:
                retired = asyncio.create_task(dispatcher.retire(name))
                await react()
                await present[name].answer(present[name].job.stop // 2)
                assert retired.done()
                assert not present.pop(name).is_busy
            else:
                await present[name].answer(present[name].job.stop // 2)
            if not present or random.random() < 0.1:
                num_joined += 1
                present[f"late{num_joined}"] = await join(dispatcher, f"late{num_joined}")
        for trial_id, tasks in expected.items():
            progress = await news(dispatcher, trial_id)
            assert {s.task: (s.correct, s.total) for s in progress.scores} == tasks
            assert len(progress.scores) == progress.num_scored == len(tasks)
            assert progress.done
            assert progress.error is None
            assert progress.occupancy is None or 0 <= progress.occupancy <= 1
        observed = await dispatcher.observe()
        assert observed.lost == ()
        assert {w.evaluator for w in observed.working} == present.keys()
        assert observed.stats.images == sum(size for _, _, size in shards)
        assert observed.stats.num_evaluators == len(present)
        assert (observed.stats.num_busy, observed.stats.num_queued) == (0, 0)
        assert 0 <= observed.stats.busy_s <= observed.stats.present_s
        assert (observed.stats.present_s > 0) == bool(shards)

    asyncio.run(check())


@asynchronous
async def test_a_trial_without_shards_is_done():
    """All its scores became known while it waited for the accuracies it is compared with."""
    dispatcher, _ = await started(1)
    await submit(dispatcher, "x", [])
    assert await news(dispatcher, "x") == Progress([], num_scored=0, done=True)


# --- updates --------------------------------------------------------------------------------------------------------


@asynchronous
async def test_jobs_get_the_shards_of_their_update():
    dispatcher, (a,) = await started(1)
    await dispatcher.publish("u", ["shard 0", "shard 1"])
    await dispatcher.publish("v", ["other"])
    await submit(dispatcher, "x", [job("T0", update_id="u"), job("T1"), job("T2", update_id="v")])
    assert a.job.update == ["shard 0", "shard 1"]
    await a.answer()
    assert a.job.update is None
    await dispatcher.release(["u", "never published"])
    await a.answer()
    assert a.job.update == ["other"]
    assert dispatcher._updates.keys() == {"v"}


@asynchronous
async def test_an_evaluator_waits_for_a_late_update():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0", update_id="u")])
    await submit(dispatcher, "y", [job("T1")])
    assert a.jobs == []
    await dispatcher.publish("u", ["late"])
    await react()
    assert a.job.update == ["late"]


# --- failures -------------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_failed_shard_ends_its_trial():
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0"), job("T1"), job("T2")])
    await submit(dispatcher, "y", [job("T3")])
    await a.answer()
    await b.settle(Failed("vit/T1 (val): its images are missing"))
    assert await news(dispatcher, "x") == Progress(
        [TaskScore("T0", 1, 10, 0.5)], 1, done=True, error="vit/T1 (val): its images are missing"
    )
    await dispatcher.forget(["x"])
    await a.answer()
    assert b.job.task == "T3"
    assert not a.is_busy
    assert (await stats(dispatcher)).images == 10, "what came after the failure is not counted"


@asynchronous
async def test_the_first_error_is_told():
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    await b.settle(Failed("first"))
    await a.settle(Failed("second"))
    assert (await news(dispatcher, "x")).error == "first"


@asynchronous
async def test_a_bug_in_the_evaluator_fails_the_trial_and_not_the_sweep():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    await submit(dispatcher, "y", [job("T2")])
    await a.settle(RayTaskError("run", "Traceback ...", ZeroDivisionError("division by zero.\nand more")))
    progress = await news(dispatcher, "x")
    assert progress.done
    assert (progress.error or "").startswith("vit/T0 (val): ")
    assert (progress.error or "").endswith(": division by zero")
    assert (await dispatcher.observe()).lost == (), "it is alive"
    assert a.is_busy


@asynchronous
async def test_other_ray_errors_fail_the_trial():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0")])
    await a.settle(GetTimeoutError("too slow"))
    assert (await news(dispatcher, "x")).error == "vit/T0 (val): GetTimeoutError: too slow"
    await submit(dispatcher, "y", [job("T1")])
    await a.settle(GetTimeoutError())
    assert (await news(dispatcher, "y")).error == "vit/T1 (val): GetTimeoutError: GetTimeoutError"


DEATHS = [
    ActorDiedError(),
    RayActorError(),
    ActorUnavailableError("dead", b"0" * 16),
    OutOfMemoryError("killed due to the node running low on memory"),
]


@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
def test_a_shard_is_retried_after_a_death(error):
    async def check() -> None:
        dispatcher, (a, b) = await started(2)
        await submit(dispatcher, "x", [job("T0"), job("T1"), job("T2"), job("T4")])
        await submit(dispatcher, "y", [job("T3")])
        await b.answer()
        assert b.job.task == "T2"
        await a.settle(error)
        observed = await dispatcher.observe()
        assert observed.lost == ("e0",)
        assert observed.working == (Working("e1", "x", "vit/T2 (val)"),)
        assert (await dispatcher.observe()).lost == (), "told once"
        c = await join(dispatcher, "later")
        assert c.job == job("T0"), "before any later shard, by one that came after the death"
        await c.answer(5)
        assert c.job.task == "T4"
        await c.answer()
        assert c.job.task == "T3"
        await b.answer()
        progress = await news(dispatcher, "x")
        assert progress.error is None
        assert {s.task: s.correct for s in progress.scores} == {"T0": 5, "T1": 1, "T2": 1, "T4": 1}
        assert len(a.jobs) == 1, "the dead get nothing"

    asyncio.run(check())


@asynchronous
async def test_a_shard_of_the_dead_goes_to_one_that_waits():
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0")])
    assert not b.is_busy
    await a.settle(ActorDiedError())
    assert b.job == job("T0")
    await b.answer()
    assert (await news(dispatcher, "x")).done


@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
def test_the_other_evaluators_of_a_lost_node_do_not_count_as_attempts(error):
    """They idle for a moment only, and would not be asked yet whether they live."""

    async def check() -> None:
        dispatcher, (a, *others) = await started(MAX_ATTEMPTS)
        await submit(dispatcher, "x", [job("T0")])
        for other in others:
            other.is_dead = error
        await a.settle(error)
        assert sorted((await dispatcher.observe()).lost) == ["e0", "e1", "e2"]
        assert [other.jobs for other in others] == [[]] * len(others)
        living = await join(dispatcher, "later")
        assert living.job == job("T0")
        await living.answer()
        assert (await news(dispatcher, "x")).error is None

    asyncio.run(check())


@asynchronous
async def test_a_shard_that_kills_evaluators_fails_its_trial():
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0")])
    await submit(dispatcher, "y", [job("T1"), job("T2")])
    killer = a
    for attempt in range(MAX_ATTEMPTS):
        assert killer.job == job("T0"), f"attempt {attempt}"
        await killer.settle(RayActorError(error_msg="killed by the kernel.\nlong story"))
        killer = await join(dispatcher, f"again{attempt}")
    progress = await news(dispatcher, "x")
    assert (progress.done, progress.num_scored) == (True, 0)
    assert progress.error == "vit/T0 (val): 3 evaluators died on it (killed by the kernel)"
    assert MAX_ATTEMPTS == 3
    assert (await dispatcher.observe()).lost == ("e0", "again0", "again1")
    while b.is_busy or killer.is_busy:
        await (b if b.is_busy else killer).answer()
    assert (await news(dispatcher, "y")).num_scored == 2, "the evaluators go on"


@asynchronous
async def test_an_update_for_which_there_is_no_room_fails_its_trial_after_a_while():
    clock = Clock()
    dispatcher, (a,) = await started(1, clock=clock)
    await submit(dispatcher, "x", [job("T0")])
    await submit(dispatcher, "y", [job("T1")])
    full = NotYet("the store is full. Make room")
    await a.settle(full)
    clock.now += ROOM_S
    await a.settle(full)
    assert a.job == job("T0"), "others may give their room back"
    await a.settle(NotYet())
    clock.now += 0.1
    await a.settle(full)
    assert a.job == job("T0"), "there was room for once: from then on it counts anew"
    clock.now += ROOM_S + 0.1
    await a.settle(full)
    assert a.job == job("T1"), "the evaluator goes on"
    progress = await news(dispatcher, "x")
    assert (progress.done, progress.error) == (True, "vit/T0 (val): the store is full. Make room")


@asynchronous
async def test_an_update_that_is_late_is_waited_for():
    clock = Clock()
    dispatcher, (a,) = await started(1, clock=clock)
    await submit(dispatcher, "x", [job("T0")])
    for _ in range(5):
        await a.settle(NotYet())
        clock.now += 10 * ROOM_S
    await a.answer()
    assert (await news(dispatcher, "x")).error is None


@asynchronous
async def test_attempts_are_counted_per_shard():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    for task in ("T0", "T1"):
        for attempt in range(MAX_ATTEMPTS - 1):
            assert a.job.task == task
            await a.settle(ActorDiedError())
            a = await join(dispatcher, f"again-{task}-{attempt}")
        await a.answer()
    progress = await news(dispatcher, "x")
    assert (progress.num_scored, progress.error) == (2, None)


@asynchronous
async def test_the_death_of_idle_evaluators_is_not_counted_against_a_shard():
    """A node with many evaluators that wait leaves, and the next shard must not fail on them one by one."""
    clock = Clock()
    dispatcher, evaluators = await started(MAX_ATTEMPTS + 2, clock=clock)
    *dead, alive = evaluators
    for evaluator in dead:
        evaluator.is_dead = ActorDiedError()
    clock.now += IDLE_S + 0.1
    await submit(dispatcher, "x", [job("T0")])
    assert alive.job == job("T0")
    assert (await dispatcher.observe()).lost == tuple(f"e{i}" for i in range(len(dead)))
    await alive.answer()
    assert (await news(dispatcher, "x")).error is None
    await submit(dispatcher, "y", [job("T1")])
    assert alive.num_asked == 1, "it was not asked again so soon"


@asynchronous
async def test_without_evaluators_trials_wait_for_some():
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0"), job("T1"), job("T2")])
    waiting = asyncio.create_task(dispatcher.progress("x"))
    await a.settle(ActorDiedError())
    await b.settle(ActorDiedError())
    observed = await dispatcher.observe()
    assert observed == Observation(ServiceStats(num_queued=3), (), ("e0", "e1"))
    assert not waiting.done()
    c = await join(dispatcher, "c")
    for task in ("T0", "T1", "T2"):
        assert c.job.task == task
        await c.answer()
    await waiting
    progress = await news(dispatcher, "x")
    assert (progress.num_scored, progress.error, progress.done) == (3, None, True)


# --- joining and retiring -------------------------------------------------------------------------------------------


@asynchronous
async def test_who_joins_takes_what_waits():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    b = await join(dispatcher, "b")
    assert (a.job.task, b.job.task) == ("T0", "T1")
    c = await join(dispatcher, "c")
    assert not c.is_busy
    assert (await dispatcher.observe()).working == (
        Working("e0", "x", "vit/T0 (val)"),
        Working("b", "x", "vit/T1 (val)"),
        Working("c"),
    )
    await submit(dispatcher, "y", [job("T2")])
    assert c.job.task == "T2"


@asynchronous
async def test_who_retires_ends_its_shard_and_gets_no_other():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    retired = asyncio.create_task(dispatcher.retire("e0"))
    await react()
    assert not retired.done()
    assert (await stats(dispatcher)).num_evaluators == 1
    await a.answer(3)
    assert retired.done()
    assert not a.is_busy
    assert await news(dispatcher, "x") == Progress([TaskScore("T0", 3, 10, 0.5)], 1, done=False)
    observed = await dispatcher.observe()
    assert (observed.lost, observed.working) == ((), ())
    b = await join(dispatcher, "b")
    assert b.job.task == "T1"


@asynchronous
async def test_who_retires_while_it_waits_is_gone_at_once():
    dispatcher, (a, b) = await started(2)
    retired = asyncio.create_task(dispatcher.retire("e0"))
    await react()
    assert retired.done()
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    assert not a.is_busy
    assert b.job.task == "T0"
    await b.answer()
    assert b.job.task == "T1"
    await dispatcher.retire("e0")  # again, and of one that nobody knows: nothing to wait for
    await dispatcher.retire("never heard of")


@asynchronous
async def test_a_shard_that_comes_while_one_retires_is_not_lost():
    """It may be woken for a shard, and leave without it."""
    dispatcher, (a, b) = await started(2)
    retired = asyncio.create_task(dispatcher.retire("e0"))
    await dispatcher.submit("x", [job("T0")])
    await react()
    assert retired.done()
    assert not a.is_busy
    assert b.job.task == "T0"


@asynchronous
async def test_who_dies_while_it_retires_is_lost():
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0")])
    retired = asyncio.create_task(dispatcher.retire("e0"))
    await react()
    await a.settle(ActorDiedError())
    assert retired.done()
    assert (await dispatcher.observe()).lost == ("e0",)
    assert b.job.task == "T0"


@asynchronous
async def test_who_retires_before_it_joins_gets_nothing():
    """Calls may arrive in another order than they were made in; whoever retired an evaluator ends it."""
    dispatcher, _ = await started(0)
    await dispatcher.retire("a")
    a = await join(dispatcher, "a")
    await submit(dispatcher, "x", [job("T0")])
    assert not a.is_busy
    assert (await dispatcher.observe()).working == ()


# --- occupancy ------------------------------------------------------------------------------------------------------


@asynchronous
async def test_occupancy_by_hand():
    clock = Clock()
    dispatcher, (a, _) = await started(2, clock=clock)
    assert await stats(dispatcher) == ServiceStats(num_evaluators=2)
    assert (await stats(dispatcher)).occupancy is None
    clock.now += 5  # before its first shard, an evaluator is not there
    await submit(dispatcher, "x", [job("T0"), job("T1", 0, 6)])
    clock.now += 2
    working = await stats(dispatcher)
    assert working == ServiceStats(2, num_busy=2, busy_s=4.0, present_s=4.0), "shards in work are included"
    assert working.occupancy == 1
    clock.now += 1
    await a.settle(Scored(1, 10, 2.5))  # took 3 s with its way here and back
    clock.now += 1
    observed = await stats(dispatcher)
    assert observed == ServiceStats(2, num_busy=1, images=10, busy_s=2.5 + 4.0, present_s=4.0 + 4.0)
    assert observed.occupancy == 6.5 / 8


@asynchronous
async def test_an_evaluator_is_there_from_its_first_shard_to_its_end():
    clock = Clock()
    dispatcher, (a, b) = await started(2, clock=clock)
    await submit(dispatcher, "x", [job("T0")])
    clock.now += 4
    await a.settle(Scored(1, 10, 3.0))
    assert await stats(dispatcher) == ServiceStats(2, images=10, busy_s=3.0, present_s=4.0), "the other has not begun"
    await dispatcher.retire("e0")
    clock.now += 100
    assert await stats(dispatcher) == ServiceStats(1, images=10, busy_s=3.0, present_s=4.0), "its past is kept"
    await submit(dispatcher, "y", [job("T1")])
    clock.now += 2
    await b.settle(ActorDiedError())
    clock.now += 100
    assert await stats(dispatcher) == ServiceStats(0, num_queued=1, images=10, busy_s=5.0, present_s=6.0)


@asynchronous
async def test_waiting_for_an_update_is_not_work():
    clock = Clock()
    dispatcher, (a,) = await started(1, clock=clock)
    await submit(dispatcher, "x", [job("T0", update_id="u")])
    clock.now += 3
    assert await stats(dispatcher) == ServiceStats(1, num_busy=1, busy_s=0.0, present_s=3.0)
    await dispatcher.publish("u", ["shard"])
    await react()
    clock.now += 1
    await a.settle(Scored(1, 10, 1.0))
    assert await stats(dispatcher) == ServiceStats(1, images=10, busy_s=1.0, present_s=4.0)


@asynchronous
async def test_occupancy_of_a_trial_is_that_of_all_evaluators_while_it_ran():
    clock = Clock()
    dispatcher, (a, b) = await started(2, clock=clock)
    await submit(dispatcher, "x", [job("T0")])
    await submit(dispatcher, "other", [job("T1")])
    clock.now += 10
    await b.settle(Scored(1, 10, 10.0))
    await submit(dispatcher, "y", [job("T2")])
    assert b.job.task == "T2"
    clock.now += 4
    await a.settle(Scored(1, 10, 14.0))
    x = await news(dispatcher, "x")
    assert x.occupancy == 1, "14 s of one, 10 s and 4 s of the other"
    clock.now += 4
    await b.settle(Scored(1, 10, 6.0))
    y = await news(dispatcher, "y")
    # both were there for 8 s: one had 4 s of x left, the other 6 s of its own
    assert y.occupancy == (4 + 6) / 16
    clock.now += 100
    assert await news(dispatcher, "y") == y, "what comes after its end does not count"


# --- forgetting, failing from outside -------------------------------------------------------------------------------


@asynchronous
async def test_forgotten_trials_wake_who_waits_and_are_not_run():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    await submit(dispatcher, "y", [job("T2")])
    waiting = asyncio.create_task(dispatcher.progress("x"))
    await react()
    await dispatcher.forget(["x", "never heard of"])
    assert (await waiting).done
    await a.answer()  # its outcome is for nobody
    assert a.job.task == "T2", "T1 is not run"
    assert (await stats(dispatcher)).images == 0
    assert await news(dispatcher, "x") == Progress([], 0, done=True)
    await dispatcher.submit("x", [job("T9")])
    await a.answer()
    assert not a.is_busy, "nothing is queued for a forgotten trial"
    assert (await stats(dispatcher)).images == 10


@asynchronous
async def test_a_death_during_a_forgotten_trial_requeues_nothing():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0")])
    await dispatcher.forget(["x"])
    await a.settle(ActorDiedError())
    a = await join(dispatcher, "again")
    assert not a.is_busy
    assert (await stats(dispatcher)).num_queued == 0
    await submit(dispatcher, "y", [job("T1")])
    assert a.job.task == "T1"


@asynchronous
async def test_nobody_waits_for_the_update_of_a_forgotten_trial():
    """It may never be published: its merge is not needed any more."""
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0", update_id="u"), job("T1", update_id="u")])
    retired = asyncio.create_task(dispatcher.retire("e1"))
    await react()
    assert not retired.done()
    await dispatcher.release(["u"])
    await dispatcher.forget(["x"])
    await react()
    assert retired.done()
    await submit(dispatcher, "y", [job("T2")])
    assert a.job.task == "T2"
    assert (a.num_asked, b.jobs) == (0, [])


@asynchronous
async def test_a_trial_that_cannot_be_run_fails_with_its_reason():
    dispatcher, _ = await started(1)
    waiting = asyncio.create_task(dispatcher.progress("x"))
    await react()
    assert not waiting.done(), "its shards may still come"
    await dispatcher.fail("x", "its merge is impossible")
    assert (await waiting) == Progress([], 0, done=True, error="its merge is impossible")
    await dispatcher.fail("never heard of", "so what")


# --- the gate -------------------------------------------------------------------------------------------------------


@asynchronous
async def test_no_news_before_all_expected_trials_wait():
    dispatcher, (a,) = await started(1, gate=False)
    await submit(dispatcher, "x", [job("T0")])
    await submit(dispatcher, "y", [job("T1")])
    await a.answer()
    first = asyncio.create_task(dispatcher.progress("x"))
    await react()
    assert not first.done()
    await dispatcher.open_gate(2)
    await dispatcher.open_gate(1)
    await react()
    assert not first.done(), "the first call decides"
    again = asyncio.create_task(dispatcher.progress("x"))
    await react()
    assert not first.done(), "the same trial does not count twice"
    again.cancel()
    second = asyncio.create_task(dispatcher.progress("y"))
    await react()
    assert first.done()
    assert not second.done(), "it has no news yet"
    await a.answer()
    assert second.done()
    third = asyncio.create_task(dispatcher.progress("y"))
    await dispatcher.forget(["y"])
    await react()
    assert third.done(), "once open, it stays open"


@asynchronous
async def test_the_gate_opens_at_once_when_enough_wait_already():
    dispatcher, _ = await started(1, gate=False)
    for trial_id in ("x", "y"):
        await dispatcher.fail(trial_id, "no")
    waiting = [asyncio.create_task(dispatcher.progress(trial_id)) for trial_id in ("x", "y")]
    await react()
    assert not any(task.done() for task in waiting)
    await dispatcher.open_gate(2)
    await react()
    assert all(task.done() for task in waiting)


@asynchronous
async def test_a_sweep_that_stops_early_opens_the_gate():
    """Its coordinators must not wait for others that never come."""
    dispatcher, _ = await started(1, gate=False)
    waiting = asyncio.create_task(dispatcher.progress("x"))
    await dispatcher.open_gate(2)
    await react()
    assert not waiting.done()
    await dispatcher.forget(["x", "y"])
    await react()
    assert waiting.done()
    assert (await news(dispatcher, "y")).done
