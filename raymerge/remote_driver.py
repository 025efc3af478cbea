"""A sweep that runs on a cluster reached by Ray Client, with its results written by this process.

Ray Tune cannot be driven from outside a cluster, so the driver is an actor there. Whatever it wants of the store or the
listener it puts in a queue, and waits for the answer where there is one: a record is durable before the sweep goes on.
"""

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raymerge import cluster, execution
from raymerge.dispatcher import Observation
from raymerge.errors import ClusterError, RaymergeError, SuiteError, SweepFileError, first_line
from raymerge.execution import Guard, Listener, Place, Store
from raymerge.plan import SweepInfo
from raymerge.records import Accuracies, Cell, RunOutcome, ServiceStats, TrialRecord
from raymerge.suite_file import find_suite
from raymerge.suites import Suite
from raymerge.sweep_spec import SweepSpec

POLL_S = 0.5
STORE_CALLS = ("begin", "choice", "keep_choice", "open", "append", "set_aside", "run_begins", "run_ends")


@dataclass(frozen=True)
class Request:
    """One call of the store or the listener."""

    number: int
    name: str
    arguments: tuple[Any, ...]


def execute(
    address: str,
    spec: SweepSpec,
    suite: Suite,
    store: Store,
    listener: Listener,
    guard: Guard,
    published: Accuracies | None,
    *,
    debug: bool = False,
) -> bool:
    """Run a sweep on the cluster at `address`. Returns whether it came to its end.

    Raises:
        ClusterError: no cluster there, or it went away.
    """
    with cluster.connected(address, debug=debug), guard() as stopping:
        # threads: one runs the sweep, the others talk
        actor: Any = ray.remote(_RemoteDriver)
        try:
            # on the head: the sweep must not be lost with any other node
            driver = actor.options(num_cpus=0, resources={cluster.HEAD: 0.001}, max_concurrency=8).remote()
            done = driver.run.remote(spec, suite, published)
            return _Client(driver, done, spec, suite, store, listener, stopping).serve()
        except RayTaskError as error:
            if isinstance(error.cause, RaymergeError):
                raise error.cause from None
            raise
        except (RayError, ConnectionError) as error:
            raise ClusterError(
                f"the cluster at '{address}' went away ({first_line(error)}). What is finished is saved; start the "
                "command again."
            ) from None


class _Client:
    """Answers what the driver on the cluster asks for."""

    def __init__(
        self,
        driver: Any,
        done: Any,
        spec: SweepSpec,
        suite: Suite,
        store: Store,
        listener: Listener,
        stopping: Callable[[], bool],
    ):
        self.spec = spec
        self.suite = suite
        self.records: dict[str, TrialRecord] = {}
        self._finished: list[Cell] = []
        self._is_sweeping = False
        self._driver = driver
        self._done = done
        self._store = store
        self._listener = listener
        self._stopping = stopping

    def finished_cells(self) -> list[Cell]:
        return self._finished

    def serve(self) -> bool:
        told = False
        while True:
            ended = bool(ray.wait([self._done], timeout=0)[0])  # asked first: nothing is put in the queue after it
            requests: Any = ray.get(self._driver.poll.remote(POLL_S))
            for request in requests:
                self._answer(request)
            if self._stopping() and not told:
                told = True
                if not self._is_sweeping:  # it only asks between trials
                    ray.kill(self._driver)
                    raise KeyboardInterrupt
                ray.get(self._driver.stop.remote())
            if ended and not requests:
                return bool(ray.get(self._done))

    def _answer(self, request: Request) -> None:
        if request.name not in STORE_CALLS:
            self._tell(request)
            return
        value, failure = None, None
        try:
            value = getattr(self._store, request.name)(*request.arguments)
        except RaymergeError as error:
            failure = error
        if request.name == "open" and value is not None:
            self.records = dict(value)
        if request.name == "append" and failure is None:
            record: TrialRecord = request.arguments[0]
            self.records[record.trial_id] = record.without_predictions()
        if request.name == "set_aside" and failure is None:
            for trial_id in request.arguments[0]:
                self.records.pop(trial_id, None)
        ray.get(self._driver.reply.remote(request.number, value, failure))

    def _tell(self, request: Request) -> None:
        arguments = request.arguments
        if request.name in ("sweeping", "trial"):
            *arguments, self._finished = arguments
        if request.name == "sweeping":
            self._is_sweeping = True
            self._listener.sweeping(self, *arguments)
        else:
            getattr(self._listener, request.name)(*arguments)


class _RemoteDriver:
    """The sweep, in an actor of the cluster."""

    def __init__(self) -> None:
        self._requests: queue.Queue[Request] = queue.Queue()
        self._replies: dict[int, queue.Queue[tuple[Any, RaymergeError | None]]] = {}
        self._numbers = itertools.count()
        self._stop = threading.Event()

    def run(self, spec: SweepSpec, suite: Suite, published: Accuracies | None) -> bool:
        with contextlib.suppress(SuiteError, SweepFileError):  # a suite file that only the caller has
            suite = find_suite(spec.suite, spec.profile, spec.suite_seed, weights=spec.weights, data=spec.data)
        proxy = _Proxy(self)
        place = Place(cluster.Slots(), is_cluster=True)
        return execution.execute(spec, suite, proxy, proxy, place, self._guard, published)

    def stop(self) -> None:
        self._stop.set()

    def poll(self, timeout: float) -> list[Request]:
        """Requests since the last call; waits a moment for the first one."""
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._requests.get(timeout=timeout))
            while True:
                found.append(self._requests.get_nowait())
        return found

    def reply(self, number: int, value: Any, failure: RaymergeError | None) -> None:
        self._replies.pop(number).put((value, failure))

    def tell(self, name: str, *arguments: Any) -> None:
        self._requests.put(Request(next(self._numbers), name, arguments))

    def ask(self, name: str, *arguments: Any) -> Any:
        request = Request(next(self._numbers), name, arguments)
        answer: queue.Queue[tuple[Any, RaymergeError | None]] = queue.Queue()
        self._replies[request.number] = answer
        self._requests.put(request)
        value, failure = answer.get()
        if failure is not None:
            raise failure
        return value

    @contextlib.contextmanager
    def _guard(self) -> Any:
        yield self._stop.is_set


class _Proxy:
    """Store and listener on the side of the cluster."""

    def __init__(self, driver: _RemoteDriver):
        self._driver = driver
        self._sweep: SweepInfo | None = None

    def begin(self, suite_fingerprint: str) -> None:
        self._driver.ask("begin", suite_fingerprint)

    def choice(self) -> Mapping[str, Any] | None:
        return self._driver.ask("choice")

    def keep_choice(self, choice: Mapping[str, Any]) -> None:
        self._driver.ask("keep_choice", choice)

    def open(self, precision: str) -> Mapping[str, TrialRecord]:
        return self._driver.ask("open", precision)

    def append(self, record: TrialRecord) -> None:
        self._driver.ask("append", record)

    def set_aside(self, trial_ids: Sequence[str]) -> None:
        self._driver.ask("set_aside", trial_ids)

    def run_begins(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        self._driver.ask("run_begins", nodes)

    def run_ends(self, outcome: RunOutcome, stats: ServiceStats) -> None:
        self._driver.ask("run_ends", outcome, stats)

    def stage(self, what: str) -> None:
        self._driver.tell("stage", what)

    def preparing(self, what: str, fraction: float) -> None:
        self._driver.tell("preparing", what, fraction)

    def sweeping(self, sweep: SweepInfo, device: str, num_evaluators: int) -> None:
        self._sweep = sweep
        self._driver.tell("sweeping", device, num_evaluators, sweep.finished_cells())

    def trial(self, record: TrialRecord) -> None:
        self._driver.tell("trial", record, self._sweep.finished_cells() if self._sweep else [])

    def notice(self, what: str) -> None:
        self._driver.tell("notice", what)

    def observed(self, observation: Observation, hosts: Mapping[str, str]) -> None:
        self._driver.tell("observed", observation, hosts)
