"""`raymerge rehearse`: the miniature it writes, the sweep it cuts down, and all of it, as a user runs it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from small_world import BACKBONES, TASKS, small_world
from typer.testing import CliRunner

from raymerge import cli
from raymerge.checkpoints import Checkpoint
from raymerge.data.splits import read_split
from raymerge.errors import CheckpointError, did_you_mean
from raymerge.method_settings import Linspace, Range
from raymerge.preflight import check_backbone, check_task
from raymerge.rehearsal.limited import _few, limited_sweep
from raymerge.rehearsal.pictures import pictures
from raymerge.rehearsal.world import CHANGE, RANK, SMALL, TINY, used_part
from raymerge.search_space import sweep_cells
from raymerge.suite_file import load_suite_file
from raymerge.suites.tall_masks import TASKS as ALL_TASKS
from raymerge.suites.tall_masks import tall_masks
from raymerge.sweep_file import load_sweep
from raymerge.sweep_spec import SweepSpec

ROOT = Path(__file__).parent.parent


# --- what is cut down -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "few"),
    [
        (Linspace(stop=3.0, num=30), [1.1, 2.1]),  # of 0.1, 0.2, ... 3.0: the eleventh and the 21st
        (Range(low=0.1, high=0.9, step=0.1), [0.4, 0.7]),
        ((0.2, 0.3, 0.4, 0.5, 0.6), [0.3, 0.5]),
        ((0.2, 0.3), None),
        (Range(low=0.0, high=1.0), None),
        (0.8, None),
        ("mean", None),
    ],
)
def test_few_values_of_a_setting(setting: Any, few: list[float] | None) -> None:
    assert _few(setting) == (few if few is None else pytest.approx(few))


@pytest.mark.parametrize("name", ["full_grid", "iso_grid", "extensions"])
def test_a_rehearsal_has_every_cell_of_the_sweep(name: str) -> None:
    spec, suite = load_sweep(ROOT / f"sweeps/{name}.yaml"), tall_masks()
    tasks = [task.name for task in suite.tasks]
    limited = SweepSpec.model_validate(limited_sweep(spec, "suite.yaml", 4))
    cells = sweep_cells(spec, suite.backbones, tasks)
    assert sweep_cells(limited, suite.backbones, tasks) == cells
    assert len(cells) == {"full_grid": 81, "iso_grid": 18, "extensions": 63}[name]
    assert limited.search.policy == spec.search.policy
    assert (limited.search.patience, limited.evaluation.max_images, limited.resources.gpus_per_evaluator) == (1, 4, 0)
    assert all(
        len(values) <= 2
        for method in limited.methods.values()
        for values in method.values()
        if isinstance(values, tuple)
    )


# --- the miniature ----------------------------------------------------------------------------------------------------


def test_pictures_repeat_and_show_their_class() -> None:
    again = pictures("x", "train", 5, 12, side=24)
    for (one, label), (other, same) in zip(pictures("x", "train", 5, 12, side=24), again, strict=True):
        assert (one.tobytes(), label) == (other.tobytes(), same)
    assert [label for _, label in again[:5]] == [0, 1, 2, 3, 4]
    assert pictures("x", "test", 5, 12, side=24)[0][0].tobytes() != again[0][0].tobytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMERGE_HOME", str(folder / "home"))
        yield small_world(folder / "world")


def test_experts_are_of_low_rank_and_leave_the_text_alone(world: Any) -> None:
    zero_shot = Checkpoint(world.zero_shot_path("ViT-L-14"))
    assert "model.token_embedding.weight" in zero_shot.names
    assert not any(name.startswith("model.transformer.") for name in zero_shot.names)
    for task in TASKS:
        expert = Checkpoint(world.expert_path("ViT-L-14", task))
        assert expert.shapes == zero_shot.shapes
        for name in expert.names:
            change = expert.tensor(name).double() - zero_shot.tensor(name).double()
            if not name.startswith("model.visual."):
                assert not change.any(), name
            elif change.ndim == 2:
                values = torch.linalg.svdvals(change)
                assert values[RANK - 1] > 1e-2 * values[0] > values[RANK] > 0, name
                norm = float(zero_shot.tensor(name).double().norm())
                assert float(change.norm()) == pytest.approx(CHANGE * norm, rel=1e-3)


def test_the_miniature_is_what_it_says(world: Any) -> None:
    tree = YAML(typ="safe").load(Path(world.option))
    assert list(tree["backbones"]) == list(BACKBONES)
    assert [task["name"] for task in tree["tasks"]] == [name for name in ALL_TASKS if name in TASKS]
    assert tree["tasks"][-1]["classes"][3] == "['happy', 'smiling']"  # FER2013 as its published head was built
    for task in TASKS:
        assert len(read_split(world.datasets[task], world.data, "test")) == TINY.test_images


def test_a_finished_miniature_is_left_alone_and_an_unfinished_one_completed(world: Any, tmp_path: Path) -> None:
    folder = Path(world.option).parent
    expert, suite_file = world.expert_path("ViT-B-32", "MNIST"), Path(world.option)
    content, before = expert.read_bytes(), world.expert_path("ViT-B-32", "EuroSAT").stat().st_mtime_ns
    expert.unlink()
    small_world(folder)
    assert not expert.exists(), "its suite file says that it is complete"
    suite_file.unlink()
    small_world(folder)
    assert expert.read_bytes() == content, "the same bits again"
    assert world.expert_path("ViT-B-32", "EuroSAT").stat().st_mtime_ns == before


def test_the_default_scale_keeps_the_widths() -> None:
    suite = tall_masks()
    for backbone, width in (("ViT-B-32", 768), ("ViT-B-16", 768), ("ViT-L-14", 1024)):
        config = SMALL.config(suite.backbones[backbone])
        assert (config["vision_cfg"]["width"], config["vision_cfg"]["layers"]) == (width, 2)
        assert config["text_cfg"]["vocab_size"] == 49408


# --- as a user runs it ------------------------------------------------------------------------------------------------


def rehearse(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raymerge", "rehearse", *arguments, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "250"})


@pytest.mark.ray
def test_all_81_cells_of_table_1(tmp_path: Path) -> None:
    done = rehearse("sweeps/full_grid.yaml", "--tiny", "--max-images", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "81 of 81 cells finished" in done.stderr
    for command in ("suite verify", "data verify", "data prepare", "doctor", "sweep", "report"):
        assert f"$ raymerge {command} " in done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│ Iso-CTS")]
    assert len(rows) == 1
    for published in ("[86.2]", "[81.7]", "[78.1]", "[91.1]", "[86.4]", "[82.4]", "[94.7]", "[91.0]", "[90.1]"):
        assert published in rows[0]
    from raymerge.results import load

    summary = load(tmp_path / "results", "summary")
    assert len(summary) == 81
    assert set(summary["status"]) == {"finished"}
    assert summary["test_accuracy"].between(0, 1).all()
    assert (summary[summary.method == "fine-tuned"]["test_accuracy"] > 0.8).all()


def test_a_suite_that_needs_no_rehearsal() -> None:
    done = CliRunner().invoke(cli.app, ["rehearse", "sweeps/demo.yaml"])
    assert done.exit_code == 2
    assert "suite 'demo' needs no rehearsal" in done.stderr


def test_a_folder_that_cannot_be_made() -> None:
    done = CliRunner().invoke(cli.app, ["rehearse", "sweeps/full_grid.yaml", "--tiny", "--folder", "/proc/here"])
    assert done.exit_code == 4
    assert "error: /proc/here: cannot be made (" in done.stderr


def test_a_checkpoint_that_is_missing_is_told_with_the_command(world: Any) -> None:
    missing = replace(world, root=world.root / "elsewhere")
    command = f"'raymerge suite verify --suite {world.option} --weights {world.root}/elsewhere --backbone ViT-B-32'"
    for check in (lambda: check_backbone(missing, "ViT-B-32"), lambda: check_task(missing, "ViT-B-32", "MNIST")):
        with pytest.raises(CheckpointError, match="no such file") as error:
            check()
        assert str(error.value).endswith(f"{command} lists what is missing, and how to get it.")


@pytest.mark.parametrize(("word", "meant"), [("mnist", "MNIST"), ("iso_c", "Iso-C"), ("FER2031", "FER2013")])
def test_names_are_guessed_whatever_their_case(word: str, meant: str) -> None:
    assert did_you_mean(word, ["KMNIST", "MNIST", "Iso-C", "FER2013"]).startswith(f"Did you mean '{meant}'? ")


def test_used_part_of_a_suite() -> None:
    spec = load_sweep(ROOT / "sweeps/full_grid.yaml", ["num_tasks=8", "backbones=ViT-B-16"])
    part = used_part(tall_masks(), spec)
    assert [task.name for task in part.tasks] == list(ALL_TASKS[:8])
    assert list(part.backbones) == ["ViT-B-16"]


def test_json_of_a_plan_of_the_rehearsal(world: Any) -> None:
    path = Path(world.option).parent / "sweep.yaml"
    spec = load_sweep(ROOT / "sweeps/full_grid.yaml", [f"tasks=[{','.join(TASKS)}]", "backbones=[ViT-B-32,ViT-L-14]"])
    with path.open("w") as file:
        YAML().dump(limited_sweep(spec, world.option, 4), file)
    done = CliRunner().invoke(cli.app, ["plan", str(path), "--json"], catch_exceptions=False)
    assert len(json.loads(done.stdout)["cells"]) == 18
    assert load_suite_file(world.option).tasks[0].name == "EuroSAT"
