"""A whole sweep on a disk that fills up: a small tmpfs in a mount namespace of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from namespaces import can_mount
from tiny_suite import tiny_suite

from raymerge import results

SPEC = """\
name: tiny
suite: {suite}
num_tasks: [2]
methods: [zero-shot, fine-tuned, task-arithmetic]
search: {{trials: 12, batch: 3}}
resources: {{evaluators: 1}}
"""
SCRIPT = """\
set -u
mount -t tmpfs -o size=4m none disk
fill() {  # to the last byte, once there are some trials, and whatever is deleted meanwhile
    while [ "$(find disk/out/trials -name 'part-*.parquet' 2>/dev/null | wc -l)" -lt 5 ]; do sleep 0.02; done
    while true; do cat /dev/zero 2>/dev/null >>disk/fill; sleep 0.02; done
}
sweep() {
    "$PYTHON" -m raymerge sweep tiny.yaml --output disk/out > "$1.out" 2> "$1.err"
    echo $? > "$1.code"
}
fill &
sweep full
kill $!
cp -r disk/out when_full
"$PYTHON" -m raymerge report disk/out --format csv > report.csv 2> report.err
echo $? > report.code
rm disk/fill
mount -o remount,size=64m disk
sweep room
cp -r disk/out at_last
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="mounting a small disk takes a user namespace, which is not to be had here")
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    suite = tiny_suite(tmp_path / "suite", num_tasks=2)
    (tmp_path / "tiny.yaml").write_text(SPEC.format(suite=suite.root))
    (tmp_path / "disk").mkdir()
    package = str(Path(results.__file__).parent.parent)
    environment = {**os.environ, "RAYMERGE_HOME": str(tmp_path / "home"), "NO_COLOR": "1", "PYTHON": sys.executable}
    environment["PYTHONPATH"] = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    subprocess.run(["unshare", "-Urm", "sh", "-c", SCRIPT], cwd=tmp_path, env=environment, check=True, timeout=300)
    command = [sys.executable, "-m", "raymerge", "sweep", "tiny.yaml", "--output", "undisturbed"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)

    def said(name: str) -> str:
        return (tmp_path / name).read_text()

    assert said("full.code") == "1\n", said("full.err")
    *_, error = said("full.err").splitlines()
    assert error.startswith("error: ")
    assert "disk/out: could not save trial" in error
    assert error.endswith(
        "(No space left on device). Make room there and start the same sweep again; what was saved is kept."
    )
    assert "Traceback" not in said("full.err")

    everything = results.read_records(tmp_path / "undisturbed")
    saved = results.read_records(tmp_path / "when_full")
    assert 0 < len(saved) < len(everything)
    assert saved.keys() < everything.keys()
    assert len(list((tmp_path / "when_full").rglob("trials/**/part-*.parquet"))) == len(saved)
    assert not list((tmp_path / "when_full").rglob("*.tmp"))
    assert said("report.code") == "0\n", said("report.err")

    assert said("room.code") == "0\n", said("room.err")
    found = results.read_records(tmp_path / "at_last")
    assert found.keys() == everything.keys()
    assert {key: found[key] for key in saved} == saved, "what was saved was not computed again"
    summaries = [results.load(tmp_path / name, "summary") for name in ("at_last", "undisturbed")]
    one, two = (frame.drop(columns=[c for c in frame if "finished_at" in c]) for frame in summaries)
    pd.testing.assert_frame_equal(one, two)
