"""SQL over the results of a sweep: DuckDB sees its tables, and nothing else of the machine."""

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raymerge.errors import UsageError, first_line
from raymerge.folder import Location
from raymerge.results import read_tables

if TYPE_CHECKING:
    import duckdb

READS = {"SELECT", "MULTI"}
"""Kinds of statements that find rows: FROM, WITH, DESCRIBE and SHOW are of the first kind, PIVOT of the second."""

_LOCKED = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "temp_directory": "''",  # what does not fit into memory fails rather than goes to disk
    "enable_external_access": "false",
    "lock_configuration": "true",
}


@dataclass(frozen=True)
class Answer:
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def query(output_dir: Location, sql: str) -> Answer:
    """What one SQL query finds in the tables `evaluations`, `trials`, `summary` and, where stored, `predictions`.

    Rows of uncommitted trials are left out. Times are in UTC. The query can read nothing else and write nothing.

    Raises:
        UsageError: there are no results, DuckDB is not installed, or the SQL is wrong or no query.
    """
    # they are the larger part of a folder
    with _connected(output_dir, predictions="predictions" in sql.lower()) as connection:
        statements = connection.extract_statements(sql)
        if len(statements) != 1:
            raise UsageError(f"the SQL has {len(statements)} statements; give one query.")
        if (kind := statements[0].type.name) not in READS:
            raise UsageError(f"the SQL is a statement of kind {kind}, and only queries are allowed; write a SELECT.")
        return _answer(connection, statements[0])


def _answer(connection: "duckdb.DuckDBPyConnection", statement: "duckdb.Statement") -> Answer:
    """In a thread of its own: in this one, a signal would wait until DuckDB is done."""

    def run() -> Answer:
        connection.execute(statement)
        return Answer(tuple(column[0] for column in connection.description or ()), connection.fetchall())

    with ThreadPoolExecutor(max_workers=1) as pool:
        answer = None
        try:
            answer = pool.submit(run)
            return answer.result()
        except KeyboardInterrupt:
            while answer is not None and not answer.done():  # one that comes before the query begins is forgotten
                connection.interrupt()
                wait([answer], timeout=0.05)
            raise


def describe(output_dir: Location) -> Answer:
    """Every column of every table, with the number of rows of the table.

    Raises:
        UsageError: there are no results, or DuckDB is not installed.
    """
    rows: list[tuple[Any, ...]] = []
    with _connected(output_dir) as connection:
        names = [
            name for (name,) in connection.execute("FROM duckdb_views() SELECT view_name WHERE NOT internal").fetchall()
        ]
        for name in names:
            count = connection.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0]
            columns = connection.execute(f"DESCRIBE {name}").fetchall()
            rows += [(name, count, column, kind) for column, kind, *_ in columns]
    return Answer(("table", "rows", "column", "type"), rows)


@contextmanager
def _connected(output_dir: Location, *, predictions: bool = True) -> "Iterator[duckdb.DuckDBPyConnection]":
    if importlib.util.find_spec("duckdb") is None:
        raise UsageError("queries need the package duckdb, which is not installed: pip install 'raymerge[query]'.")
    import duckdb

    tables = read_tables(output_dir, predictions=predictions)
    with duckdb.connect(":memory:") as connection:
        for name, table in tables.items():
            connection.register(name, _in_utc(table))
        for setting, value in _LOCKED.items():
            connection.execute(f"SET {setting} = {value}")
        try:
            yield connection
        except duckdb.Error as error:
            raise UsageError(
                f"{first_line(error).rstrip('!')}. Without SQL, `raymerge query` lists tables and columns."
            ) from None


def _in_utc(table: pa.Table) -> pa.Table:
    """Times without a zone: DuckDB would show them in that of the machine."""
    for position, column in enumerate(table.schema):
        if pa.types.is_timestamp(column.type):
            table = table.set_column(position, column.name, table[position].cast(pa.timestamp("us")))
    return table
