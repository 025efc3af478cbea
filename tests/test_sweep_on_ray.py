"""Whole sweeps as a user runs them: the command line, real Ray, a tiny suite on disk; killed, interrupted, broken."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from made_once import made_once
from sweep_process import Runner, assert_same_as_serial, comparable, serial_records
from tiny_suite import tiny_moments, tiny_suite

from raymerge import results
from raymerge.images import open_images
from raymerge.records import TrialRecord
from raymerge.selection import select_best
from raymerge.suites import Suite, open_suite

pytestmark = pytest.mark.ray

STORE = ("--set", "evaluation.store_predictions=true")
METHODS = [
    "zero-shot",
    "fine-tuned",
    "weight-averaging",
    "task-arithmetic",
    "ties",
    "consensus-ta",
    "scale-svd",
    "tsv-m",
    "iso-c",
    "iso-cts",
    "iso-iasad",
]
SPEC = """\
name: tiny
suite: {suite}
num_tasks: [2, 4]
methods: [{methods}]
moments: {suite}/moments
search: {{trials: 6, batch: 3, prune: {{after: 0.25, margin: 0.1}}}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite, a sweep file, and its results on two evaluators that nobody disturbed, with predictions."""

    def make(folder: Path) -> None:
        suite = tiny_suite(folder / "suite", num_tasks=4)
        assert open_suite(suite.root) == suite
        tiny_moments(suite, suite.root / "moments")
        spec_file = folder / "tiny.yaml"
        spec_file.write_text(SPEC.format(suite=suite.root, methods=", ".join(METHODS)))
        output = folder / "undisturbed"
        code, stdout, stderr = Runner(
            spec_file, output, folder / "home", "--set", "resources.evaluators=2", *STORE
        ).wait()
        assert code == 0, stderr
        assert "Iso-CTS" in stdout
        assert str(output) in stdout

    return made_once(tmp_path_factory, "sweep-on-ray", make)


@pytest.fixture(scope="module")
def suite(world: Path) -> Suite:
    return open_suite(world / "suite")


@pytest.fixture(scope="module")
def home(world: Path) -> Path:
    """One merge cache for all: which merges are cached must not matter."""
    return world / "home"


@pytest.fixture(scope="module")
def spec_file(world: Path) -> Path:
    return world / "tiny.yaml"


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> Path:
    return world / "undisturbed"


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the results to run on."""
    return Path(shutil.copytree(undisturbed, tmp_path / "finished"))


@pytest.fixture(scope="module")
def serial(suite: Suite, spec_file: Path) -> dict[str, TrialRecord]:
    return serial_records(spec_file, suite)


def test_sweep_equals_the_serial_twin(undisturbed: Path, serial: dict[str, TrialRecord]) -> None:
    assert_same_as_serial(undisturbed, serial)


def test_predictions_are_those_that_were_counted(undisturbed: Path, suite: Suite) -> None:
    counts = results.load(undisturbed).query("split == 'test'").set_index(["trial_id", "task"])["correct"]
    rows = results.load(undisturbed, "predictions")
    assert len(rows) == len(counts) > 0
    for _, row in rows.iterrows():
        assert (row.predicted == row.labels).sum() == counts[row.trial_id, row.task]
        images = open_images(suite.images_path(row.task, "test"))
        assert row.labels.tolist() == images.labels().tolist()


def test_summary_recomputed_from_evaluations_by_plain_pandas(undisturbed: Path) -> None:
    evaluations = pd.read_parquet(undisturbed / "evaluations")
    summary = pd.read_parquet(undisturbed / "summary")
    assert len(summary) == 2 * len(METHODS)
    for _, row in summary.iterrows():
        test = evaluations[evaluations.trial_id == row.test_trial_id]
        assert len(test) == row.num_tasks
        assert (test.split == "test").all()
        assert row.test_accuracy == pytest.approx((test.correct / test.total).mean(), abs=1e-12)
        normalized = (test.correct / test.total / test.expert_accuracy).mean()
        assert row.test_normalized_accuracy == pytest.approx(normalized, abs=1e-12)


def test_chosen_parameters_are_the_argmax_of_the_stored_validation_rows(undisturbed: Path) -> None:
    records = results.read_records(undisturbed)
    for _, row in results.load(undisturbed, "summary").iterrows():
        of_cell = [r for r in records.values() if r.cell.method == row.method and r.cell.num_tasks == row.num_tasks]
        best = select_best(of_cell, "normalized_accuracy")
        assert best is not None
        assert best.trial_id == row.val_trial_id
        assert records[row.test_trial_id].point == best.point
        assert sum(r.split == "test" for r in of_cell) == 1, "test is computed once"


def test_a_finished_sweep_runs_nothing_again(spec_file: Path, home: Path, finished: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in finished.glob("**/part-*.parquet") if "summary" not in str(path)
    }
    code, stdout, stderr = Runner(spec_file, finished, home, "--json").wait()
    assert code == 0, stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    told = json.loads(stdout)
    assert told["output"] == str(finished)
    assert {row["method"] for row in told["rows"]} == set(METHODS)


def test_killed_again_and_again(
    spec_file: Path, home: Path, undisturbed: Path, serial: dict[str, TrialRecord], tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    total = len(serial)
    for target in (1, total // 4):
        runner = Runner(spec_file, output, home, "--set", "resources.evaluators=1")
        runner.wait_until(lambda runner=runner, target=target: runner.num_trials() >= target)
        runner.process.send_signal(signal.SIGKILL)
        runner.wait()
        assert runner.num_trials() < total, "killed too late to prove anything"
    code, _, stderr = Runner(spec_file, output, home, *STORE).wait()
    assert code == 0, stderr
    assert_same_as_serial(output, serial)
    pd.testing.assert_frame_equal(
        comparable(results.load(output, "summary")), comparable(results.load(undisturbed, "summary"))
    )
    assert results.lacking_predictions(output) == set(), "what had finished without them was evaluated again"
    one, other = (
        results.load(folder, "predictions").set_index(["trial_id", "task"]) for folder in (output, undisturbed)
    )
    assert one["predicted"].map(list).to_dict() == other["predicted"].map(list).to_dict()


def test_an_evaluator_that_is_killed_costs_nothing(
    spec_file: Path, home: Path, serial: dict[str, TrialRecord], tmp_path: Path
) -> None:
    output = tmp_path / "evaluator"
    runner = Runner(spec_file, output, home, "--set", "resources.evaluators=2")
    runner.wait_until(lambda: runner.num_trials() >= 10)
    victims = [pid for pid, name in runner.descendants() if "_EvalActor" in name]
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    code, _, stderr = runner.wait()
    assert code == 0, stderr
    assert_same_as_serial(output, serial)


def test_two_sweeps_into_one_folder(spec_file: Path, home: Path, tmp_path: Path) -> None:
    output = tmp_path / "shared"
    first = Runner(spec_file, output, home)
    first.wait_until(lambda: (output / ".lock").exists())
    code, _, stderr = Runner(spec_file, output, home).wait()
    first.process.send_signal(signal.SIGKILL)
    first.wait()
    assert code == 4
    assert "another sweep is writing" in stderr


def test_another_spec_is_refused(spec_file: Path, home: Path, finished: Path) -> None:
    code, _, stderr = Runner(spec_file, finished, home, "--set", "search.seed=7").wait()
    assert code == 4
    assert "spec" in stderr
    assert "--output" in stderr


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda s: _truncate(s.expert_path("demo-vit", "Task1")), ["Task1", "truncated"], id="truncated"),
        *(
            pytest.param(damage, words, id=name, marks=pytest.mark.slow)
            for name, damage, words in [
                ("nan", lambda s: _poison(s.expert_path("demo-vit", "Task2")), ["Task2", "NaN", "visual.proj"]),
                ("missing", lambda s: s.expert_path("demo-vit", "Task0").unlink(), ["Task0", "no such"]),
                ("head", lambda s: _wrong_head(s.head_path("demo-vit", "Task3")), ["head_Task3Val", "expected"]),
                (
                    "moments",
                    lambda s: (s.root / "moments/demo-vit/Task1.safetensors").unlink(),
                    ["Task1", "raymerge stats --suite"],
                ),
            ]
        ),
    ],
)
def test_broken_files_are_named_before_any_work(
    damage: Callable[[Suite], None], words: list[str], spec_file: Path, home: Path, tmp_path: Path
) -> None:
    broken = tiny_suite(tmp_path / "suite", num_tasks=4)
    tiny_moments(broken, broken.root / "moments")
    damage(broken)
    changes = ("--set", f"suite={broken.root}", "--set", f"moments={broken.root}/moments")
    code, _, stderr = Runner(spec_file, tmp_path / "out", home, *changes).wait()
    assert code == 4, stderr
    assert "Traceback" not in stderr
    assert all(word in stderr for word in words), stderr
    assert not list((tmp_path / "out").glob("**/*.parquet"))


@pytest.mark.slow
def test_more_evaluators_than_the_machine_has_cores(spec_file: Path, home: Path, tmp_path: Path) -> None:
    code, _, stderr = Runner(spec_file, tmp_path / "out", home, "--set", "resources.evaluators=1000").wait()
    assert code == 4
    assert "1000" in stderr


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _poison(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["model.visual.proj"][0, 0] = float("nan")
    torch.save(state, path)


def _wrong_head(path: Path) -> None:
    from raymerge.checkpoints import save_head

    save_head(path, torch.randn(2, 16))
