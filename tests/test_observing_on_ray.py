"""A real sweep that is killed, interrupted and finished: what it keeps, and how it looks from another terminal."""

import json
import signal
from pathlib import Path

import pytest
from sweep_process import Runner, assert_same_as_serial, serial_records
from test_trackers import scalars_of
from tiny_suite import tiny_suite

from raymerge import results
from raymerge.status import report
from raymerge.status_file import read_status

pytestmark = pytest.mark.ray

SPEC = """\
name: watched
suite: {suite}
num_tasks: [2]
methods: [zero-shot, iso-c]
search: {{trials: 30, batch: 3, prune: null}}
resources: {{evaluators: 1}}
trackers: {{tensorboard: {{}}}}
"""


def test_a_sweep_seen_from_outside(tmp_path: Path) -> None:
    suite = tiny_suite(tmp_path / "suite", num_tasks=2)
    spec = tmp_path / "watched.yaml"
    spec.write_text(SPEC.format(suite=suite.root))
    output = tmp_path / "out"

    def started(num_trials: int) -> Runner:
        runner = Runner(spec, output, tmp_path / "home")
        runner.wait_until(lambda: runner.num_trials() >= num_trials and (read_status(output) or {}).get("cells"))
        return runner

    runner = started(3)
    running = report(output)
    assert (running.verdict, running.status["state"], running.status["pid"]) == (
        "running",
        "sweeping",
        runner.process.pid,
    )
    assert running.status["cells"]["total"] == 2
    runner.process.send_signal(signal.SIGKILL)
    runner.wait()
    assert report(output).verdict == "dead"
    after_kill = results.read_records(output).keys()

    runner = started(runner.num_trials() + 3)
    runner.process.send_signal(signal.SIGINT)
    code, _, stderr = runner.wait()
    assert code == 130, stderr
    assert "Traceback" not in stderr
    assert report(output).verdict == "interrupted"
    num_after_interrupt = runner.num_trials()
    serial = serial_records(spec, suite)
    assert 6 <= runner.num_trials() < len(serial)

    code, _, stderr = Runner(spec, output, tmp_path / "home").wait()
    assert code == 0, stderr
    found = report(output)
    assert (found.verdict, found.status["cells"]) == ("finished", {"done": 2, "total": 2})
    assert_same_as_serial(output, serial)
    records = results.read_records(output)
    assert found.status["trials"] == {"finished": len(records), "pruned": 0, "failed": 0, "running": 0}
    assert found.status["best"][0]["methods"][0]["method"] == "Iso-C"

    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    unlogged = records.keys() - {event["trial_id"] for event in log if event["event"] == "trial"}
    assert len(unlogged) <= 1, "a killed process may have saved one trial and not have logged it yet"
    assert unlogged <= after_kill
    known = [event["trials"] for event in log if event["event"] == "sweeping"]
    assert known == [0, len(after_kill), num_after_interrupt]
    assert [event["state"] for event in log if event["event"] == "end"] == ["interrupted", "finished"]
    assert sum(event["event"] == "run" for event in log) == 3

    (tested,) = (r for r in records.values() if r.split == "test" and r.cell.method == "iso-c")
    (folder,) = (output / "tensorboard").glob("demo-vit_2_iso-c_test_*")
    scalars = scalars_of(folder)
    assert scalars["ray/tune/accuracy"][-1] == (2, pytest.approx(tested.average_accuracy, abs=1e-6))
    normalized = pytest.approx(tested.average_normalized_accuracy, abs=1e-6)
    assert scalars["ray/tune/normalized_accuracy"][-1] == (2, normalized)
