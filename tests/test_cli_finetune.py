"""`raymerge finetune` as a user runs it: alone and on Ray, killed and interrupted; what its experts are good for."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import BACKBONE, TWINS, small_world
from typer.testing import CliRunner

import raymerge
from raymerge import cli
from raymerge.checkpoints import Checkpoint
from raymerge.errors import ClusterError, UsageError
from raymerge.finetuning.jobs import Resources, check_fits, machine_of

ROOT = Path(__file__).parent.parent
RECIPE = ("--epochs", "2", "--batch-size", "40", "--learning-rate", "6e-3", "--warmup", "3", "--cpus-per-task", "1")
INTERRUPTED = (
    "interrupted: finished experts and what was done of others are saved; the same command continues from there.\n"
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    small_world(folder, tasks=f"{TWINS}, {{name: Broken, folder: broken, classes: [a, b]}}")
    head = folder / "weights" / BACKBONE / "head_MNISTVal.pt"
    shutil.copy(head, head.with_name("head_TwinVal.pt"))  # or the pretrained model is loaded for it
    return folder


@pytest.fixture(autouse=True)
def world(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change, in the working folder, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("clip.safetensors"))
    return tmp_path


def call(*args: str):
    return CliRunner().invoke(cli.app, args, prog_name="raymerge", catch_exceptions=False)


def finetune(*args: str, tasks: str = "MNIST", recipe: tuple[str, ...] = RECIPE):
    return call("finetune", "--suite", "suite.yaml", "--tasks", tasks, *recipe, *args)


def process(*args: str, tasks: str = "MNIST", recipe: tuple[str, ...] = RECIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raymerge", "finetune", "--suite", "suite.yaml", "--tasks", tasks, *recipe, *args]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # a Ctrl-C at the terminal of the tests is not for it
    )


def wait_until(running: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened() and running.poll() is None:
        assert time.monotonic() < deadline, "nothing happened for long"
        time.sleep(0.1)


def expert(task: str = "MNIST", output: str = "weights") -> Path:
    return Path(output, BACKBONE, f"{task}Val", "nonlinear_finetuned.pt")


def resume(task: str = "MNIST") -> Path:
    return expert(task).with_suffix(".resume.pt")


# --- what it prints and writes ---------------------------------------------------------------------------------------


def test_one_expert():
    done = finetune()
    assert done.exit_code == 0, done.stderr
    where = "cuda" if torch.cuda.is_available() else "cpu"
    assert done.stderr.splitlines() == [
        "loading torch",
        "checking datasets, weights and heads",
        f"fine-tuning tiny/MNIST on {where}",
    ]
    lines = done.stdout.splitlines()
    assert lines[0] == f"Experts of small in {Path('weights').absolute()}; the loss is the mean of the last epoch"
    (row,) = [re.split(r" *│ *", line)[1:-1] for line in lines if line.startswith("│")]
    record = json.loads(expert().with_suffix(".json").read_text())
    loss = f"{record['loss']['by_epoch'][-1]:.4f}"
    assert [row[i] for i in (0, 1, 2, 3, 5)] == ["tiny", "MNIST", "10", loss, "made"]
    assert sorted(path.name for path in expert().parent.iterdir()) == [
        "nonlinear_finetuned.json",
        "nonlinear_finetuned.pt",
        "nonlinear_zeroshot.pt",
    ]


def test_finished_experts_are_kept():
    assert finetune().exit_code == 0
    before, time_ns = expert().read_bytes(), expert().stat().st_mtime_ns
    done = finetune("--json")
    assert done.exit_code == 0
    assert done.stderr.splitlines()[2:] == ["1 of 1 experts were finished already; --force makes them again."]
    shown = json.loads(done.stdout)
    assert {key: shown[key] for key in ("suite", "profile")} == {"suite": "small", "profile": "file"}
    assert shown["output"] == str(Path("weights").absolute())
    (row,) = shown["rows"]
    assert (row["status"], row["steps"], row["differs"]) == ("kept", 10, None)
    assert row["file"] == str(expert().absolute())
    assert expert().stat().st_mtime_ns == time_ns
    done = finetune("--seed", "1")
    assert done.stderr.endswith("tiny/MNIST: was made with seed 0, asked for 1.\n")
    assert expert().stat().st_mtime_ns == time_ns
    done = finetune("--force")
    assert " made " in done.stdout
    assert expert().stat().st_mtime_ns > time_ns
    assert expert().read_bytes() == before
    assert finetune("--seed", "1", "--force").exit_code == 0
    assert expert().read_bytes() != before


def test_experts_of_others_are_left_alone():
    assert finetune().exit_code == 0
    expert().with_suffix(".json").unlink()
    before = expert().read_bytes()
    done = finetune()
    assert (done.exit_code, "another's" in done.stdout) == (0, True)
    assert done.stderr.endswith("was there already, though not from this command; it is left as it is.\n")
    done = finetune("--force")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "is not what 'raymerge finetune' wrote" in done.stderr
    assert expert().read_bytes() == before


def test_experts_can_be_merged(world):
    """With heads and weights where `merge` looks for them."""
    for task in ("MNIST", "Twin"):
        assert finetune(tasks=task).exit_code == 0
    args = ["--suite", "suite.yaml", "--tasks", "MNIST,Twin", "--method", "task-arithmetic", "--alpha", "0.5"]
    done = call("merge", *args, "--output", "m.safetensors")
    assert done.exit_code == 0, done.stderr
    name = "model.visual.proj"
    zero_shot = Checkpoint(expert().with_name("nonlinear_zeroshot.pt")).tensor(name)
    one, two = (Checkpoint(expert(task)).tensor(name) for task in ("MNIST", "Twin"))
    expected = zero_shot + 0.5 * (one - zero_shot) + 0.5 * (two - zero_shot)
    torch.testing.assert_close(Checkpoint(world / "m.safetensors").tensor(name), expected)
    assert not torch.equal(one, two)


def test_a_warm_up_that_never_ends_is_told():
    done = finetune(recipe=("--epochs", "1", "--max-steps", "2", "--batch-size", "8"))
    assert done.exit_code == 0
    assert done.stderr.endswith(
        "tiny/MNIST: the warm-up of 500 steps is no shorter than the training of 2, so that the learning rate only "
        "rose; --warmup sets it.\n"
    )


def test_another_precision():
    assert finetune("--precision", "fp16", "--accumulate", "2").exit_code == 0
    record = json.loads(expert().with_suffix(".json").read_text())
    assert (record["recipe"]["precision"], record["recipe"]["accumulate"], record["steps"]) == ("fp16", 2, 6)
    assert Checkpoint(expert()).dtype("model.visual.proj") == torch.float32


# --- killed and interrupted ------------------------------------------------------------------------------------------


def steps_in(path: Path) -> int:
    try:
        return len(torch.load(path, weights_only=True)["state"]["losses"])
    except FileNotFoundError:
        return 0


def test_kill_9_and_ctrl_c_change_no_bit():
    recipe = (*RECIPE[2:], "--epochs", "60")
    running = process("--save-minutes", "0", recipe=recipe)
    wait_until(running, lambda: steps_in(resume()) >= 10)
    running.kill()
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL, stderr
    killed_at = steps_in(resume())
    assert 10 <= killed_at < 300
    assert not expert().exists()

    lock = expert().with_name(".nonlinear_finetuned.lock")
    lock.unlink()  # left behind, and no hindrance
    running = process(recipe=recipe)  # which saves every five minutes, and when it is stopped
    wait_until(running, lock.exists)
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stdout) == (130, ""), stderr
    assert stderr.endswith(f"stopping: saving what is done\n{INTERRUPTED}")
    assert killed_at < steps_in(resume()) < 300
    assert not expert().exists()
    assert not list(Path("weights").rglob("*.lock"))

    assert finetune(recipe=recipe).exit_code == 0
    assert not resume().exists()
    continued = expert().read_bytes()
    assert finetune("--output", "undisturbed", recipe=recipe).exit_code == 0
    assert expert(output="undisturbed").read_bytes() == continued
    record = json.loads(expert().with_suffix(".json").read_text())
    assert len(record["loss"]["by_epoch"]) == 60
    undisturbed = json.loads(expert(output="undisturbed").with_suffix(".json").read_text())
    assert undisturbed["loss"] == record["loss"]


# --- Ray -------------------------------------------------------------------------------------------------------------


def break_images() -> None:
    """Images that are none, of a task that is called Broken."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = Path("data/broken", split, name)
            folder.mkdir(parents=True)
            for i in range(12):
                (folder / f"{i}.png").write_bytes(b"not a picture")


@pytest.mark.ray
def test_several_experts_on_ray():
    """Interrupted, then continued beside a task that fails: the same bytes as one after the other."""
    break_images()
    recipe = (*RECIPE[2:], "--epochs", "60")
    running = process(tasks="MNIST,Twin", recipe=recipe)
    wait_until(running, lambda: len(list(Path("weights").rglob("*.lock"))) == 2)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=120)
    assert (running.returncode, stdout) == (130, ""), stderr
    assert "\nfine-tuning 2 experts on " in stderr
    assert "\nstopping: saving what is done\n" in stderr, stderr
    assert stderr.endswith(f"\n{INTERRUPTED}"), stderr
    assert "Traceback" not in stderr
    assert all(resume(task).exists() and not expert(task).exists() for task in ("MNIST", "Twin"))

    done = finetune("--json", tasks="MNIST,Twin,Broken", recipe=recipe)
    assert done.exit_code == 3, done.stderr
    rows = {row["task"]: row for row in json.loads(done.stdout)["rows"]}
    assert {task: row["status"] for task, row in rows.items()} == {"MNIST": "made", "Twin": "made", "Broken": "failed"}
    *_, told, reason = done.stderr.splitlines()
    assert told == "1 of 3 experts failed; the same command tries them again:"
    assert re.fullmatch(r"  tiny/Broken: .*\d\.png: cannot be decoded .*; get this image again\.", reason)
    assert "Traceback" not in done.stderr
    for task in ("MNIST", "Twin"):
        assert finetune("--output", "alone", tasks=task, recipe=recipe).exit_code == 0
        assert expert(task).read_bytes() == expert(task, "alone").read_bytes()


# --- resources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "num_chosen", "there", "expected"),
    [
        (Resources(), 1, (16, 16, 0), ("cpu", 16, 1, 16)),
        (Resources(), 3, (16, 16, 0), ("cpu", 5, 1, 5)),
        (Resources(), 20, (16, 16, 0), ("cpu", 1, 1, 1)),
        (Resources(), 2, (64, 16, 0), ("cpu", 16, 1, 16)),
        (Resources(cpus=2, workers=4), 20, (16, 16, 0), ("cpu", 2, 4, 2)),
        (Resources(), 20, (32, 32, 4), ("cuda", 8, 8, 8)),
        (Resources(), 20, (16, 16, 4), ("cuda", 4, 4, 4)),
        (Resources(gpus=0.5), 20, (16, 16, 4), ("cuda", 2, 2, 2)),
        (Resources(workers=12), 20, (16, 16, 4), ("cuda", 4, 12, 4)),
        (Resources(device="cpu"), 4, (16, 16, 4), ("cpu", 4, 1, 4)),
    ],
)
def test_shares_of_the_machine(resources, num_chosen, there, expected):
    cores, most_cores, gpus = there
    machine, cpus = machine_of(resources, num_chosen, cores=cores, most_cores=most_cores, gpus=float(gpus))
    assert (machine.device, machine.threads, machine.workers, cpus) == expected


def test_a_gpu_that_is_not_there_is_no_share():
    with pytest.raises(UsageError, match="--device cuda, but no CUDA device is found; use auto or cpu"):
        machine_of(Resources(device="cuda"), 1, cores=2, most_cores=2, gpus=0.0)


def test_what_no_node_has_is_not_waited_for():
    nodes = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 2.0}, {"object_store_memory": 1e9}]
    check_fits({"CPU": 8.0, "GPU": 0.0}, nodes, 8)
    check_fits({"CPU": 4.0, "GPU": 0.5}, nodes, 4)
    message = (
        r"^no node has 8 cores and 0\.5 GPUs for one expert; ask for fewer with --cpus-per-task or --gpus-per-task\."
    )
    with pytest.raises(ClusterError, match=message):
        check_fits({"CPU": 8.0, "GPU": 0.5}, nodes, 8)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--suite", "demo"], 2, "suite 'demo' has no raw training images; give a suite file"),
        (["--suite", "tall-masks"], 2, "--output is missing: experts of 'tall-masks' would lie among the published"),
        (["--suite", "fusionbench", "--output", "x"], 2, "task 'EMNIST' (EMNIST-letters) has no published number of"),
        (
            ["--suite", "suite.yaml", "--tasks", "Cars"],
            2,
            "suite 'small' has no task 'Cars'. Known: Broken, MNIST, Twin.",
        ),
        (["--suite", "suite.yaml", "--tasks", "Broken"], 2, "task 'Broken' (folder-broken) has no published number of"),
        (["--suite", "suite.yaml", "--backbone", "x"], 2, "suite 'small' has no backbone 'x'. Known: tiny."),
        (["--suite", "suite.yaml", "--epochs", "0"], 2, "--epochs"),
        (["--suite", "suite.yaml", "--precision", "fp8"], 2, "--precision"),
        (["--suite", "suite.yaml", "--output", "s3://bucket/x"], 2, "is not a folder of this machine"),
        (["--suite", "missing.yaml"], 4, "missing.yaml"),
        (["--suite", "suite.yaml", "--tasks", "MNIST", "--data", "nowhere"], 4, "MNIST: not found under"),
        (
            ["--suite", "suite.yaml", "--tasks", "MNIST", "--output", "suite.yaml/x"],
            4,
            "cannot be written (Not a directory)",
        ),
    ],
)
def test_mistakes_of_the_user(args, code, message):
    done = call("finetune", *args)
    assert (done.exit_code, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path().rglob("nonlinear_*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    done = finetune("--device", "cuda")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith("error: --device cuda, but no CUDA device is found; use auto or cpu.\n")


def test_a_failure_of_the_only_expert_is_the_end(monkeypatch):
    done = finetune("--learning-rate", "1e30", "--warmup", "0")
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.search(r"^error: tiny/MNIST: the loss is \w+ at step \d of 10; use a smaller learning", done.stderr, re.M)
    assert not expert().exists()


def test_one_expert_needs_no_ray(monkeypatch):
    monkeypatch.delattr(raymerge, "cluster", raising=False)
    monkeypatch.setitem(sys.modules, "raymerge.cluster", None)  # importing it fails
    assert finetune().exit_code == 0


def test_help_imports_nothing_heavy():
    script = """
import sys
from raymerge.cli import app
try:
    app(["finetune", "--help"])
except SystemExit:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""
    env: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert "--accumulate" in done.stdout
    assert not {*done.stderr.split()} & {"torch", "ray", "pandas", "pyarrow", "numpy", "open_clip", "optuna"}
