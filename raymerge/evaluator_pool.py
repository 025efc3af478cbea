"""EvaluatorPool: evaluators on whatever nodes there are. They follow nodes that join and leave, and replace the dead.

Where how many belong is arithmetic (`slots`, `fair_share`, `placement`); the pool asks Ray for nodes every second,
starts what is missing, and retires what other sweeps of the same cluster are owed.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from raymerge.dispatcher import Observation
from raymerge.errors import ClusterError, RaymergeError, first_line
from raymerge.records import ServiceStats

POLL_S = 1.0
ROTATION_S = 600.0
"""How long a sweep keeps its evaluators where there are more sweeps than places."""
MAX_FAILED_STARTS = 3
"""In a row on one node, after which it is left alone."""
RETRY_S = 300.0
"""After which a node that was left alone is tried again."""
LONG_START_S = 120.0
"""After which a person is told that an evaluator has not started."""
PATIENCE_S = 900.0
"""How long a sweep goes on without any evaluator."""
SILENCE_S = 40.0
"""How long Ray may take to say which nodes there are and what evaluators do."""
CLOSE_S = 10.0
"""How long the end of a sweep waits for a look at a new node."""
GRACE_S = 20.0
"""How long a sweep that has its first evaluator waits for the others before it begins."""

logger = logging.getLogger(__name__)

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Node:
    """A node of the cluster and what it has in all, whoever uses it."""

    node_id: str
    host: str
    resources: Resources


@runtime_checkable
class ClusterView(Protocol):
    """What the pool needs of Ray; see `cluster.RayView`."""

    def nodes(self) -> list[Node]: ...
    def sweeps(self) -> list[str]:
        """Names of the sweeps that run on this cluster, this one included."""
        ...

    def start(self, node_id: str) -> Any:
        """Start an evaluator on a node, now or when it has room. Returns its handle."""
        ...

    def is_ready(self, handle: Any) -> str | None:
        """The device of an evaluator, None while it starts.

        Raises:
            RaymergeError: it will never be ready, and neither will others like it on that node.
            ActorLost: it died.
        """
        ...

    def kill(self, handle: Any) -> None: ...
    def join(self, evaluator_id: str, handle: Any) -> None: ...
    def retire(self, evaluator_id: str) -> Any:
        """Have an evaluator end its shard. Returns what `is_done` understands."""
        ...

    def is_done(self, reference: Any) -> bool: ...
    def observe(self) -> Observation: ...


class ActorLost(Exception):
    """An evaluator died while it started."""


def cpus_of(nodes: Iterable[Node]) -> float:
    return float(sum(node.resources.get("CPU", 0.0) for node in nodes))


def slots(
    nodes: Iterable[Node],
    needs: Resources,
    reserved_cpus: float,
    no_evaluating: Collection[str] = (),
    no_merging: Collection[str] = (),
) -> dict[str, int]:
    """How many evaluators every node has room for, if they had the cluster to themselves.

    Args:
        needs: of one evaluator, by kind of resource.
        reserved_cpus: CPUs of the whole cluster that are left to merges, each of which takes one. What evaluators
            cannot use counts first, then nodes with most evaluators have fewer.
        no_evaluating, no_merging: nodes that cannot, by id; on the latter, CPUs are of no use to merges.
    """
    each = needs.get("CPU", 0.0)
    room, cpus = {}, {}
    for node in nodes:
        fits = (int(node.resources.get(kind, 0.0) / need + 1e-9) for kind, need in needs.items() if need > 0)
        room[node.node_id] = 0 if node.node_id in no_evaluating else min(fits, default=1)
        cpus[node.node_id] = node.resources.get("CPU", 0.0)

    def spare(node_id: str) -> int:
        return 0 if node_id in no_merging else max(0, int(cpus[node_id] - room[node_id] * each + 1e-9))

    while each > 0 and sum(map(spare, room)) < reserved_cpus - 1e-9:
        shared = [node_id for node_id in room if room[node_id] and node_id not in no_merging]
        if not shared:
            break
        largest = max(shared, key=lambda node_id: (room[node_id], node_id))
        before = spare(largest)
        while room[largest] and spare(largest) == before:
            room[largest] -= 1
    return room


def fair_share(total: int, me: str, sweeps: Sequence[str], now: float) -> int:
    """How many of a cluster's places one sweep may take.

    Every sweep gets the same number, the first by name one more where it does not divide. Where there are more sweeps
    than places they take turns.
    """
    ordered = sorted({*sweeps, me})
    if total <= 0 or len(ordered) == 1:
        return max(0, total)
    turn = int(now // ROTATION_S) if total < len(ordered) else 0
    rank = (ordered.index(me) - turn) % len(ordered)
    return total // len(ordered) + (rank < total % len(ordered))


def placement(room: Mapping[str, int], present: Mapping[str, int], allowed: int) -> Counter[str]:
    """Evaluators to start (positive) or to retire (negative) by node, so that `allowed` are there, spread evenly."""
    changes: Counter[str] = Counter()
    have = Counter({node_id: count for node_id, count in present.items() if count > 0})
    for node_id in have:
        if (surplus := have[node_id] - room.get(node_id, 0)) > 0:
            changes[node_id] -= surplus
            have[node_id] -= surplus
    while sum(have.values()) > allowed:
        fullest = max(+have, key=lambda node_id: (have[node_id] - room.get(node_id, 0), have[node_id], node_id))
        have[fullest] -= 1
        changes[fullest] -= 1
    while sum(have.values()) < allowed:
        free = {node_id: fits - have[node_id] for node_id, fits in room.items() if fits > have[node_id]}
        if not free:
            break
        emptiest = max(free, key=lambda node_id: (free[node_id], node_id))
        have[emptiest] += 1
        changes[emptiest] += 1
    return changes


@dataclass
class _Evaluator:
    node: Node
    handle: Any
    state: Literal["starting", "serving", "retiring"] = "starting"
    retired: Any = None
    since: float = 0.0
    """When it was started."""
    noticed: bool = False


@dataclass
class _Failures:
    count: int = 0
    reason: str = ""
    last: float = 0.0


class Silence:
    """How long there was no step, as a watcher sees it that looks every `POLL_S`.

    Not the time since the last one: a process that was paused did not wait for an answer meanwhile.
    """

    def __init__(self, now: float, step: float):
        self._seconds = 0.0
        self._before = now
        self._step = step

    def after(self, now: float, step: float) -> float:
        """Seconds without a step, up to now.

        Args:
            step: when the last one ended.
        """
        self._seconds += min(now - self._before, 2 * POLL_S)
        if step != self._step:
            self._seconds = 0.0
        self._before, self._step = now, step
        return self._seconds


@dataclass(frozen=True)
class Joined:
    """The pool as a whole, for whoever shows it."""

    num_serving: int
    num_wanted: int
    most: int
    """That served at once."""
    devices: tuple[str, ...]
    """Kinds of device that have served, sorted."""


@dataclass
class EvaluatorPool:
    """Keeps as many evaluators as a sweep may have.

    Args:
        name: of this sweep among those of the cluster.
        needs: resources of one evaluator.
        wanted: how many the sweep asks for; None: as many as fit.
        reserved: CPUs to leave to merges on a cluster of so many.
        unfit: why a node cannot evaluate, by node id; asked again whenever nodes change.
        survey: runs the function that asks `unfit`, now or in a thread: it may take minutes.
        no_merging: nodes that cannot merge, by id; asked after `unfit`.
        notice: told what a person should know.
        observed: told every second what evaluators do, and the host of each.
        silent: told, in a thread of its own, that Ray has not answered for `SILENCE_S`. Without the head of its cluster
            Ray blocks every thread that asks it something, and ends the process after a minute.
    """

    view: ClusterView
    name: str
    needs: Resources
    wanted: int | None
    reserved: Callable[[float], float]
    unfit: Callable[[Sequence[Node]], Mapping[str, str]] = lambda nodes: {}
    no_merging: Callable[[], Collection[str]] = tuple
    notice: Callable[[str], None] = lambda text: None
    observed: Callable[[Observation, Mapping[str, str]], None] = lambda observation, hosts: None
    silent: Callable[[ClusterError], None] = lambda error: None
    survey: Callable[[Callable[[], None]], None] = lambda look: look()
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time

    error: RaymergeError | None = field(default=None, init=False)
    """Why the sweep cannot go on, if so."""
    observation: Observation = field(default=Observation(ServiceStats()), init=False)
    num_cpus: float = field(default=0.0, init=False)
    """Of the nodes that are alive."""

    def __post_init__(self) -> None:
        self._evaluators: dict[str, _Evaluator] = {}
        self._failures: dict[str, _Failures] = {}
        self._known_nodes: dict[str, Node] = {}
        self._unfit: Mapping[str, str] = {}
        self._surveyed: frozenset[str] = frozenset()
        """Nodes of which it is known whether they are fit."""
        self._surveying = False
        self._devices: set[str] = set()
        self._num_started = 0
        self._num_allowed = 0
        self._num_sweeps = 1
        self._most = 0
        self._stepping = threading.Lock()
        self._last_step = self.clock()
        self._last_served = self.clock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    def begin(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Start evaluators; return when the sweep can begin, and keep them up in a thread from then on.

        Raises:
            RaymergeError: there is no room for any, or none becomes ready.
        """
        self._last_step = self.clock()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        first = None
        while go_on():
            self.step()
            if self.error is not None:
                raise self.error
            serving, starting = self._count("serving"), self._count("starting")
            if serving and first is None:
                first = self.clock()
            if first is not None and (not starting or self.clock() - first > GRACE_S):
                break
            self._stop.wait(0.05)
        self._thread = threading.Thread(target=self._loop, name="evaluators", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Start nothing more; end the evaluators."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        for evaluator in list(self._evaluators.values()):
            self.view.kill(evaluator.handle)
        self._evaluators.clear()

    @property
    def joined(self) -> Joined:
        return Joined(self._count("serving"), max(1, self._num_allowed), self._most, tuple(sorted(self._devices)))

    @property
    def num_cpus_free(self) -> float:
        """CPUs that no evaluator of this sweep holds."""
        return self.num_cpus - len(self._evaluators) * self.needs.get("CPU", 0.0)

    @property
    def nodes(self) -> list[Node]:
        """Those that are alive."""
        return list(self._known_nodes.values())

    def hosts(self) -> dict[str, str]:
        """Host of every evaluator."""
        return {name: evaluator.node.host for name, evaluator in list(self._evaluators.items())}

    def _loop(self) -> None:
        while not self._stop.wait(POLL_S) and self.error is None:
            self.step()

    def _watch(self) -> None:
        silence = Silence(self.clock(), self._last_step)
        while not self._stop.wait(POLL_S) and self.error is None:
            if silence.after(self.clock(), self._last_step) > SILENCE_S:
                self.silent(_no_answer(f"for {SILENCE_S:.0f} seconds"))
                return

    def _count(self, state: str) -> int:
        return sum(evaluator.state == state for evaluator in list(self._evaluators.values()))

    # --- one step -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Look at the cluster and bring the evaluators closer to what they should be."""
        with self._stepping:
            self._step()
            self._last_step = self.clock()

    def _step(self) -> None:
        try:
            self._look()
            if self._stop.is_set():
                return
            self._take_ready()
            self._adjust()
            self._check_patience()
            self._most = max(self._most, self._count("serving"))
            self.observed(self.observation, self.hosts())
        except Exception as error:  # of Ray, or a bug: the sweep must hear of it, not this thread alone
            self.error = _told(error)

    def _look(self) -> None:
        nodes = {node.node_id: node for node in self.view.nodes()}
        if nodes.keys() != self._known_nodes.keys():
            for node_id in self._known_nodes.keys() - nodes.keys():
                self.notice(f"node {self._known_nodes[node_id].host} has left")
            if self._known_nodes:
                for node_id in nodes.keys() - self._known_nodes.keys():
                    self.notice(f"node {nodes[node_id].host} has joined")
            self._known_nodes = nodes
            self.num_cpus = cpus_of(nodes.values())
        if self._surveyed != nodes.keys() and not self._surveying:
            self._surveying = True
            self.survey(lambda: self._survey(nodes))
        self.observation = self.view.observe()
        for evaluator_id in self.observation.lost:
            if lost := self._evaluators.pop(evaluator_id, None):
                if lost.state == "serving" and lost.node.node_id in nodes:
                    self.notice(f"an evaluator on {lost.node.host} died; another one is started")
                self.view.kill(lost.handle)
        for evaluator_id, evaluator in list(self._evaluators.items()):
            if evaluator.node.node_id not in nodes and evaluator.state == "starting":
                self.view.kill(evaluator.handle)
                del self._evaluators[evaluator_id]

    def _survey(self, nodes: Mapping[str, Node]) -> None:
        try:
            unfit = self.unfit(list(nodes.values()))
            for node_id in (unfit.keys() & nodes.keys()) - self._unfit.keys():
                self.notice(f"no evaluators on node {nodes[node_id].host}: {unfit[node_id]}")
            self._unfit, self._surveyed = unfit, frozenset(nodes)
        except Exception as error:
            self.error = self.error or _told(error)
        finally:
            self._surveying = False

    def _take_ready(self) -> None:
        for evaluator_id, evaluator in list(self._evaluators.items()):
            if evaluator.state == "retiring" and self.view.is_done(evaluator.retired):
                self.view.kill(evaluator.handle)
                del self._evaluators[evaluator_id]
            if evaluator.state != "starting":
                continue
            try:
                device = self.view.is_ready(evaluator.handle)
            except (ActorLost, RaymergeError) as error:
                self._failed(evaluator_id, error)
                continue
            if device is None:
                if self.clock() - evaluator.since > LONG_START_S and not evaluator.noticed:
                    evaluator.noticed = True
                    self.notice(
                        f"an evaluator on {evaluator.node.host} has not started for {LONG_START_S:.0f} seconds: others "
                        f"may hold {describe_needs(self.needs)} there"
                    )
            else:
                self._devices.add(device)
                self._failures.pop(evaluator.node.node_id, None)
                evaluator.state = "serving"
                self.view.join(evaluator_id, evaluator.handle)

    def _failed(self, evaluator_id: str, error: Exception) -> None:
        evaluator = self._evaluators.pop(evaluator_id)
        self.view.kill(evaluator.handle)
        failures = self._failures.setdefault(evaluator.node.node_id, _Failures())
        # what the user has to mend does not mend itself; a death may have been an accident
        failures.count = MAX_FAILED_STARTS if isinstance(error, RaymergeError) else failures.count + 1
        failures.reason, failures.last = str(error), self.clock()
        if failures.count < MAX_FAILED_STARTS:
            return
        self.notice(f"no evaluators on node {evaluator.node.host}: {failures.reason}")
        others = [e for e in self._evaluators.values() if e.state != "retiring"]
        if not self._devices and not others and not any(self._room().values()):
            raise (
                error
                if isinstance(error, RaymergeError)
                else ClusterError(
                    f"no evaluator can be started on {evaluator.node.host} ({failures.reason}). See docs/cluster.md."
                )
            )

    def _room(self) -> dict[str, int]:
        def is_left_alone(node_id: str) -> bool:
            failures = self._failures.get(node_id)
            if failures is None or failures.count < MAX_FAILED_STARTS:
                return False
            if self.clock() - failures.last < RETRY_S:
                return True
            del self._failures[node_id]
            return False

        no_merging = self.no_merging()
        useful = [node for node in self.nodes if node.node_id not in self._unfit or node.node_id not in no_merging]
        reserved = self.reserved(cpus_of(useful))
        room = slots(self.nodes, self.needs, reserved, self._unfit, no_merging)
        for node_id in room:
            if node_id not in self._surveyed or is_left_alone(node_id):
                room[node_id] = 0
        return room

    def _adjust(self) -> None:
        room = self._room()
        sweeps = self.view.sweeps()
        allowed = fair_share(sum(room.values()), self.name, sweeps, self.wall_clock())
        if len(sweeps) != self._num_sweeps:
            self._num_sweeps = len(sweeps)
            self.notice(
                f"{len(sweeps)} sweeps share the cluster: {allowed} of {sum(room.values())} evaluators for this one"
                if len(sweeps) > 1
                else "this sweep has the cluster to itself"
            )
        if self.wanted is not None:
            allowed = min(allowed, self.wanted)
        self._num_allowed = allowed
        present = Counter(e.node.node_id for e in self._evaluators.values() if e.state != "retiring")
        for node_id, change in placement(room, present, allowed).items():
            for _ in range(change):
                self._num_started += 1
                handle = self.view.start(node_id)
                self._evaluators[f"{self._known_nodes[node_id].host}-{self._num_started}"] = _Evaluator(
                    self._known_nodes[node_id], handle, since=self.clock()
                )
            for _ in range(-change):
                self._retire(node_id)

    def _retire(self, node_id: str) -> None:
        there = {name: e for name, e in self._evaluators.items() if e.node.node_id == node_id and e.state != "retiring"}
        name = next((name for name, e in there.items() if e.state == "starting"), next(reversed(there)))
        evaluator = there[name]
        if evaluator.state == "starting":
            self.view.kill(evaluator.handle)
            del self._evaluators[name]
        else:
            evaluator.state, evaluator.retired = "retiring", self.view.retire(name)

    def _check_patience(self) -> None:
        now = self.clock()
        others = self._num_sweeps > 1  # then it may be their turn
        if self._count("serving") or self._count("starting") or others:
            self._last_served = now
        elif now - self._last_served > PATIENCE_S:
            raise ClusterError(
                f"no evaluator for {PATIENCE_S / 60:.0f} minutes: the cluster has {describe(self.nodes, self.needs)}, "
                f"one takes {describe_needs(self.needs)}. What is finished is saved; start the same command again."
            )


def _told(error: Exception) -> RaymergeError:
    if isinstance(error, RaymergeError):
        return error
    logger.debug("the pool of evaluators failed", exc_info=error)
    return _no_answer(f"({first_line(error)})")


def _no_answer(detail: str) -> ClusterError:
    return ClusterError(
        f"the cluster does not answer {detail}. What is finished is saved; start the same command again, on this "
        "cluster or another."
    )


def describe(nodes: Iterable[Node], needs: Resources) -> str:
    """What a cluster has of what an evaluator needs: "8 CPU and 1 GPU"."""
    nodes = list(nodes)
    return " and ".join(f"{sum(node.resources.get(kind, 0.0) for node in nodes):g} {kind}" for kind in needs)


def describe_needs(needs: Resources) -> str:
    return " and ".join(f"{need:g} {kind}" for kind, need in needs.items() if need > 0) or "nothing"
