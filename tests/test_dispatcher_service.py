"""The dispatcher shard by shard, with evaluators that answer when the test says so."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError

from raymerge import dispatcher as dispatcher_module
from raymerge.dispatcher import MAX_ATTEMPTS, Dispatcher, Progress
from raymerge.records import EvalJob, Failed, Scored, TaskScore


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
        self.readied: list[list[str]] = []
        self.restarts = True
        self._outcome: asyncio.Future[Any] | None = None

    async def _run(self, job: EvalJob) -> Any:
        assert self._outcome is None, "one shard at a time"
        self.jobs.append(job)
        self._outcome = asyncio.get_running_loop().create_future()
        try:
            return await self._outcome
        finally:
            self._outcome = None

    async def _ready(self, backbones: list[str]) -> str:
        self.readied.append(backbones)
        if not self.restarts:
            raise RayActorError(error_msg="still dead")
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


async def started(num_evaluators: int, *, gate: bool = True) -> tuple[Dispatcher, list[FakeEvaluator]]:
    evaluators = [FakeEvaluator() for _ in range(num_evaluators)]
    dispatcher = Dispatcher(evaluators, ["vit", "other"])
    await dispatcher.start()
    if gate:
        await dispatcher.open_gate(0)
    return dispatcher, evaluators


async def submit(dispatcher: Dispatcher, trial_id: str, jobs: Sequence[EvalJob]) -> None:
    await dispatcher.submit(trial_id, jobs)
    await react()


async def news(dispatcher: Dispatcher, trial_id: str) -> Progress:
    """What is known at once."""
    task = asyncio.create_task(dispatcher.progress(trial_id))
    await react()
    assert task.done(), "there is news"
    return task.result()


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
    waiting = asyncio.create_task(dispatcher.progress("x"))
    await react()
    assert not waiting.done(), "news are told once"
    await a.answer(7)
    assert (await waiting) == Progress([TaskScore("T0", 11, 16, 1.0)], num_scored=2, done=True)


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
        dispatcher, evaluators = await started(num_evaluators)
        jobs: dict[str, list[EvalJob]] = {}
        expected: dict[str, dict[str, tuple[int, int]]] = {}
        for trial, task, size in shards:
            jobs.setdefault(f"trial{trial}", []).append(job(task, 0, size))
            known = expected.setdefault(f"trial{trial}", {}).get(task, (0, 0))
            expected[f"trial{trial}"][task] = (known[0] + size // 2, known[1] + size)
        for trial_id, own in jobs.items():
            await submit(dispatcher, trial_id, own)
        deaths = 0
        while busy := [e for e in evaluators if e.is_busy]:
            evaluator = random.choice(busy)
            if deaths < MAX_ATTEMPTS - 1 and random.random() < 0.2:
                deaths += 1
                await evaluator.settle(ActorDiedError())
            else:
                await evaluator.answer(evaluator.job.stop // 2)
        for trial_id, tasks in expected.items():
            progress = await news(dispatcher, trial_id)
            assert {s.task: (s.correct, s.total) for s in progress.scores} == tasks
            assert len(progress.scores) == progress.num_scored == len(tasks)
            assert progress.done
            assert progress.error is None
        stats = await dispatcher.stats()
        assert stats.images == sum(size for _, _, size in shards)
        assert len(stats.busy_s) == num_evaluators
        assert all(s >= 0 for s in stats.busy_s)
        assert (stats.wall_s > 0) == bool(shards)

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
    assert (await dispatcher.stats()).images == 10, "what came after the failure is not counted"


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
    assert a.readied == [], "it is alive"
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


@pytest.mark.parametrize("error", [ActorDiedError, RayActorError])
def test_a_shard_is_retried_after_a_death(error):
    async def check() -> None:
        dispatcher, (a, b) = await started(2)
        await submit(dispatcher, "x", [job("T0"), job("T1"), job("T2")])
        await submit(dispatcher, "y", [job("T3")])
        await b.answer()
        assert b.job.task == "T2"
        await a.settle(error())
        assert a.readied == [["vit", "other"]], "the restarted evaluator loads its encoders again"
        assert a.job == job("T0"), "before any later shard"
        await a.answer(5)
        assert a.job.task == "T3"
        await b.answer()
        progress = await news(dispatcher, "x")
        assert progress.error is None
        assert {s.task: s.correct for s in progress.scores} == {"T0": 5, "T1": 1, "T2": 1}

    asyncio.run(check())


@asynchronous
async def test_a_shard_that_kills_evaluators_fails_its_trial():
    dispatcher, (a, b) = await started(2)
    await submit(dispatcher, "x", [job("T0")])
    await submit(dispatcher, "y", [job("T1"), job("T2")])
    for attempt in range(MAX_ATTEMPTS):
        killer = a if a.is_busy and a.job.task == "T0" else b
        assert killer.job == job("T0"), f"attempt {attempt}"
        await killer.settle(RayActorError(error_msg="killed by the kernel.\nlong story"))
    progress = await news(dispatcher, "x")
    assert (progress.done, progress.num_scored) == (True, 0)
    assert progress.error == "vit/T0 (val): 3 evaluators died on it (killed by the kernel)"
    assert MAX_ATTEMPTS == 3
    while a.is_busy or b.is_busy:
        await (a if a.is_busy else b).answer()
    assert (await news(dispatcher, "y")).num_scored == 2, "the evaluators go on"


@asynchronous
async def test_attempts_are_counted_per_shard():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0"), job("T1")])
    for task in ("T0", "T1"):
        for _ in range(MAX_ATTEMPTS - 1):
            assert a.job.task == task
            await a.settle(ActorDiedError())
        await a.answer()
    progress = await news(dispatcher, "x")
    assert (progress.num_scored, progress.error) == (2, None)


def test_an_evaluator_that_cannot_be_restarted_is_left_out(monkeypatch):
    monkeypatch.setattr(dispatcher_module, "RESTART_TIMEOUT_S", -1.0)

    async def check() -> None:
        dispatcher, (a, b) = await started(2)
        await submit(dispatcher, "x", [job("T0"), job("T1"), job("T2")])
        await a.settle(ActorDiedError())
        assert not a.is_busy
        await b.answer()
        assert b.job == job("T0"), "the other one takes over"
        await b.answer()
        await b.answer()
        progress = await news(dispatcher, "x")
        assert (progress.num_scored, progress.error) == (3, None)

    asyncio.run(check())


def test_without_evaluators_every_trial_fails(monkeypatch):
    monkeypatch.setattr(dispatcher_module, "RESTART_TIMEOUT_S", -1.0)

    async def check() -> None:
        dispatcher, (a, b) = await started(2)
        await submit(dispatcher, "x", [job("T0"), job("T1"), job("T2")])
        await submit(dispatcher, "y", [job("T3")])
        waiting = asyncio.create_task(dispatcher.progress("y"))
        early = asyncio.create_task(dispatcher.progress("z"))
        await react()
        await a.settle(ActorDiedError())
        assert not waiting.done()
        await b.settle(ActorDiedError())
        error = "every evaluator died and none could be started again"
        assert (await waiting) == Progress([], 0, done=True, error=error)
        assert (await news(dispatcher, "x")).error == error
        await react()
        assert early.result().error == error
        await submit(dispatcher, "late", [job("T0")])
        assert (await news(dispatcher, "late")).error == error, "nor will any later trial ever run"

    asyncio.run(check())


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
    assert (await dispatcher.stats()).images == 0
    assert await news(dispatcher, "x") == Progress([], 0, done=True)
    await dispatcher.submit("x", [job("T9")])
    await a.answer()
    assert not a.is_busy, "nothing is queued for a forgotten trial"
    assert (await dispatcher.stats()).images == 10


@asynchronous
async def test_a_death_during_a_forgotten_trial_requeues_nothing():
    dispatcher, (a,) = await started(1)
    await submit(dispatcher, "x", [job("T0")])
    await dispatcher.forget(["x"])
    await a.settle(ActorDiedError())
    assert not a.is_busy
    await submit(dispatcher, "y", [job("T1")])
    assert a.job.task == "T1"


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
async def test_stats_before_anything_ran():
    dispatcher, _ = await started(3)
    stats = await dispatcher.stats()
    assert (stats.images, stats.busy_s, stats.wall_s) == (0, (0.0, 0.0, 0.0), 0.0)
