"""What a sweep leaves for those who look from elsewhere, and what `raymerge status` makes of it."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_sweep import SUITE, FakeExecutor, spec_of, start
from pyarrow import fs
from typer.testing import CliRunner

from raymerge import cli, cli_status, lease, status
from raymerge.dispatcher import Observation, Working
from raymerge.driver import Sweep
from raymerge.errors import ClusterError, OutputError, UsageError
from raymerge.event_log import LOG, EventLog
from raymerge.folder import Folder
from raymerge.observers import Observers, observing
from raymerge.output import open_output
from raymerge.output_lock import LOCK, holder
from raymerge.records import ServiceStats, TrialRecord
from raymerge.result_schema import RunContext
from raymerge.results import ResultsWriter, write_summary
from raymerge.rewriter import Rewriter
from raymerge.status import report
from raymerge.status_file import MAX_NOTICES, STATUS, StatusWriter, read_status
from raymerge.summary import summarise
from raymerge.tally import Tally

SPEC = spec_of(num_tasks=[2, 4], methods=["zero-shot", "weight-averaging", "ties"])


class View:
    """The view on the terminal, which keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, event: str) -> Any:
        return lambda *arguments: self.told.append(event)


def observation(images: int = 120) -> Observation:
    stats = ServiceStats(num_evaluators=3, num_busy=2, num_queued=7, images=images, busy_s=3.0, present_s=4.0)
    return Observation(
        stats, (Working("a-1", "t1", "vit/T0 (val)"), Working("a-2", "t1", "vit/T1 (val)"), Working("b-3"))
    )


HOSTS = {"a-1": "a", "a-2": "a", "b-3": "b"}


def run_sweep(listener: Any, spec: Any = SPEC, num_trials: int | None = None) -> Sweep:
    """All of a sweep, or its first trials, told to a listener."""
    sweep, records = start(spec)
    listener.sweeping(sweep, "cpu", 3)
    FakeExecutor(sweep).run()
    for record in records[:num_trials]:
        listener.trial(record)
    return sweep


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path)


@pytest.fixture
def remote(tmp_path: Path) -> Folder:
    """One that does not look local, as an object store does not."""
    return Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "out")


def read(folder: Folder) -> dict[str, Any]:
    status = read_status(folder)
    assert status is not None
    return status


def open_(folder: Folder, spec: Any = SPEC) -> Any:
    return open_output(folder, sweep=spec.name, spec={}, spec_hash="h")


# --- status.json -------------------------------------------------------------------------------------------------


def test_a_status_by_hand(folder: Folder) -> None:
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    writer = StatusWriter(folder, "x", now=lambda: now)
    writer.stage("starting Ray")
    sweep = run_sweep(writer)
    writer.observed(observation(), HOSTS)
    for number in range(MAX_NOTICES + 5):
        writer.notice(f"node {number} has left")
    running = json.loads(writer._content())
    assert running["state"] == "sweeping"
    assert running["started_at"] == running["updated_at"] == "2026-01-01T12:00:00+00:00"
    assert running["cells"] == {"done": 6, "total": 6}
    tally = Tally(sweep)
    assert running["trials"] == {
        **{status: tally.trials[status] for status in ("finished", "pruned", "failed")},
        "running": 1,
    }
    assert running["running"] == ["t1"]
    assert (running["images"], running["occupancy"], running["queued_shards"]) == (120, 0.75, 7)
    assert running["evaluators"][0] == {"id": "a-1", "host": "a", "trial_id": "t1", "what": "vit/T0 (val)"}
    assert running["evaluators"][2] == {"id": "b-3", "host": "b", "trial_id": None, "what": ""}
    assert [notice["text"] for notice in running["notices"]] == [
        f"node {number} has left" for number in range(5, MAX_NOTICES + 5)
    ]
    best = {(c["backbone"], c["num_tasks"]): c["methods"] for c in running["best"]}
    assert {column: [(m["method"], m["val_accuracy"]) for m in found] for column, found in best.items()} == (
        tally.leaders()
    )
    writer.end("finished")
    status = read(folder)
    assert (status["state"], status["evaluators"], status["queued_shards"]) == ("finished", [], 0)
    assert status["version"] == 1
    assert not list(Path(folder.root).glob(".*tmp"))


def test_a_stage_is_written_at_once_and_figures_in_time(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymerge.status_file.INTERVAL_S", 1e6)
    writer = StatusWriter(folder, "x")
    writer.stage("starting Ray")
    wait_until(lambda: (read_status(folder) or {}).get("stage") == "starting Ray")
    writer.notice("not due before long")
    assert read(folder)["notices"] == []
    writer.stage("checking")
    wait_until(lambda: len(read(folder)["notices"]) == 1)
    writer.end("interrupted")
    assert read(folder)["state"] == "interrupted"


def wait_until(happened: Any) -> None:
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.01)
    pytest.fail("nothing happened for long")


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    for path in ("out/file", "file"):
        rewriter = Rewriter(Folder.at(tmp_path), path, lambda: b"new", 0.0)
        rewriter.changed(urgent=True)
        rewriter.close()
        assert (rewriter.problem is None) == (path == "file")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_sign_of_life_where_nothing_changes(folder: Folder) -> None:
    versions: list[int] = []

    def content() -> bytes:
        versions.append(len(versions))
        return b""

    rewriter = Rewriter(folder, "file", content, 1e6, rest_s=0.01)
    wait_until(lambda: len(versions) >= 3)
    rewriter.close()


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / f".{STATUS}.1-2.tmp"
    leftover.touch()
    StatusWriter(Folder.at(tmp_path), "x").end("finished")
    assert not leftover.exists()


def test_a_status_of_a_newer_version_or_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / STATUS).write_text('{"version": 2}')
    with pytest.raises(UsageError, match=r"status.json: is of version 2, and this raymerge reads up to 1\. Upgrade"):
        read_status(tmp_path)
    for text in ("{", "[]", "{}", '{"version": null}'):
        (tmp_path / STATUS).write_text(text)
        assert read_status(tmp_path) is None


# --- log.jsonl ---------------------------------------------------------------------------------------------------


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_log_by_hand(folder: Folder, tmp_path: Path) -> None:
    log = EventLog(folder, "x", now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    log.stage("starting Ray")
    sweep = run_sweep(log)
    log.notice("node a has left")
    logging.getLogger("raymerge.results").warning("%s: cannot be read", "part")
    written = events((tmp_path / LOG).read_text())
    assert written[1] == {
        "time": "2026-01-01T00:00:00.000+00:00",
        "level": "info",
        "event": "stage",
        "text": "starting Ray",
    }
    assert [e["event"] for e in written if e["event"] != "trial"] == [
        "run",
        "stage",
        "sweeping",
        "notice",
        "log",
    ]
    assert (written[-1]["logger"], written[-1]["text"], written[-1]["level"]) == (
        "raymerge.results",
        "part: cannot be read",
        "warning",
    )
    trials = [e for e in written if e["event"] == "trial"]
    assert [t["trial_id"] for t in trials] == list(sweep.records)
    for told, record in zip(trials, sweep.records.values(), strict=True):
        assert (told["cell"], told["status"], told["alpha"]) == (str(record.cell), record.status, record.point.alpha)
        assert told["params"] == record.point.params
        assert told["accuracy"] == round(record.average_accuracy, 6)
        assert told["error"] is None
    log.end("failed", "boom")
    logging.getLogger("raymerge.results").warning("after the end")
    log.notice("after the end")
    last = events((tmp_path / LOG).read_text())[-1]
    assert (last["event"], last["level"], last["state"], last["error"]) == ("end", "error", "failed", "boom")


def test_runs_are_appended(folder: Folder, tmp_path: Path) -> None:
    for _ in range(2):
        EventLog(folder, "x").end("interrupted")
    assert [e["event"] for e in events((tmp_path / LOG).read_text())] == ["run", "end", "run", "end"]


def test_an_object_store_gets_a_file_per_run(remote: Folder, tmp_path: Path) -> None:
    log = EventLog(remote, "x")
    log.stage("starting Ray")
    log.end("finished")
    (path,) = (tmp_path / "out" / "log").iterdir()
    assert [e["event"] for e in events(path.read_text())] == ["run", "stage", "end"]


def test_a_failed_trial_and_a_number_json_does_not_know(folder: Folder, tmp_path: Path) -> None:
    log = EventLog(folder, "x")
    sweep, records = start(SPEC)
    FakeExecutor(sweep, broken_trial=lambda trial: "boom" if trial.cell.method == "ties" else None).run()
    failed = next(record for record in records if record.status == "failed")
    log.trial(failed)
    log.write("odd", value=float("nan"))
    log.end("finished")
    written = events((tmp_path / LOG).read_text())
    assert (written[1]["level"], written[1]["error"], written[1]["accuracy"]) == ("error", "boom", None)
    assert written[2]["text"] == "{'value': nan}"


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / LOG).mkdir()
    log = EventLog(Folder.at(tmp_path), "x")
    log.stage("starting Ray")
    log.end("finished")
    assert list((tmp_path / LOG).iterdir()) == []


def test_warnings_are_still_shown(folder: Folder) -> None:
    """Python shows them by itself only while nobody has a handler."""
    script = f"""
import logging
import os
from raymerge.event_log import EventLog
from raymerge.folder import Folder
log = EventLog(Folder.at({folder.root!r}), "x")
logging.getLogger("raymerge.results").warning("a part is gone")
log.end("finished")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "a part is gone\n")


# --- all together ------------------------------------------------------------------------------------------------


def test_an_observer_that_fails_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(View):
        def __getattr__(self, event: str) -> Any:
            raise RuntimeError("a bug")

    view = View()
    observers = Observers(Broken(), view)
    observers.stage("one")
    observers.notice("two")
    assert view.told == ["stage", "notice"]
    assert caplog.messages == ["Broken failed and is told no more"]


@pytest.mark.parametrize(
    ("failure", "state", "error"),
    [
        (None, "finished", None),
        (KeyboardInterrupt(), "interrupted", None),
        (ClusterError("no cluster."), "failed", "no cluster."),
        (ValueError("a\n bug"), "failed", "ValueError: a bug"),
    ],
)
def test_how_a_sweep_ends(folder: Folder, failure: BaseException | None, state: str, error: str | None) -> None:
    view = View()

    def run() -> None:
        with observing(view, folder, SPEC, SUITE, dict, lambda: None) as observers:
            observers.stage("starting Ray")
            observers.observed(observation(), HOSTS)
            if failure is not None:
                raise failure
            observers.state = "finished"

    if failure is None:
        run()
    else:
        with pytest.raises(type(failure)):
            run()
    status = read(folder)
    assert (status["state"], status["error"]) == (state, error)
    assert status["cells"] == {"done": 0, "total": 6}, "counted though no trial ran"
    assert view.told == ["stage", "observed"]
    assert events((Path(folder.root) / LOG).read_text())[-1]["state"] == state


# --- raymerge status ---------------------------------------------------------------------------------------------


@pytest.fixture
def sweeping(folder: Folder) -> Iterator[Folder]:
    """A folder in which a sweep runs."""
    with open_(folder) as output:
        output.begin("f")
        writer = StatusWriter(folder, "x")
        run_sweep(writer, num_trials=5)
        writer.observed(observation(), HOSTS)
        writer.stage("sweeping")
        wait_until(lambda: read(folder).get("images") == 120)
        yield folder
        writer.end("finished")


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["status", *arguments], catch_exceptions=False)


def test_running(sweeping: Folder) -> None:
    found = report(sweeping.root)
    assert found.verdict == "running"
    shown = call(sweeping.root)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("sweep 'x': sweeping on ")
    assert re.fullmatch(r"sweeping, \d+ s after it was started", lines[1])
    assert "75% busy" in shown.stdout
    assert "120 images in this run, 7 shards queued" in lines
    assert "  a-1  vit/T0 (val)" in lines
    assert "  b-3  waits for work" in lines
    value = json.loads(call(sweeping.root, "--json").stdout)
    assert (value["verdict"], value["state"], value["images"]) == ("running", "sweeping", 120)


def test_looking_does_not_disturb(sweeping: Folder) -> None:
    before = sorted(path.name for path in Path(sweeping.root).iterdir())
    found = holder(sweeping)
    assert found is not None
    assert found.pid == os.getpid()
    assert sorted(path.name for path in Path(sweeping.root).iterdir()) == before


def test_dead(tmp_path: Path, folder: Folder) -> None:
    writer = StatusWriter(folder, "x")
    run_sweep(writer, num_trials=3)
    writer._file.close()  # as SIGKILL leaves it
    assert not (tmp_path / LOCK).exists()
    found = report(folder.root)
    assert found.verdict == "dead"
    updated = read(folder)["updated_at"]
    assert call(folder.root).stdout.startswith(
        f"sweep 'x': its driver ended without saying so at {updated} or later; the same command continues\n"
    )
    assert not (tmp_path / LOCK).exists(), "looking creates nothing"
    assert found.status["evaluators"] == []


def test_a_sweep_that_ends_while_one_looks_is_not_dead(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = StatusWriter(folder, "x")

    def end_first(location: Folder) -> None:
        writer.end("finished")

    wait_until(lambda: read_status(folder) is not None)
    monkeypatch.setattr(status, "holder", end_first)
    assert report(folder.root).verdict == "finished"


def test_who_lost_the_folder_writes_no_status_there(folder: Folder) -> None:
    """Another driver does by now."""
    is_lost = False

    def check() -> None:
        if is_lost:
            raise OutputError("taken")

    writer = StatusWriter(folder, "x", check)
    wait_until(lambda: read_status(folder) is not None)
    is_lost = True
    writer.end("failed", "taken")
    found = read_status(folder)
    assert found is not None
    assert found["state"] == "preparing"


def test_without_locks_the_lease_decides(remote: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    writer = StatusWriter(remote, "x")
    wait_until(lambda: read_status(remote) is not None)
    with open_(remote):
        assert report(remote).verdict == "running"
    writer._file.close()
    assert report(remote).verdict == "dead"


@pytest.mark.parametrize(
    ("state", "error", "sentence"),
    [
        ("finished", None, "sweep 'x': finished at "),
        ("interrupted", None, "the same command continues"),
        ("failed", "boom", ": boom"),
    ],
)
def test_ended(folder: Folder, state: Any, error: str | None, sentence: str) -> None:
    StatusWriter(folder, "x").end(state, error)
    shown = call(folder.root)
    assert (shown.exit_code, sentence in shown.stdout.splitlines()[0]) == (0, True)
    assert report(folder.root).verdict == state


CONTEXT = RunContext(
    sweep="x",
    spec_hash="h",
    suite="fake",
    profile="full",
    suite_seed=0,
    suite_fingerprint="f",
    objective="normalized_accuracy",
    precision="fp32",
    denominators="measured",
)


def older(folder: Folder, num_trials: int | None = None, *, summary: bool = True) -> list[TrialRecord]:
    """Results without a status."""
    sweep, records = start(SPEC)
    FakeExecutor(sweep).run()
    with open_(folder) as output:
        output.begin("f")
        for record in (written := records[:num_trials]):
            ResultsWriter(folder, CONTEXT).append(record)
        if summary:
            write_summary(folder, summarise(written, sweep.cells, "normalized_accuracy"), CONTEXT)
    return written


def test_an_older_folder(folder: Folder) -> None:
    records = older(folder)
    found = report(folder.root)
    assert (found.verdict, found.status["cells"]) == ("finished", {"done": 6, "total": 6})
    assert found.status["trials"]["finished"] == sum(record.status == "finished" for record in records)
    assert call(folder.root).stdout.startswith("sweep 'x': finished\n6 of 6 cells finished\n")


def test_an_older_folder_of_a_sweep_that_was_stopped(folder: Folder) -> None:
    older(folder, 6, summary=False)
    found = report(folder.root)
    assert found.verdict == "stopped"
    assert found.status["trials"]["finished"] == 6
    assert "no sweep runs there; the same command continues" in call(folder.root).stdout


def test_no_sweep_there(tmp_path: Path) -> None:
    for path, what in ((tmp_path, "no results here"), (tmp_path / "x", "no such folder")):
        shown = call(str(path))
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert f"error: {path}: {what}. Give the --output of a sweep." in shown.stderr


def test_watching_ends_with_the_sweep(sweeping: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    naps = 0

    def sleep(seconds: float) -> None:
        nonlocal naps
        naps += 1
        if naps == 2:
            other = StatusWriter(sweeping, "x")
            other.end("interrupted")

    monkeypatch.setattr(cli_status, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(cli_status, "write", shown.append)
    cli_status.status(sweeping.root, watch=True, as_json=True)
    assert [json.loads(line)["verdict"] for line in shown] == ["running", "running", "interrupted"]
    assert all(line.count("\n") == 1 for line in shown)


def test_ctrl_c_leaves_quietly(sweeping: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_status, "time", SimpleNamespace(sleep=sleep))
    shown = call(sweeping.root, "--watch")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout.count("sweep 'x'") == 1
