"""Ray: connecting, and the actors and tasks that a sweep starts before its first trial."""

import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raymerge.dispatcher import Dispatcher
from raymerge.errors import ClusterError, RaymergeError
from raymerge.evaluation_choice import EvaluationChoice
from raymerge.records import content_id
from raymerge.suites import Suite
from raymerge.sweep_spec import EvaluationSettings, ResourceSettings

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
LOCAL = {
    # a process that merged keeps torch imported: importing it takes longer than most merges
    "RAY_num_workers_soft_limit": "64",
}


@dataclass(frozen=True)
class Slots:
    """Logical CPUs of the cluster, and how many of them are kept free for merges."""

    cpus: int
    merges: int
    per_core: int = 1
    """Logical CPUs that stand for one core."""


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
    for name, value in (QUIET if address else {**QUIET, **LOCAL}).items():
        os.environ.setdefault(name, value)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not debug:
        logging.getLogger("ray").setLevel(logging.ERROR)
        _mute_raylet()
    level = logging.INFO if debug else logging.CRITICAL
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=2 * cores,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                log_to_driver=debug,
                logging_level=level,
                configure_logging=debug,
            )
        else:
            ray.init(address=address, log_to_driver=debug, logging_level=level, configure_logging=debug)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        where = f"at '{address}'" if address else "on this machine"
        raise ClusterError(
            f"no Ray cluster {where} ({_first_line(error)}). Is it running? See docs/cluster.md."
        ) from None
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        yield Slots(cpus, cores, per_core=2) if address is None else Slots(cpus, max(1, cpus // 8))
    finally:
        ray.shutdown()


def _mute_raylet() -> None:
    """Keep the raylet's warnings off the console: they pass by every logging setting of Ray."""
    worker: Any = importlib.import_module("ray._private.worker")
    if hasattr(worker, "print_to_stdstream"):  # there is no public switch; without this name they are only printed
        worker.print_to_stdstream = lambda *args, **kwargs: None


def num_evaluators(resources: ResourceSettings, slots: Slots) -> int:
    """How many evaluators the cluster holds, or as many as the sweep asks for.

    Raises:
        ClusterError: it cannot hold them.
    """
    have = {"GPU": ray.cluster_resources().get("GPU", 0), "CPU": slots.cpus - slots.merges}
    needs = {"CPU": resources.cpus_per_evaluator, "GPU": resources.gpus_per_evaluator}
    fits = min((int(have.get(kind, 0) / need + 1e-9) for kind, need in needs.items() if need > 0), default=1)
    wanted = 1 if resources.evaluators == "auto" else resources.evaluators
    if fits < wanted:
        there = ", ".join(f"{have.get(kind, 0):g} {kind}" for kind in needs)
        each = " and ".join(f"{need:g} {kind}" for kind, need in needs.items() if need > 0)
        raise ClusterError(
            f"the cluster has {there}: room for {fits} evaluators of {each} each, but the sweep needs {wanted}. "
            "Change 'resources' of the sweep file, or add nodes."
        )
    return fits if resources.evaluators == "auto" else wanted


def check_suite(suite: Suite, tasks: Mapping[str, Sequence[str]], moments: Path | None = None) -> dict[Path, str]:
    """Check every file a sweep will read, in parallel. Returns the SHA-256 of each but the images, by path.

    Args:
        tasks: the tasks in use, by backbone.
        moments: folder of input moments, where a method needs them.
    Raises:
        CheckpointError, DataError: the first problem found.
    """
    checks = [_check_backbone.remote(suite, backbone) for backbone in tasks]
    checks += [
        _check_task.remote(suite, backbone, task, moments) for backbone, names in tasks.items() for task in names
    ]
    hashes: dict[Path, str] = {}
    for found in get(checks):
        hashes |= found
    return hashes


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
    suite: Suite, settings: EvaluationSettings, resources: ResourceSettings, tasks: Mapping[str, Sequence[str]]
) -> EvaluationChoice:
    """What `auto` stands for, measured in the place of one evaluator.

    Args:
        tasks: the tasks in use, by backbone.
    """
    # a process that has used a GPU keeps some of its memory
    choose: Any = ray.remote(num_cpus=resources.cpus_per_evaluator, num_gpus=resources.gpus_per_evaluator, max_calls=1)(
        _choose
    )
    (choice,) = get([choose.remote(suite, settings, _threads(resources), tasks)])
    return choice


def start_evaluators(
    suite: Suite,
    settings: EvaluationSettings,
    resources: ResourceSettings,
    num: int,
    backbones: Sequence[str],
    batch_sizes: Mapping[str, int] | None = None,
) -> tuple[list[Any], str]:
    """Start evaluators and wait until each has loaded its encoders. Returns their handles and the device's name.

    Args:
        settings: with a precision that is not auto.
        batch_sizes: by backbone, where they were measured.
    """
    actor = ray.remote(num_cpus=resources.cpus_per_evaluator, num_gpus=resources.gpus_per_evaluator, max_restarts=-1)(
        _EvalActor
    )
    given = (suite, settings, _threads(resources), batch_sizes or {})
    evaluators: list[Any] = [actor.remote(*given) for _ in range(num)]
    devices = get([evaluator.ready.remote(list(backbones)) for evaluator in evaluators])
    return evaluators, ", ".join(sorted(set(devices)))


def start_dispatcher(evaluators: Sequence[Any], backbones: Sequence[str]) -> Any:
    """Start the queue that feeds the evaluators."""
    dispatcher: Any = ray.remote(num_cpus=0)(Dispatcher).remote(evaluators, backbones)
    get([dispatcher.start.remote()])
    return dispatcher


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
        raise ClusterError(f"Ray lost a task ({_first_line(error)}). Start the same command again.") from None


def _threads(resources: ResourceSettings) -> int:
    return max(1, int(resources.cpus_per_evaluator))


def _choose(
    suite: Suite, settings: EvaluationSettings, num_threads: int, tasks: Mapping[str, Sequence[str]]
) -> EvaluationChoice:
    import torch

    from raymerge.evaluation_choice import choose

    torch.set_num_threads(num_threads)
    return choose(suite, settings, tasks, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


class _EvalActor:
    """EvalWorker as an actor. torch is imported in its process only."""

    def __init__(self, suite: Suite, settings: EvaluationSettings, num_threads: int, batch_sizes: Mapping[str, int]):
        from raymerge.worker import EvalWorker, WorkerSetup

        self._worker = EvalWorker(WorkerSetup(suite, settings, num_threads, batch_sizes), fetch=ray.get)

    def ready(self, backbones: Sequence[str]) -> str:
        return self._worker.ready(backbones)

    def run(self, job: Any) -> Any:
        return self._worker.run(job)

    def cpu_s(self) -> float:
        """Time that this process has spent on processors, for benchmarks."""
        return time.process_time()


@ray.remote(num_cpus=1)
def _check_backbone(suite: Suite, backbone: str) -> Mapping[Path, str]:
    from raymerge.preflight import check_backbone

    return check_backbone(suite, backbone)


@ray.remote(num_cpus=1)
def _check_task(suite: Suite, backbone: str, task: str, moments: Path | None) -> Mapping[Path, str]:
    from raymerge.preflight import check_task

    return check_task(suite, backbone, task, moments)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
