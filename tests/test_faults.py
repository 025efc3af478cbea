"""Sweeps that lose machines, processes, memory and disks, on real Ray nodes: the summary is that of a quiet sweep.

They take minutes each: `pytest -n 0 --slow -m slow`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from namespaces import can_mount
from ray_nodes import TOKEN, cluster_of, wait_for
from sweep_process import Runner, assert_same_as_serial, comparable, serial_records
from tiny_suite import tiny_moments, tiny_suite

from raymerge import results
from raymerge.bench.chaos import listens
from raymerge.bench.proc import below, kill, memory_of
from raymerge.output import read_manifest
from raymerge.records import TrialRecord
from raymerge.suites import Suite

pytestmark = [pytest.mark.ray, pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")]

SPEC = """\
name: faults
suite: {suite}
num_tasks: [2, 4]
methods: [zero-shot, task-arithmetic, consensus-ta, iso-c, iso-cts]
search: {{trials: 6, batch: 3, prune: {{after: 0.25, margin: 0.1}}}}
evaluation: {{shard_images: 40}}
"""

ONE_CELL = """\
name: memory
suite: {suite}
num_tasks: [2]
methods: [task-arithmetic]
search: {{trials: 3, batch: 3}}
evaluation: {{shard_images: 4000}}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    suite = tiny_suite(tmp_path_factory.mktemp("suite"), num_tasks=4, images=200)
    tiny_moments(suite, suite.root / "moments")
    return suite


@pytest.fixture(scope="module")
def spec_file(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweeps") / "faults.yaml"
    path.write_text(SPEC.format(suite=suite.root))
    return path


@pytest.fixture(scope="module")
def quiet(suite: Suite, spec_file: Path) -> dict[str, TrialRecord]:
    """The records of the sweep when nothing happens to it."""
    return serial_records(spec_file, suite)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A cache of its own for every test, so that its merges are computed."""
    return tmp_path / "home"


def finish(runner: Runner, quiet: dict[str, TrialRecord]) -> str:
    """Wait for the end of a sweep that nothing could disturb. Returns what it said."""
    code, _, stderr = runner.wait()
    assert code == 0, stderr
    assert "Traceback" not in stderr
    assert_same_as_serial(runner.output, quiet)
    return stderr


# --- nodes -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_node_is_lost_and_another_one_joins(spec_file, home, quiet, tmp_path, monkeypatch):
    nodes = cluster_of(monkeypatch, 2)
    try:
        lost = nodes.add(2)
        runner = Runner(spec_file, tmp_path / "out", home, "--address", nodes.address)
        runner.wait_until(lambda: runner.num_trials() >= 8)
        nodes.lose(lost)
        runner.wait_until(lambda: runner.num_trials() >= len(quiet) // 3)
        nodes.add(2)
        stderr = finish(runner, quiet)
        assert "died; another one is started" in stderr
        assert "has joined" in stderr
        assert "has left" in stderr
    finally:
        nodes.close()


@pytest.mark.slow
def test_nodes_come_and_go_until_the_first_ones_are_all_gone(spec_file, home, quiet, tmp_path, monkeypatch):
    nodes = cluster_of(monkeypatch, 1)  # the driver's node, which holds no evaluator
    try:
        present = [nodes.add(1), nodes.add(1)]
        runner = Runner(spec_file, tmp_path / "out", home, "--address", nodes.address)
        for target in (6, 16, 26, 36):
            runner.wait_until(lambda target=target: runner.num_trials() >= target)
            assert runner.process.poll() is None, runner.wait()[2]
            present.append(nodes.add(1))
            nodes.lose(present.pop(0))
        finish(runner, quiet)
    finally:
        nodes.close()


@pytest.mark.slow
def test_the_head_is_lost_and_another_cluster_goes_on(spec_file, home, quiet, tmp_path, monkeypatch):
    nodes = cluster_of(monkeypatch, 2)
    try:
        nodes.add(1)
        runner = Runner(spec_file, tmp_path / "out", home, "--address", nodes.address)
        runner.wait_until(lambda: runner.num_trials() >= 8)
        nodes.lose_head()
        code, _, stderr = runner.wait()
    finally:
        nodes.close()
    assert code == 4, stderr
    assert "the cluster does not answer" in stderr
    assert "start the same command again" in stderr
    assert "Traceback" not in stderr
    saved = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("trials/**/part-*.parquet")}
    assert 8 <= len(saved) < len(quiet)
    again = Runner(spec_file, tmp_path / "out", home)
    finish(again, quiet)
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("trials/**/part-*.parquet")}
    assert {name: now[name] for name in saved} == saved, "what was finished was not computed again"


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="a node without files needs a mount namespace")
def test_a_node_without_the_files_is_left_out_and_named(spec_file, suite, home, quiet, tmp_path, monkeypatch):
    nodes = cluster_of(monkeypatch, 2)
    blind = None
    try:
        # a raylet for which the experts' folder is empty: a machine that shares no file system
        start = f"mount -t tmpfs none {suite.root} && exec ray start --address={nodes.address} --num-cpus=2 --block"
        environment = {**os.environ, **TOKEN}
        blind = subprocess.Popen(
            ["unshare", "-Urm", "sh", "-c", start],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(10)
        assert blind.poll() is None
        runner = Runner(spec_file, tmp_path / "out", home, "--address", nodes.address)
        stderr = finish(runner, quiet)
        assert "no evaluators on node" in stderr
        assert str(suite.root) in stderr
        assert "missing there" in stderr
    finally:
        if blind is not None:
            os.killpg(blind.pid, signal.SIGTERM)
            blind.wait(timeout=30)
        nodes.close()


@pytest.mark.slow
def test_two_sweeps_share_a_cluster(spec_file, home, quiet, tmp_path, monkeypatch):
    nodes = cluster_of(monkeypatch, 2)
    try:
        nodes.add(3)
        outputs = [tmp_path / name for name in ("first", "second")]
        sweeps = [Runner(spec_file, output, home, "--address", nodes.address) for output in outputs]
        for sweep in sweeps:
            sweep.wait_until(lambda sweep=sweep: sweep.num_trials() >= 1)
        assert [sweep.process.poll() for sweep in sweeps] == [None, None], "both got evaluators while both ran"
        told = [finish(sweep, quiet) for sweep in sweeps]
        assert any("2 sweeps share the cluster: 2 of 4 evaluators for this one" in text for text in told)
        assert any("this sweep has the cluster to itself" in text for text in told)
    finally:
        nodes.close()


@pytest.mark.slow
def test_a_sweep_by_ray_client_is_written_here(spec_file, home, quiet, tmp_path):
    pytest.importorskip("grpc")
    port = 20000 + os.getpid() % 5000
    environment = {**os.environ, **TOKEN}
    folder = f"/tmp/raymerge-{os.getpid()}"
    command = ["ray", "start", "--head", "--port=0", "--num-cpus=3", "--block", "--include-dashboard=false"]
    command += ["--node-ip-address=127.0.0.1", f"--ray-client-server-port={port}", f"--temp-dir={folder}"]
    head = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(lambda: listens(port))
        output, address = tmp_path / "out", f"ray://127.0.0.1:{port}"
        runner = Runner(spec_file, output, home, "--address", address, environment=TOKEN)
        wait_for(lambda: any("_RemoteDriver" in name for _, name in below([head.pid])))
        runner.process.send_signal(signal.SIGINT)
        code, _, stderr = runner.wait()
        assert (code, runner.num_trials()) == (130, 0), stderr
        assert "Traceback" not in stderr
        runner = Runner(spec_file, output, home, "--address", address, environment=TOKEN)
        runner.wait_until(lambda: runner.num_trials() >= 8)
        runner.kill()
        runner = Runner(spec_file, output, home, "--address", address, environment=TOKEN)
        runner.wait_until(lambda: runner.num_trials() >= 20)
        runner.process.send_signal(signal.SIGINT)
        code, _, stderr = runner.wait()
        assert code == 130, stderr
        store = ("--set", "evaluation.store_predictions=true")
        finish(Runner(spec_file, output, home, "--address", address, *store, environment=TOKEN), quiet)
        assert results.lacking_predictions(output) == set()
        assert not results.load(output, "predictions").empty
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=60)


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["_EvalActor", "_first_task", "Dispatcher", "TrialCoordinator"])
def test_a_process_is_killed(victim, spec_file, home, quiet, tmp_path):
    output = tmp_path / "out"
    runner = Runner(spec_file, output, home, "--set", "resources.evaluators=2")
    if victim != "_first_task":
        runner.wait_until(lambda: runner.num_trials() >= 8)
    found: list[int] = []

    def look() -> bool:
        found[:] = [pid for pid, name in runner.descendants() if victim in name]
        return bool(found)

    wait_for(look)
    kill(found[0])
    if victim == "Dispatcher":
        code, _, stderr = runner.wait()
        assert code == 4, stderr
        assert "the process that feeds evaluators is gone" in stderr
        assert "Traceback" not in stderr
        runner = Runner(spec_file, output, home)
    finish(runner, quiet)


@pytest.mark.slow
def test_the_driver_is_killed_and_its_cluster_stays(spec_file, home, quiet, tmp_path, monkeypatch):
    nodes = cluster_of(monkeypatch, 2)
    try:
        nodes.add(2)
        output = tmp_path / "out"
        for target in (5, len(quiet) // 2):
            runner = Runner(spec_file, output, home, "--address", nodes.address)
            runner.wait_until(lambda runner=runner, target=target: runner.num_trials() >= target)
            runner.kill()
            assert runner.num_trials() < len(quiet), "killed too late to prove anything"
        finish(Runner(spec_file, output, home, "--address", nodes.address), quiet)
    finally:
        nodes.close()


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["sigterm", "twice"])
def test_signals_end_a_sweep_and_keep_what_is_finished(signals, spec_file, home, quiet, tmp_path):
    output = tmp_path / "out"
    runner = Runner(spec_file, output, home)
    runner.wait_until(lambda: runner.num_trials() >= 8)
    for number in signals:
        runner.process.send_signal(number)
        time.sleep(0.05)
    code, _, stderr = runner.wait()
    assert code == 130, stderr
    assert "Traceback" not in stderr
    assert ("the same command continues" in stderr) is (len(signals) == 1)
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("trials/**/part-*.parquet")}
    assert 8 <= len(kept) < len(quiet)
    finish(Runner(spec_file, output, home), quiet)
    now = {path.name: path.stat().st_mtime_ns for path in output.glob("trials/**/part-*.parquet")}
    assert {name: now[name] for name in kept} == kept


@pytest.mark.slow
def test_sigterm_before_the_first_trial(spec_file, home, tmp_path):
    runner = Runner(spec_file, tmp_path / "out", home)
    wait_for(lambda: any("raylet" in name for _, name in runner.descendants()))
    runner.process.send_signal(signal.SIGTERM)
    code, _, stderr = runner.wait()
    assert code == 130, stderr
    assert "Traceback" not in stderr


# --- memory and disks ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_shard_that_kills_every_evaluator_fails_its_trial_and_no_other(spec_file, home, quiet, tmp_path):
    """As the kernel does it, where memory is out."""
    output = tmp_path / "out"
    runner = Runner(spec_file, output, home, "--set", "resources.evaluators=1")
    runner.wait_until(lambda: runner.num_trials() >= 8)

    def num_failed() -> int:
        return int((results.load(output, "trials").status == "failed").sum())

    while not num_failed():
        assert runner.process.poll() is None, runner.wait()[2]
        for pid, name in list(runner.descendants()):
            if "_EvalActor.run" in name:  # it works on a shard
                kill(pid)
    code, _, stderr = runner.wait()
    assert code in (0, 3), stderr
    assert "Traceback" not in stderr
    failed = results.load(output, "trials").query("status == 'failed'")
    assert failed.error.str.contains("3 evaluators died on it").all(), failed.error.tolist()
    finish(Runner(spec_file, output, home), quiet)


@pytest.mark.slow
def test_updates_that_do_not_fit_in_memory_are_spilled(suite, home, tmp_path, monkeypatch):
    """A store of 80 MB, and updates of 170 MB: Ray writes them to disk and reads them again."""
    big = tiny_suite(tmp_path / "suite", num_tasks=4, images=40, width=480)
    spec = tmp_path / "big.yaml"
    spec.write_text(SPEC.format(suite=big.root))
    nodes = cluster_of(monkeypatch, 3, store=80 * 2**20)
    try:
        finish(Runner(spec, tmp_path / "out", home, "--address", nodes.address), serial_records(spec, big))
    finally:
        nodes.close()


@pytest.mark.slow
def test_a_store_that_can_neither_hold_nor_spill_fails_trials_with_a_reason(home, tmp_path, monkeypatch):
    big = tiny_suite(tmp_path / "suite", num_tasks=4, images=40, width=480)
    spec = tmp_path / "big.yaml"
    spec.write_text(SPEC.format(suite=big.root))
    # as if the disk were full: Ray then refuses to spill
    nodes = cluster_of(monkeypatch, 3, store=80 * 2**20, system_config={"local_fs_capacity_threshold": 0.000001})
    try:
        runner = Runner(spec, tmp_path / "out", home, "--address", nodes.address)
        code, _, stderr = runner.wait()
    finally:
        nodes.close()
    assert code == 3, stderr
    assert "Ray's object store" in stderr, stderr
    assert "(Local disk is full)" in stderr, stderr
    assert "RayTaskError" not in stderr, stderr
    assert "Traceback" not in stderr
    finish(Runner(spec, tmp_path / "out", home), serial_records(spec, big))


def most_memory(runner: Runner, node: subprocess.Popen[bytes]) -> int:
    """Bytes that an evaluator of a node has had at any time of a sweep, as the system limits them."""
    most = 0
    while runner.process.poll() is None:
        for pid, process in below([node.pid]):
            if "_EvalActor" in process:
                most = max(most, memory_of(pid).get("VmData", 0))
        time.sleep(0.1)
    return most


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prlimit") is None, reason="limits the memory of a node with prlimit")
def test_an_evaluator_out_of_memory_goes_on_with_smaller_batches(home, tmp_path, monkeypatch):
    big = tiny_suite(tmp_path / "suite", num_tasks=2, images=4000, width=240)
    spec = tmp_path / "big.yaml"
    spec.write_text(ONE_CELL.format(suite=big.root))
    expected = serial_records(spec, big)
    # on one node an evaluator with small batches shows how much it needs, on the next it gets little more
    needed = 0
    for batch_size, name in ((32, "small"), (4000, "large")):
        nodes = cluster_of(monkeypatch, 0)
        limit = f"--data={needed + 100 * 2**20}" if needed else "--data=unlimited"
        command = ["prlimit", limit, "ray", "start", f"--address={nodes.address}", "--num-cpus=2", "--block"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        node = subprocess.Popen(command, env={**os.environ, **TOKEN}, **quiet)
        try:
            sets = ("--set", f"evaluation.batch_size={batch_size}", "--set", "resources.evaluators=1")
            runner = Runner(spec, tmp_path / name, home, "--address", nodes.address, *sets)
            if name == "small":
                needed = most_memory(runner, node)
            finish(runner, expected)
            logs = nodes.logs.glob("worker-*")
            halved = [line for log in logs for line in log.read_text().splitlines() if "going on with" in line]
            assert bool(halved) == (name == "large"), halved
        finally:
            os.killpg(node.pid, signal.SIGTERM)
            node.wait(timeout=60)
            nodes.close()


HOG = """
import mmap
import sys

hogged = []
for size in sys.stdin:
    hogged.append(mmap.mmap(-1, int(size)))
    for start in range(0, int(size), mmap.PAGESIZE):
        hogged[-1][start] = 1
    print("full", flush=True)
"""


class Hog:
    """A process that takes memory."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", HOG]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def take(self, size: int) -> None:
        """So many bytes more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{size}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def memory_used() -> tuple[int, int]:
    """Bytes of this machine in use, and how many it has."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return found["MemTotal"] - found["MemAvailable"], found["MemTotal"]


@pytest.mark.slow
def test_evaluators_that_ray_kills_for_their_memory_are_replaced(spec_file, home, quiet, tmp_path, monkeypatch):
    """Ray does so when a node runs out of memory, whoever has it, and reports the deaths as another error."""
    used, total = memory_used()
    limit = used + 8 * 2**30
    if limit > 0.9 * total:
        pytest.skip("this machine has too little free memory")
    monitor = {"memory_usage_threshold": limit / total, "memory_monitor_refresh_ms": 100}
    nodes = cluster_of(monkeypatch, 3, system_config=monitor)
    hog = Hog()
    try:
        hog.take(4 * 2**30)
        runner = Runner(spec_file, tmp_path / "out", home, "--address", nodes.address)
        runner.wait_until(lambda: runner.num_trials() >= 8)

        def evaluators() -> set[int]:
            return {pid for pid, name in below([nodes.head_pid]) if "_EvalActor" in name}

        before = evaluators()
        assert before
        hog.take(max(2**20, limit - memory_used()[0]))

        def one_dies() -> bool:
            hog.take(2**27)
            return not before <= evaluators()

        runner.wait_until(one_dies)
        hog.end()
        assert runner.process.poll() is None, "too late to prove anything"
        said = finish(runner, quiet)
        assert re.search(r"an evaluator on \S+ died; another one is started", said), said
    finally:
        hog.end()
        nodes.close()


ASK_FOR_ROOM = """
import numpy as np
import ray
from raymerge.cluster import _lack_of_room

ray.init("{address}", log_to_driver=False)
small, large = ray.put(np.zeros(10**6, np.uint8)), ray.put(np.zeros(5 * 10**7, np.uint8))
print(repr(_lack_of_room([small])))
print(_lack_of_room([small, large]))
"""


@pytest.mark.slow
def test_a_store_without_room_says_so(monkeypatch):
    nodes = cluster_of(monkeypatch, 1, store=80 * 2**20, system_config={"local_fs_capacity_threshold": 0.000001})
    try:
        command = [sys.executable, "-c", ASK_FOR_ROOM.format(address=nodes.address)]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **TOKEN})
    finally:
        nodes.close()
    nothing, said = asked.stdout.strip().splitlines()
    assert nothing == "''"
    assert re.search(r"object store on \S+ has no room for 51\.0 MB of the merged model, and cannot make any", said)
    assert "--object-store-memory" in said


@pytest.mark.slow
def test_a_damaged_part_is_set_aside_and_computed_again(spec_file, home, quiet, tmp_path):
    output = tmp_path / "out"
    finish(Runner(spec_file, output, home), quiet)
    before = results.load(output, "summary")
    parts = sorted(output.glob("trials/**/part-*.parquet"))
    parts[3].write_bytes(parts[3].read_bytes()[:100])
    evaluations = sorted(output.glob("evaluations/**/part-*.parquet"))
    evaluations[7].write_bytes(b"")
    stamps = {path: path.stat().st_mtime_ns for path in parts}
    stderr = finish(Runner(spec_file, output, home), quiet)
    assert parts[3].name in stderr
    assert evaluations[7].name in stderr
    assert "quarantine" in stderr
    assert (output / "quarantine" / parts[3].relative_to(output)).is_file()
    again = {path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert again == {parts[3].name, evaluations[7].name}
    pd.testing.assert_frame_equal(comparable(before), comparable(results.load(output, "summary")))
    manifest = read_manifest(output)
    assert manifest is not None
