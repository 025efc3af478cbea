"""Ray: connecting, and the actors and tasks that a sweep starts beside its trials."""

import contextlib
import importlib
import logging
import os
import secrets
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import (
    GetTimeoutError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayError,
    RayTaskError,
)
from ray.experimental import get_object_locations
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymerge.dispatcher import DEATHS, Dispatcher, Observation
from raymerge.errors import ClusterError, EvaluationError, RaymergeError, UpdateNotHereError, first_line
from raymerge.evaluation_choice import EvaluationChoice, common_choice
from raymerge.evaluator_pool import ActorLost, Node, cpus_of, describe, describe_needs
from raymerge.evaluator_pool import slots as room_for
from raymerge.interrupts import in_main_thread
from raymerge.node_files import NodeFiles
from raymerge.records import content_id
from raymerge.suites import Suite
from raymerge.sweep_spec import EvaluationSettings, ResourceSettings

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # a merge that Ray killed because its node ran out of memory is tried again for five minutes, not for ever
    "RAY_task_oom_retries": "10",
}
SILENT = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
"""What Ray's C++ has to say it prints itself, whatever Python's logging is set to."""
LOCAL = {
    # a process that merged keeps torch imported: importing it takes longer than most merges
    "RAY_num_workers_soft_limit": "64",
    # Ray's GCS would remember 100,000 tasks for a dashboard that is not there: 0.1 MB per trial
    "RAY_task_events_report_interval_ms": "0",
}


ANSWER_S = 60.0
"""How long the dispatcher, which never computes, may take to answer."""
SURVEY_S = 300.0
"""How long a node may take to look at its files."""
CONNECT_S = 10.0
"""How long the machine of an address may take to accept a connection."""
FETCH_S = 5.0
"""How long an evaluator waits for an update before it asks anew what to do."""
STORE_FULL = (ObjectStoreFullError, OutOfDiskError)
MAKE_ROOM = (
    "Make room on the disk that Ray spills to (/tmp/ray unless ray start was told otherwise), or give it a larger "
    "store (ray start --object-store-memory), and start the same command again"
)
NODE_LABEL = "ray.io/node-id"
HEAD = "node:__internal_head__"
"""A resource that the head alone has."""
NAMESPACE = "raymerge"
"""Of named actors: every sweep of a cluster has one here, so that they know of each other."""
SWEEP = "sweep-"


@dataclass(frozen=True)
class Slots:
    """How a cluster's logical CPUs are shared out."""

    per_core: int = 1
    """Logical CPUs that stand for one core."""
    fixed: float | None = None
    """CPUs kept free for merges; None: one in eight of those there are."""

    def reserved(self, cpus: float) -> float:
        """CPUs that evaluators leave to merges and checks, of so many."""
        return self.fixed if self.fixed is not None else max(1.0, cpus // 8)


@contextmanager
def connected(address: str | None, *, debug: bool = False) -> Iterator[Slots]:
    """A connection to a Ray cluster: the one at `address`, or a new one on this machine that ends with the context.

    Evaluators hold their CPUs for the whole sweep, so some are kept for merges: on a cluster one in eight; on this
    machine Ray is told of twice the cores there are, because merges are short and evaluators do not mind.

    Args:
        address: "auto" or "host:port"; None starts Ray here, bound to loopback.
        debug: leave Ray's own console output on.
    Raises:
        ClusterError: no cluster there.
    """
    for name, value in {**QUIET, **({} if address else LOCAL), **({} if debug else SILENT)}.items():
        os.environ.setdefault(name, value)
    if address is None:
        _make_token()
    else:
        _use_token()
        _check_reachable(address)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not debug:
        logging.getLogger("ray").setLevel(logging.ERROR)
        _mute_raylet()
    level = logging.INFO if debug else logging.CRITICAL
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.nullcontext() if debug else _mute_stderr():
            if address is None:
                ray.init(
                    address="local",
                    num_cpus=2 * cores,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    log_to_driver=debug,
                    logging_level=level,
                    configure_logging=debug,
                    namespace=NAMESPACE,
                )
            else:
                ray.init(
                    address=address,
                    log_to_driver=debug,
                    logging_level=level,
                    configure_logging=debug,
                    namespace=NAMESPACE,
                )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        where = f"at '{address}'" if address else "on this machine"
        raise ClusterError(
            f"no Ray cluster {where} ({first_line(error)}). Is it running? See docs/cluster.md."
        ) from None
    except SystemExit:  # SIGTERM met the handler that Ray puts in place
        raise KeyboardInterrupt from None
    finally:
        if in_main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield Slots(per_core=2, fixed=float(cores)) if address is None else Slots()
    finally:
        ray.shutdown()


def _token_path() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _make_token() -> None:
    """Make the token that Ray would make, which everybody on this machine could read, readable by its owner alone.

    Where the home folder cannot be written to it is one for this process and those that it starts.
    """
    path = _token_path()
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if given or os.environ.get("RAY_AUTH_MODE") == "disabled" or path.exists():
        return
    token = secrets.token_hex(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:
            file.write(token)
            file.flush()
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)  # whole, and never in place of another one
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = token


def _use_token() -> None:
    """Send the token where there is one. Ray itself looks for it only with the address "auto"."""
    places = [_token_path()]
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        places.insert(0, Path(path))
    if "RAY_AUTH_TOKEN" in os.environ or any(place.is_file() for place in places):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _check_reachable(address: str) -> None:
    """Ray goes on for minutes with an address at which nobody listens.

    Raises:
        ClusterError: nobody does, or the address is none.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not host or not port.isdigit():
        raise ClusterError(
            f"'{address}' is not the address of a Ray cluster: expected auto, HOST:6379 or ray://HOST:10001."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ClusterError(f"no Ray cluster at '{address}' ({reason}). Is it running? See docs/cluster.md.") from None


@contextmanager
def _mute_stderr() -> Iterator[None]:
    """Keep off the console what Ray's C++ says as it starts, about the very setting that silences it."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed: quieter than that it cannot be
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _mute_raylet() -> None:
    """Keep the raylet's warnings off the console: they pass by every logging setting of Ray."""
    worker: Any = importlib.import_module("ray._private.worker")
    if hasattr(worker, "print_to_stdstream"):  # there is no public switch; without this name they are only printed
        worker.print_to_stdstream = lambda *args, **kwargs: None


def needs_of(resources: ResourceSettings) -> dict[str, float]:
    """What one evaluator takes, by Ray's names."""
    return {"CPU": resources.cpus_per_evaluator, "GPU": resources.gpus_per_evaluator}


def alive_nodes() -> list[Node]:
    return [
        Node(node["NodeID"], node["NodeManagerHostname"], node["Resources"]) for node in ray.nodes() if node["Alive"]
    ]


def check_room(resources: ResourceSettings, slots: Slots, *, may_grow: bool) -> None:
    """Compare what a sweep asks for with what there is.

    Args:
        may_grow: nodes may still come, so a number of evaluators that does not fit yet is no mistake.
    Raises:
        ClusterError: there is no room for the evaluators.
    """
    nodes, needs = alive_nodes(), needs_of(resources)
    fits = sum(room_for(nodes, needs, slots.reserved(cpus_of(nodes))).values())
    wanted = 1 if resources.evaluators == "auto" else resources.evaluators
    if fits < wanted and not (may_grow and resources.evaluators != "auto"):
        raise ClusterError(
            f"the cluster has {describe(nodes, needs)}: room for {fits} evaluators of {describe_needs(needs)} each, "
            f"but the sweep needs {wanted}. Change 'resources' of the sweep file, or add nodes."
        )


@contextmanager
def room_requested(resources: ResourceSettings) -> Iterator[None]:
    """Ask a cluster that grows on demand for room for as many evaluators as a sweep names, as long as the block lasts.

    Ray has one request for a whole cluster, and keeps it until it gets another one, which here is an empty one.
    """
    if resources.evaluators == "auto":
        yield
        return
    bundle = {kind: need for kind, need in needs_of(resources).items() if need > 0}
    with contextlib.suppress(RayError, RuntimeError):
        request_resources(bundles=[bundle] * resources.evaluators)
    try:
        yield
    finally:
        with contextlib.suppress(RayError, RuntimeError):
            request_resources(bundles=[])


def survey_nodes(
    suite: Suite, tasks: Mapping[str, Sequence[str]], moments: Path | None, node_ids: Sequence[str]
) -> dict[str, NodeFiles]:
    """What every node has of a sweep's files, by node id; one that does not answer is absent."""
    return ask_nodes(ray.remote(num_cpus=0)(_survey), node_ids, suite, tasks, moments, timeout_s=SURVEY_S)


def on_node(node_id: str) -> dict[str, Any]:
    """Options that keep a task or an actor on one node."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def ask_nodes(task: Any, node_ids: Sequence[str], *arguments: Any, timeout_s: float) -> dict[str, Any]:
    """What a task returns on each of some nodes, by node id; one that fails or does not answer in time is absent."""
    asked = {task.options(**on_node(node_id)).remote(*arguments): node_id for node_id in node_ids}
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    found: dict[str, Any] = {}
    for reference in done:
        with contextlib.suppress(RayError):  # it has left meanwhile
            found[asked[reference]] = ray.get(reference)
    return found


def describe_nodes(reports: Mapping[str, NodeFiles], devices: Sequence[str]) -> list[dict[str, Any]]:
    """The nodes that are alive, for the manifest.

    Args:
        reports: what is known of them, by node id; of this machine alone, nothing.
        devices: of the evaluators.
    """
    described = []
    for node in ray.nodes():
        if node["Alive"]:
            resources, report = node["Resources"], reports.get(node["NodeID"])
            described.append(
                {
                    "id": node["NodeID"],
                    "host": node["NodeManagerHostname"],
                    "ip": node["NodeManagerAddress"],
                    "cpus": resources.get("CPU", 0.0),
                    "gpus": resources.get("GPU", 0.0),
                    "devices": list(report.devices or ("cpu",) if report else devices),
                    "versions": dict(report.versions) if report else {},
                }
            )
    return described


def this_node() -> str:
    return ray.get_runtime_context().get_node_id()


def check_suite(
    suite: Suite, tasks: Mapping[str, Sequence[str]], moments: Path | None = None, node_ids: Sequence[str] = ()
) -> dict[Path, str]:
    """Check every file a sweep will read, in parallel. Returns the SHA-256 of each but the images, by path.

    Args:
        tasks: the tasks in use, by backbone.
        moments: folder of input moments, where a method needs them.
        node_ids: nodes that look at their files; none: any node.
    Raises:
        CheckpointError, DataError: the first problem found.
    """
    options = _only_on(node_ids)
    if node_ids and not any(node.resources.get("CPU") for node in alive_nodes() if node.node_id in node_ids):
        options["num_cpus"] = 0  # the head of a cluster whose other nodes are yet to come
    backbone_check, task_check = _check_backbone.options(**options), _check_task.options(**options)
    checks = [backbone_check.remote(suite, backbone) for backbone in tasks]
    checks += [task_check.remote(suite, backbone, task, moments) for backbone, names in tasks.items() for task in names]
    hashes: dict[Path, str] = {}
    for found in get(checks):
        hashes |= found
    return hashes


def _only_on(node_ids: Sequence[str]) -> dict[str, Any]:
    """Options that keep a task on some nodes; none: it runs anywhere."""
    return {"label_selector": {NODE_LABEL: f"in({','.join(node_ids)})"}} if node_ids else {}


def fingerprint(suite: Suite, hashes: Mapping[Path, str], moments: Path) -> str:
    """One id for the content of all files but images that a sweep reads, wherever they lie."""

    def name(path: Path) -> str:
        if path.is_relative_to(moments):
            return f"moments/{path.relative_to(moments)}"
        return suite.file_label(path)

    return content_id({name(path): digest for path, digest in hashes.items()}, length=32)


def is_decided(settings: EvaluationSettings) -> bool:
    """Whether nothing of `settings` has to be measured. Batch sizes are, where there are GPUs."""
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    return settings.precision != "auto" and (settings.batch_size != "auto" or not has_gpus)


def choose_evaluation(
    suite: Suite,
    settings: EvaluationSettings,
    resources: ResourceSettings,
    tasks: Mapping[str, Sequence[str]],
    node_ids: Sequence[str] = (),
) -> EvaluationChoice:
    """What `auto` stands for, measured in the place of one evaluator, on every kind of GPU there is.

    Args:
        tasks: the tasks in use, by backbone.
        node_ids: nodes that have the files; none: all.
    """
    nodes = [node for node in alive_nodes() if not node_ids or node.node_id in node_ids]
    kinds = {name for node in nodes for name in node.resources if name.startswith("accelerator_type:")}
    places = [{kind: 0.001} for kind in sorted(kinds)] if resources.gpus_per_evaluator else []
    # a process that has used a GPU keeps some of its memory
    choose: Any = ray.remote(num_cpus=resources.cpus_per_evaluator, num_gpus=resources.gpus_per_evaluator, max_calls=1)(
        _choose
    )
    asked = (suite, settings, _threads(resources), tasks)
    return common_choice(
        get([choose.options(resources=place, **_only_on(node_ids)).remote(*asked) for place in places or [{}]])
    )


@dataclass(frozen=True)
class Started:
    """An evaluator, and the device it will tell once it is ready."""

    actor: Any
    ready: Any


def start_evaluator(
    suite: Suite,
    settings: EvaluationSettings,
    resources: ResourceSettings,
    backbones: Sequence[str],
    batch_sizes: Mapping[str, int] | None = None,
    node_id: str | None = None,
) -> Started:
    """Start an evaluator, and have it load its encoders.

    Args:
        settings: with a precision that is not auto.
        batch_sizes: by backbone, where they were measured.
        node_id: where; None: anywhere.
    """
    options = {} if node_id is None else on_node(node_id)
    needs = {"num_cpus": resources.cpus_per_evaluator, "num_gpus": resources.gpus_per_evaluator}
    # The pool replaces evaluators that died. But where memory runs out Ray kills first what it may start again, and
    # evaluators have the memory, not the small actors that the sweep cannot do without.
    actor: Any = ray.remote(max_restarts=1, **needs, **options)(_EvalActor)
    handle = actor.remote(suite, settings, _threads(resources), batch_sizes or {})
    return Started(handle, handle.ready.remote(list(backbones)))


def start_dispatcher(sweep: str) -> tuple[str, Any]:
    """Start the queue that feeds the evaluators, on this node. Returns the name of the sweep, and its handle."""
    name = f"{SWEEP}{uuid.uuid4().hex[:12]}"
    actor: Any = ray.remote(Dispatcher)
    dispatcher = actor.options(num_cpus=0, name=name, **on_node(this_node())).remote(sweep)
    get([dispatcher.observe.remote()])
    return name, dispatcher


class RayView:
    """Ray as the pool of evaluators sees it."""

    def __init__(self, dispatcher: Any, start: Callable[[str], Started]):
        self._dispatcher = dispatcher
        self._start = start

    def nodes(self) -> list[Node]:
        return alive_nodes()

    def sweeps(self) -> list[str]:
        return [name for name in ray.util.list_named_actors() if name.startswith(SWEEP)]

    def start(self, node_id: str) -> Started:
        return self._start(node_id)

    def is_ready(self, handle: Started) -> str | None:
        if not self.is_done(handle.ready):
            return None
        try:
            return ray.get(handle.ready)
        except RayTaskError as error:
            if isinstance(error.cause, RaymergeError):
                raise error.cause from None
            raise EvaluationError(f"an evaluator cannot start ({first_line(error)}).") from error
        except RayError as error:
            raise ActorLost(first_line(error)) from None

    def kill(self, handle: Started) -> None:
        with contextlib.suppress(RayError, ValueError):
            ray.kill(handle.actor)

    def join(self, evaluator_id: str, handle: Started) -> None:
        self._dispatcher.join.remote(evaluator_id, handle.actor)

    def retire(self, evaluator_id: str) -> Any:
        return self._dispatcher.retire.remote(evaluator_id)

    def is_done(self, reference: Any) -> bool:
        return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])

    def observe(self) -> Observation:
        try:
            return ray.get(self._dispatcher.observe.remote(), timeout=ANSWER_S)
        except DEATHS:
            raise ActorLost("the process that feeds evaluators is gone") from None


def get(references: Sequence[Any], on_wait: Callable[[], None] = lambda: None, interval_s: float = 0.5) -> list[Any]:
    """Values of references in order, calling `on_wait` now and then.

    Raises:
        RaymergeError: of the first task that failed, without Ray's wrapping and traceback.
    """
    pending = list(references)
    try:
        while pending:
            ready, pending = ray.wait(pending, num_returns=len(pending), timeout=interval_s)
            ray.get(ready)  # raises early: the others may run for long
            on_wait()
        return ray.get(list(references))
    except RayTaskError as error:
        if isinstance(error.cause, RaymergeError):
            raise error.cause from None
        raise
    except RayError as error:
        raise ClusterError(f"Ray lost a task ({first_line(error)}). Start the same command again.") from None


def _threads(resources: ResourceSettings) -> int:
    return max(1, int(resources.cpus_per_evaluator))


def _choose(
    suite: Suite, settings: EvaluationSettings, num_threads: int, tasks: Mapping[str, Sequence[str]]
) -> EvaluationChoice:
    import torch

    from raymerge.evaluation_choice import choose

    torch.set_num_threads(num_threads)
    return choose(suite, settings, tasks, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _fetch(references: Sequence[Any]) -> list[Any]:
    """Shards of an update, if they can be had soon.

    An evaluator must not wait for more: an update that was lost with its node is computed again, perhaps on the very
    CPUs that evaluators hold, and only one that does not wait can be told to leave.
    """
    try:
        _, missing = ray.wait(list(references), num_returns=len(references), timeout=FETCH_S)
        if missing:
            raise UpdateNotHereError(_lack_of_room(missing))
        return ray.get(list(references))
    except OSError as error:  # the store of this node is gone, and this process will be in a moment
        raise UpdateNotHereError from error
    except STORE_FULL as error:  # of the task that merged: it has ended, and what it returned could not be stored
        raise EvaluationError(
            f"Ray's object store had no room for the merged model, and could not make any ({first_line(error)}). "
            f"{MAKE_ROOM}"
        ) from None
    except RayError as error:
        raise EvaluationError(
            f"the merged model was lost with a node and could not be merged again ({first_line(error)}). Start the "
            "same command again: it repeats what failed"
        ) from None


def _lack_of_room(references: Sequence[Any]) -> str:
    """Why the store of this node could not take these objects now; empty when it could, or nobody knows their size.

    Ray does not tell: it tries to bring them for ever. So room of their size is asked for.
    """
    try:
        locations = get_object_locations(list(references), timeout_ms=int(FETCH_S * 1000))
    except GetTimeoutError:
        return ""
    size = sum(location["object_size"] or 0 for location in locations.values())
    try:
        ray.put(np.empty(size, np.uint8))
    except STORE_FULL as error:
        return (
            f"Ray's object store on {ray.util.get_node_ip_address()} has no room for {size / 1e6:.1f} MB of the "
            f"merged model, and cannot make any ({first_line(error)}). {MAKE_ROOM}"
        )
    return ""


class _EvalActor:
    """EvalWorker as an actor. torch is imported in its process only."""

    def __init__(self, suite: Suite, settings: EvaluationSettings, num_threads: int, batch_sizes: Mapping[str, int]):
        from raymerge.worker import EvalWorker, WorkerSetup

        self._worker = EvalWorker(WorkerSetup(suite, settings, num_threads, batch_sizes), fetch=_fetch)

    def ready(self, backbones: Sequence[str]) -> str:
        return self._worker.ready(backbones)

    def run(self, *jobs: Any) -> list[Any]:
        return [self._worker.run(job) for job in jobs]

    def cpu_s(self) -> float:
        """Time that this process has spent on processors, for benchmarks."""
        return time.process_time()


def _survey(suite: Suite, tasks: Mapping[str, Sequence[str]], moments: Path | None) -> NodeFiles:
    from raymerge.node_files import survey

    return survey(suite, tasks, moments)


@ray.remote(num_cpus=1)
def _check_backbone(suite: Suite, backbone: str) -> Mapping[Path, str]:
    from raymerge.preflight import check_backbone

    return check_backbone(suite, backbone)


@ray.remote(num_cpus=1)
def _check_task(suite: Suite, backbone: str, task: str, moments: Path | None) -> Mapping[Path, str]:
    from raymerge.preflight import check_task

    return check_task(suite, backbone, task, moments)
