"""SQL over results, with the real DuckDB; what it must not reach, and how answers are printed."""

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from stored_answers import CONTEXT, LABELS, model_of, write_results, wrong
from typer.testing import CliRunner

from raymerge import cli, query, results
from raymerge.cli_query import objects, text, to_csv
from raymerge.errors import UsageError
from raymerge.query import Answer

pytest.importorskip("duckdb", reason="the extra `query` is not installed")

ISO_C = model_of("iso-c", {"A": wrong(LABELS["A"], 0, 1, 2), "B": LABELS["B"]})
TIES = model_of("ties", {"A": wrong(LABELS["A"], 4), "B": wrong(LABELS["B"], 1)}, stored=False)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("shared") / "results", ISO_C, TIES)


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return shutil.copytree(shared, tmp_path / "results")


def in_a_process(script: str, environment: dict[str, str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(query.__file__).parent.parent), **environment}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def ask(folder: Path, sql: str) -> list[tuple]:
    return query.query(folder, sql).rows


# --- what is seen ----------------------------------------------------------------------------------------------------


def test_the_tables(folder):
    assert ask(folder, "SELECT method, task, correct FROM evaluations ORDER BY method, task") == [
        ("iso-c", "A", 17),
        ("iso-c", "B", 10),
        ("ties", "A", 19),
        ("ties", "B", 9),
    ]
    assert ask(folder, "FROM trials SELECT trial_id, num_scored ORDER BY ALL") == [("iso-c-test", 2), ("ties-test", 2)]
    ((accuracy,),) = ask(folder, "SELECT test_accuracy FROM summary WHERE method = 'iso-c'")
    assert accuracy == pytest.approx((17 / 20 + 1) / 2)


def test_the_confusions_of_a_model(folder):
    sql = """
        WITH images AS (
            SELECT unnest(predicted) AS predicted, unnest(labels) AS label FROM predictions WHERE task = 'A'
        )
        SELECT label, predicted, count(*) FROM images WHERE label <> predicted GROUP BY ALL ORDER BY ALL
    """
    assert ask(folder, sql) == [(0, 1, 1), (1, 2, 1), (2, 3, 1)]


def test_predictions_where_there_are_any(folder):
    assert "predictions" in {row[0] for row in query.describe(folder).rows}
    shutil.rmtree(folder / "predictions")
    assert {row[0] for row in query.describe(folder).rows} == {"evaluations", "trials", "summary"}
    with pytest.raises(UsageError, match="predictions does not exist"):
        ask(folder, "FROM predictions")


def test_only_rows_that_count(folder):
    """As `results.load`: evaluations whose trial was not written are not there."""
    next((folder / "trials").rglob("part-ties-test.parquet")).unlink()
    assert ask(folder, "SELECT DISTINCT trial_id FROM evaluations") == [("iso-c-test",)]
    assert len(results.load(folder)) == 2


def test_times_are_in_utc_wherever_the_machine_is(folder):
    sql = "SELECT min(finished_at) FROM trials"
    script = f"from raymerge import query; print(query.query({str(folder)!r}, {sql!r}).rows[0][0])"
    assert in_a_process(script, {"TZ": "Asia/Tokyo"}) == "2023-11-14 22:13:20.250000"


def test_a_sweep_without_a_summary_has_the_one_of_its_trials(folder):
    (written,) = ask(folder, "SELECT test_accuracy FROM summary WHERE method = 'ties'")
    shutil.rmtree(folder / "summary")
    assert ask(folder, "SELECT test_accuracy FROM summary WHERE method = 'ties'") == [written]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("WITH t AS (SELECT 3 AS x) SELECT x FROM t", [(3,)]),
        ("VALUES (1, 'a')", [(1, "a")]),
        (
            "PIVOT evaluations ON task USING sum(correct) GROUP BY method ORDER BY method",
            [("iso-c", 17, 10), ("ties", 19, 9)],
        ),
        ("SELECT column_name FROM (DESCRIBE trials) WHERE column_name = 'alpha'", [("alpha",)]),
        ("SELECT 1 WHERE false", []),
    ],
)
def test_queries_of_every_kind(folder, sql, rows):
    assert ask(folder, sql) == rows


def test_columns_are_described(folder):
    described = query.describe(folder)
    assert described.columns == ("table", "rows", "column", "type")
    assert ("evaluations", 4, "correct", "BIGINT") in described.rows
    assert ("predictions", 2, "predicted", "INTEGER[]") in described.rows
    assert ("trials", 2, "finished_at", "TIMESTAMP") in described.rows


# --- what is not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("COPY trials TO '{new}'", "kind COPY"),
        ("COPY (SELECT 1) TO '{new}' (FORMAT parquet)", "kind COPY"),
        ("EXPORT DATABASE '{new}'", "kind EXPORT"),
        ("ATTACH '{new}'", "kind ATTACH"),
        ("CREATE TABLE x AS SELECT 1", "kind CREATE"),
        ("DROP VIEW trials", "kind DROP"),
        ("INSTALL httpfs", "kind LOAD"),
        ("SET enable_external_access = true", "kind SET"),
        ("EXPLAIN ANALYZE COPY trials TO '{new}'", "kind EXPLAIN"),
        ("SELECT * FROM read_text('{there}')", "disabled by configuration"),
        ("SELECT * FROM read_csv('https://example.com/x.csv')", "disabled by configuration"),
        ("SELECT * FROM '{there}'", "disabled by configuration"),
        ("SELECT * FROM glob('/*')", "disabled by configuration"),
        ("SELECT 1; COPY trials TO '{new}'", "2 statements"),
        ("", "0 statements"),
        ("SELCT 1", "syntax error"),
        ("SELECT no_such FROM trials", '"no_such" not found'),
        ("SELECT 'x'::INTEGER", "Could not convert string"),
    ],
)
def test_what_a_query_may_not_do(folder, tmp_path, sql, words):
    there = tmp_path / "there.csv"
    there.write_text("secret\n1\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"^[^\n]*$") as raised:
        query.query(folder, sql.format(new=tmp_path / "new", there=there))
    assert words in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_variables_of_the_process_are_no_tables(folder, monkeypatch):
    monkeypatch.setattr(query, "secret", pa.table({"x": [1]}), raising=False)
    with pytest.raises(UsageError, match="secret does not exist"):
        ask(folder, "FROM secret")


def test_a_query_can_be_interrupted(folder):
    script = f"""
import os, signal, threading
from raymerge import query
signal.signal(signal.SIGINT, signal.default_int_handler)
timer, answer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)), query._answer
query._answer = lambda *arguments: (timer.start(), answer(*arguments))
try:
    query.query({str(folder)!r}, "SELECT count(*) FROM range(1000000000000) a WHERE a.range % 7 = sin(a.range)")
except KeyboardInterrupt:
    print("interrupted")
"""
    assert in_a_process(script, {}) == "interrupted"


def test_without_duckdb(folder, monkeypatch):
    monkeypatch.setattr(query.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'raymerge\[query\]'"):
        query.query(folder, "SELECT 1")


# --- how it is printed -----------------------------------------------------------------------------------------------

ANSWER = Answer(
    ("name", "value", "list"), [("a", 0.1 + 0.2, [1, 2]), ("longer", None, None), ("b\nc", math.nan, list(range(99)))]
)


def test_text():
    first, rule, *rows = text(ANSWER).splitlines()
    assert first == "name    value  list"
    assert rule == f"------  -----  {'-' * 60}"
    assert rows[0] == "a         0.3  [1, 2]"
    assert rows[1] == "longer"
    assert rows[2].startswith("b c")
    assert rows[2].endswith("…")
    assert len(rows[2]) == len(rule)


def test_csv():
    header, *rows = csv.reader(io.StringIO(to_csv(ANSWER)))
    assert header == ["name", "value", "list"]
    assert rows[0] == ["a", "0.30000000000000004", "[1, 2]"]
    assert rows[1] == ["longer", "", ""]
    assert json.loads(rows[2][2]) == list(range(99))


def test_values_of_every_kind_as_json(folder):
    sql = """
        SELECT 0.5 AS decimal, sum(correct) AS huge, DATE '2024-02-01' AS date,
        TIMESTAMP '2024-02-01 10:00:00' AS time, true AS yes, 'nan'::DOUBLE AS nan, {'a': [1, 2]} AS nested,
        INTERVAL 1 DAY AS day, '\\xAB'::BLOB AS blob, NULL AS n
        FROM evaluations
    """
    assert objects(query.query(folder, sql)) == [
        {
            "decimal": 0.5,
            "huge": 55,
            "date": "2024-02-01",
            "time": "2024-02-01T10:00:00",
            "yes": True,
            "nan": None,
            "nested": {"a": [1, 2]},
            "day": "1 day, 0:00:00",
            "blob": "ab",
            "n": None,
        }
    ]


def call(*args: str | Path):
    return CliRunner().invoke(cli.app, [*map(str, args)], prog_name="raymerge", catch_exceptions=False)


def test_the_command(folder):
    sql = "SELECT method, sum(correct) AS correct FROM evaluations GROUP BY ALL ORDER BY ALL"
    assert call("query", folder, sql).stdout == "method  correct\n------  -------\niso-c        27\nties         28\n"
    assert call("query", folder, sql, "--csv").stdout == "method,correct\niso-c,27\nties,28\n"
    assert json.loads(call("query", folder, sql, "--json").stdout) == [
        {"method": "iso-c", "correct": 27},
        {"method": "ties", "correct": 28},
    ]
    assert "predictions     2  labels" in call("query", folder).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such folder"),
        (["{empty}", "SELECT 1"], "no results here"),
        (["{folder}", "SELECT x FROM trials"], "lists tables and columns"),
        (["{folder}", "SELECT 1", "--json", "--csv"], "exclude each other"),
        (["{folder}", "SELECT 1 AS a, 2 AS a", "--json"], "several columns are called 'a'"),
    ],
)
def test_bad_usage(folder, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    done = call("query", *(argument.format(folder=folder, empty=tmp_path / "empty") for argument in arguments))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_elsewhere(folder):
    assert ask(Path(folder), "SELECT count(*) FROM trials") == query.query(f"file://{folder}", "SELECT 2").rows


def test_a_cell_is_as_it_was_written(folder):
    """Columns of partitions are those of the record, not of the folder's names."""
    odd = replace(ISO_C, cell=replace(ISO_C.cell, backbone="a/b c=d%"), trial_id="odd")
    results.ResultsWriter(folder, CONTEXT).append(odd)
    assert ask(folder, "SELECT DISTINCT backbone, num_tasks FROM predictions ORDER BY ALL") == [
        ("a/b c=d%", 2),
        ("vit", 2),
    ]
