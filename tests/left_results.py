"""The folder that a sweep leaves, without running it: `fake_sweep`, stored as `raymerge sweep` does."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fake_sweep import FakeExecutor

from raymerge.driver import Sweep
from raymerge.observers import observing
from raymerge.output import open_output
from raymerge.records import ServiceStats, TrialRecord
from raymerge.run import OutputStore
from raymerge.search_space import sweep_cells
from raymerge.suite_file import find_suite
from raymerge.suites import Suite
from raymerge.sweep_file import load_sweep
from raymerge.sweep_spec import SweepSpec, resolve, spec_hash


def leave_results(spec: SweepSpec, suite: Suite, output: Path) -> None:
    """Sweep into a folder, as `raymerge sweep` does: tables, manifest, status and log. What is there already stays."""
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    nobody: Any = SimpleNamespace(**dict.fromkeys(("stage", "sweeping", "trial"), lambda *told: None))
    with open_output(output, sweep=spec.name, spec=resolve(spec), spec_hash=spec_hash(spec)) as opened:
        store = OutputStore(opened, spec, suite, None)
        with observing(nobody, opened.folder, spec, suite, lambda: store.records, opened.check) as observers:
            store.begin("fake")

            def save(record: TrialRecord) -> None:
                store.append(record)
                observers.trial(record)

            sweep = Sweep(spec, suite, cells, finished=store.open("fp32"), on_record=save, device="fake")
            observers.sweeping(sweep, "fake", 1)
            store.run_begins([])
            FakeExecutor(sweep).run()
            store.run_ends("finished", ServiceStats(num_evaluators=1, images=1, busy_s=3.0, present_s=4.0))
            store.summarise(cells)
            observers.state = "finished"


def leave_results_of(sweeps: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Of sweeps of the demo, as `folder`/results/<name>; in a process without the slow type checks of tests.

    Args:
        sweeps: their names, and what is set otherwise than in their files.
    """
    subprocess.run([sys.executable, __file__, json.dumps(sweeps)], cwd=folder, check=True)


if __name__ == "__main__":
    os.fsync = lambda fd: None  # nobody waits for a disk here
    for name, overrides in json.loads(sys.argv[1]).items():
        spec = load_sweep(f"sweeps/{name}.yaml", overrides)
        leave_results(spec, find_suite(spec.suite, spec.profile, spec.suite_seed), Path("results", name))
