"""`raymerge stats` as a user runs it: what it writes, prints, keeps and refuses. No test starts Ray."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_by_hand import moments_by_hand
from tiny_suite import BACKBONE, MEAN, STD, stop_preparation, tiny_suite
from torch import Tensor
from typer.testing import CliRunner

import raymerge
from raymerge import cli, input_moments, moment_collection
from raymerge.checkpoints import Checkpoint, file_sha256, open_checkpoint, save_state_dict
from raymerge.images import open_images, write_images
from raymerge.moment_files import check_moments
from raymerge.suites import Suite, moments_dir

ROOT = Path(__file__).parent.parent
NUM_TASKS = 3
INTERRUPTED = "interrupted: everything finished so far is saved, and the same command continues from there.\n"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite(tmp_path_factory.mktemp("sound"), num_tasks=NUM_TASKS)


@pytest.fixture(autouse=True)
def suite(sound: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A copy to change, called "suite" in the working folder, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(sound.root, tmp_path / "suite")
    return replace(sound, root=tmp_path / "suite")


def stats(*args: str, suite: str = "./suite"):
    return CliRunner().invoke(cli.app, ["stats", "--suite", suite, *args], prog_name="raymerge", catch_exceptions=False)


def rows_of(*args: str, suite: str = "./suite") -> list[dict[str, Any]]:
    done = stats("--json", *args, suite=suite)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def new_tasks(*args: str, suite: str = "./suite") -> list[str]:
    return [row["task"] for row in rows_of(*args, suite=suite) if row["is_new"]]


def file_of(suite: Suite, task: str) -> Path:
    return moments_dir(suite) / BACKBONE / f"{task}.safetensors"


def expected_moments(suite: Suite, task: str, num_images: int) -> dict[str, Tensor]:
    expert = open_checkpoint(suite.expert_path(BACKBONE, task))
    pixels, _ = open_images(suite.images_path(task, "val")).read(0, num_images)
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (MEAN, STD))
    images = ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    return moments_by_hand({name: expert.tensor(name) for name in expert.names}, images, num_heads=1)


def assert_moments(suite: Suite, task: str, num_images: int) -> None:
    sha256 = file_sha256(suite.expert_path(BACKBONE, task))
    shapes = open_checkpoint(suite.expert_path(BACKBONE, task)).shapes
    found = check_moments(file_of(suite, task), expert_sha256=sha256, shapes=shapes)
    expected = expected_moments(suite, task, num_images)
    assert found.names == sorted(expected)
    for name, value in expected.items():
        assert found.tensor(name).dtype == torch.float32
        assert torch.allclose(found.tensor(name).double(), value, rtol=1e-4, atol=0), name
    metadata = found.metadata()
    assert (metadata["task"], metadata["split"], metadata["images"]) == (task, "val", str(num_images))
    assert metadata["images_sha256"] == file_sha256(suite.images_path(task, "val"))


# --- what it collects and prints -------------------------------------------------------------------------------------


def test_moments_of_every_task_are_those_by_hand(suite):
    done = stats("--batch-size", "7")
    assert done.exit_code == 0, done.stderr
    for i in range(NUM_TASKS):
        assert_moments(suite, f"Task{i}", 24 + i)
    lines = done.stdout.splitlines()
    assert lines[0] == f"Mean input moments of {BACKBONE}; files are in {moments_dir(suite) / BACKBONE}"
    cells = [re.split(r" *│ *", line)[1:-1] for line in lines if line.startswith("│")]
    assert [row[:2] for row in cells] == [[f"Task{i}", str(24 + i)] for i in range(NUM_TASKS)]
    assert [row[-1] for row in cells] == [f"Task{i}.safetensors" for i in range(NUM_TASKS)]
    assert done.stderr.splitlines() == [
        "loading suite 'tiny'",
        "checking checkpoints, images and moments",
        f"collecting input moments on {'cuda' if torch.cuda.is_available() else 'cpu'}",
    ]
    by_hand = expected_moments(suite, "Task1", 25)
    block, proj = "model.visual.transformer.resblocks.0.", by_hand["model.visual.proj"].T
    kinds = {
        "resid": [by_hand[f"{block}attn.in_proj_weight"], by_hand[f"{block}mlp.c_fc.weight"], proj],
        "attention": [by_hand[f"{block}attn.out_proj.weight"]],
        "mlp": [by_hand[f"{block}mlp.c_proj.weight"]],
    }
    means = {kind: float(torch.cat(values, dim=1).mean()) for kind, values in kinds.items()}
    assert cells[1][2:5] == [f"{mean:.4g}" for mean in means.values()]
    (row,) = rows_of("--tasks", "Task1")
    assert {kind: row["mean_moments"][kind] for kind in means} == pytest.approx(means, rel=1e-5)


def test_json(suite):
    done = stats("--json", "--quiet", "--num-tasks", "1")
    assert (done.exit_code, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    (row,) = value.pop("rows")
    assert value == {
        "suite": {"name": "tiny", "profile": "tiny", "seed": 0},
        "split": "val",
        "output": str(moments_dir(suite)),
    }
    assert row.pop("mean_moments").keys() == {"position", "resid", "attention", "mlp"}
    assert row == {
        "backbone": BACKBONE,
        "task": "Task0",
        "images": 24,
        "file": str(file_of(suite, "Task0")),
        "is_new": True,
    }


def test_tasks_and_backbones_can_be_chosen(suite):
    assert new_tasks("--tasks", "Task2, Task0,Task2") == ["Task2", "Task0"]
    assert not file_of(suite, "Task1").exists()
    assert new_tasks("--num-tasks", "2", "--backbone", BACKBONE, "--backbone", BACKBONE) == ["Task1"]


def test_max_images_takes_the_first(suite):
    assert [row["images"] for row in rows_of("--max-images", "25")] == [24, 25, 25]
    assert_moments(suite, "Task2", 25)


def test_output_folder(suite, tmp_path):
    (row,) = rows_of("--num-tasks", "1", "--output", "my moments")
    assert row["file"] == f"my moments/{BACKBONE}/Task0.safetensors"
    assert Path(row["file"]).is_file()
    assert not moments_dir(suite).exists()


def test_the_test_split_is_never_opened(suite):
    for task in suite.tasks:
        suite.images_path(task.name, "test").unlink()
    assert len(new_tasks()) == NUM_TASKS
    assert_moments(suite, "Task0", 24)


def test_heads_are_not_needed(suite):
    for task in suite.tasks:
        suite.head_path(BACKBONE, task.name).unlink()
    assert len(new_tasks()) == NUM_TASKS


# --- what is there already -------------------------------------------------------------------------------------------


def test_what_is_there_is_kept(suite):
    assert len(new_tasks()) == NUM_TASKS
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in moments_dir(suite).rglob("*.safetensors")}
    assert len(before) == NUM_TASKS
    done = stats()
    assert done.exit_code == 0
    assert done.stderr.endswith("3 of 3 files were there already; --force collects them once more.\n")
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}
    file_of(suite, "Task1").unlink()
    assert new_tasks() == ["Task1"]
    assert new_tasks("--force") == ["Task0", "Task1", "Task2"]
    assert {path: content for path, (_, content) in before.items()} == {path: path.read_bytes() for path in before}


def change_expert(suite: Suite) -> None:
    expert = Checkpoint(suite.expert_path(BACKBONE, "Task1"))
    state = {name: expert.tensor(name).clone() for name in expert.names}
    state["model.visual.proj"][0, 0] += 1
    save_state_dict(expert.path, state)


def change_images(suite: Suite) -> None:
    path = suite.images_path("Task1", "val")
    pixels, labels = open_images(path).read(0, 25)
    write_images(path, 255 - pixels, labels)


def truncate(suite: Suite) -> None:
    path = file_of(suite, "Task1")
    path.write_bytes(path.read_bytes()[:-40])


def swap(suite: Suite) -> None:
    shutil.copy(file_of(suite, "Task0"), file_of(suite, "Task1"))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (change_expert, "damaged, or of another expert"),
        (change_images, "of other images"),
        (truncate, "damaged, or of another expert"),
        (swap, "damaged, or of another expert"),
    ],
)
def test_what_does_not_fit_is_collected_again(suite, damage, why):
    assert len(new_tasks()) == NUM_TASKS
    damage(suite)
    done = stats("--json")
    assert [row["task"] for row in json.loads(done.stdout)["rows"] if row["is_new"]] == ["Task1"]
    assert f"1 of 3 files were {why}, and were collected again.\n" in done.stderr
    assert_moments(suite, "Task1", 25)
    assert new_tasks() == []


def test_moments_of_fewer_images_are_collected_again(suite):
    assert len(new_tasks("--max-images", "24")) == NUM_TASKS
    assert new_tasks() == ["Task1", "Task2"], "Task0 has no more than 24"


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_finished_tasks_survive_an_interrupt(suite, monkeypatch):
    written = moment_collection.write_moments

    def interrupted(path: Path, *args: Any) -> None:
        if path.stem == "Task1":
            raise KeyboardInterrupt
        written(path, *args)

    monkeypatch.setattr(moment_collection, "write_moments", interrupted)
    done = stats("--quiet")
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr == INTERRUPTED
    monkeypatch.setattr(moment_collection, "write_moments", written)
    assert new_tasks() == ["Task1", "Task2"]


def test_ctrl_c(tmp_path):
    suite = tiny_suite(tmp_path / "long", num_tasks=8, images=400)
    command = [sys.executable, "-m", "raymerge", "stats", "--suite", str(suite.root), "--batch-size", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while not file_of(suite, "Task0").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, ""), stderr
    assert stderr.endswith(INTERRUPTED)
    assert "Traceback" not in stderr
    names = [task.name for task in suite.tasks]
    kept = sorted(path.name for path in (moments_dir(suite) / BACKBONE).iterdir())
    assert kept == [f"{name}.safetensors" for name in names[: len(kept)]]
    assert 1 <= len(kept) < len(names)
    assert new_tasks(suite=str(suite.root)) == names[len(kept) :]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (
            ["--tasks", "Task7"],
            2,
            "has no task 'Task7'. Did you mean 'Task2'? Known: Task0, Task1, Task2.",
        ),
        (["--tasks", " , "], 2, "--tasks names no task"),
        (["--tasks", ""], 2, "--tasks names no task"),
        (["--tasks", "Task1", "--num-tasks", "1"], 2, "--num-tasks and --tasks exclude each other"),
        (["--num-tasks", "4"], 2, "suite 'tiny' has 3 tasks, --num-tasks asks for 4."),
        (["--num-tasks", "0"], 2, "--num-tasks"),
        (["--max-images", "0"], 2, "--max-images"),
        (["--batch-size", "-1"], 2, "--batch-size"),
        (["--device", "tpu"], 2, "--device"),
        (["--split", "test"], 2, "No such option: --split"),
        (["--backbone", "ViT-B-32"], 2, "suite 'tiny' has no backbone 'ViT-B-32'. Known: demo-vit."),
        (["--profile", "full"], 2, "--profile is full, but the suite in suite has tiny. Leave --profile out."),
        (["--suite-seed", "7"], 2, "--suite-seed is 7, but the suite in suite has 0. Leave --suite-seed out."),
        (["--output", "s3://bucket/x"], 2, "--output 's3://bucket/x' is not a folder of this machine"),
        (["--output", "suite/suite.json"], 4, "suite/suite.json: not a folder one can write to"),
        (["--output", "suite/suite.json/x"], 4, "suite/suite.json/x: not a folder one can write to"),
    ],
)
def test_mistakes_of_the_user(args, code, message):
    done = stats(*args)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("cache").exists()


def test_unknown_suites():
    done = stats(suite="demmo")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "unknown suite 'demmo'. Did you mean 'demo'?" in done.stderr
    assert "no profile 'tiny'" in stats("--profile", "tiny", suite="demo").stderr
    assert stats(suite="./nowhere").exit_code == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    done = stats("--device", "cuda")
    assert done.exit_code == 2
    assert "--device cuda, but torch finds no CUDA device on this machine; use auto or cpu.\n" in done.stderr


def break_expert(suite: Suite) -> None:
    expert = Checkpoint(suite.expert_path(BACKBONE, "Task1"))
    state = {name: expert.tensor(name).clone() for name in expert.names}
    state["model.visual.proj"][0, 0] = torch.nan
    save_state_dict(expert.path, state)


def drop_expert(suite: Suite) -> None:
    suite.expert_path(BACKBONE, "Task1").unlink()


def drop_zero_shot(suite: Suite) -> None:
    suite.zero_shot_path(BACKBONE).unlink()


def drop_images(suite: Suite) -> None:
    suite.images_path("Task1", "val").unlink()


def shorten_images(suite: Suite) -> None:
    path = suite.images_path("Task1", "val")
    write_images(path, *open_images(path).read(0, 4))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_expert, "expert 'Task1': 'model.visual.proj' has 1 NaN or infinite values"),
        (drop_expert, "Task1Val/nonlinear_finetuned.pt: no such checkpoint file"),
        (drop_zero_shot, "nonlinear_zeroshot.pt: no such checkpoint file"),
        (drop_images, "val.arrow: no such image file"),
        (shorten_images, "val.arrow: holds 4 images, the suite says 25"),
    ],
)
def test_broken_suites_are_found_before_any_work(suite, damage, message):
    damage(suite)
    done = stats()
    assert (done.exit_code, done.stdout) == (4, "")
    assert message in done.stderr
    assert not list(moments_dir(suite).rglob("*.safetensors"))


def test_inputs_that_overflow_are_told_with_their_task(suite):
    expert = Checkpoint(suite.expert_path(BACKBONE, "Task1"))
    state = {name: expert.tensor(name).clone() for name in expert.names}
    state["model.visual.ln_post.weight"].fill_(1e30)
    save_state_dict(expert.path, state)
    done = stats()
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"error: {BACKBONE}/Task1: 'model.visual.proj' met inputs that are NaN or infinite." in done.stderr
    assert file_of(suite, "Task0").is_file()


def test_a_disk_that_is_full(suite, monkeypatch):
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moment_collection, "write_moments", full)
    done = stats()
    assert (done.exit_code, done.stdout) == (4, "")
    assert "Task0.safetensors: cannot be written (No space left on device). Make room for it" in done.stderr


def test_too_many_images_at_a_time(suite, monkeypatch):
    def out_of_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(input_moments, "attended", out_of_memory)
    done = stats()
    assert done.exit_code == 1
    assert (
        f"error: {BACKBONE}/Task0: too many images at a time for the GPU. Use a smaller --batch-size.\n" in done.stderr
    )


# --- Ray -------------------------------------------------------------------------------------------------------------


def test_the_demo_is_prepared_first(monkeypatch):
    """As in a sweep; the preparation itself has its own tests."""
    events = stop_preparation(monkeypatch)
    done = stats("--profile", "reduced", "--suite-seed", "5", suite="demo")
    assert done.exit_code == 4
    assert events == [(None, False), ("demo", "reduced", 5, "slots")]
    assert done.stderr.splitlines()[:3] == ["loading suite 'demo'", "starting Ray", "preparing the suite"]
    assert done.stderr.endswith("error: the preparation stops here.\n")


def test_a_prepared_suite_needs_no_ray(monkeypatch):
    monkeypatch.delattr(raymerge, "cluster", raising=False)
    monkeypatch.setitem(sys.modules, "raymerge.cluster", None)  # importing it fails
    assert len(new_tasks()) == NUM_TASKS
