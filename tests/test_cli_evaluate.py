"""`raymerge evaluate` on a miniature in raw format, against a transcription with open_clip and torchvision alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from ruamel.yaml import YAML
from small_world import cache_images, small_world
from torchvision import transforms
from typer.testing import CliRunner

from raymerge import cli
from raymerge.checkpoints import load_head
from raymerge.cli_evaluate import _experts_table, accuracy_rows
from raymerge.data.splits import read_split
from raymerge.suites import CLIP_MEAN, CLIP_STD
from raymerge.suites.published import PublishedSuite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMERGE_HOME", str(folder / "home"))
        yield cache_images(small_world(folder / "world"))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["evaluate", *arguments], catch_exceptions=False)


def run_process(*arguments: str) -> Any:
    """In a process of its own: Ray cannot send functions that the tests' type checks have wrapped."""
    command = [sys.executable, "-m", "raymerge", "evaluate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@torch.no_grad()
def correct_by_hand(suite: PublishedSuite, backbone: str, task: str, state: dict[str, torch.Tensor]) -> int:
    """Correct answers on the test split: whole model, images transformed as in the published code."""
    config: Any = YAML(typ="safe").load(Path(suite.option))["backbones"][backbone]["model"]
    model = CLIP(
        config["embed_dim"],
        CLIPVisionCfg(**config["vision_cfg"]),
        CLIPTextCfg(**config["text_cfg"]),
        quick_gelu=True,
    ).eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items()}, strict=False)
    preprocess = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    samples = read_split(suite.datasets[task], suite.data, "test")
    images = torch.stack([preprocess(samples.image(i)) for i in range(len(samples))])
    features = model.encode_image(images)
    num_classes = len(suite.task(task).classes)
    weight, bias = load_head(suite.head_path(backbone, task), num_classes=num_classes, embed_dim=config["embed_dim"])
    logits = features / features.norm(dim=-1, keepdim=True) @ weight.T + bias
    return int((logits.argmax(dim=-1).numpy() == np.array(samples.labels)).sum())


@pytest.mark.parametrize("cache", [[], ["--no-cache"]])
def test_one_checkpoint_on_all_tasks(suite: PublishedSuite, cache: list[str]) -> None:
    path = suite.expert_path("ViT-L-14", "MNIST")
    done = run("--suite", suite.option, "--backbone", "ViT-L-14", "--model", str(path), "--json", "--quiet", *cache)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    state = torch.load(path, weights_only=True)
    expected = {task.name: correct_by_hand(suite, "ViT-L-14", task.name, state) for task in suite.tasks}
    assert {row["task"]: row["correct"] for row in rows} == expected
    assert {row["total"] for row in rows} == {24}
    assert expected["MNIST"] >= 23, "an expert is good on its own task"
    assert expected["EuroSAT"] < 20, "and worse elsewhere"


@pytest.mark.ray
def test_experts_are_measured_stored_and_compared(suite: PublishedSuite, tmp_path: Path) -> None:
    output = tmp_path / "experts"
    arguments = ["--suite", suite.option, "--experts", "--backbone", "ViT-B-32", "--tasks", "MNIST,FER2013"]
    done = run_process(*arguments, "--output", str(output), "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    rows = {(row["task"], row["split"]): row for row in json.loads(done.stdout)["rows"]}
    assert set(rows) == {(task, split) for task in ("MNIST", "FER2013") for split in ("val", "test")}
    zero_shot = torch.load(suite.zero_shot_path("ViT-B-32"), weights_only=True)
    for task in ("MNIST", "FER2013"):
        expert = torch.load(suite.expert_path("ViT-B-32", task), weights_only=True)
        row = rows[task, "test"]
        assert row["expert_accuracy"] == correct_by_hand(suite, "ViT-B-32", task, expert) / 24
        assert row["zero_shot_accuracy"] == correct_by_hand(suite, "ViT-B-32", task, zero_shot) / 24
        assert row["published_expert_accuracy"] is None
    before = sorted(path.stat().st_mtime_ns for path in output.rglob("*.parquet"))
    again = run_process(*arguments, "--output", str(output), "--json", "--quiet")
    assert json.loads(again.stdout)["rows"] == list(rows.values())
    kept = [path.stat().st_mtime_ns for path in output.rglob("*.parquet") if "summary" not in str(path)]
    assert set(kept) <= set(before), "what was measured is not measured again"
    named = suite.__class__(**{**vars(suite), "name": "tall-masks", "profile": "corrected"})
    compared = {(row["task"], row["split"]): row for row in accuracy_rows(output, named)}
    assert compared["MNIST", "val"]["published_expert_accuracy"] == 0.9956
    assert compared["MNIST", "test"]["published_zero_shot_accuracy"] == 0.4826
    table: Any = _experts_table("ViT-B-32", list(compared.values()))
    assert len(table.columns) == 11


def test_mistakes_are_told_in_one_sentence(suite: PublishedSuite, tmp_path: Path) -> None:
    model = str(suite.expert_path("ViT-B-32", "MNIST"))

    def told(*arguments: str) -> tuple[int, str]:
        done = run("--suite", suite.option, *arguments)
        return done.exit_code, done.stderr.splitlines()[-1]

    assert told() == (2, "error: give either --experts or --model FILE.")
    assert told("--experts", "--model", model) == (2, "error: give either --experts or --model FILE.")
    assert told("--model", model)[1].startswith("error: the suite has the backbones ViT-B-32, ViT-L-14; say which")
    code, text = told("--model", model, "--backbone", "ViT-L-14")
    assert code == 4
    assert "Is it of another backbone?" in text
    code, text = told("--model", str(tmp_path / "no.pt"), "--backbone", "ViT-L-14")
    assert (code, text) == (4, f"error: {tmp_path}/no.pt: no such checkpoint file.")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(Path(model).read_bytes()[:10_000])
    code, text = told("--model", str(damaged), "--backbone", "ViT-B-32")
    assert code == 4
    assert text.startswith(f"error: {damaged}: truncated or not a checkpoint")


def test_images_that_are_not_cached_name_the_command(suite: PublishedSuite, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(Path(suite.option).parent, moved)
    model = str(moved / "weights/ViT-B-32/MNISTVal/nonlinear_finetuned.pt")
    done = run("--suite", str(moved / "suite.yaml"), "--backbone", "ViT-B-32", "--model", model)
    assert done.exit_code == 4
    assert f"raymerge data prepare EuroSAT --suite {moved}/suite.yaml" in done.stderr
