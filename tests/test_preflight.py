"""What is found before a sweep starts: every file that it would trip over later."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_suite
import torch

from raymerge.checkpoints import open_checkpoint, save_head, save_state_dict
from raymerge.errors import PreflightError
from raymerge.images import open_images, write_images
from raymerge.preflight import check_backbone, check_task
from raymerge.suites import Suite, moments_dir

BACKBONE = tiny_suite.BACKBONE


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.tiny_suite(tmp_path_factory.mktemp("suite"), num_tasks=2, images=5)


@pytest.fixture
def suite(sound: Suite, tmp_path: Path) -> Suite:
    """A copy to break."""
    shutil.copytree(sound.root, tmp_path / "suite")
    return replace(sound, root=tmp_path / "suite")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_sound_suite_gives_its_hashes(sound):
    zero_shot = sound.zero_shot_path(BACKBONE)
    assert check_backbone(sound, BACKBONE) == {zero_shot: sha256(zero_shot)}
    files = [sound.expert_path(BACKBONE, "Task1"), sound.head_path(BACKBONE, "Task1")]
    assert check_task(sound, BACKBONE, "Task1") == {path: sha256(path) for path in files}


def test_moments_are_read_where_they_are_needed(suite):
    folder = suite.root / "my moments"
    command = f"raymerge stats --suite {suite.root} --output '{folder}'"
    with pytest.raises(PreflightError) as caught:
        check_task(suite, BACKBONE, "Task1", folder)
    path = folder / BACKBONE / "Task1.safetensors"
    assert str(caught.value) == f"{path}: no such file of input moments. Collect it with: {command}"
    tiny_suite.tiny_moments(suite, folder)
    assert check_task(suite, BACKBONE, "Task1", folder)[path] == sha256(path)
    assert path not in check_task(suite, BACKBONE, "Task1")
    shutil.copy(folder / BACKBONE / "Task0.safetensors", path)
    with pytest.raises(PreflightError, match="collected from another expert"):
        check_task(suite, BACKBONE, "Task1", folder)


def test_the_command_that_collects_moments_names_the_demo_by_its_variant(suite, monkeypatch, tmp_path):
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "home"))
    demo = replace(suite, name="demo", profile="reduced", seed=3)
    with pytest.raises(PreflightError, match=r"raymerge stats --suite demo --profile reduced --suite-seed 3$"):
        check_task(demo, BACKBONE, "Task1", moments_dir(demo))


def rewrite(path: Path, name: str, index: int, value: float) -> None:
    checkpoint = open_checkpoint(path)
    state = {key: checkpoint.tensor(key).clone() for key in checkpoint.names}
    state[name].view(-1)[index] = value
    save_state_dict(path, state)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_zero_shot_values(suite, value):
    rewrite(suite.zero_shot_path(BACKBONE), "model.visual.ln_post.bias", 3, value)
    with pytest.raises(PreflightError, match=f"zero-shot of {BACKBONE}: 'model.visual.ln_post.bias' has 1 NaN"):
        check_backbone(suite, BACKBONE)


def test_missing_zero_shot(suite):
    suite.zero_shot_path(BACKBONE).unlink()
    with pytest.raises(PreflightError, match=r"nonlinear_zeroshot\.pt: no such checkpoint file"):
        check_backbone(suite, BACKBONE)


def break_expert(suite: Suite) -> None:
    rewrite(suite.expert_path(BACKBONE, "Task1"), "model.visual.proj", 0, torch.nan)


def swap_expert(suite: Suite) -> None:
    save_state_dict(suite.expert_path(BACKBONE, "Task1"), {"model.visual.proj": torch.ones(2, 2)})


def drop_head(suite: Suite) -> None:
    suite.head_path(BACKBONE, "Task1").unlink()


def other_head(suite: Suite) -> None:
    save_head(suite.head_path(BACKBONE, "Task1"), torch.ones(3, tiny_suite.EMBED_DIM))


def narrow_head(suite: Suite) -> None:
    save_head(suite.head_path(BACKBONE, "Task1"), torch.ones(4, tiny_suite.EMBED_DIM - 1))


def drop_val(suite: Suite) -> None:
    suite.images_path("Task1", "val").unlink()


def drop_test(suite: Suite) -> None:
    suite.images_path("Task1", "test").unlink()


def shorten_test(suite: Suite) -> None:
    path = suite.images_path("Task1", "test")
    write_images(path, *open_images(path).read(0, 4))


def relabel(suite: Suite, label: int) -> None:
    path = suite.images_path("Task1", "val")
    pixels, labels = open_images(path).read(0, 6)
    labels[2] = label
    write_images(path, pixels, labels)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (break_expert, "expert 'Task1': 'model.visual.proj' has 1 NaN"),
        (swap_expert, "expert 'Task1' lacks 'model.ln_final.bias'"),
        (drop_head, "head_Task1Val.pt: no such head file"),
        (other_head, "the head is (3, 16), expected (4, 16)"),
        (narrow_head, "the head is (4, 15), expected (4, 16)"),
        (drop_val, "val.arrow: no such image file"),
        (drop_test, "test.arrow: no such image file"),
        (shorten_test, "test.arrow: holds 4 images, the suite says 5"),
        (lambda suite: relabel(suite, 4), "to 4, but Task1 has 4 classes"),
        (lambda suite: relabel(suite, -1), "labels run from -1 to "),
    ],
)
def test_what_is_wrong_with_a_task_is_found(suite: Suite, damage: Callable[[Suite], None], expected: str):
    relabel(suite, 3)  # the last label that there is
    check_task(suite, BACKBONE, "Task1")
    damage(suite)
    with pytest.raises(PreflightError) as caught:
        check_task(suite, BACKBONE, "Task1")
    assert expected in str(caught.value)
    check_task(suite, BACKBONE, "Task0")  # the other task is as sound as before
