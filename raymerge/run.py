"""`raymerge sweep`, without the command line: prepare, check, open the output, run, summarise. Prints nothing."""

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymerge.errors import ClusterError, SweepFileError
from raymerge.folder import Folder, Location
from raymerge.interrupts import answering
from raymerge.observers import observing
from raymerge.output import Output, open_output
from raymerge.published import expert_accuracies
from raymerge.records import SPLITS, Accuracies, Cell, RunOutcome, ServiceStats, TrialRecord
from raymerge.result_schema import RunContext
from raymerge.results import SUPERSEDED, ResultsWriter, lacking_predictions, recover, write_summary
from raymerge.search_space import sweep_cells
from raymerge.selection import Objective
from raymerge.suite_file import find_suite
from raymerge.suites import Suite
from raymerge.summary import SummaryRow, summarise
from raymerge.sweep_spec import SweepSpec, resolve, spec_hash

if TYPE_CHECKING:
    from raymerge.execution import Listener


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    rows: Sequence[SummaryRow]
    interrupted: bool

    @property
    def num_failed(self) -> int:
        return sum(row.status == "failed" for row in self.rows)


def run_sweep(
    spec: SweepSpec,
    output_dir: Location,
    listener: "Listener",
    *,
    address: str | None = None,
    debug: bool = False,
    abandon: Callable[[ClusterError], None] = lambda error: None,
) -> Outcome:
    """Run a sweep to its end, or to the first signal; continue it if `output_dir` holds a part of it.

    Args:
        address: of a Ray cluster; None starts Ray here. With ray:// the sweep runs on the cluster, and paths of
            weights and images are those of the cluster; results are written by this process all the same.
        abandon: ends this process because the cluster is gone, and with it whatever this call waits for. Called in
            another thread; all that is finished is on disk.
    Raises:
        SweepFileError: the suite lacks a backbone or task that the sweep names.
        PreflightError: checkpoints, images, output folder or cluster are not fit for it.
    """
    suite = find_suite(spec.suite, spec.profile, spec.suite_seed, weights=spec.weights, data=spec.data)
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    is_client = address is not None and address.startswith("ray://")
    published = published_denominators(suite, cells) if spec.evaluation.denominators == "published" else None
    tracked = with_tracker_folders(spec, Folder.at(output_dir), is_elsewhere=is_client)
    with open_output(output_dir, sweep=spec.name, spec=resolve(spec), spec_hash=spec_hash(spec)) as output:
        store = OutputStore(output, spec, suite, address)
        still_own = functools.partial(output.check, look=True)
        with (
            _sigterm_as_interrupt(),
            observing(listener, output.folder, spec, suite, lambda: store.records, still_own) as observers,
        ):
            store.notice = observers.notice
            observers.stage("starting Ray")
            from raymerge import cluster, execution, remote_driver  # ray takes seconds to import

            def guard() -> contextlib.AbstractContextManager[Callable[[], bool]]:
                return _stop_on_signal(observers)

            if address is not None and is_client:
                done = remote_driver.execute(address, tracked, suite, store, observers, guard, published, debug=debug)
            else:
                with cluster.connected(address, debug=debug) as slots:
                    place = execution.Place(slots, is_cluster=address is not None, abandon=abandon)
                    done = execution.execute(tracked, suite, store, observers, place, guard, published)
            outcome = Outcome(store.summarise(cells), interrupted=not done)
            observers.state = "finished" if done else "interrupted"
        return outcome


class OutputStore:
    """The output folder, as the one who executes a sweep sees it."""

    def __init__(self, output: Output, spec: SweepSpec, suite: Suite, address: str | None):
        self.records: dict[str, TrialRecord] = {}
        self.notice: Callable[[str], None] = lambda what: None
        """Told what the user may wonder about."""
        self._stores_predictions = spec.evaluation.store_predictions
        self._output = output
        self._address = address
        self._objective: Objective = spec.search.objective
        self._context = RunContext(
            sweep=spec.name,
            spec_hash=spec_hash(spec),
            suite=suite.name,
            profile=suite.profile,
            suite_seed=suite.seed,
            suite_fingerprint="",
            objective=spec.search.objective,
            precision=spec.evaluation.precision,
            denominators=spec.evaluation.denominators,
        )
        self._writer: ResultsWriter | None = None

    def begin(self, suite_fingerprint: str) -> None:
        self._output.begin(suite_fingerprint)
        self._context = replace(self._context, suite_fingerprint=suite_fingerprint)

    def choice(self) -> Mapping[str, Any] | None:
        return self._output.choice

    def keep_choice(self, choice: Mapping[str, Any]) -> None:
        self._output.keep_choice(choice)

    def open(self, precision: str) -> Mapping[str, TrialRecord]:
        self._context = replace(self._context, precision=precision)
        self._writer = ResultsWriter(self._output.folder, self._context, check=self._output.check)
        self.records = recover(self._output.folder)
        again = lacking_predictions(self._output.folder) if self._stores_predictions else set()
        if again:
            self.notice(
                f"{len(again)} finished test trial{'s' * (len(again) != 1)} without predictions: evaluated again"
            )
        return {trial_id: record for trial_id, record in self.records.items() if trial_id not in again}

    def append(self, record: TrialRecord) -> None:
        assert self._writer is not None, "opened first"
        self._writer.append(record)
        self.records[record.trial_id] = record.without_predictions()

    def set_aside(self, trial_ids: Sequence[str]) -> None:
        assert self._writer is not None, "opened first"
        strays = [self.records.pop(trial_id) for trial_id in trial_ids]
        self._writer.set_aside(strays)
        num_finished = sum(record.status != "failed" for record in strays)
        if num_finished:
            self.notice(
                f"{num_finished} trial{'s' * (num_finished != 1)} that only a failure had led to: moved to "
                f"{self._output.folder.named(SUPERSEDED)}"
            )

    def run_begins(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        self._output.start_run(address=self._address, nodes=nodes)

    def run_ends(self, outcome: RunOutcome, stats: ServiceStats) -> None:
        self._output.end_run(outcome, stats)

    def summarise(self, cells: Sequence[Cell]) -> list[SummaryRow]:
        """Write the summary of all records."""
        rows = summarise(self.records.values(), cells, self._objective)
        self._output.check(look=True)
        write_summary(self._output.folder, rows, self._context)
        return rows


def with_tracker_folders(spec: SweepSpec, output: Folder, *, is_elsewhere: bool) -> SweepSpec:
    """The sweep with places for the files of its trackers: in the output, where the driver can write to it.

    Args:
        is_elsewhere: whether the driver runs on another machine.
    Raises:
        SweepFileError: it cannot, and the sweep names no other folder.
    """
    trackers = spec.trackers
    folders = {"tensorboard": "tensorboard"} if trackers.tensorboard else {}
    if trackers.wandb:
        folders["wandb"] = ""  # it makes a folder of that name itself
    for name, below in folders.items():
        settings = getattr(trackers, name)
        if settings.folder is not None:
            folder = Path(settings.folder).expanduser()
        elif output.local is not None and not is_elsewhere:
            folder = output.local / below
        else:
            raise SweepFileError(
                f"'trackers.{name}' writes files where the driver runs, which cannot write to the results in "
                f"{output.root}; name a folder there with 'trackers.{name}.folder'."
            )
        trackers = trackers.model_copy(update={name: settings.model_copy(update={"folder": str(folder)})})
    return spec.model_copy(update={"trackers": trackers})


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


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, while a sweep is being prepared."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with answering(interrupt, [signal.SIGTERM]):
        yield


@contextlib.contextmanager
def _stop_on_signal(listener: "Listener") -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a question that answers True; the second ends the process at once.

    Every finished trial is on disk the moment it finishes, so nothing is lost either way.
    """
    received = told = False

    def handle(signum: int, frame: Any) -> None:
        nonlocal received
        if received:
            os._exit(130)
        received = True

    def stopping() -> bool:
        nonlocal told
        if received and not told:
            told = True
            listener.stage("interrupted: ending the trials that run")
        return received

    with answering(handle):
        yield stopping
