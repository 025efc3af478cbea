"""Results as Hive-partitioned Parquet: append a trial, read a sweep.

    <output>/evaluations/backbone=../num_tasks=../method=../part-<trial_id>.parquet     one row per task
             predictions/...same.../part-<trial_id>.parquet                             one row per task, where stored
             trials/...same.../part-<trial_id>.parquet                                  one row
             summary/part-0.parquet                                                     one row per cell

A part is named after its trial, so writing a trial twice leaves one copy. The trials part comes last and commits the
trial: evaluations and predictions without it, or from another attempt, do not count.
"""

import contextlib
import io
import logging
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from raymerge.errors import RaymergeError, UsageError
from raymerge.folder import Folder, Location, reason
from raymerge.output import not_readable, read_manifest
from raymerge.records import TrialRecord
from raymerge.result_schema import EVALUATION_FIELDS, PARTITIONS, TRIAL_FIELDS, RunContext, Schemas, read_record
from raymerge.summary import SummaryRow, summarise
from raymerge.whole_file import TEMPORARY_SUFFIX

if TYPE_CHECKING:
    import pandas

__all__ = [
    "ResultsWriter",
    "RunContext",
    "lacking_predictions",
    "load",
    "read_records",
    "read_tables",
    "recover",
    "unfinished_summary",
    "write_summary",
]

TABLES = ("evaluations", "trials", "summary", "predictions")

SUMMARY = "summary/part-0.parquet"
QUARANTINE = "quarantine"
SUPERSEDED = "superseded"

logger = logging.getLogger(__name__)


class ResultsWriter:
    """Appends trials to an output folder. Any thread may append; only one process may hold the folder."""

    def __init__(self, output_dir: Location, context: RunContext, *, check: Callable[[], None] = lambda: None):
        """Write to a folder.

        Args:
            check: called before a trial is written; raises when the folder is another process's now.
        """
        self._folder = Folder.at(output_dir)
        self._context = context
        self._check = check
        self._schemas = Schemas.declared()
        self._lock = threading.Lock()

    def append(self, record: TrialRecord) -> None:
        """Return once the trial is on disk. Appending it again replaces it.

        Raises:
            RaymergeError: the file system refused; the trial does not count then.
            OutputError: the folder is another process's now; nothing was written.
        """
        part = _part_of(record)
        evaluations = self._schemas.evaluations_table(record, self._context)
        trials = self._schemas.trials_table(record, self._context)
        predictions = self._schemas.predictions_table(record, self._context)
        with self._lock:
            self._check()
            try:
                if predictions.num_rows:  # those of an earlier attempt do not count: they need not be deleted
                    self._folder.write(f"predictions/{part}", _parquet(predictions, use_dictionary=_REPETITIVE))
                if evaluations.num_rows:
                    self._folder.write(f"evaluations/{part}", _parquet(evaluations))
                else:
                    self._folder.delete(f"evaluations/{part}")
                self._folder.write(f"trials/{part}", _parquet(trials))
            except OSError as error:
                raise _not_saved(self._folder, f"trial {record.trial_id} of {record.cell}", error) from error

    def set_aside(self, records: Iterable[TrialRecord]) -> None:
        """Move the parts of trials to `superseded/`, where nobody reads them; failed ones are deleted.

        Raises:
            RaymergeError: the file system refused.
            OutputError: the folder is another process's now.
        """
        with self._lock:
            self._check()
            for record in records:
                for table in ("trials", "evaluations", "predictions"):  # without its trial, the rest does not count
                    path = f"{table}/{_part_of(record)}"
                    try:
                        if record.status == "failed":
                            self._folder.delete(path)
                        else:
                            self._folder.move(path, f"{SUPERSEDED}/{path}")
                    except OSError as error:
                        raise _not_saved(self._folder, f"what became of trial {record.trial_id}", error) from error


def write_summary(output_dir: Location, rows: Sequence[SummaryRow], context: RunContext | None = None) -> None:
    """Replace the summary in one step.

    Raises:
        RaymergeError: the file system refused.
    """
    table = Schemas.declared().summary_table(rows, context)
    folder = Folder.at(output_dir)
    try:
        folder.write(SUMMARY, _parquet(table))
    except OSError as error:
        raise _not_saved(folder, "the summary", error) from error


def read_records(output_dir: Location) -> dict[str, TrialRecord]:
    """Every committed trial by its id, in the order they finished; {} for a folder without results.

    Changes nothing, so it may run beside a sweep. A part that cannot be read is named in a warning and its trial left
    out, to be computed again. Times come back rounded to microseconds. Predictions are not read.
    """
    return _Snapshot(Folder.at(output_dir), Schemas.declared(), TRIAL_FIELDS, EVALUATION_FIELDS).records()


def lacking_predictions(output_dir: Location) -> set[str]:
    """Ids of the trials that have finished on the test split and whose predictions are not stored."""
    snapshot = _Snapshot(Folder.at(output_dir), Schemas.declared(), ["split"], (), predictions=())
    trials = snapshot.tables["trials"]
    tested = trials.filter((ds.field("split") == "test") & (ds.field("status") == "finished"))
    return {*tested["trial_id"].to_pylist()} - {*snapshot.tables["predictions"]["trial_id"].to_pylist()}


def recover(output_dir: Location) -> dict[str, TrialRecord]:
    """`read_records`, and tidy up what a crash left. Only for the process that holds the output folder.

    Temporary files, and evaluations and predictions of uncommitted trials are deleted. Both parts of a trial are moved
    to `quarantine/` when one cannot be read or they do not belong together; predictions that cannot be read go there
    alone.
    """
    folder = Folder.at(output_dir)
    with _reading(folder):
        return _recover(folder)


def _recover(folder: Folder) -> dict[str, TrialRecord]:
    for table in TABLES:
        for path in folder.files(table):
            if _is_temporary(path):
                folder.delete(path)
    # every column, so that no damage stays hidden
    snapshot = _Snapshot(folder, Schemas.declared(), predictions=None)
    for path in sorted(snapshot.broken):
        if folder.exists(path):
            folder.move(path, f"{QUARANTINE}/{path}")
            logger.warning("%s: moved to %s", folder.named(path), folder.named(QUARANTINE))
    for path in snapshot.uncommitted:
        folder.delete(path)
    return snapshot.records()


def load(output_dir: Location, table: str = "evaluations") -> "pandas.DataFrame":
    """One of the `TABLES` as a pandas frame; rows of uncommitted trials are left out. Accuracies are fractions 0..1.

    Raises:
        UsageError: no such folder or table, or a sweep has never written there.
    """
    if table not in TABLES:
        raise UsageError(f"no table is called '{table}'. Known: {', '.join(TABLES)}.")
    folder = _results_at(output_dir)
    if table == "summary":
        summary = _written_summary(folder)
        if summary is None:
            raise UsageError(f"{folder.name}: no summary yet, its sweep has not finished. Start the same sweep again.")
        return summary.to_pandas()
    others: dict[str, Sequence[str]] = {name: () for name in ("trials", "evaluations") if name != table}
    predictions = None if table == "predictions" else False
    rows = _Snapshot(folder, Schemas.declared(), **others, predictions=predictions).tables[table]
    if table == "predictions" and not rows.num_rows:
        raise UsageError(f"{folder.name}: no predictions are stored here. {STORE_THEM}")
    return rows.to_pandas()


STORE_THEM = "Start its sweep again with --set evaluation.store_predictions=true."
"""It then evaluates again on test what has no predictions."""


def read_tables(output_dir: Location, *, predictions: bool = True) -> dict[str, pa.Table]:
    """All tables by their names as they are now, without rows of uncommitted trials.

    A sweep that has not written its summary yet has the one of the trials that are there.

    Args:
        predictions: whether to read them; where there are none the table is absent.
    Raises:
        UsageError: no such folder, or a sweep has never written there.
    """
    folder, schemas = _results_at(output_dir), Schemas.declared()
    snapshot = _Snapshot(folder, schemas, predictions=None if predictions else False)
    summary = _written_summary(folder)
    tables = {**snapshot.tables, "summary": _summary_of(snapshot, schemas) if summary is None else summary}
    return {name: tables[name] for name in TABLES if name in tables and (name != "predictions" or len(tables[name]))}


def _results_at(output_dir: Location) -> Folder:
    """The folder, in which a sweep has written."""
    folder = Folder.at(output_dir)
    manifest = read_manifest(folder)
    with _reading(folder):
        exists, has_trials = folder.exists(), folder.exists("trials")
    if not exists:
        raise UsageError(f"{folder.name}: no such folder. Give the --output of a sweep.")
    if manifest is None and not has_trials:
        raise UsageError(f"{folder.name}: no results here. Give the --output of a sweep.")
    return folder


def _written_summary(folder: Folder) -> pa.Table | None:
    with _reading(folder):
        data = folder.read(SUMMARY)
    if data is None:
        return None
    try:
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{folder.named(SUMMARY)}: is damaged ({error}). Start the same sweep again.") from None


def unfinished_summary(output_dir: Location) -> "pandas.DataFrame":
    """The summary of the trials that are there now, for a sweep that has not written its own; changes nothing.

    A cell that has not been started is absent.
    """
    schemas = Schemas.declared()
    trials = [*TRIAL_FIELDS, "objective"]
    snapshot = _Snapshot(Folder.at(output_dir), schemas, trials=trials, evaluations=EVALUATION_FIELDS)
    return _summary_of(snapshot, schemas).to_pandas()


def _summary_of(snapshot: "_Snapshot", schemas: Schemas) -> pa.Table:
    records = snapshot.records().values()
    cells = list(dict.fromkeys(record.cell for record in records if record.stage != "reference"))
    by_accuracy = snapshot.tables["trials"]["objective"].to_pylist()[:1] == ["accuracy"]
    return schemas.summary_table(summarise(records, cells, "accuracy" if by_accuracy else "normalized_accuracy"), None)


def current_summary(output_dir: Location) -> "pandas.DataFrame":
    """The summary; where a sweep has not written its own, as after a kill, that of the trials that are there.

    Raises:
        UsageError: there are no results.
    """
    try:
        return load(output_dir, "summary")
    except UsageError:
        frame = unfinished_summary(output_dir)
        if frame.empty:
            raise
        return frame


class _Snapshot:
    """The tables as they are now, and which of their parts count."""

    def __init__(
        self,
        folder: Folder,
        schemas: Schemas,
        trials: Sequence[str] | None = None,
        evaluations: Sequence[str] | None = None,
        *,
        predictions: Sequence[str] | Literal[False] | None = False,
    ):
        """Read the named columns of each table (None: all) besides those that tell whether a row counts.

        Args:
            predictions: False: that table is not read.
        """
        read_manifest(folder)
        self._folder = folder
        columns = {"trials": trials, "evaluations": evaluations}
        if predictions is not False:
            columns["predictions"] = predictions
        read: dict[str, pa.Table] = {}
        unreadable: dict[str, set[str]] = {}
        with _reading(folder):
            # trials first: by then every committed trial has its other rows, even while a sweep is writing
            for name, wanted in columns.items():
                read[name], unreadable[name] = self._read(name, getattr(schemas, name), wanted)

        stamps: dict[str, list[_Stamp]] = {}
        for row in _rows(read["evaluations"].select(_STAMP)):
            stamps.setdefault(row["trial_id"], []).append(_stamp(row))
        committed: dict[str, _Stamp] = {}
        torn = set()
        for row in _rows(read["trials"].select([*_STAMP, "num_scored", *PARTITIONS.names])):
            if stamps.pop(row["trial_id"], []) == [_stamp(row)] * row["num_scored"]:
                committed[row["trial_id"]] = _stamp(row)
            elif (part := _part(**_key(row))) not in unreadable["evaluations"]:
                torn.add(part)
        for part in torn:
            logger.warning("%s: does not fit its evaluations; its trial is left out", folder.named(f"trials/{part}"))

        counts = ds.field("trial_id").isin(pa.array(list(committed), pa.string()))
        self.tables = {"trials": read["trials"].filter(counts), "evaluations": read["evaluations"].filter(counts)}
        """Rows of committed trials."""
        broken = {*unreadable["trials"], *unreadable["evaluations"], *torn}
        self.broken = {f"{name}/{part}" for part in broken for name in ("evaluations", "trials")}
        """Parts of trials that cannot be trusted."""
        orphans = read["evaluations"].filter(ds.field("trial_id").isin(pa.array(list(stamps), pa.string())))
        self.uncommitted = _paths("evaluations", _rows(orphans.select(list(_KEY))))
        """Evaluations and predictions without a trial that can be read."""
        if "predictions" in read:
            rows = _rows(read["predictions"].select([*_STAMP, *PARTITIONS.names]))
            fits = [committed.get(row["trial_id"]) == _stamp(row) for row in rows]
            self.tables["predictions"] = read["predictions"].filter(pa.array(fits, pa.bool_()))
            self.broken |= {f"predictions/{part}" for part in unreadable["predictions"]}
            self.uncommitted |= _paths("predictions", [row for row, fit in zip(rows, fits, strict=True) if not fit])

    def records(self) -> dict[str, TrialRecord]:
        evaluations: dict[str, list[dict[str, Any]]] = {}
        for row in _rows(self.tables["evaluations"].select(EVALUATION_FIELDS)):
            evaluations.setdefault(row["trial_id"], []).append(row)
        trials = _rows(self.tables["trials"].select([*TRIAL_FIELDS, *PARTITIONS.names]))
        records = [read_record(trial, evaluations.get(trial["trial_id"], [])) for trial in trials]
        return {r.trial_id: r for r in sorted(records, key=lambda r: (r.finished_at, r.trial_id))}

    def _read(self, name: str, schema: pa.Schema, columns: Sequence[str] | None) -> tuple[pa.Table, set[str]]:
        """The rows of all parts that can be read, and the others."""
        if columns is not None:
            needed = {*_STAMP, "num_scored", *columns}
            schema = pa.schema([field for field in schema if field.name in needed])
        schema = pa.schema([*schema, *PARTITIONS])
        paths = [path for path in self._folder.files(name) if _is_part(path)]
        try:
            return self._scan(name, paths, schema), set()
        except (pa.ArrowException, OSError):
            damaged = {path: why for path in paths if (why := self._damage(name, path, schema))}
            if not damaged:
                raise
        for path, why in damaged.items():
            lost = "its rows are" if name == "predictions" else "its trial is"
            logger.warning("%s: cannot be read (%s); %s left out", self._folder.named(path), why, lost)
        whole = self._scan(name, [path for path in paths if path not in damaged], schema)
        return whole, {path.removeprefix(f"{name}/") for path in damaged}

    def _damage(self, name: str, path: str, schema: pa.Schema) -> str | None:
        self._folder.read(path)  # raises where the medium is at fault: that is no reason to set a part aside
        try:
            self._scan(name, [path], schema)
        except (pa.ArrowException, OSError) as error:
            return str(error)
        return None

    def _scan(self, name: str, paths: list[str], schema: pa.Schema) -> pa.Table:
        if not paths:
            return schema.empty_table()
        dataset = ds.dataset(
            [self._folder.full(path) for path in paths],
            schema=schema,
            format=_FORMAT,
            filesystem=self._folder.filesystem,
            partitioning=ds.partitioning(PARTITIONS, flavor="hive"),
            partition_base_dir=self._folder.full(name),
        )
        table = dataset.to_table()
        if table["trial_id"].null_count:
            raise pa.ArrowInvalid("a row has no trial_id")
        return table


_STAMP = ["trial_id", "status", "finished_at"]
"""What the two parts of one attempt at a trial have in common."""

_Stamp = tuple[str, int]

_KEY = ("backbone", "num_tasks", "method", "trial_id")

_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


@contextlib.contextmanager
def _reading(folder: Folder) -> Iterator[None]:
    """What a filesystem refuses in this block is told in a sentence."""
    try:
        yield
    except OSError as error:
        raise not_readable(folder, error) from error


def _not_saved(folder: Folder, what: str, error: OSError) -> RaymergeError:
    remedy = "Check the network and the credentials" if folder.scheme else "Make room there"
    return RaymergeError(
        f"{folder.name}: could not save {what} ({reason(error)}). {remedy} and start the same sweep again; what was "
        "saved is kept."
    )


_REPETITIVE = ["predicted.list.element", "labels.list.element"]


def _parquet(table: pa.Table, use_dictionary: Sequence[str] = ()) -> bytes:
    sink = io.BytesIO()
    # a part has a few rows: a dictionary per column would mostly make it larger and slower to read
    dictionary: Any = list(use_dictionary)  # pyarrow's stub takes for a bool what may be a list
    pq.write_table(table, sink, compression="zstd", use_dictionary=dictionary, write_page_checksum=True)
    return sink.getvalue()


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Plain dicts; a time is whole microseconds."""
    if "finished_at" in table.column_names:
        position = table.column_names.index("finished_at")
        table = table.set_column(position, "finished_at", table["finished_at"].cast(pa.int64()))
    columns = [column.to_pylist() for column in table.columns]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _part(*, backbone: str, num_tasks: int, method: str, trial_id: str) -> str:
    """Path of a trial's part below its table."""
    quoted = [urllib.parse.quote(text, safe="") for text in (backbone, method)]
    return f"backbone={quoted[0]}/num_tasks={num_tasks}/method={quoted[1]}/part-{trial_id}.parquet"


def _part_of(record: TrialRecord) -> str:
    cell = record.cell
    return _part(backbone=cell.backbone, num_tasks=cell.num_tasks, method=cell.method, trial_id=record.trial_id)


def _paths(table: str, rows: Iterable[dict[str, Any]]) -> set[str]:
    return {f"{table}/{_part(**_key(row))}" for row in rows}


def _stamp(row: dict[str, Any]) -> _Stamp:
    return row["status"], row["finished_at"]


def _key(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _KEY}


def _is_part(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.startswith("part-") and name.endswith(".parquet")


def _is_temporary(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)
