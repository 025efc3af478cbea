import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge import methods, result_schema, results
from raymerge.errors import OutputError, RaymergeError, UsageError
from raymerge.folder import Folder
from raymerge.methods._method import FixedAlpha, Method, Parameter
from raymerge.records import Cell, Point, Predictions, TaskReference, TaskScore, TrialRecord
from raymerge.result_schema import RESULTS_VERSION, Schemas
from raymerge.results import (
    ResultsWriter,
    RunContext,
    lacking_predictions,
    load,
    read_records,
    read_tables,
    recover,
    unfinished_summary,
    write_summary,
)
from raymerge.summary import summarise

CONTEXT = RunContext(
    sweep="grid",
    spec_hash="c0ffee",
    suite="toy",
    profile="full",
    suite_seed=3,
    suite_fingerprint="f1f1",
    objective="normalized_accuracy",
    precision="fp32",
)

CELL = Cell("ViT-X", ("A", "B"), "iso-cts")

RECORD = TrialRecord(
    trial_id="00aa",
    cell=CELL,
    point=Point(1.5, {"common_space_fraction": 0.8}),
    stage="search",
    split="val",
    status="finished",
    scores=(TaskScore("A", 3, 4, 0.5), TaskScore("B", 4, 8, 0.25)),
    references={"A": TaskReference(1.0, 0.5), "B": TaskReference(0.625, 0.125, "published")},
    generation=2,
    index=7,
    seconds=1.25,
    images=12,
    device="cpu",
    finished_at=1_700_000_000.25,
)


def declare(monkeypatch: pytest.MonkeyPatch, *parameters: Parameter) -> None:
    method = Method(name="m", title="M", source="none", alpha=FixedAlpha(1.0), parameters=parameters)
    monkeypatch.setattr(methods, "declared_methods", lambda: {"m": method})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rewrite(path: Path, change) -> None:
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))


# --- one trial ---------------------------------------------------------------------------------------------------


def test_rows_by_hand(tmp_path):
    ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    folder = "backbone=ViT-X/num_tasks=2/method=iso-cts/part-00aa.parquet"
    assert files(tmp_path) == [f"evaluations/{folder}", f"trials/{folder}"]

    rows = pd.read_parquet(tmp_path / "evaluations" / folder, partitioning=None)
    assert rows["task"].tolist() == ["A", "B"]
    assert rows["correct"].tolist() == [3, 4]
    assert rows["total"].tolist() == [4, 8]
    assert rows["accuracy"].tolist() == [0.75, 0.5]
    assert rows["expert_accuracy"].tolist() == [1.0, 0.625]
    assert rows["zero_shot_accuracy"].tolist() == [0.5, 0.125]
    assert rows["normalized_accuracy"].tolist() == [0.75, 0.8]
    assert rows["nai"].tolist() == [0.5, 0.75]  # (0.75 - 0.5) / (1 - 0.5), (0.5 - 0.125) / (0.625 - 0.125)
    assert rows["reference_source"].tolist() == ["measured", "published"]
    assert rows["evaluation_s"].tolist() == [0.5, 0.25]
    assert rows["common_space_fraction"].tolist() == [0.8, 0.8]
    assert rows["keep"].isna().all(), "a parameter of another method"

    (row,) = pd.read_parquet(tmp_path / "trials" / folder, partitioning=None).to_dict("records")
    expected = {
        "trial_id": "00aa",
        "sweep": "grid",
        "spec_hash": "c0ffee",
        "suite": "toy",
        "profile": "full",
        "suite_seed": 3,
        "suite_fingerprint": "f1f1",
        "stage": "search",
        "split": "val",
        "status": "finished",
        "generation": 2,
        "index": 7,
        "alpha": 1.5,
        "common_space_fraction": 0.8,
        "objective": "normalized_accuracy",
        "objective_value": 0.775,
        "average_accuracy": 0.625,
        "average_normalized_accuracy": 0.775,
        "num_scored": 2,
        "trial_s": 1.25,
        "images": 12,
        "device": "cpu",
        "precision": "fp32",
        "finished_at": pd.Timestamp("2023-11-14T22:13:20.25Z"),
    }
    assert {name: row[name] for name in expected} == expected
    assert list(row["tasks"]) == ["A", "B"]
    assert pd.isna(row["error"])


@pytest.mark.parametrize(
    ("objective", "value"), [("accuracy", 0.625), ("normalized_accuracy", 0.775)], ids=["absolute", "normalized"]
)
def test_objective_column_follows_the_sweep(tmp_path, objective, value):
    ResultsWriter(tmp_path, replace(CONTEXT, objective=objective)).append(RECORD)
    row = load(tmp_path, "trials").iloc[0]
    assert (row["objective"], row["objective_value"]) == (objective, value)


def test_what_cannot_be_computed_is_null(tmp_path):
    references = {"A": TaskReference(expert_accuracy=0.5, zero_shot_accuracy=0.5)}  # nai would be 0.25 / 0
    ResultsWriter(tmp_path, CONTEXT).append(replace(RECORD, references=references))
    rows = load(tmp_path)
    assert rows["nai"].isna().all()
    assert rows["normalized_accuracy"].tolist()[0] == 1.5
    assert rows[["expert_accuracy", "normalized_accuracy", "reference_source"]].iloc[1].isna().all()
    trial = load(tmp_path, "trials").iloc[0]
    assert np.isnan(trial["objective_value"]), "task B has no expert"
    assert np.isnan(trial["average_normalized_accuracy"])
    assert trial["average_accuracy"] == 0.625


def test_a_failed_trial_has_no_evaluations(tmp_path):
    failed = replace(RECORD, status="failed", scores=(), references={}, error="worker died")
    ResultsWriter(tmp_path, CONTEXT).append(failed)
    assert load(tmp_path).empty
    row = load(tmp_path, "trials").iloc[0]
    assert (row["status"], row["error"], row["num_scored"]) == ("failed", "worker died", 0)
    assert np.isnan(row["objective_value"])
    assert read_records(tmp_path) == {"00aa": failed}


def test_a_parameter_of_each_task_is_its_own_value_in_evaluations(tmp_path):
    cell = replace(CELL, method="consensus-ta")
    chosen = replace(RECORD, cell=cell, point=Point(0.5, {"mask_lambda": (0.2, 0.6), "min_tasks": 2.0}))
    calibration = replace(
        RECORD, trial_id="00bb", cell=cell, stage="calibration", point=Point(1.0, {"mask_lambda": 0.4})
    )
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(chosen)
    writer.append(calibration)
    rows = load(tmp_path).set_index(["trial_id", "task"])["mask_lambda"]
    assert rows.to_dict() == {("00aa", "A"): 0.2, ("00aa", "B"): 0.6, ("00bb", "A"): 0.4, ("00bb", "B"): 0.4}
    trials = load(tmp_path, "trials").set_index("trial_id")
    assert [list(values) for values in trials["mask_lambda"]] == [[0.2, 0.6], [0.4]]
    assert trials["min_tasks"].tolist()[0] == 2.0
    points = {key: record.point for key, record in read_records(tmp_path).items()}
    assert points == {"00aa": chosen.point, "00bb": calibration.point}


@pytest.mark.parametrize("value", [0.4, (0.4,)])
def test_one_task_keeps_scalar_and_list_apart(tmp_path, value):  # their merges have different ids
    cell = Cell("ViT-X", ("A",), "consensus-ta")
    record = replace(RECORD, cell=cell, point=Point(0.5, {"mask_lambda": value}), scores=RECORD.scores[:1])
    ResultsWriter(tmp_path, CONTEXT).append(record)
    assert read_records(tmp_path)["00aa"].point.as_dict() == record.point.as_dict()


def test_an_undeclared_parameter_is_never_lost_silently(tmp_path):
    with pytest.raises(KeyError, match="undeclared"):
        ResultsWriter(tmp_path, CONTEXT).append(replace(RECORD, point=Point(1.0, {"undeclared": 0.5})))
    assert files(tmp_path) == []


def test_appending_twice_leaves_one_copy(tmp_path):
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(RECORD)
    before = files(tmp_path)
    writer.append(RECORD)
    assert files(tmp_path) == before
    assert len(load(tmp_path)) == 2
    assert read_records(tmp_path) == {"00aa": RECORD}


def test_a_rerun_replaces_every_row(tmp_path):
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(RECORD)
    again = replace(RECORD, status="pruned", scores=RECORD.scores[:1], references={"A": RECORD.references["A"]})
    writer.append(again)
    assert read_records(tmp_path) == {"00aa": again}
    failed = replace(RECORD, status="failed", scores=(), references={}, error="x")
    writer.append(failed)
    assert load(tmp_path).empty
    assert read_records(tmp_path) == {"00aa": failed}


# --- round trip --------------------------------------------------------------------------------------------------

DECLARED = methods.declared_methods()
fractions = st.floats(0.015625, 1.0)


@st.composite
def trial_records(draw: st.DrawFn) -> tuple[str, Callable[[], TrialRecord]]:
    """An id and how to make its record: the type checks of its classes use random numbers, which strategies may not."""
    tasks = tuple(draw(st.lists(st.text("ABCé /=%", min_size=1, max_size=4), min_size=1, max_size=4, unique=True)))
    declared = DECLARED[draw(st.sampled_from(list(DECLARED)))]
    params = {}
    for parameter in declared.parameters:
        values = st.sampled_from(parameter.choices or [0.0, 0.1, 1.0, 1 / 3])
        if parameter.per_task is not None:
            values = st.one_of(values, st.tuples(*[values] * len(tasks)))
        if draw(st.booleans()):
            params[parameter.name] = draw(values)
    scored = tasks[: draw(st.integers(0, len(tasks)))]
    totals = [draw(st.integers(1, 10**6)) for _ in scored]
    scores = [
        (task, draw(st.integers(0, total)), total, draw(st.floats(0, 1e4)))
        for task, total in zip(scored, totals, strict=True)
    ]
    known = scored if draw(st.booleans()) else scored[:1]
    references = {task: (draw(fractions), draw(fractions), draw(st.text(max_size=5))) for task in known}
    trial_id = draw(st.text("0123456789abcdef", min_size=16, max_size=16))
    backbone, alpha = draw(st.sampled_from(["ViT-B-32", "a/b c=d%", "7"])), draw(st.floats(0, 10))
    plain = {
        "stage": draw(st.sampled_from(["reference", "calibration", "search", "test"])),
        "split": draw(st.sampled_from(["val", "test"])),
        "status": draw(st.sampled_from(["finished", "pruned", "failed"])),
        "generation": draw(st.integers(-1, 1000)),
        "index": draw(st.integers(0, 1000)),
        "seconds": draw(st.floats(0, 1e6)),
        "images": draw(st.integers(0, 10**9)),
        "device": draw(st.text(max_size=8)),
        "error": draw(st.none() | st.text(max_size=20)),
        "finished_at": draw(st.floats(0, 4e9)),
    }
    return trial_id, lambda: TrialRecord(
        trial_id=trial_id,
        cell=Cell(backbone, tasks, declared.name),
        point=Point(alpha, params),
        scores=tuple(TaskScore(*score) for score in scores),
        references={task: TaskReference(*reference) for task, reference in references.items()},
        **plain,
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(trial_records(), min_size=1, max_size=5, unique_by=lambda pair: pair[0]))
def test_append_then_read_gives_the_same_records(pairs):
    records = [make() for _, make in pairs]
    with tempfile.TemporaryDirectory() as folder:
        writer = ResultsWriter(folder, CONTEXT)
        for record in records:
            writer.append(record)
        found = read_records(folder)
        assert recover(folder) == found
    assert found.keys() == {record.trial_id for record in records}
    for record in records:
        read = found[record.trial_id]
        assert abs(read.finished_at - record.finished_at) <= 1e-6
        assert replace(read, finished_at=record.finished_at) == record
        # equal is not enough: 1 and 1.0 and True are equal. The order of parameters has no meaning
        assert json.dumps(read.point.as_dict(), sort_keys=True) == json.dumps(record.point.as_dict(), sort_keys=True)
    assert [r.finished_at for r in found.values()] == sorted(r.finished_at for r in found.values())


def test_threads_append_side_by_side(tmp_path):
    writer = ResultsWriter(tmp_path, CONTEXT)
    records = [replace(RECORD, trial_id=f"{i:04x}") for i in range(24)]
    threads = [
        threading.Thread(target=lambda part=records[i::4]: [writer.append(record) for record in part]) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_records(tmp_path) == {record.trial_id: record for record in records}


def test_reading_a_column_that_an_older_part_lacks(tmp_path, monkeypatch):
    ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    old = methods.declared_methods()
    new = Method(name="n", title="N", source="", alpha=FixedAlpha(1.0), parameters=(Parameter("temperature", 1.0),))
    monkeypatch.setattr(methods, "declared_methods", lambda: {**old, "n": new})
    assert load(tmp_path, "trials")["temperature"].isna().all()
    assert read_records(tmp_path) == {"00aa": RECORD}


# --- crashes -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.fixture
def killed_before_commit(tmp_path, monkeypatch):
    """RECORD is whole; a second trial died after its evaluations, and a third while its temporary file was written."""
    ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    write = Folder.write

    def dying_write(self, path, data):
        if path.startswith("trials/"):
            raise Killed
        write(self, path, data)

    monkeypatch.setattr(Folder, "write", dying_write)
    with pytest.raises(Killed):
        ResultsWriter(tmp_path, CONTEXT).append(replace(RECORD, trial_id="00bb"))
    monkeypatch.setattr(Folder, "write", write)
    whole = next((tmp_path / "evaluations").rglob("part-00aa.parquet"))
    whole.with_name(".part-00cc.parquet.12-34.tmp").write_bytes(whole.read_bytes()[:100])
    return tmp_path


def test_uncommitted_evaluations_do_not_count(killed_before_commit):
    assert read_records(killed_before_commit) == {"00aa": RECORD}
    assert load(killed_before_commit)["trial_id"].unique().tolist() == ["00aa"]
    assert len(pd.read_parquet(killed_before_commit / "evaluations")) == 4, "the temporary file is invisible to pandas"


def test_recover_removes_what_a_crash_left(killed_before_commit):
    assert recover(killed_before_commit) == {"00aa": RECORD}
    part = "backbone=ViT-X/num_tasks=2/method=iso-cts/part-00aa.parquet"
    assert files(killed_before_commit) == [f"evaluations/{part}", f"trials/{part}"]
    assert len(pd.read_parquet(killed_before_commit / "evaluations")) == 2


def test_reading_alone_changes_nothing(killed_before_commit):
    before = files(killed_before_commit)
    read_records(killed_before_commit)
    load(killed_before_commit)
    assert files(killed_before_commit) == before


def test_trials_that_are_set_aside_count_no_more(tmp_path):
    writer = ResultsWriter(tmp_path, CONTEXT)
    stray, failed = replace(RECORD, trial_id="00bb"), replace(RECORD, trial_id="00cc", status="failed", scores=())
    for record in (RECORD, stray, failed):
        writer.append(record)
    writer.set_aside([stray, failed])
    assert read_records(tmp_path).keys() == recover(tmp_path).keys() == {RECORD.trial_id}
    aside = [name for name in files(tmp_path) if not name.startswith(("trials/", "evaluations/"))]
    assert aside == [f"superseded/{table}/{PART.replace('00aa', '00bb')}" for table in ("evaluations", "trials")]
    assert not [name for name in files(tmp_path) if "00cc" in name]
    writer.set_aside([stray, failed])  # as after a crash half way


@pytest.mark.parametrize(
    "change",
    [
        {"scores": RECORD.scores[:1]},
        {"status": "pruned"},
        {"finished_at": RECORD.finished_at + 1e-3},
    ],
    ids=["count", "status", "time"],
)
def test_a_rerun_killed_half_way_is_no_trial(tmp_path, monkeypatch, change, caplog):
    ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    write = Folder.write
    monkeypatch.setattr(
        Folder, "write", lambda self, path, data: None if path.startswith("trials/") else write(self, path, data)
    )
    ResultsWriter(tmp_path, CONTEXT).append(replace(RECORD, **change))
    monkeypatch.setattr(Folder, "write", write)
    assert read_records(tmp_path) == {}
    assert "part-00aa.parquet: does not fit its evaluations" in caplog.text
    assert load(tmp_path).empty
    assert recover(tmp_path) == {}
    assert all(name.startswith("quarantine/") for name in files(tmp_path))
    assert len(files(tmp_path)) == 2


def test_sigkill_at_any_write_loses_at_most_the_trial_being_written(tmp_path):
    """The process is killed inside the n-th fsync; whatever is there afterwards is whole."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace
from test_results import CONTEXT, RECORD, ResultsWriter
left, fsync = int(sys.argv[2]), os.fsync
def dying(descriptor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
writer = ResultsWriter(sys.argv[1], CONTEXT)
writer.append(RECORD)
os.fsync = dying
writer.append(replace(RECORD, trial_id="00bb"))
"""
    counts = []
    for kill_at in (1, 2, 3, 4):  # file and folder of evaluations, then of trials
        folder = tmp_path / str(kill_at)
        done = subprocess.run([sys.executable, "-c", script, folder, str(kill_at)], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        found = recover(folder)
        assert found == read_records(folder)
        assert found["00aa"] == RECORD
        assert len(load(folder)) == 2 * len(found)
        assert len(files(folder)) == 2 * len(found)
        counts.append(len(found))
    assert counts == [1, 1, 1, 2]


def test_a_full_disk_names_the_trial_and_leaves_no_debris(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "evaluations/backbone=ViT-X/num_tasks=2/method=iso-cts").mkdir(parents=True)
    with pytest.raises(RaymergeError, match=r"could not save trial 00aa of ViT-X/2 tasks/iso-cts .*No space left"):
        ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    assert files(tmp_path) == []


# --- predictions -------------------------------------------------------------------------------------------------


ANSWERS = {"A": ([0, 1, 2, 2], [0, 1, 2, 3]), "B": ([1, 40_000, 1, 0, 3, 3, 3, 3], [1, 40_000, 1, 0, 0, 0, 0, 0])}
PREDICTED = replace(
    RECORD,
    stage="test",
    split="test",
    scores=tuple(
        replace(score, predictions=Predictions(*(np.array(values, "<i4").tobytes() for values in ANSWERS[score.task])))
        for score in RECORD.scores
    ),
)
COUNTED = PREDICTED.without_predictions()
PART = "backbone=ViT-X/num_tasks=2/method=iso-cts/part-00aa.parquet"


def predictions_of(folder) -> dict[str, tuple[list[int], list[int]]]:
    rows = load(folder, "predictions").to_dict("records")
    return {row["task"]: (row["predicted"].tolist(), row["labels"].tolist()) for row in rows}


def test_predictions_by_hand(tmp_path):
    ResultsWriter(tmp_path, CONTEXT).append(PREDICTED)
    assert files(tmp_path) == [f"evaluations/{PART}", f"predictions/{PART}", f"trials/{PART}"]
    assert predictions_of(tmp_path) == ANSWERS
    plain = pd.read_parquet(tmp_path / "predictions")
    assert plain["predicted"].map(list).tolist() == [answers for answers, _ in ANSWERS.values()]
    row = load(tmp_path, "predictions").iloc[0]
    assert (row["trial_id"], row["method"], row["num_tasks"], row["suite_seed"]) == ("00aa", "iso-cts", 2, 3)
    assert (row["stage"], row["split"], row["alpha"]) == ("test", "test", 1.5)
    assert read_records(tmp_path) == {"00aa": COUNTED}
    assert recover(tmp_path) == {"00aa": COUNTED}
    assert predictions_of(tmp_path) == ANSWERS


def test_predictions_take_little_room(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 10_000, dtype="<i4")
    predicted = np.where(rng.random(10_000) < 0.8, labels, rng.integers(0, 10, 10_000, dtype="<i4"))
    score = TaskScore("A", 1, 10_000, predictions=Predictions(predicted.tobytes(), labels.tobytes()))
    ResultsWriter(tmp_path, CONTEXT).append(replace(PREDICTED, scores=(score,)))
    assert (tmp_path / "predictions" / PART).stat().st_size < 20_000, "a byte for two classes"
    columns = pq.read_metadata(tmp_path / "predictions" / PART).row_group(0)
    encodings = {columns.column(i).path_in_schema: columns.column(i).encodings for i in range(columns.num_columns)}
    assert all("DICTIONARY" in " ".join(encodings[f"{name}.list.element"]) for name in ("predicted", "labels"))


def test_without_predictions_there_is_no_such_table(tmp_path):
    ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    with pytest.raises(UsageError, match=r"no predictions are stored here\. .*evaluation\.store_predictions=true"):
        load(tmp_path, "predictions")
    assert list(read_tables(tmp_path)) == ["evaluations", "trials", "summary"]


@pytest.mark.parametrize("kept", ["predictions", "evaluations"], ids=["before evaluations", "before the trial"])
def test_predictions_of_a_trial_that_was_killed_do_not_count(tmp_path, kept):
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(PREDICTED)
    writer.append(replace(PREDICTED, trial_id="00bb"))
    for table in ("trials", *(["evaluations"] if kept == "predictions" else [])):
        next((tmp_path / table).rglob("part-00bb.parquet")).unlink()
    assert set(load(tmp_path, "predictions")["trial_id"]) == {"00aa"}
    recover(tmp_path)
    assert files(tmp_path) == [f"{table}/{PART}" for table in ("evaluations", "predictions", "trials")]


def test_predictions_of_another_attempt_do_not_count(tmp_path):
    """A trial is done again, and the process dies once its predictions are written."""
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(PREDICTED)
    later = (tmp_path / "predictions" / PART).read_bytes()
    writer.append(replace(COUNTED, finished_at=COUNTED.finished_at + 1))
    assert (tmp_path / "predictions" / PART).read_bytes() == later
    assert lacking_predictions(tmp_path) == {"00aa"}
    with pytest.raises(UsageError, match="no predictions are stored"):
        load(tmp_path, "predictions")
    assert recover(tmp_path).keys() == {"00aa"}
    assert not (tmp_path / "predictions" / PART).exists()


def test_which_trials_lack_predictions(tmp_path):
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(PREDICTED)
    for trial_id, change in {
        "val": {"split": "val", "stage": "search"},
        "failed": {"status": "failed", "scores": (), "error": "x"},
        "wanted": {},
    }.items():
        writer.append(replace(COUNTED, trial_id=trial_id, **change))
    assert lacking_predictions(tmp_path) == {"wanted"}
    assert lacking_predictions(tmp_path / "nowhere") == set()


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_damaged_predictions_cost_no_trial(tmp_path, caplog, damage):
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(PREDICTED)
    writer.append(replace(PREDICTED, trial_id="00bb"))
    rewrite(next((tmp_path / "predictions").rglob("part-00bb.parquet")), DAMAGE[damage])
    assert set(load(tmp_path, "predictions")["trial_id"]) == {"00aa"}
    assert "its rows are left out" in caplog.text
    assert recover(tmp_path).keys() == {"00aa", "00bb"}
    assert [name for name in files(tmp_path) if "quarantine" in name] == [
        f"quarantine/predictions/{PART.replace('00aa', '00bb')}"
    ]
    assert lacking_predictions(tmp_path) == {"00bb"}
    writer.append(replace(PREDICTED, trial_id="00bb"))
    assert lacking_predictions(tmp_path) == set()


def test_all_tables_at_once(tmp_path):
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(PREDICTED)
    writer.append(replace(RECORD, trial_id="00bb"))
    tables = read_tables(tmp_path)
    assert {name: len(table) for name, table in tables.items()} == {
        "evaluations": 4,
        "trials": 2,
        "summary": 1,
        "predictions": 2,
    }
    assert tables["summary"]["test_trial_id"].to_pylist() == ["00aa"], "of the trials that are there"
    write_summary(tmp_path, [])
    assert len(read_tables(tmp_path)["summary"]) == 0, "as it was written"
    assert "predictions" not in read_tables(tmp_path, predictions=False)


# --- damaged parts -----------------------------------------------------------------------------------------------


def flip(data: bytearray) -> bytes:
    """Change the last number of a column of integers, which only a checksum can tell."""
    metadata = pq.read_metadata(io.BytesIO(data)).row_group(0)
    columns = {metadata.column(i).path_in_schema: metadata.column(i) for i in range(metadata.num_columns)}
    column = columns.get("images") or columns["correct"]
    data[column.data_page_offset + column.total_compressed_size - 8] ^= 0x01
    return bytes(data)


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: bytes(data[:-20]),
    "text": lambda data: b"not parquet at all",
    "bit flip": flip,
}


@pytest.mark.parametrize("table", ["evaluations", "trials"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_part_costs_its_trial_only(tmp_path, caplog, table, damage):
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(RECORD)
    writer.append(replace(RECORD, trial_id="00bb"))
    bad = next((tmp_path / table).rglob("part-00bb.parquet"))
    rewrite(bad, damage)

    assert read_records(tmp_path) == {"00aa": RECORD}
    assert str(bad) in caplog.text
    assert load(tmp_path, table)["trial_id"].unique().tolist() == ["00aa"]
    assert bad.exists(), "readers leave it alone"

    with caplog.at_level(logging.WARNING):
        assert recover(tmp_path) == {"00aa": RECORD}
    part = "backbone=ViT-X/num_tasks=2/method=iso-cts/part-00bb.parquet"
    assert (tmp_path / "quarantine" / "evaluations" / part).exists()
    assert (tmp_path / "quarantine" / "trials" / part).exists()
    assert str(tmp_path / "quarantine") in caplog.text

    caplog.clear()
    writer.append(replace(RECORD, trial_id="00bb"))  # computed again
    assert read_records(tmp_path).keys() == {"00aa", "00bb"}
    assert len(pd.read_parquet(tmp_path / "evaluations")) == 4
    assert caplog.text == ""


# --- other readers -----------------------------------------------------------------------------------------------


def test_pandas_and_pyarrow_read_the_folder_alone(tmp_path):
    writer = ResultsWriter(tmp_path, CONTEXT)
    writer.append(RECORD)
    writer.append(replace(RECORD, trial_id="00bb", cell=Cell("ViT-Y", ("A", "B"), "iso-c"), point=Point(1.0)))
    frame = pd.read_parquet(tmp_path / "evaluations")
    assert frame["backbone"].astype(str).tolist() == ["ViT-X", "ViT-X", "ViT-Y", "ViT-Y"]
    assert frame["num_tasks"].astype(int).unique().tolist() == [2]
    assert frame["method"].astype(str).tolist() == ["iso-cts", "iso-cts", "iso-c", "iso-c"]
    assert frame["accuracy"].tolist() == [0.75, 0.5, 0.75, 0.5]

    table = ds.dataset(tmp_path / "trials", partitioning="hive").to_table(filter=ds.field("method") == "iso-c")
    assert table["trial_id"].to_pylist() == ["00bb"]
    assert table["alpha"].to_pylist() == [1.0]

    ours = load(tmp_path)
    for name in frame.columns:
        assert ours[name].astype(str).tolist() == frame[name].astype(str).tolist(), name
    assert ours.dtypes[["backbone", "method"]].astype(str).tolist() != ["category", "category"]
    assert ours["num_tasks"].dtype.kind == "i"


def test_parts_are_compressed_versioned_and_checked(tmp_path):
    ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    for path in tmp_path.rglob("*.parquet"):
        metadata = pq.read_metadata(path)
        assert metadata.row_group(0).column(0).compression == "ZSTD"
        assert metadata.metadata[b"raymerge_results_version"] == str(RESULTS_VERSION).encode()


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no results here"):
        load(tmp_path)
    with pytest.raises(
        UsageError, match=r"no table is called 'rows'\. Known: evaluations, trials, summary, predictions"
    ):
        load(tmp_path, "rows")
    ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    with pytest.raises(UsageError, match="no summary yet"):
        load(tmp_path, "summary")
    write_summary(tmp_path, [])
    assert load(tmp_path, "summary").empty
    rewrite(tmp_path / "summary" / "part-0.parquet", DAMAGE["truncated"])
    with pytest.raises(UsageError, match=r"part-0.parquet: is damaged"):
        load(tmp_path, "summary")


def test_an_empty_or_absent_folder_has_no_records(tmp_path):
    assert read_records(tmp_path) == {}
    assert read_records(tmp_path / "nowhere") == {}
    assert recover(tmp_path / "nowhere") == {}
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["mock", "subtree"])
def test_a_folder_that_is_not_local(tmp_path, kind):
    mock = pyarrow.fs._MockFileSystem()  # type: ignore[attr-defined]
    subtree = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    store = Folder(mock if kind == "mock" else subtree, "bucket/run")
    writer = ResultsWriter(store, CONTEXT)
    writer.append(RECORD)
    writer.append(replace(RECORD, trial_id="00bb"))
    assert read_records(store).keys() == {"00aa", "00bb"}
    write_summary(store, summarise(read_records(store).values(), [CELL], "accuracy"), CONTEXT)
    assert load(store, "summary")["method"].tolist() == ["iso-cts"]
    store.write("trials/backbone=ViT-X/num_tasks=2/method=iso-cts/part-00bb.parquet", b"junk")
    assert recover(store).keys() == {"00aa"}
    assert [path.split("/")[0] for path in store.files("quarantine")] == ["quarantine", "quarantine"]


def test_nothing_is_written_to_a_folder_that_was_lost(tmp_path):
    def check() -> None:
        if lost:
            raise OutputError("another sweep writes there.")

    lost = False
    writer = ResultsWriter(tmp_path, CONTEXT, check=check)
    writer.append(RECORD)
    lost = True
    before = files(tmp_path)
    with pytest.raises(OutputError, match="another sweep writes there"):
        writer.append(replace(RECORD, trial_id="00bb"))
    assert files(tmp_path) == before


def test_a_summary_that_cannot_be_saved(tmp_path, monkeypatch):
    def full(self, path, data):
        raise OSError(28, "No space left on device")

    ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    write_summary(tmp_path, [])
    monkeypatch.setattr(Folder, "write", full)
    with pytest.raises(RaymergeError, match=r"could not save the summary \(No space left on device\)\. Make room"):
        write_summary(tmp_path, summarise([], [CELL], "accuracy"))
    assert load(tmp_path, "summary").empty


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    ResultsWriter(tmp_path, CONTEXT).append(RECORD)

    def files(self, path):
        raise OSError("no answer")

    monkeypatch.setattr(Folder, "files", files)
    for read in (read_records, load, unfinished_summary, recover):
        with pytest.raises(OutputError, match=r"cannot be read \(no answer\)\. Check the path and its permissions\."):
            read(tmp_path)


def test_a_file_uri_is_a_local_path(tmp_path):
    ResultsWriter(f"file://{tmp_path}/run", CONTEXT).append(RECORD)
    assert read_records(tmp_path / "run") == {"00aa": RECORD}
    assert Folder.at(f"file://{tmp_path}/run").local == tmp_path / "run"


# --- summary -----------------------------------------------------------------------------------------------------


def test_summary_against_plain_pandas(tmp_path):
    rng = np.random.default_rng(0)
    writer = ResultsWriter(tmp_path, CONTEXT)
    cells = [Cell("ViT-X", ("A", "B"), "iso-c"), CELL, Cell("ViT-Y", ("A", "B"), "task-arithmetic")]
    for position, cell in enumerate(cells):
        for i, alpha in enumerate((0.5, 1.0, 1.5, 2.0)):
            for split in ("val", "test"):
                scores = tuple(TaskScore(task, int(rng.integers(20, 80)), 100) for task in cell.tasks)
                stage = "search" if split == "val" else "test"
                params = {"common_space_fraction": 0.1 * i} if cell.method == "iso-cts" else {}
                key = f"{position}{i}{split}"
                writer.append(
                    replace(
                        RECORD,
                        trial_id=key,
                        cell=cell,
                        point=Point(alpha, params),
                        stage=stage,
                        split=split,
                        scores=scores,
                    )
                )
    rows = summarise(read_records(tmp_path).values(), cells, "normalized_accuracy")
    write_summary(tmp_path, rows, CONTEXT)
    summary = load(tmp_path, "summary").set_index(["backbone", "method"])
    assert summary["tasks"].map(list).tolist() == [["A", "B"]] * 3

    frame = pd.read_parquet(tmp_path / "evaluations")
    frame["normalized"] = frame["accuracy"] / frame["expert_accuracy"]
    keys = ["backbone", "method", "alpha", "split"]
    means = frame.groupby(keys, observed=True)[["accuracy", "normalized"]].mean().reset_index()
    for (backbone, method), group in means.groupby(["backbone", "method"], observed=True):
        val = group[group["split"] == "val"].set_index("alpha")
        best = val["normalized"].idxmax()
        test = group[group["split"] == "test"].set_index("alpha").loc[best]
        row = summary.loc[(backbone, method)]
        assert row["status"] == "finished"
        assert row["alpha"] == best
        assert row["val_accuracy"] == pytest.approx(val.loc[best, "accuracy"], abs=1e-12)
        assert row["val_normalized_accuracy"] == pytest.approx(val.loc[best, "normalized"], abs=1e-12)
        assert row["test_accuracy"] == pytest.approx(test["accuracy"], abs=1e-12)
        assert row["test_normalized_accuracy"] == pytest.approx(test["normalized"], abs=1e-12)
        assert (row["num_finished"], row["num_pruned"], row["num_failed"]) == (8, 0, 0)
        assert (row["sweep"], row["spec_hash"], row["suite_seed"]) == ("grid", "c0ffee", 3)
        assert row["val_trial_id"].endswith("val")
        assert row["test_trial_id"] == row["val_trial_id"].replace("val", "test")
    assert summary["common_space_fraction"].isna().tolist() == [True, False, True]

    by_trials = unfinished_summary(tmp_path).set_index(["backbone", "method"])
    columns = ["alpha", "val_accuracy", "test_accuracy", "test_normalized_accuracy", "val_trial_id"]
    pd.testing.assert_frame_equal(by_trials[columns].sort_index(), summary[columns].sort_index())


def test_writing_the_summary_again_replaces_it(tmp_path):
    ResultsWriter(tmp_path, CONTEXT).append(RECORD)
    rows = summarise([RECORD], [CELL], "accuracy")
    write_summary(tmp_path, rows, CONTEXT)
    write_summary(tmp_path, rows, CONTEXT)
    assert [name for name in files(tmp_path) if name.startswith("summary")] == ["summary/part-0.parquet"]
    row = load(tmp_path, "summary").iloc[0]
    assert (row["status"], row["error"]) == ("missing", "its test trial has not run")
    assert np.isnan(row["test_accuracy"])


# --- schema ------------------------------------------------------------------------------------------------------


def test_parameter_columns_are_the_sorted_union_of_declarations(monkeypatch):
    declare(monkeypatch, Parameter("zeta", 1.0), Parameter("beta", 0.0, per_task=(0.1, 0.2)))
    schemas = Schemas.declared()
    assert list(schemas.per_task.items()) == [("beta", True), ("zeta", False)]
    assert str(schemas.evaluations.field("beta").type) == "double"
    assert str(schemas.trials.field("beta").type) == "list<item: double>"
    assert str(schemas.summary.field("beta").type) == "list<item: double>"
    assert str(schemas.trials.field("zeta").type) == "double"


def test_a_parameter_cannot_hide_a_column(monkeypatch):
    declare(monkeypatch, Parameter("total", 1.0))
    with pytest.raises(AssertionError, match="total"):
        Schemas.declared()


def test_columns_of_version_1(monkeypatch):
    """A change here other than an addition needs another RESULTS_VERSION."""
    declare(monkeypatch)
    schemas = Schemas.declared()
    assert RESULTS_VERSION == 1
    shared = "trial_id sweep spec_hash suite profile suite_seed suite_fingerprint tasks "
    assert " ".join(schemas.evaluations.names) == shared + (
        "task stage split status alpha correct total accuracy expert_accuracy zero_shot_accuracy normalized_accuracy "
        "nai reference_source evaluation_s device precision finished_at"
    )
    assert " ".join(schemas.trials.names) == shared + (
        "stage split status error generation index alpha point objective objective_value average_accuracy "
        "average_normalized_accuracy denominators num_scored trial_s images occupancy device precision finished_at"
    )
    assert " ".join(schemas.predictions.names) == shared + (
        "task stage split status alpha predicted labels device precision finished_at"
    )
    assert " ".join(schemas.summary.names) == (
        "sweep spec_hash suite profile suite_seed tasks backbone num_tasks method status error alpha val_accuracy "
        "val_normalized_accuracy test_accuracy test_normalized_accuracy denominators num_finished num_pruned "
        "num_failed published_accuracy published_normalized_accuracy val_trial_id test_trial_id"
    )


def test_results_and_report_do_not_import_torch_or_ray():
    code = (
        "import sys, raymerge.results, raymerge.report, raymerge.renderers\n"
        "raymerge.results.Schemas.declared()\n"
        "print([name for name in ('torch', 'ray', 'optuna', 'open_clip') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    assert set(results.__all__) <= set(dir(results))
    assert result_schema.RunContext is results.RunContext
