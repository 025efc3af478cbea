"""Jobs in processes: results, order, errors, and that nothing is left running."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from raymerge.errors import DataError, RaymergeError
from raymerge.processes import default_workers, go_on, run_jobs


def square(number: int) -> int:
    if number < 0:
        raise DataError(f"{number} is negative.")
    return number * number


def my_process(_: int) -> int:
    return os.getpid()


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def until_told(path: Path) -> None:
    path.touch()
    while True:
        time.sleep(0.01)
        go_on()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_comes_with_its_result(workers):
    assert sorted(run_jobs(square, range(7), workers)) == [(i, i * i) for i in range(7)]
    assert list(run_jobs(square, [], workers)) == []


def test_one_worker_is_this_process_and_works_in_order():
    assert list(run_jobs(my_process, [3, 1, 2], 1)) == [(job, os.getpid()) for job in (3, 1, 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_are_taken_when_there_is_room(workers):
    taken = []
    jobs = (taken.append(i) or i for i in range(50))
    with closing(run_jobs(square, jobs, workers)) as results:
        next(results)
        assert len(taken) <= 4


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_job_is_raised(workers):
    with pytest.raises(DataError, match=r"^-3 is negative\.$"):
        list(run_jobs(square, [1, 2, -3, 4], workers))


def test_a_process_that_was_killed():
    with pytest.raises(RaymergeError, match="a process was killed from outside, perhaps because memory ran out"):
        list(run_jobs(die, [1, 2], 2))


def test_what_runs_ends_when_nobody_waits(tmp_path):
    jobs = [tmp_path / "first", tmp_path / "second"]
    results = run_jobs(_either, [tmp_path, *jobs], 2)
    next(results)
    while not jobs[0].exists():
        time.sleep(0.01)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 100, "it would take for ever"


def _either(path: Path) -> None:
    if not path.is_dir():
        until_told(path)


WITH_A_SIGNAL = """
import os, signal, sys, threading, time
from multiprocessing import util
from raymerge.processes import run_jobs

number, spawn = signal.Signals[sys.argv[1]], util.spawnv_passfds

def spawn_and_signal(path, args, passed):
    process = spawn(path, args, passed)
    if any("spawn_main" in str(arg) for arg in args):
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # any handler has run
    return process

def stop(*_):
    raise KeyboardInterrupt

signal.signal(number, stop)
util.spawnv_passfds = spawn_and_signal
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()  # it receives what the main thread blocks
try:
    list(run_jobs(abs, [-1, -2], 2))
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_process_starts_waits_until_it_has_started(name):
    done = subprocess.run([sys.executable, "-c", WITH_A_SIGNAL, name], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


def test_few_images_need_few_processes():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert default_workers(0) == default_workers(1000) == 1
    assert default_workers(10**9) == min(cores, 16)
