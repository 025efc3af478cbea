"""The benchmark of sweeps on simulated evaluators, and the arithmetic of a sweep on N GPUs."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_sweep
import pytest
from typer.testing import CliRunner

from raymerge.bench import proc
from raymerge.bench.cluster import Memory, Simulated, quarters, steady_s, warm_up
from raymerge.bench.grid_time import Costs, Work, grid_time, stops_at, work_of
from raymerge.bench.sleeping import OneOfSeveral, SleepingEvaluators, shard_seconds
from raymerge.cli import app
from raymerge.cli_bench_cluster import _memory_table, _time_table
from raymerge.plan import make_plan
from raymerge.records import EvalJob, Failed, Scored
from raymerge.streams import render

SWEEPS = Path(__file__).parent.parent / "sweeps"
GRID = ("--model", "--sweep", str(SWEEPS / "full_grid.yaml"))
JOB = EvalJob("B0", "T0", "val", 0, 1000, "weights", 1.0, None)


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", "cluster", *args])
    return result.exit_code, result.stdout, result.stderr


# --- evaluators that sleep -------------------------------------------------------------------------------------------


def test_one_evaluator_in_four_is_slower():
    assert [shard_seconds(number, 0.5) for number in range(5)] == [0.5, 0.5, 0.5, 1.0, 0.5]


def test_evaluators_sleep_side_by_side_but_each_has_one_call():
    async def both(first: int, second: int) -> list[list[Scored | Failed]]:
        evaluators = SleepingEvaluators(0.001)
        return await asyncio.gather(evaluators.run(first, JOB), evaluators.run(second, JOB, JOB))

    (one,), (other, as_well) = asyncio.run(both(0, 3))
    assert isinstance(one, Scored)
    assert isinstance(other, Scored)
    assert (one.seconds, other.seconds) == (0.001, 0.002)
    assert one.correct == other.correct, "weights and task decide"
    assert 300 <= one.correct <= 900
    assert one.total == 1000
    assert as_well == other
    _, again = asyncio.run(both(1, 1))
    assert len(again) == 2
    assert isinstance(again[0], Failed)
    assert "evaluator 1" in again[0].error


def test_one_of_several_is_called_by_its_number():
    calls: list[tuple[Any, ...]] = []
    method = SimpleNamespace(remote=lambda *arguments: calls.append(arguments))
    evaluator = OneOfSeveral(SimpleNamespace(run=method, ready=method), 5)
    evaluator.run.remote(JOB)
    evaluator.ready.remote([])
    assert calls == [(5, JOB), (5, [])]


# --- figures ---------------------------------------------------------------------------------------------------------


SIMULATED = Simulated(
    evaluators=8,
    processes=1,
    shard_s=0.5,
    trials=1000,
    concurrent=2,
    trial_s=0.3,
    trial_cpu_s=0.02,
    quarter_s=(0.4, 0.3, 0.3, 0.2),
    quarter_cpu_s=(0.02, 0.02, 0.02, 0.02),
    noop_s=(0.1, 0.2),
    noop_cpu_s=(0.01, 0.03),
    reporting_s=(0.5, 0.7),
    reporting_cpu_s=(0.04, 0.04),
    wall_s=1100.0,
    work_s=8000.0,
    occupancy=0.9,
    steady_occupancy=0.95,
    rows=22000,
    memory=(Memory(100_000_000, 10_000_000), Memory(120_000_000, 20_000_000), Memory(136_000_000, 30_000_000)),
)


def test_what_follows_from_the_figures():
    assert SIMULATED.overhead_s == pytest.approx(0.1)
    assert SIMULATED.rows_per_s == 20
    assert SIMULATED.ratio == pytest.approx(3)
    assert SIMULATED.reporting_ratio == pytest.approx(0.6)
    assert SIMULATED.cpu_ratio == pytest.approx(2)
    assert SIMULATED.driver_growth == 36_000_000
    assert SIMULATED.driver_growth_per_trial == 20_000
    value = json.loads(json.dumps(SIMULATED.as_dict()))
    assert value["memory"][2] == {"driver": 136_000_000, "gcs": 30_000_000}
    assert value["overhead_s"] == SIMULATED.overhead_s


def test_tables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    render(_time_table([SIMULATED, replace(SIMULATED, occupancy=None)]))
    render(_memory_table([SIMULATED]))
    shown = capsys.readouterr().out
    for text in (
        "0.100, 0.200",
        "0.500, 0.700",
        "90.0%",
        "95.0%",
        "100, 120, 136",
        "0.400, 0.300, 0.300, 0.200",
        "1,000",
    ):
        assert text in shown


def test_seconds_per_trial():
    completions = [(float(t), t / 10) for t in (0, 10, 12, 14, 16, 17, 18, 20, 22)]
    assert steady_s(completions, 1) == pytest.approx((12 / 7, 1.2 / 7))
    assert [wall for wall, _ in quarters(completions)] == [6, 2, 1, 2]
    assert [cpu for _, cpu in quarters(completions)] == pytest.approx([0.6, 0.2, 0.1, 0.2])
    assert (warm_up(12), warm_up(5000)) == (3, 200)


def test_processes_are_found_by_name_among_own_children():
    own_name = "import sys; open('/proc/self/comm', 'w').write('one-of-mine'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", own_name], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        name = Path(f"/proc/{child.pid}/comm").read_text().strip()
        assert proc.child_named(name) == child.pid
        assert proc.memory_of(child.pid)["VmRSS"] > 100_000
        child.kill()
    assert proc.child_named("no such process") is None
    assert proc.memory_of(child.pid) == {}
    assert proc.memory_of(os.getpid())["VmRSS"] > 10_000_000


# --- a simulated sweep -----------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
def test_a_simulated_sweep():
    command = [sys.executable, "-m", "raymerge", "bench", "cluster", "--json", "--trials", "12", "--noop", "4"]
    command += ["--evaluators", "2", "--shard-seconds", "0.001", "--per-process", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "sweeping" in done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["evaluators"], row["processes"], row["concurrent"], row["shard_s"]) == (2, 2, 2, 0.001)
    assert row["trials"] == 12 + 3 + 4, "three cells, their tests, zero-shot model and experts on both splits"
    assert row["rows"] == 19 * 21
    assert row["work_s"] == pytest.approx(19 * 20 * 0.001, rel=0.01)
    assert 0 < row["occupancy"] < 1
    assert 0 < row["steady_occupancy"] < 1
    assert all(memory["driver"] > 50_000_000 and memory["gcs"] > 10_000_000 for memory in row["memory"])
    assert row["wall_s"] > row["work_s"] / 2
    assert min(*row["noop_s"], *row["noop_cpu_s"], *row["reporting_s"], row["trial_s"], row["trial_cpu_s"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--evaluators", "1,x"), "--evaluators: '1,x' found, whole numbers from 1 to 1000 expected"),
        (("--evaluators", "0"), "--evaluators: '0' found"),
        (("--evaluators", "1.5"), "--evaluators: '1.5' found"),
        (("--shard-seconds", "-1"), "--shard-seconds: '-1' found, numbers from 0 to 3600 expected"),
        (("--model", "--images-per-s", "ViT-B-32"), "--images-per-s: 'ViT-B-32' found, NAME=NUMBER"),
        (("--model", "--images-per-s", "ViT-B-32=0"), "--images-per-s: 'ViT-B-32=0' found"),
        ((*GRID, "--images-per-s", "ViT-B-33=1"), "--images-per-s: there is no backbone 'ViT-B-33'"),
        ((*GRID, "--merge-seconds", "isoc=1"), "--merge-seconds: there is no method 'isoc'. Did you mean 'iso-c'?"),
        (("--model", "--sweep", str(SWEEPS / "demo.yaml")), "say --images-per-s"),
    ],
)
def test_wrong_options(arguments, message):
    code, stdout, stderr = run(*arguments)
    assert code in (1, 2)
    assert message in stderr
    assert stdout == ""


# --- N GPUs ----------------------------------------------------------------------------------------------------------


WORK = [Work("a", images=1200, trials=10, shards=40, merge_s=30.0), Work("b", 1000, 5, 5, 10.0)]
COSTS = Costs({"a": 10.0, "b": 5.0}, switch_s=2.0, trial_s=4.0, merges_at_once=2)


def test_one_gpu_by_hand():
    time = grid_time(WORK, COSTS, 1)
    assert time.evaluating_s == 120 + 200 + 2 * (10 + 5)
    assert time.driver_s == 60
    assert time.merging_s == 20
    assert (time.seconds, time.bound) == (350, "evaluating")


def test_a_trial_sets_weights_on_as_many_gpus_as_it_has_shards():
    assert grid_time(WORK, COSTS, 2).evaluating_s == (320 + 2 * (10 * 2 + 5)) / 2
    assert grid_time(WORK, COSTS, 4).evaluating_s == (320 + 2 * (10 * 4 + 5)) / 4
    assert grid_time(WORK, COSTS, 40).evaluating_s == (320 + 2 * (10 * 4 + 5)) / 40


def test_where_it_stops_falling():
    # 410 / N from 4 GPUs on: 58.6 with 7, and the driver needs 60
    assert grid_time(WORK, COSTS, 6).bound == "evaluating"
    assert grid_time(WORK, COSTS, 7).bound == "driver"
    assert stops_at(WORK, COSTS, 64) == 7
    assert stops_at(WORK, COSTS, 3) == 3, "still falling"
    merging = replace(COSTS, trial_s=0.0, merges_at_once=1)  # 40 s
    assert (grid_time(WORK, merging, 64).bound, grid_time(WORK, merging, 64).seconds) == ("merging", 40)
    assert stops_at(WORK, merging, 64) == 11


def test_the_work_of_a_sweep():
    """Four tasks with 280 validation and 120 test images, in shards of 50; two merging methods on two and four."""
    methods = {"zero-shot": {}, "ties": {"alpha": [0.1, 0.2, 0.3]}, "iso-c": {"alpha": [1.0, 2.0]}}
    spec = fake_sweep.spec_of(methods, (2, 4), evaluation={"shard_images": 50}, policy="grid")
    (work,) = work_of(spec, fake_sweep.SUITE, {"ties": 100.0, "iso-c": 1000.0})
    assert work.backbone == "vit"
    assert work.trials == 4 + 2 * (3 + 1) + 2 * (2 + 1)
    assert work.images == make_plan(spec, fake_sweep.SUITE, {}).max_images == 2 * 400 + 5 * (120 + 280) + 2 * (70 + 120)
    # val: 1 + 2 + 2 + 2 shards, test: 1 each
    assert work.shards == 2 * (7 + 4) + 5 * (3 + 7) + 2 * (2 + 4)
    assert work.merge_s == pytest.approx(1100 * (2 + 4) / 20)


def test_images_are_limited_as_in_the_sweep():
    spec = fake_sweep.spec_of({"iso-c": {"alpha": [1.0]}}, (4,), evaluation={"shard_images": 50, "max_images": 60})
    (work,) = work_of(spec, fake_sweep.SUITE)
    assert work.images == make_plan(spec, fake_sweep.SUITE, {}).max_images
    assert work.shards == 2 * (7 + 4) + 7 + 4


def test_model_command():
    code, stdout, stderr = run(*GRID, "--json", "--gpus", "12", "--driver-seconds", "0.5", "--merges-at-once", "2")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert [row["gpus"] for row in found["rows"]] == [1, 2, 4, 8, 12]
    assert [work["backbone"] for work in found["work"]] == ["ViT-B-32", "ViT-B-16", "ViT-L-14"]
    trials = sum(work["trials"] for work in found["work"])
    assert all(row["driver_s"] == pytest.approx(0.5 * trials) for row in found["rows"])
    assert found["costs"]["merges_at_once"] == 2
    evaluating = [row["evaluating_s"] for row in found["rows"]]
    assert evaluating == sorted(evaluating, reverse=True)
    code, stdout, _ = run(*GRID, "--merges-at-once", "1", "--merge-seconds", "iso-c=20000")
    assert code == 0
    assert "merging decides" in stdout
    assert "full_grid: at most 76.6 million images" in stdout
    code, stdout, _ = run(*GRID, "--gpus", "2")
    assert "It is faster with every GPU up to 2." in stdout
