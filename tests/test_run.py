"""The output folder as the one who executes a sweep sees it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_sweep
import numpy as np
import pytest

from raymerge.output import Output, open_output, read_manifest
from raymerge.records import Cell, Point, Predictions, ServiceStats, TaskReference, TaskScore, TrialRecord
from raymerge.results import load
from raymerge.run import OutputStore
from raymerge.sweep_spec import resolve, spec_hash

SPEC = fake_sweep.spec_of({"weight-averaging": {}}, num_tasks=[2], evaluation={"precision": "auto"})
CELL = Cell("vit", ("T0", "T1"), "weight-averaging")


def record(trial_id: str, correct: int) -> TrialRecord:
    return TrialRecord(
        trial_id=trial_id,
        cell=CELL,
        point=Point(1.0),
        stage="test",
        split="test",
        status="finished",
        scores=(TaskScore("T0", correct, 50), TaskScore("T1", correct, 20)),
        references={task: TaskReference(0.8, 0.2) for task in CELL.tasks},
        occupancy=0.75,
    )


def with_predictions(trial_id: str) -> TrialRecord:
    """All images are of class 0, and so are the first 10 answers."""

    def answered(score: TaskScore) -> TaskScore:
        predicted = np.array([0] * 10 + [1] * (score.total - 10), dtype="<i4")
        return replace(score, predictions=Predictions(predicted.tobytes(), bytes(4 * score.total)))

    plain = record(trial_id, 10)
    return replace(plain, scores=tuple(map(answered, plain.scores)))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Output]:
    with open_output(tmp_path, sweep="x", spec=resolve(SPEC), spec_hash=spec_hash(SPEC)) as output:
        yield output


def test_a_sweep_is_stored_and_continued(opened, tmp_path):
    store = OutputStore(opened, SPEC, fake_sweep.SUITE, "cluster:6379")
    store.begin("f1f1")
    assert store.choice() is None
    store.keep_choice({"precision": "bf16"})
    assert store.choice() == {"precision": "bf16"}
    assert store.open("bf16") == {}
    store.append(record("aa", 10))
    assert set(load(tmp_path, "trials")["trial_id"]) == {"aa"}, "durable once append has returned"
    store.append(record("bb", 12))
    assert list(store.records) == ["aa", "bb"]

    again = OutputStore(opened, SPEC, fake_sweep.SUITE, None)
    again.begin("f1f1")
    assert again.choice() == {"precision": "bf16"}
    found = dict(again.open("bf16"))
    assert found.keys() == {"aa", "bb"}
    assert found["bb"].scores == record("bb", 12).scores
    found.clear()
    assert again.records.keys() == {"aa", "bb"}, "what was handed out is a copy"


def test_what_has_no_predictions_is_done_again_once_they_are_stored(opened, tmp_path):
    store = OutputStore(opened, SPEC, fake_sweep.SUITE, None)
    store.begin("f1f1")
    store.open("bf16")
    search = replace(record("cc", 9), stage="search", split="val")
    failed = replace(record("dd", 0), status="failed", scores=(), error="x")
    for one in (record("aa", 10), with_predictions("bb"), search, failed):
        store.append(one)
    assert store.records["bb"] == with_predictions("bb").without_predictions(), "kept without them"

    told: list[str] = []
    spec = SPEC.model_copy(update={"evaluation": SPEC.evaluation.model_copy(update={"store_predictions": True})})
    again = OutputStore(opened, spec, fake_sweep.SUITE, None)
    again.notice = told.append
    assert again.open("bf16").keys() == {"bb", "cc", "dd"}
    assert told == ["1 finished test trial without predictions: evaluated again"]
    (row,) = again.summarise([CELL])
    assert row.test_trial_id in ("aa", "bb"), "until then its numbers are those there are"
    again.append(with_predictions("aa"))
    assert sorted(load(tmp_path, "trials")["trial_id"]) == ["aa", "bb", "cc", "dd"], "no row twice"
    assert sorted(load(tmp_path, "predictions")["trial_id"].unique()) == ["aa", "bb"]

    plain = OutputStore(opened, SPEC, fake_sweep.SUITE, None)
    plain.notice = told.append
    assert plain.open("bf16").keys() == {"aa", "bb", "cc", "dd"}
    assert len(told) == 1


def test_rows_say_what_they_are_of(opened, tmp_path):
    store = OutputStore(opened, SPEC, fake_sweep.SUITE, None)
    store.begin("f1f1")
    store.open("fp16")
    store.append(record("aa", 10))
    rows = load(tmp_path, "trials")
    (row,) = rows.to_dict("records")
    expected: dict[str, Any] = {
        "sweep": "x",
        "spec_hash": spec_hash(SPEC),
        "suite": "fake",
        "suite_fingerprint": "f1f1",
        "precision": "fp16",
        "occupancy": 0.75,
    }
    assert {name: row[name] for name in expected} == expected
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest["suite_fingerprint"] == "f1f1"


def test_the_summary_is_of_all_records(opened, tmp_path):
    store = OutputStore(opened, SPEC, fake_sweep.SUITE, None)
    store.begin("f1f1")
    store.open("fp32")
    store.append(record("aa", 10))
    (row,) = store.summarise([CELL])
    assert (row.cell, row.status) == (CELL, "finished")
    (saved,) = load(tmp_path, "summary").to_dict("records")
    assert saved["method"] == "weight-averaging"
    assert saved["test_accuracy"] == pytest.approx((10 / 50 + 10 / 20) / 2)


def test_runs_go_to_the_manifest(opened, monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(Output, "start_run", lambda self, **arguments: told.append(arguments))
    monkeypatch.setattr(Output, "end_run", lambda self, *arguments: told.append(arguments))
    store = OutputStore(opened, SPEC, fake_sweep.SUITE, "cluster:6379")
    store.run_begins([{"id": "n0"}])
    store.run_ends("interrupted", ServiceStats(num_evaluators=3))
    assert told == [
        {"address": "cluster:6379", "nodes": [{"id": "n0"}]},
        ("interrupted", ServiceStats(num_evaluators=3)),
    ]
