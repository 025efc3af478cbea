"""`raymerge sweep`, without the command line: prepare, check, open the output, run, summarise. Prints nothing."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from raymerge.driver import Sweep, reference_cells
from raymerge.errors import SweepFileError
from raymerge.evaluation_choice import EvaluationChoice
from raymerge.folder import Location
from raymerge.methods import METHODS
from raymerge.output import Output, open_output
from raymerge.published import Accuracies, expert_accuracies
from raymerge.records import SPLITS, Cell, TrialRecord
from raymerge.result_schema import RunContext
from raymerge.results import ResultsWriter, recover, write_summary
from raymerge.search_space import sweep_cells
from raymerge.suite_file import find_suite
from raymerge.suites import Suite, cache_dir, moments_dir
from raymerge.summary import SummaryRow, summarise
from raymerge.sweep_spec import SweepSpec, resolve, spec_hash

if TYPE_CHECKING:
    from raymerge.cluster import Slots


@runtime_checkable
class Listener(Protocol):
    """Who watches a sweep. Called from the thread that runs it; must not block."""

    def stage(self, what: str) -> None:
        """A new stage begins, e.g. "starting Ray"."""
        ...

    def preparing(self, what: str, fraction: float) -> None:
        """How far the preparation of the suite is."""
        ...

    def sweeping(self, sweep: Sweep, device: str, num_evaluators: int) -> None:
        """Trials begin; `sweep` knows cells and records."""
        ...

    def trial(self, record: TrialRecord) -> None:
        """A trial was saved."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    rows: Sequence[SummaryRow]
    interrupted: bool

    @property
    def num_failed(self) -> int:
        return sum(row.status == "failed" for row in self.rows)


def run_sweep(
    spec: SweepSpec, output_dir: Location, listener: Listener, *, address: str | None = None, debug: bool = False
) -> Outcome:
    """Run a sweep to its end, or to the first signal; continue it if `output_dir` holds a part of it.

    Raises:
        SweepFileError: the suite lacks a backbone or task that the sweep names.
        PreflightError: checkpoints, images, output folder or cluster are not fit for it.
    """
    suite = find_suite(spec.suite, spec.profile, spec.suite_seed, weights=spec.weights, data=spec.data)
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    if spec.evaluation.denominators == "published":
        published_denominators(suite, cells)
    with open_output(output_dir, sweep=spec.name, spec=resolve(spec), spec_hash=spec_hash(spec)) as output:
        listener.stage("starting Ray")
        from raymerge import cluster, preparation  # ray takes seconds to import

        with cluster.connected(address, debug=debug) as slots:
            if not suite.is_prepared:
                listener.stage("preparing the suite")
            preparation.prepare_suite(suite, slots, listener.preparing)
            tasks = {cell.backbone: cell.tasks for cell in reference_cells(suite, cells)}
            listener.stage("checking checkpoints and images")
            moments = Path(spec.moments).expanduser() if spec.moments else moments_dir(suite)
            needs_moments = any(METHODS.declaration(cell.method).moments for cell in cells)
            hashes = cluster.check_suite(suite, tasks, moments if needs_moments else None)
            fingerprint = cluster.fingerprint(suite, hashes, moments)
            output.begin(fingerprint)
            choice = _choose(output, spec, suite, tasks, listener)
            context = RunContext(
                sweep=spec.name,
                spec_hash=spec_hash(spec),
                suite=suite.name,
                profile=suite.profile,
                suite_seed=suite.seed,
                suite_fingerprint=fingerprint,
                objective=spec.search.objective,
                precision=choice.precision,
                denominators=spec.evaluation.denominators,
            )
            spec = with_precision(spec, choice.precision)
            return _run(spec, suite, cells, output, context, hashes, moments, choice.batch_sizes, slots, listener)


def with_precision(spec: SweepSpec, precision: str) -> SweepSpec:
    """The sweep in one of the precisions there are, in place of auto: it is part of what trials are known by."""
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"precision": precision})})


def _choose(
    output: Output, spec: SweepSpec, suite: Suite, tasks: Mapping[str, Sequence[str]], listener: Listener
) -> EvaluationChoice:
    """What `auto` stands for: as an earlier run of this sweep decided, or measured now and written down."""
    from raymerge import cluster

    if output.choice is not None:
        return EvaluationChoice.from_dict(output.choice)
    if cluster.is_decided(spec.evaluation):
        return EvaluationChoice(spec.evaluation.precision)
    listener.stage("measuring precisions and batch sizes")
    choice = cluster.choose_evaluation(suite, spec.evaluation, spec.resources, tasks)
    output.keep_choice(choice.as_dict())
    listener.stage(f"evaluating with {choice}")
    return choice


def published_denominators(suite: Suite, cells: Sequence[Cell]) -> Accuracies:
    """The published accuracies of the experts of every task that the cells use.

    Raises:
        SweepFileError: one was not published.
    """
    known = expert_accuracies(suite.name, suite.profile)
    for cell in cells:
        for task in cell.tasks:
            for split in SPLITS:
                if (cell.backbone, task, split) not in known:
                    raise SweepFileError(
                        f"'evaluation.denominators' is published, but suite '{suite.name}' ({suite.profile}) has no "
                        f"published {split} accuracy of {cell.backbone}/{task}; use measured."
                    )
    return known


def _run(
    spec: SweepSpec,
    suite: Suite,
    cells: Sequence[Cell],
    output: Output,
    context: RunContext,
    hashes: dict[Path, str],
    moments: Path,
    batch_sizes: Mapping[str, int],
    slots: "Slots",
    listener: Listener,
) -> Outcome:
    from raymerge import cluster, tuning
    from raymerge.merge_jobs import MergeJobs

    writer = ResultsWriter(output.folder, context, check=output.check)

    def on_record(record: TrialRecord) -> None:
        writer.append(record)
        listener.trial(record)

    def summary() -> list[SummaryRow]:
        rows = summarise(sweep.records.values(), cells, spec.search.objective)
        output.check(look=True)
        write_summary(output.folder, rows, context)
        return rows

    published = published_denominators(suite, cells) if spec.evaluation.denominators == "published" else None
    sweep = Sweep(spec, suite, cells, finished=recover(output.folder), on_record=on_record, published=published)
    if sweep.done:
        return Outcome(summary(), interrupted=False)
    listener.stage("starting evaluators")
    num = cluster.num_evaluators(spec.resources, slots)
    backbones = list(dict.fromkeys(cell.backbone for cell in cells))
    evaluators, sweep.device = cluster.start_evaluators(
        suite, spec.evaluation, spec.resources, num, backbones, batch_sizes
    )
    dispatcher = cluster.start_dispatcher(evaluators, backbones)
    merges = MergeJobs(
        suite,
        hashes,
        cache_dir() / "merges",
        moments,
        families=sweep.families,
        max_parallel=slots.merges,
        publish=lambda merge_id, shards: dispatcher.publish.remote(merge_id, shards),
    )
    listener.sweeping(sweep, sweep.device, num)
    smallest = min(cell.num_tasks for cell in cells)
    with _stop_on_signal(listener) as stopping:
        try:
            # enough trials that evaluators find shards while one trial ends and the next begins
            tuning.run_tune(sweep, merges, dispatcher, max_trials=2 + 2 * num // smallest, stopping=stopping)
        finally:
            merges.close()
        return Outcome(summary(), interrupted=not sweep.done)


@contextlib.contextmanager
def _stop_on_signal(listener: Listener) -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a question that answers True; the second ends the process at once.

    Every finished trial is on disk the moment it finishes, so nothing is lost either way.
    """
    received, told = threading.Event(), threading.Event()

    def handle(signum: int, frame: Any) -> None:
        if received.is_set():
            os._exit(130)
        received.set()

    def stopping() -> bool:
        if received.is_set() and not told.is_set():
            told.set()
            listener.stage("interrupted: ending the trials that run")
        return received.is_set()

    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
