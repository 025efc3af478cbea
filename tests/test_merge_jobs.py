"""Merges that fail because nodes have come or gone, on a Ray that settles tasks when the test says so."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_sweep
import pytest
from ray.exceptions import RayError, WorkerCrashedError

from raymerge import merge_jobs
from raymerge.errors import CheckpointError
from raymerge.merge_jobs import MAX_MOVES, MergeJobs
from raymerge.merge_request import Merge
from raymerge.suites import Suite

ANYWHERE: Mapping[str, Any] = {}
NOT_ON_B = {"label_selector": {"ray.io/node-id": "!in(b)"}}
MISSING = CheckpointError("T0.pt is missing.")


@dataclass(eq=False)
class Task:
    """One task that was started: its first result stands for it."""

    kind: str
    options: Mapping[str, Any]
    arguments: tuple[Any, ...]
    outcome: Any = None

    @property
    def shard(self) -> int:
        return self.arguments[2]


class FakeRay:
    def __init__(self) -> None:
        self.started: list[Task] = []

    def function(self, kind: str) -> Any:
        world = self

        class Function:
            def options(self, *, num_returns: int, **options: Any) -> Any:
                class Started:
                    def remote(self, *arguments: Any) -> list[Any]:
                        task = Task(kind, options, arguments)
                        world.started.append(task)
                        return [task, *(f"{kind}-{len(world.started)}-{i}" for i in range(1, num_returns))]

                return Started()

        return Function()

    def wait(self, running: Sequence[Task], num_returns: int, timeout: float) -> tuple[list[Task], list[Task]]:
        done = [task for task in running if task.outcome is not None][:1]
        if not done:
            time.sleep(0.001)
        return done, []

    def get(self, task: Task) -> Any:
        if isinstance(task.outcome, Exception):
            raise task.outcome
        return task.outcome


class World:
    def __init__(self, suite: Suite, monkeypatch: pytest.MonkeyPatch):
        self.ray = FakeRay()
        self.published: dict[str, list[Any]] = {}
        self.placement: Mapping[str, Any] = ANYWHERE
        self.wary_placement: Mapping[str, Any] | None = None
        """None: the same."""
        self.max_parallel = 1
        monkeypatch.setattr(merge_jobs, "ray", self.ray)
        monkeypatch.setattr(merge_jobs, "_first_task", self.ray.function("first"))
        monkeypatch.setattr(merge_jobs, "_shard_task", self.ray.function("shard"))
        spec = fake_sweep.spec_of({"weight-averaging": {}, "iso-c": {}}, num_tasks=[2])
        sweep, _ = fake_sweep.start(spec, suite=suite)
        self.merges: list[Merge] = list(sweep.wanted_merges())
        self.jobs = MergeJobs(
            suite,
            defaultdict(lambda: "0"),
            Path("cache"),
            Path("moments"),
            families=(),
            max_parallel=lambda: self.max_parallel,
            publish=self.published.__setitem__,
            placement=self._place,
        )

    def _place(self, wary: bool) -> Mapping[str, Any]:
        return self.wary_placement if wary and self.wary_placement is not None else self.placement

    def want(self) -> Merge:
        """One merge; its first task has been started."""
        merge = next(m for m in self.merges if m.method == "iso-c")
        self.jobs.want([merge])
        self.task(1)
        return merge

    def task(self, count: int) -> Task:
        """The task that was started last, when so many have been."""
        wait_until(lambda: len(self.ray.started) >= count)
        assert len(self.ray.started) == count
        return self.ray.started[-1]

    def failure(self) -> Mapping[str, str]:
        found: dict[str, str] = {}

        def look() -> bool:
            found.update(self.jobs.take_failures())
            return bool(found)

        wait_until(look)
        return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    suite = Suite("fake", "full", 0, tmp_path, fake_sweep.SUITE.backbones, fake_sweep.SUITE.tasks)
    path = suite.zero_shot_path("vit")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0")
    world = World(suite, monkeypatch)
    yield world
    world.jobs.close()
    assert not any(thread.name == "merges" for thread in threading.enumerate())


def test_a_merge_of_one_shard_is_published(world):
    merge = world.want()
    assert (world.task(1).kind, world.task(1).options) == ("first", {})
    assert not world.jobs.is_merged(merge)
    world.task(1).outcome = (1, None)
    wait_until(lambda: world.jobs.is_merged(merge))
    assert world.published == {merge.merge_id: ["first-1-1"]}
    assert world.jobs.take_failures() == {}


def test_shards_are_started_in_order_and_published_together(world):
    merge = world.want()
    world.task(1).outcome = (3, "statistics")
    for shard in range(3):
        task = world.task(2 + shard)
        assert (task.kind, task.shard, task.arguments[3]) == ("shard", shard, "statistics")
        assert not world.published
        task.outcome = True
    wait_until(lambda: world.jobs.is_merged(merge))
    assert world.published == {merge.merge_id: ["shard-2-1", "shard-3-1", "shard-4-1"]}


@pytest.mark.parametrize("error", [MISSING, WorkerCrashedError()], ids=["missing", "crashed"])
def test_a_merge_fails_where_nodes_are_what_they_were(world, error):
    merge = world.want()
    world.task(1).outcome = error
    failure = world.failure()
    assert failure.keys() == {merge.merge_id}
    assert failure[merge.merge_id] == str(error).strip().splitlines()[-1]
    assert len(world.ray.started) == 1
    assert not world.jobs.is_merged(merge)


def test_a_merge_that_ran_on_a_node_without_files_is_started_elsewhere(world):
    merge = world.want()
    world.placement = NOT_ON_B  # b was looked at meanwhile
    world.task(1).outcome = MISSING
    again = world.task(2)
    assert (again.kind, again.options, again.arguments) == ("first", NOT_ON_B, world.ray.started[0].arguments)
    again.outcome = (1, None)
    wait_until(lambda: world.jobs.is_merged(merge))
    assert world.jobs.take_failures() == {}


def test_a_node_that_was_not_looked_at_yet_is_as_good_as_a_bad_one(world):
    merge = world.want()
    world.wary_placement = NOT_ON_B
    world.task(1).outcome = MISSING
    again = world.task(2)
    assert again.options == NOT_ON_B
    again.outcome = MISSING  # on another node, so it is no fault of b
    assert world.failure() == {merge.merge_id: "T0.pt is missing."}
    assert len(world.ray.started) == 2


def test_one_shard_is_started_elsewhere_without_the_others(world):
    merge = world.want()
    world.max_parallel = 4
    world.task(1).outcome = (2, None)
    world.task(3)
    first, second = world.ray.started[1:]
    first.outcome = True
    world.placement = NOT_ON_B
    second.outcome = MISSING
    again = world.task(4)
    assert (again.shard, again.options) == (second.shard, NOT_ON_B)
    again.outcome = True
    wait_until(lambda: world.jobs.is_merged(merge))
    assert world.published == {merge.merge_id: ["shard-2-1", "shard-4-1"]}


def test_many_shards_may_be_started_elsewhere_at_once(world):
    """They all ran on the same bad node."""
    merge = world.want()
    num_shards = world.max_parallel = 2 * MAX_MOVES
    world.task(1).outcome = (num_shards, None)
    world.task(1 + num_shards)
    world.placement = NOT_ON_B
    for task in world.ray.started[1:]:
        task.outcome = MISSING
    world.task(1 + 2 * num_shards)
    for task in world.ray.started[1 + num_shards :]:
        assert task.options == NOT_ON_B
        task.outcome = True
    wait_until(lambda: world.jobs.is_merged(merge))
    assert world.jobs.take_failures() == {}


def test_nodes_that_always_change_do_not_keep_a_merge_for_ever(world):
    merge = world.want()
    for move in range(MAX_MOVES):
        world.placement = {"move": move}
        world.task(1 + move).outcome = MISSING
        assert world.task(2 + move).options == {"move": move}
    world.placement = {"move": MAX_MOVES}
    world.task(1 + MAX_MOVES).outcome = MISSING
    assert world.failure() == {merge.merge_id: "T0.pt is missing."}
    assert len(world.ray.started) == 1 + MAX_MOVES


def test_a_merge_fails_once_and_its_other_shards_are_dropped(world):
    merge = world.want()
    world.max_parallel = 2
    world.task(1).outcome = (4, None)
    world.task(3)
    world.ray.started[1].outcome = MISSING
    assert world.failure() == {merge.merge_id: "T0.pt is missing."}
    world.ray.started[2].outcome = RayError("another")
    other = next(m for m in world.merges if m.method == "weight-averaging")
    world.jobs.want([other])
    task = world.task(4)
    assert task.kind == "first", "the shards that were left are not started"
    task.outcome = (1, None)
    wait_until(lambda: world.jobs.is_merged(other))
    assert world.jobs.take_failures() == {}
