"""`raymerge query`: SQL over the results of a sweep."""

import csv
import datetime
import decimal
import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymerge.cli_options import Debug, Json
from raymerge.errors import UsageError
from raymerge.streams import errors_told, write, write_json

if TYPE_CHECKING:
    from raymerge.query import Answer

MAX_WIDTH = 60
"""Characters of a value in a table for people; longer ones are cut, but in --json and --csv."""


def query(
    output: Annotated[str, typer.Argument(metavar="DIR", help="Folder of results, or its URI.", show_default=False)],
    sql: Annotated[
        str | None,
        typer.Argument(metavar="SQL", help="One query; without it, tables and columns.", show_default=False),
    ] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Ask the results of a sweep in SQL."""
    with errors_told(debug, interrupted="interrupted."):
        if as_json and as_csv:
            raise UsageError("--json and --csv exclude each other.")
        from raymerge import query as querying  # duckdb and pyarrow take a moment to import

        answer = querying.describe(output) if sql is None else querying.query(output, sql)
        if as_json:
            write_json(objects(answer))
        else:
            write(to_csv(answer) if as_csv else text(answer))


def objects(answer: "Answer") -> list[dict[str, Any]]:
    """A JSON object for every row; what JSON lacks, such as NaN, is null, and a time is ISO 8601."""
    if twice := {name for name in answer.columns if answer.columns.count(name) > 1}:
        raise UsageError(f"several columns are called '{min(twice)}', and an object has one; name them apart with AS.")
    return [dict(zip(answer.columns, map(plain, row), strict=True)) for row in answer.rows]


def to_csv(answer: "Answer") -> str:
    """Full precision, empty where there is no value; lists and objects are JSON."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(answer.columns)
    for row in answer.rows:
        values = map(plain, row)
        writer.writerow(json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for v in values)
    return sink.getvalue()


def text(answer: "Answer") -> str:
    """A table for people: as wide as it needs to be, numbers to the right."""
    return "".join(f"{line.rstrip()}\n" for line in _lines(answer))


def _lines(answer: "Answer") -> Iterator[str]:
    rows = [[_cell(value) for value in row] for row in answer.rows]
    widths = [max(map(len, column)) for column in zip(answer.columns, *rows, strict=True)]
    right = [_is_numeric([row[i] for row in answer.rows]) for i in range(len(answer.columns))]

    def line(cells: Sequence[str]) -> str:
        aligned = zip(cells, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if is_right else cell.ljust(width) for cell, width, is_right in aligned)

    yield line(answer.columns)
    yield "  ".join("-" * width for width in widths)
    yield from map(line, rows)


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(v, int | float | decimal.Decimal) and not isinstance(v, bool) for v in known)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    shown = plain(value)
    written = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    written = " ".join(written.split())
    return written if len(written) <= MAX_WIDTH else f"{written[: MAX_WIDTH - 1]}…"


def plain(value: Any) -> Any:
    """A value of DuckDB as one of JSON."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | decimal.Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value.hex() if isinstance(value, bytes) else str(value)
