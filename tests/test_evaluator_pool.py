"""Evaluators on nodes that come and go: the arithmetic by hand and by property, the pool step by step."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge import evaluator_pool
from raymerge.dispatcher import Observation
from raymerge.errors import CheckpointError, ClusterError, EvaluationError
from raymerge.evaluator_pool import (
    MAX_FAILED_STARTS,
    PATIENCE_S,
    RETRY_S,
    ROTATION_S,
    ActorLost,
    EvaluatorPool,
    Joined,
    Node,
    Silence,
    describe,
    describe_needs,
    fair_share,
    placement,
    slots,
)
from raymerge.records import ServiceStats

CPU_ONLY = {"CPU": 1.0, "GPU": 0.0}
ON_GPU = {"CPU": 2.0, "GPU": 1.0}


def node(name: str, cpus: float, gpus: float | None = None) -> Node:
    """Its id is its name, its host that in capitals."""
    resources = {"CPU": float(cpus)} if gpus is None else {"CPU": float(cpus), "GPU": float(gpus)}
    return Node(name, name.upper(), resources)


# --- room -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "needs", "reserved", "expected"),
    [
        ([node("a", 4)], CPU_ONLY, 0, {"a": 4}),
        ([node("a", 4)], CPU_ONLY, 1, {"a": 3}),
        ([node("a", 4)], CPU_ONLY, 9, {"a": 0}),
        ([node("a", 4), node("b", 4)], CPU_ONLY, 2, {"a": 3, "b": 3}),
        ([node("a", 8), node("b", 2)], CPU_ONLY, 3, {"a": 5, "b": 2}),
        # what evaluators cannot use is there for merges
        ([node("a", 16, 2)], ON_GPU, 4, {"a": 2}),
        ([node("a", 16, 2)], ON_GPU, 13, {"a": 1}),
        # a node without GPUs has room for none, and its CPUs are for merges
        ([node("gpu", 4, 2), node("cpu", 8)], ON_GPU, 1, {"gpu": 2, "cpu": 0}),
        ([node("gpu", 4, 2), node("cpu", 0)], ON_GPU, 1, {"gpu": 1, "cpu": 0}),
        # too small
        ([node("a", 1, 1), node("b", 4, 1)], ON_GPU, 0, {"a": 0, "b": 1}),
        ([node("a", 1)], {"CPU": 1.5, "GPU": 0.0}, 0, {"a": 0}),
        # shares of a GPU, and figures that binary fractions do not hold
        ([node("a", 8, 1)], {"CPU": 1.0, "GPU": 0.5}, 0, {"a": 2}),
        ([node("a", 9, 3)], {"CPU": 0.1, "GPU": 0.3}, 0, {"a": 10}),
        # half a CPU on either of two nodes is not one for a merge
        ([node("a", 2), node("b", 2)], {"CPU": 1.5, "GPU": 0.0}, 1, {"a": 1, "b": 0}),
        # two evaluators of half a CPU make room for one merge, on one node
        ([node("a", 2), node("b", 2)], {"CPU": 0.5, "GPU": 0.0}, 1, {"a": 4, "b": 2}),
        # without CPUs of their own evaluators take none from merges
        ([node("a", 1, 4)], {"CPU": 0.0, "GPU": 1.0}, 8, {"a": 4}),
        ([node("a", 4), node("b", 0)], {"CPU": 0.0, "GPU": 0.0}, 1, {"a": 1, "b": 1}),
        ([], CPU_ONLY, 1, {}),
    ],
)
def test_room_by_hand(nodes, needs, reserved, expected):
    assert slots(nodes, needs, float(reserved)) == expected


def test_room_is_left_where_merges_can_run():
    nodes = [node("a", 4), node("z", 4)]
    assert slots(nodes, CPU_ONLY, 1.0) == {"a": 4, "z": 3}
    assert slots(nodes, CPU_ONLY, 1.0, no_merging=["z"]) == {"a": 3, "z": 4}
    assert slots(nodes, CPU_ONLY, 9.0, no_merging=["z"]) == {"a": 0, "z": 4}
    assert slots(nodes, CPU_ONLY, 1.0, no_evaluating=["z"]) == {"a": 4, "z": 0}, "z has CPUs enough for merges"
    assert slots(nodes, CPU_ONLY, 1.0, no_evaluating=["z"], no_merging=["z"]) == {"a": 3, "z": 0}
    assert slots(nodes, CPU_ONLY, 1.0, no_merging=["a", "z"]) == {"a": 4, "z": 4}, "it would be of no use"


QUARTERS = st.integers(0, 40).map(lambda n: n / 4)
NODES = st.lists(st.tuples(QUARTERS, st.integers(0, 4)), max_size=5).map(
    lambda found: [node(f"n{i}", cpus, float(gpus)) for i, (cpus, gpus) in enumerate(found)]
)
NEEDS = st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 4.0]), st.sampled_from([0.0, 0.5, 1.0, 2.0])).map(
    lambda need: {"CPU": need[0], "GPU": need[1]}
)
SOME = st.sets(st.sampled_from([f"n{i}" for i in range(5)]))


@given(nodes=NODES, needs=NEEDS, reserved=st.integers(0, 12), no_evaluating=SOME, no_merging=SOME)
def test_room_fits_and_merges_keep_their_cpus(nodes, needs, reserved, no_evaluating, no_merging):
    room = slots(nodes, needs, float(reserved), no_evaluating, no_merging)
    assert room.keys() == {n.node_id for n in nodes}
    full = slots(nodes, needs, 0.0, no_evaluating)
    for n in nodes:
        count = room[n.node_id]
        assert 0 <= count <= full[n.node_id]
        assert all(count * need <= n.resources[kind] + 1e-6 for kind, need in needs.items())
        assert not (count and n.node_id in no_evaluating)
        assert count == full[n.node_id] or n.node_id not in no_merging, "nothing is gained"
    able = [n for n in nodes if n.node_id not in no_merging]

    def free() -> int:
        return sum(int(n.resources["CPU"] - room[n.node_id] * needs["CPU"] + 1e-6) for n in able)

    if needs["CPU"] == 0:
        assert room == full
        return
    assert free() >= reserved or not any(room[n.node_id] for n in able)
    for n in able:  # and no more than needed: one evaluator more anywhere, and it would be too few
        if room[n.node_id] < full[n.node_id] and needs["CPU"] in (1, 4):
            room[n.node_id] += 1
            assert free() < reserved
            room[n.node_id] -= 1


# --- shares ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "me", "sweeps", "expected"),
    [
        (7, "a", ["a"], 7),
        (7, "a", [], 7),
        (7, "a", ["a", "b"], 4),
        (7, "b", ["b", "a"], 3),
        (8, "b", ["a"], 4),
        (8, "c", ["a", "b", "c"], 2),
        (0, "a", ["a", "b"], 0),
        (-1, "a", ["a"], 0),
    ],
)
def test_shares_by_hand(total, me, sweeps, expected):
    assert fair_share(total, me, sweeps, now=12345.0) == expected


def test_more_sweeps_than_places_take_turns():
    def at(turn: float) -> list[int]:
        return [fair_share(2, me, ["a", "b", "c"], turn * ROTATION_S) for me in "abc"]

    assert [at(turn) for turn in (0, 0.99, 1, 2, 3)] == [[1, 1, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]


SWEEPS = st.sets(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=8).map(sorted)


@given(sweeps=SWEEPS, total=st.integers(0, 50), now=st.floats(0, 1e10), random=st.randoms(use_true_random=False))
def test_shares_add_up(sweeps, total, now, random):
    shares = {}
    for me in sweeps:  # every sweep computes its own, and Ray lists them in any order
        shares[me] = fair_share(total, me, random.sample(sweeps, len(sweeps)), now)
    assert sum(shares.values()) == total
    assert max(shares.values()) - min(shares.values()) <= 1


@given(sweeps=SWEEPS, data=st.data(), first=st.integers(0, 10**7))
def test_everyone_gets_a_turn(sweeps, data, first):
    total = data.draw(st.integers(0, len(sweeps)))
    for me in sweeps:
        turns = [fair_share(total, me, sweeps, (first + i + 0.5) * ROTATION_S) for i in range(len(sweeps))]
        assert sum(turns) == total, "as many turns as places, for each"


# --- placement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "present", "allowed", "expected"),
    [
        ({"a": 2, "b": 2}, {}, 4, {"a": 2, "b": 2}),
        ({"a": 2, "b": 2}, {}, 2, {"a": 1, "b": 1}),
        ({"a": 4, "b": 1}, {}, 3, {"a": 3}),
        ({"a": 4, "b": 1}, {"a": 4, "b": 1}, 3, {"a": -1, "b": -1}),
        ({"a": 2}, {"a": 1}, 9, {"a": 1}),
        ({"a": 2}, {"a": 2}, 0, {"a": -2}),
        ({}, {"a": 2}, 5, {"a": -2}),
        # the place of a node that left is taken elsewhere
        ({"b": 3}, {"a": 2, "b": 1}, 3, {"a": -2, "b": 2}),
        # nobody retires where nobody is
        ({"a": 0, "b": 3}, {"a": 1, "b": 2}, 1, {"a": -1, "b": -1}),
        ({"a": 0, "b": 3}, {"a": 0, "b": 2}, 1, {"b": -1}),
        ({}, {}, 3, {}),
    ],
)
def test_placement_by_hand(room, present, allowed, expected):
    assert dict(placement(room, present, allowed)) == expected


COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 6))


@given(room=COUNTS, present=COUNTS, allowed=st.integers(0, 30))
def test_placement(room, present, allowed):
    changes = placement(room, present, allowed)
    after = Counter({n: present.get(n, 0) + changes[n] for n in {*room, *present}})
    assert all(0 <= count <= room.get(n, 0) for n, count in after.items())
    assert sum(after.values()) == min(allowed, sum(room.values()))
    assert not placement(room, after, allowed), "nothing changes once it is right"
    kept = {n: min(present.get(n, 0), room.get(n, 0)) for n in room}
    if sum(kept.values()) <= allowed:
        assert all(after[n] >= kept[n] for n in room), "none retires that may stay"
    else:
        assert all(after[n] <= kept[n] for n in room), "none is started while others retire"


@given(room=COUNTS, allowed=st.integers(0, 30))
def test_placement_is_even(room, allowed):
    after = placement(room, {}, allowed)
    free = {n: room[n] - after[n] for n in room}
    for n, m in itertools.permutations(room, 2):
        assert not after[n] or free[m] <= free[n] + 1, "another node has more room"


# --- the pool -------------------------------------------------------------------------------------------------------


@dataclass
class FakeActor:
    node_id: str
    device: str | None = None
    error: Exception | None = None
    killed: bool = False
    id: str = ""
    """Once it has joined."""


@dataclass
class FakeView:
    """A cluster that does what the test says."""

    alive: dict[str, Node] = field(default_factory=dict)
    names: list[str] = field(default_factory=lambda: ["me"])
    actors: list[FakeActor] = field(default_factory=list)
    joined: dict[str, FakeActor] = field(default_factory=dict)
    retiring: list[str] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    """Those that have retired."""
    lost: list[str] = field(default_factory=list)
    """To be told once."""
    broken: Exception | None = None
    ready_at_once: str | None = "gpu"
    fails: Mapping[str, Exception] = field(default_factory=dict)
    """By node: what becomes of every evaluator there."""

    def nodes(self) -> list[Node]:
        if self.broken:
            raise self.broken
        return list(self.alive.values())

    def sweeps(self) -> list[str]:
        return list(self.names)

    def start(self, node_id: str) -> FakeActor:
        assert node_id in self.alive
        actor = FakeActor(node_id, self.ready_at_once, self.fails.get(node_id))
        self.actors.append(actor)
        return actor

    def is_ready(self, handle: FakeActor) -> str | None:
        assert not handle.killed
        if handle.error:
            raise handle.error
        return handle.device

    def kill(self, handle: FakeActor) -> None:
        handle.killed = True

    def join(self, evaluator_id: str, handle: FakeActor) -> None:
        assert handle.device
        assert not handle.killed
        assert evaluator_id not in self.joined
        handle.id = evaluator_id
        self.joined[evaluator_id] = handle

    def retire(self, evaluator_id: str) -> str:
        assert evaluator_id in self.joined
        assert evaluator_id not in self.retiring
        self.retiring.append(evaluator_id)
        return evaluator_id

    def is_done(self, reference: str) -> bool:
        return reference in self.ended

    def observe(self) -> Observation:
        lost, self.lost = self.lost, []
        return Observation(ServiceStats(images=len(self.actors)), (), tuple(lost))

    def die(self, actor: FakeActor) -> None:
        """While it serves."""
        assert actor.id
        self.lost.append(actor.id)

    def living(self) -> list[FakeActor]:
        return [actor for actor in self.actors if not actor.killed]

    def where(self) -> dict[str, int]:
        """Evaluators by node, but those that are to end."""
        return dict(Counter(actor.node_id for actor in self.living() if actor.id not in self.retiring))


class World:
    """A pool, its view, its clock, and what it said."""

    def __init__(self, *nodes: Node, needs: Mapping[str, float] = CPU_ONLY, wanted: int | None = None, **options: Any):
        self.view = FakeView({n.node_id: n for n in nodes})
        self.now = 1000.0
        self.notices: list[str] = []
        arguments: dict[str, Any] = {"reserved": lambda cpus: 1.0, **options}
        self.pool = EvaluatorPool(
            self.view,
            "me",
            needs,
            wanted,
            notice=self.notices.append,
            clock=lambda: self.now,
            wall_clock=lambda: self.now,
            **arguments,
        )

    def step(self, times: int = 1) -> dict[str, int]:
        for _ in range(times):
            self.pool.step()
        return self.view.where()

    def add(self, *nodes: Node) -> None:
        self.view.alive |= {n.node_id: n for n in nodes}

    def told(self) -> list[str]:
        """Since the last call."""
        notices = list(self.notices)
        self.notices.clear()
        return notices


def test_a_pool_fills_its_nodes():
    world = World(node("a", 4), node("b", 3))
    assert world.step() == {"a": 3, "b": 3}
    assert world.view.joined == {}
    assert world.pool.joined == Joined(0, 6, 0, ())
    world.step()
    assert len(world.view.joined) == 6
    assert world.pool.joined == Joined(6, 6, 6, ("gpu",))
    assert (world.pool.num_cpus, world.pool.num_cpus_free) == (7.0, 1.0)
    assert sorted(world.pool.hosts().values()) == ["A"] * 3 + ["B"] * 3
    assert world.pool.hosts().keys() == world.view.joined.keys()
    assert world.step(3) == {"a": 3, "b": 3}
    assert len(world.view.actors) == 6, "then nothing changes"
    assert world.pool.observation.stats.images == 6
    assert (world.told(), world.pool.error) == ([], None)


def test_evaluators_serve_once_they_are_ready():
    world = World(node("a", 3))
    world.view.ready_at_once = None
    world.step(3)
    first, second = world.view.actors
    assert world.view.joined == {}
    second.device = "cpu"
    world.step()
    assert list(world.view.joined.values()) == [second]
    first.device = "gpu"
    world.step()
    assert world.pool.joined == Joined(2, 2, 2, ("cpu", "gpu"))


def test_a_node_that_joins_gets_evaluators_and_one_that_leaves_loses_them():
    world = World(node("a", 3))
    assert world.step(2) == {"a": 2}
    world.add(node("b", 2))
    assert world.step(2) == {"a": 2, "b": 2}
    assert world.told() == ["node B has joined"]
    there = [actor for actor in world.view.actors if actor.node_id == "b"]
    del world.view.alive["b"]
    assert world.step() == {"a": 2}
    assert world.told() == ["node B has left"]
    assert world.view.retiring == [actor.id for actor in reversed(there)]
    # one was idle and is gone, the other had a shard, on which it is found dead
    idle, busy = there
    world.view.ended.add(idle.id)
    world.view.die(busy)
    world.step()
    assert idle.killed
    assert busy.killed
    assert world.pool.joined == Joined(2, 2, 4, ("gpu",))
    assert world.told() == [], "that it died is no news"
    assert world.step(3) == {"a": 2}


def test_evaluators_that_start_on_a_node_that_leaves_are_dropped():
    world = World(node("a", 2), node("b", 2))
    world.view.ready_at_once = None
    assert world.step() == {"a": 2, "b": 1}
    del world.view.alive["b"]
    assert world.step() == {"a": 1}
    assert world.view.retiring == [], "they never served"


def test_the_dead_are_replaced():
    world = World(node("a", 3))
    world.step(2)
    world.view.die(world.view.actors[0])
    assert world.step() == {"a": 2}
    assert world.told() == ["an evaluator on A died; another one is started"]
    assert [actor.killed for actor in world.view.actors] == [True, False, False]
    world.step()
    assert world.pool.joined == Joined(2, 2, 2, ("gpu",))
    world.view.lost.append("never heard of")
    assert world.step() == {"a": 2}
    assert world.told() == []


def test_unfit_nodes_get_no_evaluators_and_are_named_once():
    unfit = {"b": "b.pt is missing there"}
    asked: list[list[str]] = []

    def ask(nodes: Sequence[Node]) -> Mapping[str, str]:
        asked.append([n.node_id for n in nodes])
        return {name: why for name, why in unfit.items() if name in asked[-1]}

    world = World(node("a", 3), node("b", 8), unfit=ask)
    assert world.step(5) == {"a": 3}
    assert world.told() == ["no evaluators on node B: b.pt is missing there"]
    assert asked == [["a", "b"]], "again only when nodes change"
    unfit["c"] = "torch is 1 there, and 2 on A"
    world.add(node("c", 4), node("d", 2))
    assert world.step(3) == {"a": 3, "d": 2}
    assert sorted(world.told()) == [
        "no evaluators on node C: torch is 1 there, and 2 on A",
        "node C has joined",
        "node D has joined",
    ]
    assert len(asked) == 2


def test_merges_keep_cpus_where_they_can_run():
    world = World(node("a", 4), node("z", 8), unfit=lambda nodes: {"z": "no files"}, no_merging=lambda: ["z"])
    assert world.step() == {"a": 3}
    world = World(
        node("a", 4),
        node("z", 28),
        unfit=lambda nodes: {"z": "no files"},
        no_merging=lambda: ["z"],
        reserved=lambda cpus: cpus / 4,
    )
    assert world.step() == {"a": 3}, "of what can be used, not of all there is"


def test_nodes_of_different_kinds():
    world = World(node("cpu", 64), node("gpu", 8, 2), node("tiny", 1, 1), needs=ON_GPU)
    assert world.step(2) == {"gpu": 2}
    world.add(node("more", 8, 4))
    assert world.step(2) == {"gpu": 2, "more": 4}


def test_wanted_limits_them():
    world = World(node("a", 8), node("b", 8), wanted=3)
    assert sum(world.step(3).values()) == 3
    assert set(world.view.where().values()) == {1, 2}, "evenly"
    assert world.pool.joined.num_wanted == 3
    world.add(node("c", 8))
    assert sum(world.step(3).values()) == 3
    world = World(node("a", 3), wanted=9)
    assert world.step(3) == {"a": 2}
    world.add(node("b", 4))
    assert world.step(3) == {"a": 3, "b": 3}, "what was missing is started when there is room"


# --- starts that fail -----------------------------------------------------------------------------------------------


def test_a_node_where_evaluators_die_is_left_alone_for_a_while():
    world = World(node("a", 3), node("bad", 1))
    world.view.fails = {"bad": ActorLost("the process was killed")}
    world.step(10)
    started = [actor for actor in world.view.actors if actor.node_id == "bad"]
    assert len(started) == MAX_FAILED_STARTS == 3
    assert all(actor.killed for actor in started)
    assert world.view.where() == {"a": 2}
    assert world.told() == ["no evaluators on node BAD: the process was killed"]
    world.now += RETRY_S - 1
    assert world.step(5) == {"a": 2}
    world.view.fails = {}
    world.now += 2
    assert world.step(2) == {"a": 2, "bad": 1}
    assert (world.told(), world.pool.error) == ([], None)


def test_deaths_that_are_not_in_a_row_are_forgiven():
    world = World(node("a", 2))
    for _ in range(4):
        for _ in range(MAX_FAILED_STARTS - 1):
            world.view.fails = {"a": ActorLost("killed")}
            world.step(1)
            assert world.view.where() == {"a": 1}
            world.view.fails = {}
            world.step(1)
        world.step(2)
        assert world.pool.joined.num_serving == 1
        world.view.die(world.view.living()[0])
        world.view.fails = {"a": ActorLost("killed")}
    assert world.pool.error is None


def test_what_the_user_has_to_mend_is_tried_once():
    world = World(node("a", 3), node("bad", 1))
    world.view.fails = {"bad": CheckpointError("zero.pt is missing.")}
    assert world.step(5) == {"a": 2}
    assert [actor.node_id for actor in world.view.actors].count("bad") == 1
    assert world.told() == ["no evaluators on node BAD: zero.pt is missing."]
    assert world.pool.error is None


def test_an_error_on_the_only_node_is_raised():
    world = World(node("a", 3))
    error = CheckpointError("zero.pt is missing.")
    world.view.fails = {"a": error}
    with pytest.raises(CheckpointError) as raised:
        world.pool.begin()
    assert raised.value is error
    world.pool.close()
    assert world.view.living() == []


def test_an_error_on_every_node_is_raised():
    world = World(node("a", 3), node("b", 2))
    world.view.fails = {"a": ActorLost("out of memory"), "b": EvaluationError("an evaluator cannot start (x).")}
    with pytest.raises((ClusterError, EvaluationError), match=r"out of memory|cannot start"):
        world.pool.begin()
    world.pool.close()


def test_deaths_on_the_only_node_are_raised():
    world = World(node("a", 2))
    world.view.fails = {"a": ActorLost("killed by the kernel")}
    with pytest.raises(ClusterError) as raised:
        world.pool.begin()
    assert str(raised.value) == "no evaluator can be started on A (killed by the kernel). See docs/cluster.md."
    assert len(world.view.actors) == MAX_FAILED_STARTS


def test_an_error_is_not_raised_while_others_may_become_ready():
    world = World(node("a", 2), node("bad", 1))
    world.view.ready_at_once = None
    world.view.fails = {"bad": CheckpointError("zero.pt is missing.")}
    world.step(3)
    assert world.pool.error is None
    world.view.living()[0].device = "cpu"
    world.step()
    assert world.pool.joined.num_serving == 1


def test_an_error_after_others_have_served_does_not_end_the_sweep():
    world = World(node("a", 2))
    world.step(2)
    world.view.fails = {"a": EvaluationError("its head is missing.")}
    world.view.die(world.view.actors[0])
    world.step(3)
    assert (world.pool.error, world.view.where()) == (None, {})
    assert world.told()[-1] == "no evaluators on node A: its head is missing."


# --- several sweeps -------------------------------------------------------------------------------------------------


def test_a_second_sweep_gets_half_and_gives_it_back():
    world = World(node("a", 5), node("b", 4))
    assert world.step(2) == {"a": 4, "b": 4}
    world.view.names = ["me", "you"]
    assert world.step() == {"a": 2, "b": 2}
    assert world.told() == ["2 sweeps share the cluster: 4 of 8 evaluators for this one"]
    assert len(world.view.retiring) == 4
    assert len(world.view.living()) == 8, "they end their shards first"
    assert world.step(3) == {"a": 2, "b": 2}
    assert len(world.view.retiring) == 4
    world.view.ended.update(world.view.retiring[:3])
    world.step()
    assert len(world.view.living()) == 5
    assert world.pool.num_cpus_free == 4
    world.view.names = ["me"]
    world.step(2)
    assert world.told() == ["this sweep has the cluster to itself"]
    assert world.pool.joined == Joined(8, 8, 8, ("gpu",))
    assert len(world.view.living()) == 9, "the one that still ends its shard included"


def test_evaluators_that_have_not_started_go_first():
    world = World(node("a", 5))
    world.view.ready_at_once = None
    world.step()
    world.view.actors[0].device = world.view.actors[1].device = "cpu"
    world.step()
    world.view.names = ["me", "you"]
    assert world.step() == {"a": 2}
    assert world.view.retiring == []
    assert [actor.killed for actor in world.view.actors] == [False, False, True, True]


def test_more_sweeps_than_places_take_turns_with_them():
    world = World(node("a", 2))
    world.now = 0.0
    world.view.names = ["you", "me"]
    assert world.step(2) == {"a": 1}
    assert world.told() == ["2 sweeps share the cluster: 1 of 1 evaluators for this one"]
    world.now = ROTATION_S
    assert world.step(2) == {}
    assert world.pool.joined.num_wanted == 1, "as many trials as for one, which wait for their turn"
    world.view.ended.update(world.view.retiring)
    for _ in range(20):
        world.now += ROTATION_S / 20
        world.step()
    assert world.view.where() == {"a": 1}
    assert world.pool.error is None
    assert world.told() == []


# --- ends -----------------------------------------------------------------------------------------------------------


def test_patience_runs_out():
    world = World(node("a", 3))
    world.step(2)
    world.view.alive.clear()
    world.view.ended.update(world.view.joined)
    world.now += 1
    world.step(2)
    world.now += PATIENCE_S - 1
    world.step()
    assert world.pool.error is None
    world.now += 2
    world.step()
    assert isinstance(world.pool.error, ClusterError)
    assert str(world.pool.error) == (
        "no evaluator for 15 minutes: the cluster has 0 CPU and 0 GPU, one takes 1 CPU. "
        "What is finished is saved; start the same command again."
    )


def test_a_cluster_without_room_is_waited_for():
    world = World(node("a", 8), needs=ON_GPU)
    world.step(3)
    world.now += PATIENCE_S - 1
    assert world.step() == {}
    world.add(node("b", 8, 1))
    assert world.step(2) == {"b": 1}
    world.now += PATIENCE_S + 1
    world.step()
    assert world.pool.error is None


def test_waiting_for_a_turn_is_no_reason_to_end():
    world = World(node("a", 2))
    world.view.names = ["a", "me"]
    world.now = 0.0
    assert world.step() == {}
    world.now = ROTATION_S - 1
    world.view.names = [f"a{i}" for i in range(9)] + ["me"]
    for _ in range(9):
        assert world.step() == {}
        world.now += ROTATION_S
    assert world.pool.error is None
    assert world.step() == {"a": 1}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("the head is gone.\nTraceback"), "the cluster does not answer (the head is gone). What is"),
        (TimeoutError(), "the cluster does not answer (TimeoutError). What is finished is saved; start the same "),
    ],
)
def test_a_cluster_that_does_not_answer(error, said):
    world = World(node("a", 3))
    world.step(2)
    world.view.broken = error
    world.step()
    assert isinstance(world.pool.error, ClusterError)
    assert str(world.pool.error).startswith(said)
    assert "\n" not in str(world.pool.error)


def test_silence_is_what_the_watcher_itself_has_waited():
    silence = Silence(100.0, step=99.0)
    assert silence.after(101.0, 99.0) == 1
    assert silence.after(102.5, 99.0) == 2.5
    assert silence.after(162.5, 99.0) == 2.5 + 2 * evaluator_pool.POLL_S, "the process was paused"
    assert silence.after(163.0, 162.9) == 0, "a step"
    assert silence.after(164.0, 162.9) == 1


def test_a_cluster_that_is_silent_from_the_first_step(monkeypatch):
    monkeypatch.setattr(evaluator_pool, "POLL_S", 0.01)
    monkeypatch.setattr(evaluator_pool, "SILENCE_S", 0.05)
    said: list[str] = []
    answer = threading.Event()
    world = World(node("a", 3))
    world.pool.silent = lambda error: (said.append(str(error)), answer.set())[0]
    world.pool.clock = time.monotonic
    looked = world.view.nodes
    monkeypatch.setattr(world.view, "nodes", lambda: (answer.wait(60), looked())[1])
    world.pool.begin()
    world.pool.close()
    assert len(said) == 1
    assert said[0].startswith("the cluster does not answer for 0 seconds. What is finished is saved;")


def test_begin_waits_for_the_first_and_a_while_for_the_others(monkeypatch):
    monkeypatch.setattr(evaluator_pool, "POLL_S", 0.01)
    world = World(node("a", 3))
    world.view.ready_at_once = None
    steps = 0

    def go_on() -> bool:
        nonlocal steps
        steps += 1
        world.now += 7
        if steps == 4:
            world.view.actors[0].device = "cpu"
        return True

    world.pool.begin(go_on)
    assert steps == 4 + 3, "20 s after the first one"
    assert world.pool.joined == Joined(1, 2, 1, ("cpu",))
    world.view.actors[1].device = "cpu"  # the thread goes on without us
    wait_until(lambda: world.pool.joined.num_serving == 2)
    world.pool.close()
    assert world.view.living() == []


def test_begin_ends_when_it_is_told_to():
    world = World(node("a", 3))
    world.view.ready_at_once = None
    answers = iter([True, True, False])
    world.pool.begin(lambda: next(answers))
    assert world.pool.joined.num_serving == 0
    world.pool.close()
    assert world.view.living() == []


def test_the_thread_ends_with_an_error_and_keeps_it(monkeypatch):
    monkeypatch.setattr(evaluator_pool, "POLL_S", 0.01)
    world = World(node("a", 3))
    world.pool.begin()
    world.view.broken = ConnectionError("gone")
    wait_until(lambda: world.pool.error is not None)
    world.view.broken = None
    assert str(world.pool.error).startswith("the cluster does not answer (gone).")
    world.pool.close()
    assert world.view.living() == []


def test_closing_does_not_wait_for_a_look_at_a_new_node(monkeypatch):
    monkeypatch.setattr(evaluator_pool, "POLL_S", 0.01)
    monkeypatch.setattr(evaluator_pool, "CLOSE_S", 0.05)
    looking, told = threading.Event(), threading.Event()

    def look(nodes: Sequence[Node]) -> Mapping[str, str]:
        if len(nodes) > 1:
            looking.set()
            assert told.wait(60)
        return {}

    world = World(node("a", 3), unfit=look)
    world.pool.begin()
    world.add(node("b", 9))
    assert looking.wait(60)
    world.pool.close()
    assert world.view.living() == []
    num_started = len(world.view.actors)
    told.set()
    wait_until(lambda: not any(t.name == "evaluators" for t in threading.enumerate()))
    assert len(world.view.actors) == num_started, "nothing is started after the end"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_descriptions():
    assert describe([node("a", 8, 1), node("b", 4.5)], ON_GPU) == "12.5 CPU and 1 GPU"
    assert describe_needs(ON_GPU) == "2 CPU and 1 GPU"
    assert describe_needs(CPU_ONLY) == "1 CPU"
    assert describe_needs({"CPU": 0.0, "GPU": 0.0}) == "nothing"
