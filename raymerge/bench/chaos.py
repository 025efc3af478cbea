"""A sweep whose processes are killed at random, again and again, against the same sweep left alone.

Kills are seeded: the same seed gives the same victims in the same order, at the same times after each other. What each
of them hits depends on the machine, so two runs are alike and not equal; the results must be.
"""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raymerge import results
from raymerge.bench.proc import below, kill
from raymerge.errors import RaymergeError
from raymerge.records import TrialRecord

KINDS = {
    "evaluator": ("ray::_EvalActor", 10),
    "merge": ("ray::_first_task ray::_shard_task", 4),
    "coordinator": ("ray::TrialCoordinator", 2),
    "dispatcher": ("ray::Dispatcher", 1),
    "driver": ("", 2),
    "node": ("", 2),
}
"""Names of the processes of a kind, and how often it is drawn beside the others. Nodes only where there are several."""
FIRST_TRIAL_S = 300.0
RESTART_S = 0.5


@dataclass
class Chaos:
    """What was done to a sweep, and what became of it."""

    kills: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Kills for which no process of the kind was there; another one was killed in its place."""
    starts: int = 0
    sweeps: int = 0
    """Times the sweep was run from the beginning: one that ends before all kills are done starts anew elsewhere."""
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    """Trials whose status, point or counts differ from those of the quiet sweep."""
    summaries_differ: int = 0
    seconds: float = 0.0

    @property
    def is_fine(self) -> bool:
        return not (self.lost or self.doubled or self.changed or self.summaries_differ)


def run_chaos(
    command: Sequence[str],
    folder: Path,
    *,
    kills: int,
    interval_s: float,
    seed: int,
    num_nodes: int,
    report: Callable[[str], None],
) -> Chaos:
    """Run a sweep alone, then under kills until all are done and it ends by itself.

    Args:
        command: of the sweep, without output and address.
        folder: for results, which are deleted first.
        interval_s: mean time between two kills; times are exponentially distributed.
        num_nodes: nodes of a cluster on this machine beside its head; 0: Ray as a sweep starts it.
    Raises:
        RaymergeError: the sweep fails by itself.
    """
    shutil.rmtree(folder, ignore_errors=True)
    report("the quiet sweep")
    quiet = folder / "quiet"
    run = _Run(command, quiet, folder / "quiet.log", None)
    try:
        code, said = run.wait()
    finally:
        run.kill()
    if code != 0:
        raise RaymergeError(f"the sweep ends with status {code} by itself ({said}); see {folder / 'quiet.log'}.")
    expected, expected_summary = results.read_records(quiet), _summary(quiet)
    started = time.monotonic()
    cluster = _Cluster(num_nodes, folder) if num_nodes else None
    killer = _Killer(command, kills, interval_s, random.Random(seed), cluster, len(expected), report)
    chaos = killer.chaos
    try:
        while not killer.is_done:
            chaos.sweeps += 1
            output = folder / f"chaos{chaos.sweeps}"
            killer.run(output)
            _compare(output, expected, expected_summary, chaos)
    finally:
        if cluster is not None:
            cluster.close()
    chaos.seconds = time.monotonic() - started
    return chaos


@dataclass
class _Killer:
    """Runs sweeps, kills their processes, and starts them again."""

    command: Sequence[str]
    kills: int
    interval_s: float
    rng: random.Random
    cluster: "_Cluster | None"
    num_expected: int
    """Trials of the sweep."""
    report: Callable[[str], None]
    chaos: Chaos = field(default_factory=Chaos)

    @property
    def num_done(self) -> int:
        return sum(self.chaos.kills.values())

    @property
    def is_done(self) -> bool:
        return self.num_done >= self.kills

    def run(self, output: Path) -> None:
        """One sweep from its first trial to its end, killed and started again."""
        while True:
            self.chaos.starts += 1
            log = output.with_name(f"{output.name}-{self.chaos.starts}.log")
            run = _Run(self.command, output, log, self.cluster)
            try:
                self._kill_while_it_runs(run)
                code, said = run.wait()
            finally:
                run.kill()
            if code == 0:
                return
            if code not in (1, 4, -signal.SIGKILL):
                raise RaymergeError(f"the sweep ended with status {code} ({said}); see {log}.")
            time.sleep(RESTART_S)

    def _kill_while_it_runs(self, run: "_Run") -> None:
        done = run.num_trials()
        deadline = time.monotonic() + FIRST_TRIAL_S
        while run.is_alive() and run.num_trials() <= done and time.monotonic() < deadline:
            time.sleep(0.1)  # so that every start gets somewhere
        while run.is_alive() and not self.is_done:
            due = time.monotonic() + self.rng.expovariate(1 / self.interval_s)
            while run.is_alive() and time.monotonic() < due:
                time.sleep(0.05)
            if not run.is_alive():
                return
            number = self.num_done + 1
            kind = self._kill_one(run)
            saved = f"{run.num_trials()} of {self.num_expected} trials saved"
            self.report(f"kill {number} of {self.kills}: {kind}, {saved}")

    def _kill_one(self, run: "_Run") -> str:
        kinds = [kind for kind in KINDS if kind != "node" or self.cluster is not None]
        kind = self.rng.choices(kinds, [KINDS[kind][1] for kind in kinds])[0]
        draw = self.rng.random()
        if kind == "node" and self.cluster is not None:
            self.cluster.replace_one(draw)
        elif kind == "driver":
            run.kill()
        else:
            roots = [run.pid, *(self.cluster.pids if self.cluster else [])]
            found = _named(roots, KINDS[kind][0].split())
            if not found:
                self.chaos.missed += 1
                kind, found = "evaluator", _named(roots, KINDS["evaluator"][0].split())
            if not found:
                return "nobody was there"
            kill(found[int(draw * len(found))])
        self.chaos.kills[kind] += 1
        return kind


# --- results ---------------------------------------------------------------------------------------------------------


def _compare(output: Path, expected: dict[str, TrialRecord], expected_summary: Any, chaos: Chaos) -> None:
    records = results.read_records(output)
    rows = results.load(output, "evaluations")
    chaos.rows += len(rows)
    chaos.doubled += int(rows.duplicated(["trial_id", "task"]).sum())
    chaos.lost += sum(len(record.scores) for name, record in expected.items() if name not in records)
    chaos.changed += len(records.keys() - expected.keys())
    chaos.changed += sum(
        _facts(record) != _facts(records[name]) for name, record in expected.items() if name in records
    )
    chaos.summaries_differ += not _summary(output).equals(expected_summary)


def _facts(record: TrialRecord) -> Any:
    return record.status, record.point, {score.task: (score.correct, score.total) for score in record.scores}


def _summary(output: Path) -> Any:
    return results.load(output, "summary").drop(columns=["sweep"])


# --- processes -------------------------------------------------------------------------------------------------------


class _Run:
    """`raymerge sweep` as a process."""

    def __init__(self, command: Sequence[str], output: Path, log: Path, cluster: "_Cluster | None"):
        log.parent.mkdir(parents=True, exist_ok=True)
        address = ["--address", cluster.address] if cluster else []
        self._output = output
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*command, "--output", str(output), *address],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(cluster.environment if cluster else {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def num_trials(self) -> int:
        return sum(1 for _ in self._output.glob("trials/**/part-*.parquet"))

    def wait(self) -> tuple[int, str]:
        """Status, and the last line it said."""
        code = self._process.wait()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return code, lines[-1] if lines else ""

    def kill(self) -> None:
        kill(self.pid)
        self._process.wait()


class _Cluster:
    """A head and nodes of Ray on this machine, each of two CPUs."""

    def __init__(self, num_nodes: int, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._log = folder / "ray.log"
        self._temporary = f"/tmp/raymerge-chaos-{os.getpid()}"  # a socket's path must be short
        head = [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={self._temporary}", "--head"]
        self._head = self._start(*head, "--include-dashboard=false")
        deadline = time.monotonic() + 60
        while not listens(port):
            if time.monotonic() > deadline or self._head.poll() is not None:
                raise RaymergeError(f"Ray does not start on this machine; see {self._log}.")
            time.sleep(0.2)
        self._nodes = [self._join() for _ in range(num_nodes)]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in (self._head, *self._nodes)]

    def replace_one(self, draw: float) -> None:
        """Kill a node, and let another one join."""
        victim = self._nodes.pop(int(draw * len(self._nodes)))
        self._kill(victim)
        self._nodes.append(self._join())

    def close(self) -> None:
        for process in (*self._nodes, self._head):
            self._kill(process)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _join(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}")

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=2", *options]
        with self._log.open("ab") as file:
            return subprocess.Popen(
                [*ray, "--object-store-memory=200000000"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        for pid in [process.pid, *(pid for pid, _ in below([process.pid]))]:
            kill(pid)
        process.wait()


def listens(port: int) -> bool:
    """Whether something on this machine accepts connections at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _named(roots: Sequence[int], names: Sequence[str]) -> list[int]:
    return sorted(pid for pid, command in below(roots) if any(command.startswith(name) for name in names))
