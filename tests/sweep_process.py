"""`raymerge sweep` as a process that tests can watch, stop and kill, and what its results are compared with."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import torch

from raymerge import results
from raymerge.bench.proc import below
from raymerge.driver import Sweep
from raymerge.records import TrialRecord
from raymerge.search_space import sweep_cells
from raymerge.serial import SerialExecutor
from raymerge.suites import Suite
from raymerge.sweep_file import load_sweep
from raymerge.worker import WorkerSetup


def serial_records(spec_file: Path, suite: Suite) -> dict[str, TrialRecord]:
    """The records of a sweep in this process, without Ray."""
    threads = torch.get_num_threads()
    spec = load_sweep(spec_file)
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    sweep = Sweep(spec, suite, cells, finished={}, on_record=lambda record: None)
    try:
        SerialExecutor(WorkerSetup(suite, spec.evaluation), suite.root / "moments").run(sweep)
    finally:
        torch.set_num_threads(threads)
    return dict(sweep.records)


class Runner:
    """`raymerge sweep` in a process of its own."""

    def __init__(
        self, spec_file: Path, output: Path, home: Path, *options: str, environment: Mapping[str, str] | None = None
    ):
        command = [sys.executable, "-m", "raymerge", "sweep", str(spec_file), "--output", str(output), *options]
        self.output = output
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAYMERGE_HOME": str(home), "NO_COLOR": "1", **(environment or {})},
            start_new_session=True,  # a Ctrl-C at the terminal of the tests is not for it
        )

    def wait(self) -> tuple[int, str, str]:
        stdout, stderr = self.process.communicate(timeout=300)
        return self.process.returncode, stdout, stderr

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Return when something has happened, or the process has ended."""
        deadline = time.monotonic() + 240
        while not happened() and self.process.poll() is None:
            assert time.monotonic() < deadline, "nothing happened for long"
            time.sleep(0.05)

    def num_trials(self) -> int:
        return sum(1 for _ in self.output.glob("trials/**/part-*.parquet"))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def descendants(self) -> Iterator[tuple[int, str]]:
        """Process id and name of every process below this one."""
        return below([self.process.pid])


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """A summary without what may differ between two runs of one sweep."""
    return frame.drop(columns=[c for c in frame if "finished_at" in c or "fingerprint" in c or c == "sweep"])


def assert_same_as_serial(output: Path, serial: dict[str, TrialRecord]) -> None:
    """Same trials, same status, same counts; nothing lost, nothing doubled."""
    records = results.read_records(output)
    assert {r.trial_id: (r.status, r.point) for r in records.values()} == {
        r.trial_id: (r.status, r.point) for r in serial.values()
    }
    counts = {(r.trial_id, s.task): (s.correct, s.total) for r in records.values() for s in r.scores}
    expected = {(r.trial_id, s.task): (s.correct, s.total) for r in serial.values() for s in r.scores}
    assert counts == expected
    rows = results.load(output, "evaluations")
    assert not rows.duplicated(["trial_id", "task"]).any()
    assert len(rows) == len(expected)
