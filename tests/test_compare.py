"""Two sweeps compared: what is paired with what, what is refused, and what people and programs read."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored_answers import CONTEXT, LABELS, model_of, write_results, wrong
from typer.testing import CliRunner

from raymerge import cli
from raymerge.compare import CellDifference, Comparison, LeftOut, compare, read_side
from raymerge.errors import UsageError
from raymerge.records import Cell
from raymerge.significance import holm, paired_bootstrap, unpaired

A, B = LABELS["A"], LABELS["B"]

FIRST = model_of("iso-c", {"B": wrong(B, 0, 1, 2, 3, 4, 5, 6), "A": wrong(A, 0, 1)})
SECOND = model_of("iso-c", {"B": B, "A": wrong(A, 1, 2, 3)})
"""Seven images of B and one of A are won, two of A are lost."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    for name, record in (("first", FIRST), ("second", SECOND)):
        write_results(root / name, record)
    return root


@pytest.fixture
def folders(shared: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two that a test may change."""
    first, second = (shutil.copytree(shared / name, tmp_path / name) for name in ("first", "second"))
    return first, second


def compared(first: Path, second: Path, **options) -> Comparison:
    split = options.get("split", "test")
    return compare(read_side(first, split), read_side(second, split), **options)


def only_cell(found: Comparison) -> CellDifference:
    (cell,) = found.cells
    return cell


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_by_hand(folders):
    cell = only_cell(compared(*folders))
    assert (cell.backbone, cell.num_tasks, cell.first_method, cell.second_method) == ("vit", 2, "iso-c", "iso-c")
    assert cell.first_accuracy == pytest.approx((18 / 20 + 3 / 10) / 2)
    assert cell.second_accuracy == pytest.approx((17 / 20 + 10 / 10) / 2)
    assert cell.difference == pytest.approx(0.325)
    assert cell.first_normalized_accuracy == pytest.approx(2 * cell.first_accuracy), "experts are right on half"
    assert cell.kind == "paired"
    one, other = cell.tasks
    assert (one.task, one.images, one.only_first, one.only_second) == ("A", 20, 2, 1)
    assert (other.task, other.images, other.only_first, other.only_second) == ("B", 10, 0, 7)
    assert (one.first_accuracy, one.second_accuracy, other.first_accuracy) == (0.9, 0.85, 0.3)
    assert [one.p, other.p] == pytest.approx([1.0, 2 / 2**7])
    assert [one.holm_p, other.holm_p] == holm([one.p, other.p]) == pytest.approx([1.0, 4 / 2**7])
    expected = paired_bootstrap(np.array([2, 0]), np.array([1, 7]), np.array([20, 10]))
    assert (cell.low, cell.high, cell.p) == (expected.low, expected.high, expected.p)


def test_the_same_run_twice(folders):
    cell = only_cell(compared(folders[0], folders[0]))
    assert (cell.difference, cell.low, cell.high, cell.p) == (0.0, 0.0, 0.0, 1.0)
    assert [(t.only_first, t.only_second, t.p, t.holm_p) for t in cell.tasks] == [(0, 0, 1.0, 1.0)] * 2


def test_exchanging_the_folders_changes_the_signs(folders):
    one, other = only_cell(compared(*folders)), only_cell(compared(*reversed(folders)))
    assert (other.difference, other.low, other.high, other.p) == (-one.difference, -one.high, -one.low, one.p)
    assert [(t.only_second, t.only_first, t.p) for t in other.tasks] == [
        (t.only_first, t.only_second, t.p) for t in one.tasks
    ]


@pytest.mark.parametrize("lacking", ["first", "second", "both"])
def test_without_predictions_an_interval_from_counts(folders, lacking):
    for name, folder in zip(("first", "second"), folders, strict=True):
        if lacking in (name, "both"):
            shutil.rmtree(folder / "predictions")
    found = compared(*folders)
    cell = only_cell(found)
    assert (cell.kind, cell.p) == ("unpaired", None)
    expected = unpaired(np.array([18, 3]), np.array([17, 10]), np.array([20, 10]))
    assert (cell.low, cell.high) == (expected.low, expected.high)
    assert [(t.only_first, t.p, t.holm_p) for t in cell.tasks] == [(None, None, None)] * 2
    (remark,) = found.remarks
    assert "1 of 1 cells" in remark
    assert "--set evaluation.store_predictions=true" in remark
    assert [str(folder) in remark for folder in folders] == [lacking != "second", lacking != "first"]


def test_the_order_of_tasks_does_not_matter(tmp_path, folders):
    scores = tuple(reversed(SECOND.scores))
    other = write_results(tmp_path / "other", replace(SECOND, cell=Cell("vit", ("A", "B"), "iso-c"), scores=scores))
    assert only_cell(compared(folders[0], other)) == only_cell(compared(*folders))


# --- what is compared with what --------------------------------------------------------------------------------------


def test_two_methods_of_one_folder(tmp_path, folders):
    both = write_results(
        tmp_path / "both", FIRST, replace(SECOND, trial_id="other", cell=replace(SECOND.cell, method="iso-cts"))
    )
    found = compared(both, both, methods=("iso-c", "iso-cts"))
    cell, separate = only_cell(found), only_cell(compared(*folders))
    assert (cell.first_method, cell.second_method) == ("iso-c", "iso-cts")
    assert replace(cell, second_method="iso-c") == separate
    assert found.left_out == ()
    assert only_cell(compared(both, both, methods=("iso-cts", "iso-c"))).difference == -cell.difference
    assert only_cell(compared(folders[0], both, methods=("iso-c", "iso-cts"))) == cell
    with pytest.raises(UsageError, match=r"both: no cell of method 'isocts'\. Did you mean 'iso-cts'\? Known: iso-c"):
        compared(both, both, methods=("iso-c", "isocts"))


def test_cells_of_only_one_are_named(tmp_path):
    ties, tsv = (model_of(method, {"A": A, "B": B}) for method in ("ties", "tsv-m"))
    failed = replace(ties, status="failed", scores=(), references={}, error="it is not finite")
    first = write_results(tmp_path / "first", FIRST, ties)
    second = write_results(tmp_path / "second", SECOND, failed, tsv)
    found = compared(first, second)
    assert [cell.first_method for cell in found.cells] == ["iso-c"]
    assert found.left_out == (
        LeftOut("vit", 2, "tsv-m", str(first), "no such cell"),
        LeftOut("vit", 2, "ties", str(second), "it is not finite"),
    )
    printed = call("compare", first, second).stdout
    assert f"Not compared, for {first} has no result (no such cell): vit, 2 tasks: tsv-m\n" in printed
    assert f"Not compared, for {second} has no result (it is not finite): vit, 2 tasks: ties\n" in printed
    with pytest.raises(UsageError, match="no cell has a result on test in both"):
        compare(read_side(first), read_side(second), methods=("ties", "ties"))


def test_a_sweep_that_still_runs(folders):
    for folder in folders:
        shutil.rmtree(folder / "summary")
    assert only_cell(compared(*folders)).kind == "paired"


def test_on_validation_images(tmp_path):
    def swept(name: str, test: int, val: int) -> Path:
        records = [
            model_of("iso-c", {"A": wrong(A, *range(count))}, stored=False, trial_id=split, stage=stage, split=split)
            for stage, split, count in (("test", "test", test), ("search", "val", val))
        ]
        return write_results(tmp_path / name, *records)

    folders = swept("first", 0, 5), swept("second", 0, 10)
    found = compared(*folders, split="val")
    assert (only_cell(found).kind, only_cell(found).difference) == ("unpaired", -0.25)
    assert only_cell(compared(*folders)).difference == 0
    (remark,) = found.remarks
    assert "optimistic" in remark


# --- what must be the same -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"suite": "other"}, "suite is toy in the first and other in the second"),
        ({"profile": "reduced"}, "profile is full in the first and reduced in the second"),
        ({"suite_seed": 1}, "suite_seed is 0 in the first and 1 in the second"),
        ({"suite_seed": None}, "suite_seed is 0 in the first and None in the second"),
    ],
)
def test_different_suites_are_refused(tmp_path, folders, change, words):
    other = write_results(tmp_path / "other", SECOND, context=replace(CONTEXT, **change))
    with pytest.raises(UsageError, match=f"first and .*other: {words}"):
        compared(folders[0], other)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            model_of("iso-c", {"B": B[:8], "A": A}, {"B": B[:8], "A": A}),
            "B has 10 images in the first and 8 in the second",
        ),
        (model_of("iso-c", {"B": B, "A": A}, {"B": B, "A": wrong(A, 3, 4)}), "2 of 20 labels of A differ"),
        (model_of("iso-c", {"B": B, "C": A}, {"B": B, "C": A}), "the tasks A, only the second C"),
    ],
    ids=["number", "labels", "tasks"],
)
def test_different_images_are_refused(tmp_path, folders, record, words):
    other = write_results(tmp_path / "other", record)
    with pytest.raises(UsageError, match=f"vit, 2 tasks, iso-c: .*{words}"):
        compared(folders[0], other)


def test_suites_without_a_seed(tmp_path):
    context = replace(CONTEXT, suite_seed=None)
    folders = [write_results(tmp_path / name, FIRST, context=context) for name in ("first", "second")]
    assert only_cell(compared(*folders)).p == 1.0


def test_other_weights_precision_and_experts_are_told(tmp_path, folders):
    references = {task: replace(reference, expert_accuracy=0.8) for task, reference in SECOND.references.items()}
    other = write_results(
        tmp_path / "other",
        replace(SECOND, references=references),
        context=replace(CONTEXT, suite_fingerprint="f2f2", precision="bf16"),
    )
    weights, precision, experts = compared(folders[0], other).remarks
    assert "f1f1 and f2f2" in weights
    assert precision == "The first is evaluated in fp32, the second in bf16."
    assert "other accuracies of the experts" in experts
    assert compared(*folders).remarks == ()


# --- command line ----------------------------------------------------------------------------------------------------


def call(*args: str | Path):
    return CliRunner().invoke(cli.app, [*map(str, args)], prog_name="raymerge", catch_exceptions=False)


def test_the_table(folders):
    done = call("compare", *folders)
    assert done.exit_code == 0
    assert f"A: {folders[0]}\nB: {folders[1]}\n" in done.stdout
    row = re.search(r"│ vit +│ 2 +│ iso-c +│ +60\.0 \(120\.0\) │ +92\.5 \(185\.0\) │ +\+32\.50 │ (.*)", done.stdout)
    assert row
    cell = only_cell(compared(*folders))
    assert f"{100 * cell.low:+.2f} to {100 * cell.high:+.2f}" in row.group(1)
    assert row.group(1).endswith("│    1, 0 │"), "better on B"
    assert "vit, 2 tasks, iso-c: B is better on B +70.00\n" in done.stdout
    assert "npaired" not in done.stdout


def test_the_table_without_predictions(folders):
    shutil.rmtree(folders[1] / "predictions")
    done = call("compare", *folders)
    assert done.exit_code == 0
    assert re.search(r"to \+[\d.]+\*", done.stdout)
    assert "* Unpaired" in done.stdout
    assert "--set evaluation.store_predictions=true" in done.stdout
    assert "McNemar" not in done.stdout


def test_no_digit_is_lost_on_a_narrow_terminal(folders, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert "…" not in call("compare", *folders).stdout


def test_json(folders):
    done = call("compare", *folders, "--json")
    value = json.loads(done.stdout)
    cell = only_cell(compared(*folders))
    assert value["first"] == str(folders[0])
    assert (value["split"], value["level"], value["bootstrap"]) == ("test", 0.95, {"draws": 10_000, "seed": 0})
    assert value["cells"][0]["p"] == cell.p
    assert [task["only_second"] for task in value["cells"][0]["tasks"]] == [1, 7]


def test_methods_on_the_command_line(tmp_path):
    other = model_of("iso-cts", {"B": B, "A": A})
    both = write_results(tmp_path / "both", FIRST, other)
    done = call("compare", both, "--methods", "iso-c", "iso-cts")
    assert f"A: iso-c, {both}\nB: iso-cts, {both}\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{first}"], "give a second folder, or two methods of this one with --methods A B"),
        (["{first}", "nowhere"], "no such folder"),
        (["{first}", "{empty}"], "no results here"),
        (["{first}", "--methods", "iso-c", "nothing"], "no cell of method 'nothing'"),
        (["{first}", "{second}", "--split", "val"], "no cell has a result on val yet"),
    ],
)
def test_bad_usage(tmp_path, folders, arguments, words):
    (tmp_path / "empty").mkdir()
    places = {"first": folders[0], "second": folders[1], "empty": tmp_path / "empty"}
    done = call("compare", *(argument.format(**places) for argument in arguments))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
