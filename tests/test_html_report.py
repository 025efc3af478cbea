"""The page of a sweep: what it says, that it is whole and harmless, and that it works in a browser."""

import base64
import dataclasses
import errno
import hashlib
import html
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fake_sweep
import pandas as pd
import pyarrow.fs
import pytest
from fake_results import NODE, PUBLISHED_TASKS, near_published, published_suite, write_results
from typer.testing import CliRunner

from raymerge import cli
from raymerge.errors import OutputError, UsageError
from raymerge.folder import Folder
from raymerge.html_report import drawings, save_page
from raymerge.html_report.contents import Contents, read_contents
from raymerge.html_report.page import Page
from raymerge.html_report.plain_tables import MAX_ERROR_CHARACTERS, MAX_FAILURES
from raymerge.html_report.readings import signed
from raymerge.html_report.render import html_page
from raymerge.html_report.rows import Rows, packed
from raymerge.html_report.table1 import Number
from raymerge.records import Cell, Point, TaskReference, TaskScore, TrialRecord
from raymerge.report import Table1
from raymerge.sweep_spec import SweepSpec
from raymerge.verdict import Comparison

HOSTILE = "</script><b>bold</b>\n<img src=x onerror=alert(1)> {{ 7 * 7 }} --> ]]> & \"quoted\" 'too'"

SPEC = {
    "name": "grid",
    "suite": "tall-masks",
    "profile": "paper-legacy",
    "backbones": ["ViT-B-32", "ViT-B-16"],
    "num_tasks": [8, 14],
    "methods": {
        "zero-shot": {},
        "fine-tuned": {},
        "weight-averaging": {},
        "task-arithmetic": {"alpha": [0.2, 0.4, 0.6]},
        "ties": {"alpha": [0.2, 0.6, 0.8]},
        "iso-c": {"alpha": [0.4, 0.6, 0.8]},
        "iso-cts": {"alpha": [0.6], "common_space_fraction": [0.2, 0.5, 0.8]},
    },
    "search": {"policy": "grid", "prune": None},
}
SHIFTS = {"ties": -0.03, "iso-c": 0.01}


def fake_records(spec: SweepSpec, **executor: Any) -> list[TrialRecord]:
    suite = published_suite(spec.backbones or ("ViT-B-32",))
    sweep, records = fake_sweep.start(spec, suite=suite)
    fake_sweep.FakeExecutor(sweep, accuracy=near_published(lambda m: SHIFTS.get(m, 0.0)), waits=False, **executor).run()
    return [
        dataclasses.replace(record, seconds=2.0, images=sum(score.total for score in record.scores), occupancy=0.9)
        for record in records
    ]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Two backbones, 8 and 14 tasks of the published collection; TIES is 3 points off and Iso-C one."""
    folder = tmp_path_factory.mktemp("published") / "grid"
    spec = SweepSpec.model_validate(SPEC)
    write_results(folder, spec, fake_records(spec), published_suite(spec.backbones or ()))
    return folder


@pytest.fixture(scope="module")
def contents(published) -> Contents:
    return read_contents(published)


@pytest.fixture(scope="module")
def page(contents) -> Page:
    return Page.of(contents)


@pytest.fixture(scope="module")
def html_file(published, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    save_page(published, path)
    return path


def record(method: str, alpha: float, correct: Sequence[int], **changes: Any) -> TrialRecord:
    """A trial of the cell (vit, A and B, method): validation, of 100 images a task, experts at 80 of 100."""
    values: dict[str, Any] = {
        "trial_id": f"{method}-{alpha}-{changes.get('split', 'val')}-{changes.get('index', 0)}",
        "cell": Cell("vit", ("A", "B"), method),
        "point": Point(alpha),
        "stage": "search",
        "split": "val",
        "status": "finished",
        "scores": tuple(TaskScore(task, n, 100, 1.5) for task, n in zip(("A", "B"), correct, strict=False)),
        "references": {task: TaskReference(0.8, 0.2) for task in ("A", "B")},
        "images": 100 * len(correct),
        "seconds": 3.0,
        "occupancy": 0.5,
        **changes,
    }
    return TrialRecord(**values)


SMALL = {
    "name": "small",
    "suite": "toy",
    "tasks": ["A", "B"],
    "methods": {
        "iso-c": {"alpha": {"low": 0.5, "high": 1.5, "step": 0.5}},
        "iso-cts": {"common_space_fraction": [0.2, 0.5, 0.8]},
    },
}


def small_contents(tmp_path: Path, records: Sequence[TrialRecord], finished: bool = False) -> Contents:
    suite = dataclasses.replace(fake_sweep.SUITE, name="toy", tasks=tuple(map(_task, ("A", "B"))))
    write_results(tmp_path / "small", SweepSpec.model_validate(SMALL), records, suite, finished=finished)
    return read_contents(tmp_path / "small")


def _task(name: str):
    return dataclasses.replace(fake_sweep.TASKS[0], name=name)


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "published", "tenths", "verdict"),
    [
        (0.708, 0.708, 0, "reproduced"),
        (0.713, 0.708, 5, "reproduced"),
        (0.703, 0.708, -5, "reproduced"),
        (0.7134, 0.708, 5, "reproduced"),  # 71.3 as printed
        (0.7136, 0.708, 6, "close"),  # 71.4 as printed
        (0.702, 0.708, -6, "close"),
        (0.723, 0.708, 15, "close"),
        (0.693, 0.708, -15, "close"),
        (0.724, 0.708, 16, "differs"),
        (0.692, 0.708, -16, "differs"),
        (1.0, 0.0, 1000, "differs"),
    ],
)
def test_verdicts_at_their_limits(accuracy, published, tenths, verdict):
    comparison = Comparison(accuracy, published)
    assert (comparison.difference_tenths, comparison.verdict) == (tenths, verdict)


@pytest.mark.parametrize(
    ("points", "text"), [(0.5, "+0.5"), (-1.25, "−1.2"), (0.0, "0.0"), (-0.04, "0.0"), (0.04, "0.0"), (0.06, "+0.1")]
)
def test_signed_points(points, text):
    assert signed(points) == text


def test_every_cell_is_compared_with_the_published_one(page):
    lines = {line.title: line.cells for line in page.table1.lines}
    assert page.table1.groups == (("ViT-B-32", ("8 tasks", "14 tasks")), ("ViT-B-16", ("8 tasks", "14 tasks")))
    assert page.table1.starts == {0, 2}
    assert lines["Task Arithmetic"][0] == Number(
        "70.8", relative="74.5", published="70.8", difference="0.0", verdict="reproduced"
    )
    assert lines["TIES"][0] == Number("72.1", relative="75.9", published="75.1", difference="−3.0", verdict="differs")
    assert [number.verdict for number in lines["Iso-C"]] == ["close"] * 4
    assert [number.difference for number in lines["Iso-C"]] == ["+1.0"] * 4
    assert page.compared is not None
    assert page.compared.summary == "15 reproduced, 4 close, 9 differ, of 28 averages."
    assert page.lead[-1] == f"Beside the published figures: {page.compared.summary}"
    assert "within 0.5 percentage points" in page.compared.tolerance
    assert "Close: within 1.5." in page.compared.tolerance
    first = page.compared.table.rows[0]
    assert (first[0], first[3][1], first[4][1], first[5][1], first[6]) == (
        "Zero-shot",
        "48.3",
        "57.2",
        "−8.9",
        "differs",
    )  # 48.3 is the average over 8 tasks, which the made-up zero-shot model has on all of them
    differences = [abs(row[5][0]) for row in page.compared.table.rows]
    assert differences == sorted(differences, reverse=True)


def test_without_published_figures_nothing_is_compared(tmp_path):
    page = Page.of(small_contents(tmp_path, [record("iso-c", 1.0, (60, 40))]))
    text = html_page(page)
    assert page.compared is None
    assert "compared" not in re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    assert 'class="published"' not in text


def test_best_and_second_best_are_those_of_the_table(page, contents):
    column = contents.table.columns[0]
    for method, line in zip(contents.table.methods, page.table1.lines, strict=True):
        assert line.cells[0].rank == contents.table.ranks(column).get(method)
    where = "on ViT-B-32 ({0} tasks), ViT-B-16 ({0} tasks)"
    assert page.lead[0] == f"Best on test: Iso-C {where.format(8)}; Iso-CTS {where.format(14)}."


def test_where_a_method_is_best():
    frame = pd.DataFrame([_row("iso-c", b, n, 0.5) for b in ("X", "Y") for n in (8, 14)])
    frame = pd.concat([frame, pd.DataFrame([_row("ties", "X", 8, 0.6), _row("ties", "Y", 8, 0.4)])])
    table = Table1.from_summary(frame)
    assert _lead_of(table) == "Best on test: Iso-C on X (14 tasks), Y; TIES on X (8 tasks)."
    one = Table1.from_summary(frame[frame["backbone"] == "X"])
    assert _lead_of(one) == "Best on test: TIES on 8 tasks; Iso-C on 14 tasks."


def _lead_of(table: Table1) -> str:
    from raymerge.html_report.page import _lead

    return _lead(table)[0]


def _row(method: str, backbone: str, num_tasks: int, accuracy: float) -> dict[str, Any]:
    numbers = ("val_accuracy", "val_normalized_accuracy", "test_normalized_accuracy")
    published = ("published_accuracy", "published_normalized_accuracy")
    return {
        "method": method,
        "backbone": backbone,
        "num_tasks": num_tasks,
        "status": "finished",
        "error": None,
        "alpha": 1.0,
        "test_accuracy": accuracy,
        **dict.fromkeys((*numbers, *published)),
    }


# --- rows behind the charts ------------------------------------------------------------------------------------------


def test_searches_by_hand(tmp_path):
    params = [{"common_space_fraction": fraction} for fraction in (0.2, 0.5, 0.2, 0.5)]
    found = [
        record("iso-cts", 1.0, (40, 40), point=Point(1.0, params[0]), index=0),
        record("iso-cts", 1.0, (60, 60), point=Point(1.0, params[1]), index=1),
        record("iso-cts", 2.0, (80,), point=Point(2.0, params[2]), index=0, generation=1, status="pruned"),
        record("iso-cts", 2.0, (50, 52), point=Point(2.0, params[3]), index=1, generation=1),
        record("iso-c", 0.5, (10, 10), index=1),
        record("iso-c", 1.5, (70, 74), index=0),
    ]
    rows = Rows.of(small_contents(tmp_path, found[::-1]))
    cts = [row for row in rows.trials if row["method"] == "Iso-CTS"]
    assert [row["number"] for row in cts] == [1, 2, 4], "the third was stopped early and counts"
    assert [row["value"] for row in cts] == [50.0, 75.0, 63.75], "of 80"
    assert [row["accuracy"] for row in cts] == [40.0, 60.0, 51.0]
    assert [row["best"] for row in cts] == [50.0, 75.0, 75.0]
    assert [row["on_line"] for row in cts] == [False, True, True]
    assert [row["chosen"] for row in cts] == [False, True, False]
    assert cts[1]["parameters"] == "common_space_fraction 0.5"
    iso = [row for row in rows.trials if row["method"] == "Iso-C"]
    assert [(row["alpha"], row["chosen"], row["end"]) for row in iso] == [(1.5, True, "upper"), (0.5, False, None)]
    assert [(r["setting"], r["value"], r["alpha"], r["trials"], r["chosen"], r["end"]) for r in rows.parameters] == [
        (0.2, 50.0, 1.0, 1, False, None),
        (0.5, 75.0, 1.0, 2, True, None),
    ]


def test_a_chosen_parameter_at_the_end_of_its_range(tmp_path):
    found = [
        record("iso-cts", 1.0, (n, n), point=Point(1.0, {"common_space_fraction": fraction}), index=index)
        for index, (fraction, n) in enumerate([(0.2, 40), (0.5, 50), (0.8, 60)])
    ]
    page = Page.of(small_contents(tmp_path, found))
    assert [row["end"] for row in page.rows.parameters] == [None, None, "upper"]
    assert page.warnings == (
        "iso-cts on vit, 2 tasks: common_space_fraction 0.8 is the upper end of its search range (0.2 to 0.8); widen "
        "methods.iso-cts.common_space_fraction.",
    )
    assert any(alert.startswith("1 chosen value lies at the end") for alert in page.alerts)
    (figure,) = [figure for figure in page.figures if figure.name == "parameter-common_space_fraction"]
    assert figure.readings == (
        "Iso-CTS between 50.0 and 75.0 % over 3 values of common_space_fraction; chosen: 0.8, with alpha 1 (the upper "
        "end of its range).",
    )


def test_accuracies_by_task_are_those_of_the_chosen_test_trial(tmp_path):
    found = [
        record("iso-c", 0.5, (10, 10), index=0),
        record("iso-c", 1.0, (70, 74), index=1),
        record("iso-c", 1.0, (60, 40), split="test", stage="test", finished_at=2.0),
        record("iso-c", 0.5, (1, 2), split="test", stage="test", finished_at=3.0),
        record("fine-tuned", 1.0, (90, 91), split="test", stage="reference"),
    ]
    contents = small_contents(tmp_path, found)
    rows = [(r["kind"], r["method"], r["task"], r["accuracy"], r["relative"]) for r in Rows.of(contents).tasks]
    assert rows == [
        ("reference", "Zero-shot", "A", 20.0, None),  # as the trials were told
        ("reference", "Zero-shot", "B", 20.0, None),
        ("reference", "Fine-tuned", "A", 90.0, None),  # as measured
        ("reference", "Fine-tuned", "B", 91.0, None),
        ("merged", "Iso-C", "A", 60.0, 75.0),
        ("merged", "Iso-C", "B", 40.0, 50.0),
    ]
    figure = Page.of(contents).figures[0]
    assert figure.readings == (
        "Iso-C: 50.0 % on average. Furthest below the experts, in points: B (−51.0), A (−30.0).",
    )


def test_costs_by_hand(tmp_path):
    taken_over = record("iso-c", 0.5, (10, 10))
    found = [
        record("iso-c", 0.5, (10, 10), index=0),
        record("iso-c", 1.0, (50,), index=1, status="pruned", occupancy=1.0),
        record("iso-c", 1.5, (), index=2, status="failed", error="boom", images=0, occupancy=None),
        dataclasses.replace(taken_over, cell=Cell("vit", ("A", "B"), "iso-c"), trial_id="again", images=0, index=3),
    ]
    page = Page.of(small_contents(tmp_path, found))
    assert [(r["outcome"], r["trials"], r["images"], r["evaluator_s"]) for r in page.rows.costs] == [
        ("finished", 2, 200, 3.0),  # the scores of the second were taken over
        ("stopped early", 1, 100, 1.5),
        ("failed", 1, 0, 0.0),
    ]
    (line,) = page.costs.rows
    assert [value[1] for value in line[1:]] == ["2", "1", "1", "300", "4.5", "3.00", "66.7"]
    assert page.costs.total is not None
    assert page.costs.total[1:] == line[1:]
    assert page.costs_figure is not None
    assert page.costs_figure.readings == ("300 images in all; most for Iso-C: 100 %.",)


def test_packed_rows_are_the_rows(page):
    for name in ("tasks", "trials", "parameters", "costs"):
        rows = getattr(page.rows, name)
        found = packed(rows)
        assert [dict(zip(found["fields"], values, strict=True)) for values in found["rows"]] == rows


def test_the_first_view(page, contents):
    assert page.columns == ("ViT-B-32, 8 tasks", "ViT-B-32, 14 tasks", "ViT-B-16, 8 tasks", "ViT-B-16, 14 tasks")
    assert page.columns[page.column] == "ViT-B-32, 14 tasks", "the most tasks, the first backbone"
    ranks = contents.table.ranks(contents.table.columns[page.column])
    assert set(page.shown) == {contents.table.title(method) for method in ranks}
    assert [figure.name for figure in page.figures] == ["tasks", "alphas", "parameter-common_space_fraction", "history"]


def test_warnings_are_those_of_the_table_and_shown_in_the_curves(page, contents):
    assert page.warnings[:4] == contents.table.warnings, "alpha 0.6 ends the range of Task Arithmetic"
    assert [warning.partition(":")[0] for warning in page.warnings[4:]] == [  # all fractions are as good here
        f"iso-cts on {backbone}, {n} tasks" for backbone in ("ViT-B-32", "ViT-B-16") for n in (8, 14)
    ]
    assert {(row["method"], row["end"]) for row in page.rows.trials if row["end"]} == {("Task Arithmetic", "upper")}
    alphas = page.figures[1]
    assert "Task Arithmetic 0.6 (the upper end of its range)" in alphas.readings[0]
    assert any(alert.startswith("8 chosen values lie at the end") for alert in page.alerts)


def test_every_method_looks_alike_in_every_chart_and_references_are_not_coloured():
    spec = drawings.alphas(["TIES", "Iso-C"], "accuracy")
    (scale,) = {
        json.dumps(layer["encoding"]["color"]["scale"]) for layer in spec["layer"] if "color" in layer["encoding"]
    }
    bars = drawings.bars(["Iso-C", "TIES"], 100)["layer"][0]["encoding"]["color"]["scale"]
    assert dict(zip(bars["domain"], bars["range"], strict=True)) == dict(
        zip(json.loads(scale)["domain"], json.loads(scale)["range"], strict=True)
    )
    names = {param["name"]: param["value"] for param in spec["params"]}
    assert names["dashes"]["TIES"] != names["dashes"]["Iso-C"]


# --- sweeps of all kinds ---------------------------------------------------------------------------------------------


def test_an_interrupted_sweep_has_a_page(tmp_path):
    spec = SweepSpec.model_validate({**SPEC, "backbones": ["ViT-B-32"], "num_tasks": [8]})
    records = [r for r in fake_records(spec) if r.stage != "test"]
    write_results(tmp_path / "killed", spec, records, published_suite(("ViT-B-32",)), finished=False)
    page = Page.of(read_contents(tmp_path / "killed"))
    assert page.alerts[0].startswith("This sweep has not finished (")
    assert [figure.name for figure in page.figures] == ["alphas", "parameter-common_space_fraction", "history"]
    assert {row[3] for row in page.failed_cells.rows} == {"missing"}
    assert page.runs.rows[0][2] == "unknown", "a killed driver"
    assert "its test trial has not run" in html_page(page)


def test_a_sweep_of_failures_has_a_page(tmp_path):
    found = [
        record("iso-c", alpha, (), index=index, status="failed", error=error)
        for index, (alpha, error) in enumerate([(0.5, HOSTILE), (1.0, HOSTILE), (1.5, "x" * 5000)])
    ]
    page = Page.of(small_contents(tmp_path, found))
    assert not page.figures
    assert page.lead == ()
    assert [(row[5], row[4][1]) for row in page.failed_trials.rows] == [(2, "0.5 to 1"), (1, "1.5")]
    assert page.failed_trials.rows[0][6] == HOSTILE
    assert page.failed_trials.rows[1][6] == "x" * MAX_ERROR_CHARACTERS + "… (3,000 more characters)"
    text = html_page(page)
    assert '<h2 id="columns-title"' not in text
    assert "Every cell has a result" not in text


def test_many_reasons_are_counted(tmp_path, contents):
    failed = pd.DataFrame(
        {**contents.trials.iloc[0].to_dict(), "status": "failed", "error": f"reason {i}", "finished_at": i}
        for i in range(MAX_FAILURES + 5)
    )
    page = Page.of(dataclasses.replace(contents, trials=failed))
    assert len(page.failed_trials.rows) == MAX_FAILURES
    assert page.failed_trials.caption.endswith("5 more are in the results.")


def test_other_file_systems(tmp_path):
    small_contents(tmp_path, [record("iso-c", 0.5, (40, 40), index=0), record("iso-c", 1.0, (50, 52), index=1)])
    store = Folder(pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem()), "small", "mem")
    places = (store, f"file://{tmp_path}/small", tmp_path / "small")
    pages = [html_page(Page.of(read_contents(place))) for place in places]
    assert "<dd>mem://small</dd>" in pages[0]
    assert len({re.sub(r"<dd>\S*small</dd>", "", page) for page in pages}) == 1


def test_provenance(page, published, html_file):
    facts = dict(page.provenance)
    manifest = json.loads((published / "manifest.json").read_text())
    assert facts["Results"] == str(published)
    assert facts["Hash of the sweep"] == manifest["spec_hash"]
    assert facts["Fingerprint of weights, heads and images"] == "f1f1"
    assert f"torch {manifest['versions']['torch']}" in facts["Versions"]
    assert page.nodes.rows == ((NODE["host"], (16.0, "16"), (2.0, "2"), "H200", "as the driver"),)
    assert page.runs.rows[0][4:] == ((2, "2"), (1000, "1,000"), (90.0, "90.0"), (100.0, "100.0"), (0.9, "90.0"))
    assert page.remarks == ("evaluators were busy 90.0 % of the time (1 run, 2 evaluators)",)
    from ruamel.yaml import YAML

    assert YAML(typ="safe").load(page.spec) == manifest["spec"]
    assert list(YAML(typ="safe").load(page.spec)) == list(manifest["spec"]), "in the order of the manifest"


def test_the_largest_sweep_is_a_light_page(contents):
    """81 cells of 60 trials each."""
    template = contents.trials[contents.trials["stage"] == "search"].iloc[0].to_dict()
    methods = ["task-arithmetic", "ties", "consensus-ta", "tsv-m", "iso-c", "iso-cts", "scale-svd", "iso-iasad", "x"]
    cells = [(m, b, n) for m in methods for b in ("ViT-B-32", "ViT-B-16", "ViT-L-14") for n in (8, 14, 20)]
    trials = pd.DataFrame(
        template
        | {"trial_id": f"{cell}{i}", "method": m, "backbone": b, "num_tasks": n, "index": i, "generation": 0}
        | {"alpha": (alpha := 0.0512345 * i), "point": json.dumps({"alpha": alpha, "common_space_fraction": i / 60})}
        | {"objective_value": 0.5 + i / 200, "average_accuracy": 0.4 + i / 200}
        for cell, (m, b, n) in enumerate(cells)
        for i in range(60)
    )
    summary = pd.DataFrame(_row(method, backbone, n, 0.7) for method, backbone, n in cells)
    page = Page.of(dataclasses.replace(contents, trials=trials, table=Table1.from_summary(summary)))
    assert len(page.rows.trials) == 4860
    size = len(html_page(page).encode())
    assert size < 2_000_000, size


# --- untrusted text, and nothing from elsewhere ----------------------------------------------------------------------


class _Tags(HTMLParser):
    """Every tag with its attributes, and the text that is not of a script or style."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._inside: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = (tag, dict(attrs)) if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside and self._inside[0] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif not self._inside:
            self.texts.append(data)


def test_text_of_results_is_text(contents):
    """A hostile name of everything that a name can be given to."""
    hostile = HOSTILE.replace("/", "")  # for a method, which is a folder name

    def renamed(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame[frame["num_tasks"] == 8].copy()
        frame["method"] = frame["method"].replace("iso-c", hostile)
        frame["backbone"] = HOSTILE
        frame["tasks"] = [[HOSTILE, *tasks[1:]] for tasks in frame["tasks"]]
        if "task" in frame:
            frame["task"] = frame["task"].replace("Cars", HOSTILE)
        else:
            frame["error"] = HOSTILE
            frame.loc[frame.index[-1], "status"] = "failed"
        return frame

    summary = pd.DataFrame(
        [
            _row("ties", HOSTILE, 8, 0.7) | {"alpha": 0.6, "keep": 0.2},
            _row(hostile, HOSTILE, 8, 0.6) | {"alpha": 0.6},
            _row("iso-cts", HOSTILE, 8, 0.5) | {"status": "failed", "error": HOSTILE, "test_accuracy": None},
        ]
    )
    spec = {**contents.manifest["spec"], "name": HOSTILE, "weights": HOSTILE}
    manifest = {**contents.manifest, "sweep": HOSTILE, "spec": spec, "git_revision": HOSTILE, "hosts": [HOSTILE]}
    page = Page.of(
        dataclasses.replace(
            contents,
            table=dataclasses.replace(Table1.from_summary(summary), warnings=(HOSTILE,), remarks=(HOSTILE,)),
            trials=renamed(contents.trials),
            evaluations=renamed(contents.evaluations),
            manifest=manifest,
            explanation=HOSTILE,
            location=HOSTILE,
            verdict="failed",
        )
    )
    text = html_page(page)
    found = _Tags(text)
    names = [tag for tag, _ in found.tags]
    assert "img" not in names
    assert names.count("script") == len(found.scripts) == 4
    assert all(not name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert {attributes.get("class") for tag, attributes in found.tags if tag == "b"} == {"best"}
    visible = " ".join(" ".join(found.texts).split())
    assert visible.count(" ".join(HOSTILE.split())) > 8
    assert "49" not in re.findall(r"onerror=alert\(1\)> (\S+)", visible), "not a template in a template"
    data = json.loads(found.scripts[0][1])
    assert {row["task"] for row in _unpacked(data["rows"]["tasks"])} >= {HOSTILE}
    assert {row["method"] for row in _unpacked(data["rows"]["trials"])} >= {hostile}
    for figure in data["figures"]:  # names are data of charts, never expressions
        assert "onerror" not in " ".join(_expressions(figure["charts"]))


def _unpacked(rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(rows["fields"], values, strict=True)) for values in rows["rows"]]


def _expressions(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _expressions(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _expressions(inner, key)
    elif key in ("filter", "calculate", "expr"):
        yield value


def test_the_page_loads_nothing_and_its_policy_runs_nothing_else(html_file):
    text = html_file.read_text()
    found = _Tags(text)
    for tag, attributes in found.tags:
        assert not {"src", "srcset", "action", "data", "poster", "background", "style"} & set(attributes), tag
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
        assert (attributes.get("href") or "#").startswith("#")
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for attributes, script in found.scripts
        if attributes.get("type") != "application/json"
    ]
    assert directives["script-src"].split() == hashes
    assert len(hashes) == 3
    vega = next(script for _, script in found.scripts if "vegaEmbed" in script and len(script) > 100_000)
    rest = text.replace(vega, "")
    assert not re.findall(r"https?://", rest)


# --- writing it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (
            "report.pdf",
            UsageError,
            r"report\.pdf: ends in '\.pdf', expected the name of a page, such as report\.html\.",
        ),
        ("report", UsageError, "report: has no ending"),
        ("s3://bucket/report.html", UsageError, r"s3://bucket/report\.html: is a URI, expected a local file"),
        ("nowhere/report.html", OutputError, "there is no folder nowhere; make it"),
        ("folder.html", OutputError, "folder.html: is a folder, expected the name of a file"),
    ],
)
def test_places_where_no_page_can_be(path, error, message, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.html").mkdir()
    with pytest.raises(error, match=message):
        save_page(published, path)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.html"]


def test_a_page_is_whole_or_as_it_was(tmp_path, monkeypatch):
    small_contents(tmp_path, [record("iso-c", 0.5, (40, 40))])
    path = tmp_path / "page" / "report.html"
    path.parent.mkdir()
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\).*with --html"):
            save_page(tmp_path / "small", path)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    save_page(tmp_path / "small", path)
    assert path.read_text().startswith("<!DOCTYPE html>")


def call(*args: str):
    return CliRunner().invoke(cli.app, args, prog_name="raymerge", catch_exceptions=False)


def test_command_line(published, html_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("report", str(published), "--html", "report.html")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "page: report.html\n", "")
    assert Path("report.html").read_text() == html_file.read_text()
    both = call("report", str(published), "--html", "other.html", "--format", "md")
    assert (both.exit_code, both.stdout) == (2, "")
    assert both.stderr == "error: --html writes a page and --format md prints a table; give one of them.\n"
    nothing = call("report", "nowhere", "--html", "other.html")
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert "no such folder" in nothing.stderr
    assert not Path("other.html").exists()


def test_html_is_well_formed_and_accessible(html_file):
    text = html_file.read_text()
    found = _Tags(text)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids
    names = [tag for tag, _ in found.tags]
    assert names.count("h1") == names.count("main") == names.count("nav") == 1
    levels = [int(name[1]) for name in names if re.fullmatch(r"h\d", name)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert names.count("table") == names.count("caption")
    assert dict(found.tags)["html"] == {"lang": "en"}
    assert html.unescape("&minus;") in text


# --- in a browser ----------------------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Any]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    service = shutil.which("chromedriver")
    if browser is None or service is None:
        pytest.skip("no chromium and chromedriver here")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(service))
    try:
        yield started
    finally:
        started.quit()


def opened(driver: Any, path: Path, width: int = 1280) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(path.as_uri())
    WebDriverWait(driver, 60).until(lambda d: d.execute_script("return document.documentElement.dataset.drawn"))
    return driver


def texts(driver: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())"
    return driver.execute_script(script, selector)


def wait_for(driver: Any, condition: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 20).until(condition)


def test_the_page_draws_its_charts_and_says_nothing_to_the_console(driver, html_file):
    opened(driver, html_file)
    assert [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]] == []
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert (
        driver.execute_script("return [...document.querySelectorAll('.chart')].map(e => !!e.querySelector('svg'))")
        == [True] * 6
    )
    assert set(PUBLISHED_TASKS[:14]) <= set(texts(driver, "#tasks svg text"))
    labels = driver.execute_script(
        "return [...document.querySelectorAll('.chart')].map(e => e.getAttribute('aria-label'))"
    )
    assert all(label.endswith("The data is in the table below.") for label in labels)
    assert "end of range" in texts(driver, "#alphas svg text")


def test_bars_and_corners_are_where_the_accuracies_are(driver, html_file, page):
    opened(driver, html_file)
    rows = [r for r in page.rows.tasks if r["column"] == page.column and r["method"] in page.shown]
    highest = 100  # what both axes end at
    marks = """
      const all = (chart, what) => [...document.querySelectorAll(`#tasks .chart:nth-child(${chart}) ${what}`)];
      const width = (chart) => all(chart, ".root .background")[0].getBBox().width;
      const at = (path) => path.getAttribute("transform").match(/[-\\d.]+/g).map(Number);
      const bars = all(1, ".mark-rect.role-mark > path").map((bar) => bar.getBBox().width);
      return [bars, width(1), all(2, ".mark-symbol.role-mark > path").map(at), width(2)];
    """
    bars, bars_width, corners, radar_width = driver.execute_script(marks)
    lengths = [row["accuracy"] / highest * bars_width for row in rows]
    assert sorted(bars) == pytest.approx(sorted(lengths), abs=0.5)
    radius = radar_width / (2 * drawings.HALF_WIDTH)
    places = []
    for row in rows:  # clockwise from the top
        angle, share = 2 * math.pi * row["position"] / row["count"], row["accuracy"] / highest
        x = radar_width / 2 + radius * share * math.sin(angle)
        places.append((x, radius * (drawings.HALF_HEIGHT - share * math.cos(angle))))
    assert sorted(map(tuple, corners)) == [pytest.approx(place, abs=0.5) for place in sorted(places)]


def test_tables_sort_by_click_and_by_key(driver, html_file):
    from selenium.webdriver.common.keys import Keys

    opened(driver, html_file)
    rows = "#table1 table.sortable tbody:last-of-type tr th"
    button = driver.find_element("css selector", "#table1 table.sortable thead tr:last-child th:nth-child(2) button")
    header = "#table1 table.sortable thead tr:last-child th:nth-child(2)"
    before = texts(driver, rows)
    accuracy = {"Weight Averaging": 64.3, "Task Arithmetic": 65.3, "TIES": 65.0, "Iso-C": 81.3, "Iso-CTS": 81.7}
    assert set(before) == set(accuracy)
    button.click()
    assert texts(driver, rows) == sorted(accuracy, key=lambda name: -accuracy[name])
    assert driver.find_element("css selector", header).get_attribute("aria-sort") == "descending"
    assert texts(driver, "#table1 tbody.references th") == ["Zero-shot", "Fine-tuned"], "references stay on top"
    driver.execute_script("arguments[0].focus()", button)
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert texts(driver, rows) == sorted(accuracy, key=lambda name: accuracy[name])
    assert driver.find_element("css selector", header).get_attribute("aria-sort") == "ascending"
    assert driver.execute_script("return document.querySelectorAll('#table1 [aria-sort]').length") == 1


def test_numbers_sort_as_numbers_words_as_words_and_gaps_come_last(driver, html_file):
    opened(driver, html_file)
    script = """
      const columns = [{title: "Name", kind: "text"}, {title: "Value", kind: "number", digits: 1}];
      const table = reportTables.make("t", columns, [["b", 10], ["a", null], ["B10", 9], ["B9", -1]]);
      document.body.append(table);
      const seen = [];
      for (const head of [1, 1, 0, 0]) {
        table.querySelectorAll("thead button")[head].click();
        seen.push([...table.tBodies[0].rows].map((row) => row.cells[0].textContent));
      }
      table.remove();
      return seen;
    """
    assert driver.execute_script(script) == [
        ["b", "B10", "B9", "a"],
        ["B9", "B10", "b", "a"],
        ["a", "b", "B9", "B10"],
        ["B10", "B9", "b", "a"],
    ]


def test_another_column_is_drawn_from_the_keyboard(driver, html_file):
    from selenium.webdriver.common.keys import Keys

    opened(driver, html_file)
    reading = texts(driver, "#tasks .reading")[0]
    driver.find_element("css selector", "#tasks details.data summary").click()
    wait_for(driver, lambda d: len(texts(d, "#tasks table tbody tr")) == 14)
    driver.find_element("id", "column").send_keys(Keys.ARROW_DOWN)  # ViT-B-16, 8 tasks
    wait_for(
        driver, lambda d: "EMNIST" not in texts(d, "#tasks svg text") and "STL10" not in texts(d, "#tasks svg text")
    )
    assert set(PUBLISHED_TASKS[:8]) <= set(texts(driver, "#tasks svg text"))
    assert texts(driver, "#tasks table tbody tr th") == PUBLISHED_TASKS[:8]
    assert texts(driver, "#tasks .reading")[0] != reading
    assert texts(driver, "#tasks table thead th")[:3] == ["Task", "Zero-shot", "Fine-tuned"]
    assert texts(driver, "#tasks table caption") == ["Task by task: ViT-B-16, 8 tasks"]


def test_the_methods_drawn_are_chosen(driver, html_file):
    opened(driver, html_file)
    count = "return document.querySelectorAll('#tasks .chart:first-child .mark-rect path').length"
    assert driver.execute_script(count) == 28  # two methods on 14 tasks
    driver.find_element("css selector", "#shown input[value='TIES']").click()
    wait_for(driver, lambda d: d.execute_script(count) == 42)
    assert "TIES" in texts(driver, "#tasks .chart:first-child .role-legend text")


def test_a_tooltip_appears(driver, html_file):
    from selenium.webdriver import ActionChains

    opened(driver, html_file)
    bar = driver.find_element("css selector", "#tasks .mark-rect path")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", bar)
    ActionChains(driver).move_to_element(bar).perform()
    wait_for(driver, lambda d: d.find_elements("css selector", "#vg-tooltip-element.visible"))
    tip = driver.find_element("id", "vg-tooltip-element").text
    assert "Task" in tip
    assert re.search(r"Test accuracy \(%\):?\s+\d+\.\d", tip)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_never_wider_than_the_screen(width, driver, html_file):
    opened(driver, html_file, width)
    driver.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
    wait_for(driver, lambda d: d.execute_script("return document.querySelectorAll('details table').length") >= 6)
    sizes = driver.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert sizes == [width, width] or (sizes[0] == sizes[1] <= width)


CONTRAST = """
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    if (["SCRIPT", "STYLE"].includes(e.tagName) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const ink = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push([e.tagName, e.textContent.slice(0, 30), ink]);
  }
  return low;
"""


def test_text_has_contrast_and_controls_have_names(driver, html_file):
    opened(driver, html_file)
    assert driver.execute_script(CONTRAST) == []
    unnamed = """
      return [...document.querySelectorAll("button, select, input, summary, a[href]")]
        .filter((e) => !(e.textContent.trim() || e.labels?.length || e.getAttribute("aria-label")))
        .map((e) => e.outerHTML);
    """
    assert driver.execute_script(unnamed) == []


def test_a_hostile_page_does_nothing(driver, tmp_path):
    found = [
        record("iso-c", 0.5, (40, 40), index=0),
        record("iso-c", 1.0, (50, 52), index=1),
        record("iso-c", 1.0, (), index=0, stage="test", split="test", status="failed", error=HOSTILE),
    ]
    save_page_of(small_contents(tmp_path, found), tmp_path / "report.html")
    opened(driver, tmp_path / "report.html")
    assert [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]] == []
    assert HOSTILE in driver.execute_script("return document.body.textContent")
    assert driver.execute_script("return document.querySelectorAll('main b:not(.best), img').length") == 0


def save_page_of(contents: Contents, path: Path) -> None:
    path.write_text(html_page(Page.of(contents)))
