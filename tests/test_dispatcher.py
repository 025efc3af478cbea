"""The dispatcher as a plain asyncio object, with evaluators that are functions."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from raymerge import dispatcher as module
from raymerge.dispatcher import MAX_ATTEMPTS, Dispatcher
from raymerge.records import EvalJob, Failed, Scored, TaskScore


class Method:
    """What `actor.method` is: something with a `remote`."""

    def __init__(self, function: Callable[..., Awaitable[Any]]):
        self.remote = function


class FakeEvaluator:
    """Scores half of every shard right; `behave` may do something else first."""

    def __init__(self, behave: Callable[[EvalJob], Any] = lambda job: None, starts_again: bool = True):
        self.jobs: list[EvalJob] = []
        self._behave = behave
        self._starts_again = starts_again
        self.run = Method(self._run)
        self.ready = Method(self._ready)

    async def _run(self, job: EvalJob) -> Scored | Failed:
        self.jobs.append(job)
        await asyncio.sleep(0)
        answer = self._behave(job)
        if isinstance(answer, Exception):
            raise answer
        total = job.stop - job.start
        return answer or Scored(total // 2, total, 0.5)

    async def _ready(self, backbones: list[str]) -> str:
        if not self._starts_again:
            raise ActorDiedError()
        return "cpu"


def job(task: str = "A", start: int = 0, stop: int = 10, update_id: str | None = None) -> EvalJob:
    return EvalJob("vit", task, "val", start, stop, weights_id="w", alpha=1.0, update_id=update_id)


def run(scenario: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a scenario; one that hangs fails."""
    return asyncio.run(asyncio.wait_for(scenario(), timeout=30))


async def started(*evaluators: FakeEvaluator) -> Dispatcher:
    dispatcher = Dispatcher(evaluators, ["vit"])
    await dispatcher.start()
    await dispatcher.open_gate(0)
    return dispatcher


async def all_scores(dispatcher: Dispatcher, trial_id: str) -> list[TaskScore]:
    scores: list[TaskScore] = []
    while True:
        progress = await dispatcher.progress(trial_id)
        scores += progress.scores
        if progress.done:
            assert progress.error is None
            assert progress.num_scored == len(scores)
            return scores


def test_counts_of_shards_add_up_by_task() -> None:
    async def scenario() -> None:
        dispatcher = await started(FakeEvaluator(), FakeEvaluator())
        await dispatcher.submit("t", [job("A", 0, 10), job("A", 10, 16), job("B", 0, 4)])
        scores = {score.task: score for score in await all_scores(dispatcher, "t")}
        assert scores == {"A": TaskScore("A", 8, 16, 1.0), "B": TaskScore("B", 2, 4, 0.5)}
        assert (await dispatcher.stats()).images == 20

    run(scenario)


def test_the_trial_that_came_first_is_served_first_and_its_shards_in_order() -> None:
    async def scenario() -> None:
        evaluator = FakeEvaluator()
        dispatcher = Dispatcher([evaluator], ["vit"])
        await dispatcher.open_gate(0)
        await dispatcher.submit("first", [job("C"), job("A"), job("B")])
        await dispatcher.submit("second", [job("D")])
        await dispatcher.start()
        await all_scores(dispatcher, "second")
        assert [j.task for j in evaluator.jobs] == ["C", "A", "B", "D"]

    run(scenario)


def test_an_update_that_arrives_late_is_waited_for() -> None:
    async def scenario() -> None:
        evaluator = FakeEvaluator()
        dispatcher = await started(evaluator)
        await dispatcher.submit("t", [job(update_id="u")])
        await asyncio.sleep(0.01)
        assert not evaluator.jobs
        await dispatcher.publish("u", ["shard 0", "shard 1"])
        await all_scores(dispatcher, "t")
        assert evaluator.jobs[0].update == ["shard 0", "shard 1"]

    run(scenario)


def test_progress_may_be_asked_for_before_the_shards_are_known() -> None:
    async def scenario() -> None:
        dispatcher = await started(FakeEvaluator())
        waiting = asyncio.create_task(all_scores(dispatcher, "t"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await dispatcher.submit("t", [job()])
        assert await waiting == [TaskScore("A", 5, 10, 0.5)]

    run(scenario)


def test_a_shard_whose_evaluator_dies_is_tried_again() -> None:
    async def scenario() -> None:
        deaths = iter([ActorDiedError()])
        mortal, other = FakeEvaluator(lambda j: next(deaths, None)), FakeEvaluator()
        dispatcher = await started(mortal)
        await dispatcher.submit("t", [job()])
        assert await all_scores(dispatcher, "t") == [TaskScore("A", 5, 10, 0.5)]
        assert len(mortal.jobs) == 2
        assert not other.jobs

    run(scenario)


def test_a_shard_that_kills_its_evaluators_fails_its_trial_and_no_other() -> None:
    async def scenario() -> None:
        evaluator = FakeEvaluator(lambda j: ActorDiedError() if j.task == "Killer" else None)
        dispatcher = await started(evaluator)
        await dispatcher.submit("bad", [job("Killer")])
        await dispatcher.submit("good", [job("A")])
        progress = await dispatcher.progress("bad")
        assert progress.done
        assert progress.error is not None
        assert "vit/Killer (val)" in progress.error
        assert f"{MAX_ATTEMPTS} evaluators" in progress.error
        assert sum(j.task == "Killer" for j in evaluator.jobs) == MAX_ATTEMPTS
        assert await all_scores(dispatcher, "good") == [TaskScore("A", 5, 10, 0.5)]

    run(scenario)


def test_when_all_evaluators_are_lost_every_trial_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_TIMEOUT_S", 0.0)

    async def scenario() -> None:
        dispatcher = await started(*(FakeEvaluator(lambda j: ActorDiedError(), starts_again=False) for _ in "ab"))
        await dispatcher.submit("t", [job("A"), job("B"), job("C")])
        progress = await dispatcher.progress("t")
        assert progress.error is not None
        assert "evaluator" in progress.error

    run(scenario)


@pytest.mark.parametrize("answer", [Failed("Task/file: broken"), ValueError("a bug")], ids=["failure", "bug"])
def test_errors_of_an_evaluator_fail_the_trial(answer: Any) -> None:
    async def scenario() -> None:
        evaluator = FakeEvaluator(lambda j: answer if j.task == "A" else None)
        dispatcher = await started(evaluator)
        await dispatcher.submit("bad", [job("A")])
        await dispatcher.submit("good", [job("B")])
        progress = await dispatcher.progress("bad")
        assert progress.error is not None
        assert str(answer.error if isinstance(answer, Failed) else answer) in progress.error
        await all_scores(dispatcher, "good")

    run(scenario)


def test_forgetting_a_trial_drops_its_shards_and_wakes_who_waits() -> None:
    async def scenario() -> None:
        evaluator = FakeEvaluator()
        dispatcher = Dispatcher([evaluator], ["vit"])
        await dispatcher.open_gate(0)
        await dispatcher.submit("stopped", [job("A"), job("B")])
        waiting = asyncio.create_task(dispatcher.progress("stopped"))
        await asyncio.sleep(0)
        await dispatcher.forget(["stopped"])
        assert (await waiting).done
        assert (await dispatcher.progress("stopped")).done
        await dispatcher.submit("stopped", [job("C")])  # arrives late, and is ignored
        await dispatcher.submit("next", [job("D")])
        await dispatcher.start()
        await all_scores(dispatcher, "next")
        assert [j.task for j in evaluator.jobs] == ["D"]

    run(scenario)


def test_no_news_before_all_coordinators_have_asked() -> None:
    async def scenario() -> None:
        dispatcher = Dispatcher([FakeEvaluator()], ["vit"])
        await dispatcher.start()
        await dispatcher.submit("one", [job("A")])
        await dispatcher.submit("two", [job("B")])
        first = asyncio.create_task(dispatcher.progress("one"))
        await asyncio.sleep(0.01)
        await dispatcher.open_gate(2)
        await dispatcher.open_gate(0)  # only the first call decides
        await asyncio.sleep(0.01)
        assert not first.done()
        second = asyncio.create_task(dispatcher.progress("two"))
        assert [score.task for score in (await first).scores] == ["A"]
        assert [score.task for score in (await second).scores] == ["B"]

    run(scenario)


def test_a_trial_that_cannot_run_fails_with_its_reason() -> None:
    async def scenario() -> None:
        dispatcher = await started(FakeEvaluator())
        await dispatcher.fail("t", "the merge is impossible")
        progress = await dispatcher.progress("t")
        assert (progress.done, progress.error) == (True, "the merge is impossible")

    run(scenario)
