"""`raymerge doctor`: every kind of finding, with the command that fixes it, on a miniature."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from small_world import cache_images, small_world
from typer.testing import CliRunner

from raymerge import cli, doctor
from raymerge.checkpoints import Checkpoint, save_state_dict
from raymerge.node_check import Finding, NodeReport
from raymerge.search_space import sweep_cells
from raymerge.suite_file import find_suite
from raymerge.suites.published import PublishedSuite
from raymerge.suites.tall_masks import tall_masks
from raymerge.sweep_file import load_sweep
from raymerge.sweep_spec import SweepSpec

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMERGE_HOME", str(folder / "home"))
        small_world(folder / "world", backbones=["ViT-B-32"])
    return folder / "world"


@pytest.fixture
def world(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedSuite:
    """A copy to change, its images cached."""
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    shutil.copytree(sound, tmp_path / "world")
    suite = find_suite("world/suite.yaml")
    assert isinstance(suite, PublishedSuite)
    return cache_images(suite)


def sweep(methods: list[str], **changes: Any) -> str:
    value = {"name": "x", "suite": "world/suite.yaml", "num_tasks": 3, "methods": methods, **changes}
    with Path("x.yaml").open("w") as file:
        YAML().dump(value, file)
    return "x.yaml"


def findings(*arguments: str) -> tuple[int, list[tuple[str, str, str]]]:
    done = CliRunner().invoke(cli.app, ["doctor", *arguments, "--json", "--quiet"], catch_exceptions=False)
    found = json.loads(done.stdout)["findings"]
    return done.exit_code, [(one["level"], one["what"], one["fix"]) for one in found]


def test_nothing_is_wrong(world: PublishedSuite) -> None:
    assert findings(sweep(["iso-c"]), "--full") == (0, [])
    done = CliRunner().invoke(cli.app, ["doctor", "x.yaml"])
    assert "Nothing keeps sweep 'x' from running." in done.stdout


def test_files_that_are_missing(world: PublishedSuite) -> None:
    for task in ("MNIST", "FER2013"):
        world.expert_path("ViT-B-32", task).unlink()
    world.head_path("ViT-B-32", "EuroSAT").unlink()
    code, found = findings(sweep(["iso-c"]))
    assert code == 4
    experts, head = found
    assert experts[1].startswith("ViT-B-32: 2 experts are missing (MNIST, FER2013); the first would be")
    assert experts[2] == "Put them there, or change 'weights' or 'files' in world/suite.yaml."
    assert head[1].startswith("ViT-B-32: 1 heads are missing (EuroSAT)")
    assert head[2] == "raymerge suite heads --suite world/suite.yaml --backbone ViT-B-32"


def _truncate(world: PublishedSuite) -> str:
    path = world.expert_path("ViT-B-32", "MNIST")
    path.write_bytes(path.read_bytes()[:5000])
    return "truncated or not a checkpoint"


def _poison(world: PublishedSuite) -> str:
    path = world.expert_path("ViT-B-32", "MNIST")
    state = {name: Checkpoint(path).tensor(name).clone() for name in Checkpoint(path).names}
    state["model.visual.proj"][0, 0] = torch.nan
    save_state_dict(path, state)
    return "'model.visual.proj' has 1 NaN or infinite values"


def _reshape(world: PublishedSuite) -> str:
    path = world.expert_path("ViT-B-32", "MNIST")
    state = {name: Checkpoint(path).tensor(name).clone() for name in Checkpoint(path).names}
    state["model.visual.proj"] = state["model.visual.proj"][1:]
    save_state_dict(path, state)
    return "'model.visual.proj' is (47, 32), zero-shot is (48, 32)"


@pytest.mark.parametrize("damage", [_truncate, _poison, _reshape])
def test_files_that_are_damaged(world: PublishedSuite, damage: Callable[[PublishedSuite], str]) -> None:
    what = damage(world)
    code, found = findings(sweep(["iso-c"]), "--full")
    assert code == 4
    ((level, text, fix),) = found
    assert level == "problem"
    assert what in text
    assert fix == "raymerge suite verify --suite world/suite.yaml --backbone ViT-B-32"


def test_a_collection_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path))
    arguments = (str(ROOT / "sweeps/full_grid.yaml"), "--set", "backbones=ViT-B-32", "--set", "num_tasks=8")
    about = "--suite tall-masks --profile paper-legacy"
    eight = f"Cars DTD EuroSAT GTSRB MNIST RESISC45 SVHN SUN397 {about}"
    fixes = {fix for _, _, fix in findings(*arguments)[1]}
    assert f"raymerge suite convert {about} --backbone ViT-B-32" in fixes
    assert f"raymerge suite fetch {about} --backbone ViT-B-32" in fixes
    corrected = {fix for _, _, fix in findings(*arguments, "--set", "profile=corrected")[1]}
    assert not any("suite convert" in fix for fix in corrected)
    assert f"raymerge data fetch {eight} && raymerge data prepare {eight}" in fixes


def test_values_are_read_when_asked(world: PublishedSuite) -> None:
    _poison(world)
    assert findings(sweep(["iso-c"])) == (0, [])


def test_images_that_are_missing_or_damaged(world: PublishedSuite) -> None:
    shutil.rmtree(world.image_cache("MNIST"))
    assert findings(sweep(["iso-c"]))[1] == [
        (
            "problem",
            "images of 1 tasks are not cached yet (MNIST); their raw files are there",
            "raymerge data prepare MNIST --suite world/suite.yaml",
        )
    ]
    shutil.rmtree(world.data / "MNIST")
    ((_, what, fix),) = findings("x.yaml")[1]
    assert what == f"1 datasets are not under {world.data} (MNIST)"
    prepare = "raymerge data prepare MNIST --suite world/suite.yaml"
    assert fix == f"raymerge data fetch MNIST --suite world/suite.yaml && {prepare}"
    path = world.images_path("EuroSAT", "val")
    path.write_bytes(path.read_bytes()[:100])
    code, found = findings("x.yaml")
    assert code == 4
    assert any(str(path) in what and "raymerge data prepare EuroSAT" in what for _, what, _ in found)


def test_input_moments_only_where_a_method_needs_them(world: PublishedSuite) -> None:
    ((_, what, fix),) = findings(sweep(["scale-svd"]))[1]
    assert "input moments of 3 experts are missing" in what
    assert fix == "raymerge stats --suite world/suite.yaml"


def test_a_wrong_activation(world: PublishedSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip.model

    build = open_clip.model._build_vision_tower
    monkeypatch.setattr(
        open_clip.model, "_build_vision_tower", lambda dim, config, quick_gelu: build(dim, config, False)
    )
    ((_, what, fix),) = findings(sweep(["iso-c"]))[1]
    assert "built it with GELU, expected QuickGELU" in what
    assert fix == "pip install --upgrade open_clip_torch"


def test_no_gpu(world: PublishedSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    ((_, what, fix),) = findings(sweep(["iso-c"], resources={"gpus_per_evaluator": 1}))[1]
    assert "but no GPU was found" in what
    assert "resources.gpus_per_evaluator=0" in fix


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_cache_that_cannot_be_written(world: PublishedSuite, tmp_path: Path) -> None:
    (tmp_path / "home").chmod(0o500)
    try:
        assert any("cannot be written to" in what for _, what, _ in findings(sweep(["iso-c"]))[1])
    finally:
        (tmp_path / "home").chmod(0o700)


# --- what reports mean ------------------------------------------------------------------------------------------------

GB = 10**9
SOUND = NodeReport("a", (), {"python": "3.11.1", "ray": "2.60.0", "torch": "2.14"}, 10_000 * GB, 1000 * GB, (), 0)


def diagnosed(*reports: NodeReport, overrides: tuple[str, ...] = ("resources.gpus_per_evaluator=0",)) -> list[Finding]:
    spec: SweepSpec = load_sweep(ROOT / "sweeps" / "full_grid.yaml", overrides)
    suite = tall_masks()
    return doctor.diagnose(spec, suite, sweep_cells(spec, suite.backbones, [t.name for t in suite.tasks]), reports)


def test_a_machine_that_has_everything() -> None:
    assert diagnosed(SOUND) == []


def test_disks_that_are_too_small() -> None:
    (warned,) = diagnosed(replace(SOUND, cache_free=50 * GB, images_missing=40 * GB))
    assert warned.level == "warning"  # images fit; what does not is a cache
    assert "50.0 GB free; images to come take 40.0 GB and merged updates up to 40.2 GB" in warned.what
    (problem,) = diagnosed(replace(SOUND, cache_free=43 * GB, images_missing=40 * GB))
    assert problem.level == "problem"


def test_shared_memory_holds_the_updates_of_the_largest_trial() -> None:
    # twenty experts of ViT-L/14, 303,966,208 parameters each
    need = 20 * 4 * 303_966_208
    assert diagnosed(replace(SOUND, shm_size=need + GB)) == []
    (found,) = diagnosed(replace(SOUND, shm_size=64 * 10**6))
    assert found.level == "warning"
    assert "take up to 24.3 GB" in found.what
    assert "--shm-size" in found.fix


@pytest.mark.parametrize(
    ("backbone", "parameters"), [("ViT-B-32", 87_849_216), ("ViT-B-16", 86_192_640), ("ViT-L-14", 303_966_208)]
)
def test_sizes_of_image_towers(backbone: str, parameters: int) -> None:
    assert doctor.visual_bytes(tall_masks(), backbone) == 4 * parameters


def test_gpu_memory_for_the_batch() -> None:
    use_gpus = ("evaluation.batch_size=256",)
    assert diagnosed(replace(SOUND, gpus=(("H100", 80 * GB),)), overrides=use_gpus) == []
    (found,) = diagnosed(replace(SOUND, gpus=(("T4", 6 * GB), ("H100", 80 * GB))), overrides=use_gpus)
    assert "its share of T4 is 6.0 GB" in found.what
    assert found.fix.startswith("Add --set evaluation.batch_size=64")
    assert diagnosed(replace(SOUND, gpus=(("T4", 6 * GB),)), overrides=("evaluation.batch_size=8",)) == []


def test_nodes_are_compared_and_shared_findings_told_once() -> None:
    missing = Finding("problem", "ViT-B-32: 3 experts are missing", "raymerge suite fetch")
    first = replace(SOUND, findings=(missing,))
    second = replace(first, host="b", versions={**SOUND.versions, "ray": "2.50.0", "torch": "2.6"})
    found = diagnosed(first, second)
    assert [f.what for f in found if f.fix == "raymerge suite fetch"] == ["a, b: ViT-B-32: 3 experts are missing"]
    versions = {f.what: f.level for f in found if "differs" in f.what}
    assert versions == {
        "ray differs between nodes: 2.60.0 on a; 2.50.0 on b": "problem",
        "torch differs between nodes: 2.14 on a; 2.6 on b": "warning",
    }
    assert [f.level for f in found] == sorted((f.level for f in found), key=lambda level: level != "problem")
