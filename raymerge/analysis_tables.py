"""The tables of `raymerge analyze`: their columns, and how they are read.

One folder, one tidy Parquet file per table, `<table>.parquet`. Accuracies and ratios are fractions. `backbone` and
`num_tasks` stand in every table; `num_tasks` is null where a row belongs to one task alone. `layer` is the name of a
tensor; null stands for all layers together: the unweighted mean over matrices, of cosines the whole task vector.
Methods go by their names; a structural parameter is a column, null where a method does not have it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymerge.errors import OutputError, UsageError, did_you_mean
from raymerge.whole_file import make_directory, whole_file

if TYPE_CHECKING:
    import pandas

_SUITE = [("backbone", pa.string()), ("num_tasks", pa.int32())]
_FRACTION = ("common_space_fraction", pa.float64())
_BETA = ("beta", pa.float64())
_RULE = ("rank_rule", pa.string())
_LAYER = ("layer", pa.string())
_PAIR = [("kind", pa.string()), ("source", pa.string()), ("target", pa.string())]

Frame = Any
"""A pandas.DataFrame; its stubs lose track of most operations."""

CELL = ("backbone", "num_tasks", "method")
PARAMETERS = ("common_space_fraction", "beta", "rank_fraction")
"""Columns of `curves`: the searched structural parameters."""

TABLES: Mapping[str, pa.Schema] = {
    # singular values; matrix: "task" or a method
    "spectra": pa.schema(
        [
            *_SUITE,
            ("matrix", pa.string()),
            ("task", pa.string()),
            _LAYER,
            _FRACTION,
            ("index", pa.int32()),
            ("singular_value", pa.float64()),
        ]
    ),
    # kind: "task-task" or "task-merged"; source: a task; target: a task or a method
    "cosines": pa.schema([*_SUITE, *_PAIR, _LAYER, _FRACTION, ("cosine", pa.float64())]),
    # k directions approximate the merged matrix; rank_rule: "paper" or "released_code"; num_values: min(rows, cols)
    "ranks": pa.schema(
        [
            *_SUITE,
            ("method", pa.string()),
            _FRACTION,
            _BETA,
            _RULE,
            _LAYER,
            ("num_values", pa.int32()),
            ("k", pa.int32()),
        ]
    ),
    # subspace alignment ratios; k: null in averages
    "alignments": pa.schema(
        [*_SUITE, *_PAIR, _FRACTION, _BETA, _RULE, _LAYER, ("k", pa.int32()), ("sar", pa.float64())]
    ),
    # finished trials of sweeps; results: name of their folder; task: null for the average over tasks
    "curves": pa.schema(
        [
            ("results", pa.string()),
            *_SUITE,
            ("method", pa.string()),
            ("split", pa.string()),
            ("stage", pa.string()),
            ("task", pa.string()),
            ("alpha", pa.float64()),
            _FRACTION,
            _BETA,
            ("rank_fraction", pa.float64()),
            ("accuracy", pa.float64()),
            ("normalized_accuracy", pa.float64()),
            ("nai", pa.float64()),
            ("is_chosen", pa.bool_()),
        ]
    ),
    # the chosen points on the test split, beside the alignment and the cosine of task and merged
    "nai": pa.schema(
        [
            *_SUITE,
            ("method", pa.string()),
            ("task", pa.string()),
            ("accuracy", pa.float64()),
            ("zero_shot_accuracy", pa.float64()),
            ("expert_accuracy", pa.float64()),
            ("nai", pa.float64()),
            _RULE,
            ("sar", pa.float64()),
            ("cosine", pa.float64()),
        ]
    ),
    # Pearson's r of NAI with a quantity, "sar" or "cosine"
    "correlations": pa.schema(
        [
            *_SUITE,
            ("method", pa.string()),
            ("quantity", pa.string()),
            _RULE,
            ("num_points", pa.int32()),
            ("pearson", pa.float64()),
        ]
    ),
}

MANIFEST = "manifest.json"
VERSION_KEY = "analysis_version"
ANALYSIS_VERSION = 1
"""Raised when a column changes its name, type or meaning."""

AGAIN = "make it again with raymerge analyze"


def table_path(folder: Path, table: str) -> Path:
    return folder / f"{table}.parquet"


def check_folder(folder: Path) -> None:
    """Whether tables may be written there.

    Raises:
        OutputError: it holds other things than an analysis.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder; name another --output.")
    if folder.is_dir() and any(folder.iterdir()) and VERSION_KEY not in _manifest(folder):
        raise OutputError(f"{folder}: holds other things than an analysis; name a new or empty folder as --output.")


def _manifest(folder: Path) -> str:
    try:
        return (folder / MANIFEST).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def save(folder: Path, tables: Mapping[str, pa.Table], origin: Mapping[str, Any]) -> None:
    """Write all tables, and a manifest that says where they come from; each file is whole or as it was.

    Raises:
        OutputError: the folder holds other things, or cannot be written to.
    """
    check_folder(folder)
    try:
        make_directory(folder)
        with whole_file(folder / MANIFEST) as file:
            file.write((json.dumps({VERSION_KEY: ANALYSIS_VERSION, **origin}, indent=1) + "\n").encode())
        for name, schema in TABLES.items():
            with whole_file(table_path(folder, name)) as file:
                pq.write_table(tables[name].cast(schema), file, compression="zstd", write_page_checksum=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror or error}); make room, or name another --output."
        ) from None


def load(folder: Path, table: str) -> "pandas.DataFrame":
    """A table as a frame, in the columns and types of TABLES; integers are pandas' nullable ones.

    Raises:
        UsageError: there is no such table, it is missing, or it cannot be read.
    """
    if table not in TABLES:
        raise UsageError(f"unknown table '{table}'. {did_you_mean(table, TABLES)}")
    path, schema = table_path(folder, table), TABLES[table]
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; raymerge analyze SUITE --output {folder} makes it.")
    if not path.is_file():
        raise UsageError(f"{folder}: has no table {path.name}; raymerge analyze SUITE --output {folder} makes it.")
    try:
        found = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"{path}: cannot be read ({why}); {AGAIN}.") from None
    if missing := [name for name in schema.names if name not in found.column_names]:
        raise UsageError(f"{path}: has no column '{missing[0]}' (another version's?); {AGAIN}.")
    try:
        return to_frame(found.select(schema.names).cast(schema))
    except pa.ArrowException as error:
        raise UsageError(f"{path}: has a column of an unexpected type ({error}); {AGAIN}.") from None


def to_frame(table: pa.Table) -> "pandas.DataFrame":
    """Whole numbers that may be null stay whole."""
    import pandas

    return table.to_pandas(types_mapper={pa.int32(): pandas.Int32Dtype()}.get)
