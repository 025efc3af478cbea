"""Several experts at once: jobs as Ray tasks, each on its share of the machine; a single job runs in this process.

A job that fails does not stop the others. A job whose worker dies is started again by Ray, and continues from its file.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymerge.errors import ClusterError, RaymergeError, TrainingError, UsageError, first_line

if TYPE_CHECKING:
    from raymerge.cluster import Slots
    from raymerge.finetuning.expert import Finetuned, Job, Machine, Watch

Stage = Callable[[str], None]
Report = Callable[[str, float], None]
"""Told what is being done and which fraction of all jobs is behind."""

REPORT_INTERVAL_S = 0.5
STOP_TIMEOUT_S = 60.0
"""How long jobs have to save what they have done, once they are asked to stop."""
MAX_WORKERS = 8
"""Threads that decode images for one GPU, unless another number is asked for."""


@dataclass(frozen=True)
class Resources:
    """What each job gets; None: by the device and the number of jobs."""

    device: str = "auto"
    gpus: float = 1.0
    """Of a GPU, where the device is one: 0.5 lets two jobs share it."""
    cpus: int | None = None
    workers: int | None = None
    save_every_s: float = 300.0


def run_jobs(
    jobs: "Sequence[Job]",
    resources: Resources,
    *,
    num_chosen: int,
    address: str | None = None,
    debug: bool = False,
    stage: Stage = lambda what: None,
    report: Report = lambda what, fraction: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> "Iterator[tuple[Job, Finetuned | RaymergeError]]":
    """Run jobs, and yield each with what came of it, as they end.

    Args:
        num_chosen: jobs there would be if none were done: a job gets the same share of the machine whether it is the
            first or the last one, and with it the same bits.
        address: of a Ray cluster; None: this machine.
        should_stop: asked now and then; the jobs then save what they have done.
    Raises:
        KeyboardInterrupt: everything has stopped, because it was asked to.
        UsageError, ClusterError: no cluster there, or not the resources asked for.
    """
    if len(jobs) == 1 and address is None:
        yield jobs[0], _run_here(jobs[0], resources, num_chosen, stage, report, should_stop)
    elif jobs:
        from raymerge.cluster import connected

        stage("starting Ray")
        with connected(address, debug=debug) as slots:
            yield from _run_on_ray(jobs, resources, num_chosen, slots, stage, report, should_stop)


def machine_of(
    resources: Resources, num_chosen: int, *, cores: int, most_cores: int, gpus: float
) -> "tuple[Machine, int]":
    """What one job runs on, and how many cores it holds.

    Args:
        cores, gpus: there are in all.
        most_cores: of one node.
    Raises:
        UsageError: there is no GPU, but one is asked for.
    """
    from raymerge.finetuning.expert import Machine

    if resources.device == "cuda" and not gpus:
        raise UsageError("--device cuda, but no CUDA device is found; use auto or cpu.")
    device = "cuda" if gpus and resources.device != "cpu" else "cpu"
    if device == "cuda":
        cpus = resources.cpus or max(1, min(MAX_WORKERS, int(cores * resources.gpus / gpus), most_cores))
    else:
        cpus = resources.cpus or max(1, min(most_cores, cores // num_chosen))
    workers = resources.workers or (cpus if device == "cuda" else 1)
    return Machine(device, threads=cpus, workers=workers, save_every_s=resources.save_every_s), cpus


def check_fits(needs: Mapping[str, float], nodes: Sequence[Mapping[str, float]], cpus: int) -> None:
    """Ray waits for ever for what no node has.

    Raises:
        ClusterError: no node has what one job needs.
    """
    if not any(all(node.get(kind, 0.0) >= need for kind, need in needs.items()) for node in nodes):
        raise ClusterError(
            f"no node has {cpus} cores and {needs['GPU']:g} GPUs for one expert; ask for fewer with --cpus-per-task or "
            "--gpus-per-task."
        )


# --- in this process -------------------------------------------------------------------------------------------------


def _run_here(
    job: "Job", resources: Resources, num_chosen: int, stage: Stage, report: Report, should_stop: Callable[[], bool]
) -> "Finetuned | RaymergeError":
    import torch

    from raymerge.finetuning.expert import finetune

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = float(torch.cuda.device_count())
    machine, _ = machine_of(resources, num_chosen, cores=cores, most_cores=cores, gpus=gpus)
    stage(f"fine-tuning {job} on {machine.device}")

    def watch(done: int, steps: int, loss: float) -> bool:
        report(_progress(job, done, steps, loss), done / steps)
        if not should_stop():
            return False
        stage("stopping: saving what is done")
        return True

    try:
        done = finetune(job, machine, watch)
    except RaymergeError as error:
        return error
    if done is None:
        raise KeyboardInterrupt
    return done


def _progress(job: object, done: int, steps: int, loss: float) -> str:
    return f"{job} step {done} of {steps}, loss {loss:.4f}"


# --- on Ray ----------------------------------------------------------------------------------------------------------


def _run_on_ray(
    jobs: "Sequence[Job]",
    resources: Resources,
    num_chosen: int,
    slots: "Slots",
    stage: Stage,
    report: Report,
    should_stop: Callable[[], bool],
) -> "Iterator[tuple[Job, Finetuned | RaymergeError]]":
    import ray
    from ray.exceptions import RayError, RayTaskError

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most_cores = int(max(node.get("CPU", 0) for node in nodes)) // slots.per_core
    cores = int(sum(node.get("CPU", 0) for node in nodes)) // slots.per_core
    gpus = ray.cluster_resources().get("GPU", 0.0)
    machine, cpus = machine_of(resources, num_chosen, cores=cores, most_cores=most_cores, gpus=gpus)
    needs = {"CPU": float(cpus * slots.per_core), "GPU": resources.gpus if machine.device == "cuda" else 0.0}
    check_fits(needs, nodes, cpus)
    progress: Any = ray.remote(num_cpus=0)(_Progress).remote()
    task: Any = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"])(_run)
    stage(f"fine-tuning {len(jobs)} experts on {machine.device}")
    pending: dict[Any, Job] = {task.remote(job, machine, progress): job for job in jobs}
    deadline: float | None = None
    while pending and (deadline is None or time.monotonic() < deadline):
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=REPORT_INTERVAL_S)
        for reference in ready:
            job = pending.pop(reference)
            try:
                outcome: Any = ray.get(reference)
            except RayTaskError as error:  # a mistake of ours, which the others need not suffer from
                what = f"{type(error.cause).__name__}: {first_line(error)}"
                outcome = TrainingError(f"{job}: {what}. Run it alone, with --debug for the traceback.")
            except RayError as error:
                outcome = ClusterError(f"{job}: Ray lost its process ({first_line(error)}). Start the command again.")
            if outcome is not None:
                yield job, outcome
        if deadline is None and should_stop():
            deadline = time.monotonic() + STOP_TIMEOUT_S
            stage("stopping: saving what is done")
            ray.get(progress.stop.remote())
        report(*ray.get(progress.summary.remote(len(jobs))))
    if deadline is not None:
        raise KeyboardInterrupt


class _Progress:
    """How far the jobs are, collected from their processes, which are told here whether to stop."""

    def __init__(self) -> None:
        self._fractions: dict[str, float] = {}
        self._last = "loading images and weights"
        self._stops = False

    def write(self, job: str, done: int, steps: int, loss: float) -> bool:
        """Returns whether to stop."""
        self._fractions[job] = done / steps
        self._last = _progress(job, done, steps, loss)
        return self._stops

    def stop(self) -> None:
        self._stops = True

    def stops(self) -> bool:
        return self._stops

    def summary(self, num_jobs: int) -> tuple[str, float]:
        done = sum(fraction >= 1 for fraction in self._fractions.values())
        return f"{done} of {num_jobs} done; {self._last}", sum(self._fractions.values()) / num_jobs


def _run(job: "Job", machine: "Machine", progress: Any) -> "Finetuned | RaymergeError | None":
    """A job as a Ray task. Its errors are values, as the others go on."""
    import ray

    from raymerge.finetuning.expert import finetune

    if ray.get(progress.stops.remote()):
        return None
    try:
        return finetune(job, machine, _watch(job, progress))
    except RaymergeError as error:
        return error


def _watch(job: "Job", progress: Any) -> "Watch":
    import ray

    last = 0.0

    def watch(done: int, steps: int, loss: float) -> bool:
        nonlocal last
        if done < steps and time.monotonic() - last < REPORT_INTERVAL_S:
            return False
        stops: Any = ray.get(progress.write.remote(str(job), done, steps, loss))
        last = time.monotonic()
        return stops

    return watch
