"""A sweep on a Ray cluster, from its suite to its last trial. Prints nothing and writes no results: see `Store`."""

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from raymerge import cluster, preparation, trackers, tuning
from raymerge.dispatcher import Observation
from raymerge.driver import Sweep, reference_cells
from raymerge.errors import ClusterError, RaymergeError
from raymerge.evaluation_choice import EvaluationChoice
from raymerge.evaluator_pool import EvaluatorPool
from raymerge.merge_jobs import MergeJobs
from raymerge.methods import METHODS
from raymerge.plan import SweepInfo
from raymerge.ray_metrics import TrialMetrics
from raymerge.records import Accuracies, RunOutcome, ServiceStats, TrialRecord
from raymerge.search_space import sweep_cells
from raymerge.suite_nodes import SuiteNodes
from raymerge.suites import Suite, cache_dir, moments_dir
from raymerge.suites.published import PublishedSuite
from raymerge.sweep_spec import SweepSpec


@runtime_checkable
class Listener(Protocol):
    """Who watches a sweep. Called from the thread that runs it but for the last two; must not block."""

    def stage(self, what: str) -> None:
        """A new stage begins, e.g. "starting Ray"."""
        ...

    def preparing(self, what: str, fraction: float) -> None:
        """How far the preparation of the suite is."""
        ...

    def sweeping(self, sweep: SweepInfo, device: str, num_evaluators: int) -> None:
        """Trials begin; `sweep` knows cells and records."""
        ...

    def trial(self, record: TrialRecord) -> None:
        """A trial was saved."""
        ...

    def notice(self, what: str) -> None:
        """Something happened to the cluster, such as a node that left. May be called from any thread."""
        ...

    def observed(self, observation: Observation, hosts: Mapping[str, str]) -> None:
        """What evaluators do now, about every second, and the host of each. May be called from any thread."""
        ...


@runtime_checkable
class Store(Protocol):
    """Where the results of a sweep go. Whoever owns it alone writes them."""

    def begin(self, suite_fingerprint: str) -> None:
        """Weights and images are known: the output belongs to this sweep over these."""
        ...

    def choice(self) -> Mapping[str, Any] | None:
        """What `auto` stands for, as an earlier run decided."""
        ...

    def keep_choice(self, choice: Mapping[str, Any]) -> None: ...
    def open(self, precision: str) -> Mapping[str, TrialRecord]:
        """Begin to take records. Returns those of earlier runs."""
        ...

    def append(self, record: TrialRecord) -> None:
        """Return once a record, with its predictions, is durable."""
        ...

    def set_aside(self, trial_ids: Sequence[str]) -> None:
        """Keep these trials out of the results from now on."""
        ...

    def run_begins(self, nodes: Sequence[Mapping[str, Any]]) -> None: ...
    def run_ends(self, outcome: RunOutcome, stats: ServiceStats) -> None:
        """What evaluators did; `stats.num_evaluators` is the most there were at once."""
        ...


Guard = Callable[[], contextlib.AbstractContextManager[Callable[[], bool]]]
"""Opens a context in which a callable says whether to stop."""


@dataclass(frozen=True)
class Place:
    """Where a sweep runs."""

    slots: cluster.Slots
    is_cluster: bool
    """Whether nodes may come and go, and need not share files."""
    abandon: Callable[[ClusterError], None] = lambda error: None
    """What to do when the cluster is gone and nothing that waits for it will ever return. Called in another thread."""


def execute(
    spec: SweepSpec,
    suite: Suite,
    store: Store,
    listener: Listener,
    place: Place,
    guard: Guard,
    published: Accuracies | None,
) -> bool:
    """Run a sweep to its end or until it is told to stop. Returns whether it came to its end.

    Args:
        published: accuracies of experts to divide by; None: those measured.
    Raises:
        SweepFileError: a tracker cannot be used.
        PreflightError: checkpoints, images or cluster are not fit for it.
    """
    trackers.check_packages(spec.trackers)
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    tasks = {cell.backbone: cell.tasks for cell in reference_cells(suite, cells)}
    moments = None
    if any(METHODS.declaration(cell.method).moments for cell in cells):
        moments = Path(spec.moments).expanduser() if spec.moments else moments_dir(suite)
    if not suite.is_prepared:
        listener.stage("preparing the suite")
    preparation.prepare_suite(suite, place.slots, listener.preparing)
    listener.stage("checking checkpoints and images")
    nodes = SuiteNodes(suite, tasks, moments, fill=None if isinstance(suite, PublishedSuite) else _filler(suite))
    if place.is_cluster:
        nodes.look([node.node_id for node in cluster.alive_nodes()])
    hashes = cluster.check_suite(suite, tasks, moments, nodes.complete if place.is_cluster else ())
    store.begin(cluster.fingerprint(suite, hashes, moments or moments_dir(suite)))
    choice = choose(store, spec, suite, tasks, listener, nodes.complete if place.is_cluster else ())
    spec = with_precision(spec, choice.precision)
    sweep = Sweep(
        spec,
        suite,
        cells,
        finished=store.open(choice.precision),
        on_record=_saver(store, listener, spec.name),
        published=published,
    )
    if not sweep.done:
        _run(sweep, choice, hashes, moments or moments_dir(suite), nodes, store, listener, place, guard)
    if sweep.done and (strays := sweep.strays()):
        store.set_aside(strays)
    return sweep.done


def with_precision(spec: SweepSpec, precision: str) -> SweepSpec:
    """The sweep in one of the precisions there are, in place of auto: it is part of what trials are known by."""
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"precision": precision})})


def choose(
    store: Store,
    spec: SweepSpec,
    suite: Suite,
    tasks: Mapping[str, Sequence[str]],
    listener: Listener,
    node_ids: Sequence[str] = (),
) -> EvaluationChoice:
    """What `auto` stands for: as an earlier run of this sweep decided, or measured now and written down."""
    if (known := store.choice()) is not None:
        return EvaluationChoice.from_dict(known)
    if cluster.is_decided(spec.evaluation):
        return EvaluationChoice(spec.evaluation.precision)
    listener.stage("measuring precisions and batch sizes")
    choice = cluster.choose_evaluation(suite, spec.evaluation, spec.resources, tasks, node_ids)
    store.keep_choice(choice.as_dict())
    listener.stage(f"evaluating with {choice}")
    return choice


def _run(
    sweep: Sweep,
    choice: EvaluationChoice,
    hashes: Mapping[Path, str],
    moments: Path,
    nodes: SuiteNodes,
    store: Store,
    listener: Listener,
    place: Place,
    guard: Guard,
) -> None:
    spec, suite = sweep.spec, sweep.suite
    tracked_by = trackers.open_trackers(spec)
    listener.stage("starting evaluators")
    backbones = list(dict.fromkeys(cell.backbone for cell in sweep.cells))
    smallest = min(cell.num_tasks for cell in sweep.cells)
    cluster.check_room(spec.resources, place.slots, may_grow=place.is_cluster)
    name, dispatcher = cluster.start_dispatcher(spec.name)

    def start(node_id: str) -> cluster.Started:
        return cluster.start_evaluator(
            suite, spec.evaluation, spec.resources, backbones, choice.batch_sizes, node_id=node_id
        )

    pool = EvaluatorPool(
        cluster.RayView(dispatcher, start),
        name,
        cluster.needs_of(spec.resources),
        None if spec.resources.evaluators == "auto" else spec.resources.evaluators,
        reserved=place.slots.reserved,
        unfit=nodes.unfit if place.is_cluster else lambda nodes: {},
        no_merging=nodes.no_merging,
        notice=listener.notice,
        observed=listener.observed,
        silent=place.abandon,
        survey=_in_a_thread if place.is_cluster else lambda look: look(),
    )

    def max_trials() -> int:
        return tuning.num_trials(pool.joined.num_wanted, smallest)

    def max_merges() -> int:
        return max(1, int(max(place.slots.reserved(pool.num_cpus), pool.num_cpus_free)))

    def ends(outcome: RunOutcome) -> None:
        store.run_ends(outcome, replace(pool.observation.stats, num_evaluators=pool.joined.most))

    with guard() as stopping, contextlib.ExitStack() as stack:
        if place.is_cluster:
            stack.enter_context(cluster.room_requested(spec.resources))
        stack.callback(pool.close)
        pool.begin(go_on=lambda: not stopping())
        store.run_begins(cluster.describe_nodes(nodes.reports, pool.joined.devices))
        try:
            sweep.device = ", ".join(pool.joined.devices)
            listener.sweeping(sweep, sweep.device, pool.joined.num_wanted)
            merges = MergeJobs(
                suite,
                hashes,
                cache_dir() / "merges",
                moments,
                families=sweep.families,
                max_parallel=max_merges,
                publish=lambda merge_id, shards: dispatcher.publish.remote(merge_id, shards),
                placement=nodes.placement,
            )
            stack.callback(merges.close)
            tuning.run_tune(
                sweep, merges, dispatcher, pool, max_trials=max_trials, stopping=stopping, tracked_by=tracked_by
            )
        except BaseException:
            with contextlib.suppress(RaymergeError):  # what went wrong first is to be told
                ends("failed")
            raise
        ends("finished" if sweep.done else "interrupted")


def _in_a_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="survey", daemon=True).start()


def _saver(store: Store, listener: Listener, sweep: str) -> Callable[[TrialRecord], None]:
    metrics = TrialMetrics(sweep)

    def save(record: TrialRecord) -> None:
        store.append(record)
        listener.trial(record.without_predictions())
        metrics.count(record.status)

    return save


def _filler(suite: Suite) -> Callable[[Sequence[str]], Mapping[str, str]] | None:
    """Copies a suite that raymerge made itself to nodes without it; others are the user's to bring there."""
    if suite.name != "demo":
        return None
    return lambda node_ids: preparation.copy_suite(suite, node_ids)
