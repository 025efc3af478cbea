"""Preparing the demo suite: what lies on disk, and what happens after an interruption."""

import json
import os
from dataclasses import replace

import pytest
import torch

from raymerge.checkpoints import Checkpoint, check_checkpoint, load_head
from raymerge.errors import CheckpointError, SuiteError
from raymerge.images import open_images
from raymerge.suites import suite_from_json
from raymerge.suites.demo import prepare as stages
from raymerge.suites.demo.clip import build_clip, zero_shot_head
from raymerge.suites.demo.determinism import bitwise_repeatable
from raymerge.suites.demo.prepare import finish, prepare, pretrain_stage, suite_in, task_stage
from raymerge.suites.demo.recipe import BACKBONE, TASK_NAMES, TASKS, make_recipe
from raymerge.suites.demo.splits import task_split, to_pixels
from raymerge.suites.demo.training import pretrain
from raymerge.suites.demo.world import normalise

TINY = replace(
    make_recipe("reduced"),
    pretrain_steps=2,
    pretrain_batch=16,
    finetune_steps=2,
    finetune_batch=8,
    train_images=20,
    val_images=20,
    test_images=24,
)
LEFTOVERS = {
    "model.positional_embedding",
    "model.text_projection",
    "model.logit_scale",
    "model.token_embedding.weight",
    "model.ln_final.weight",
    "model.ln_final.bias",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    prepare(TINY, folder)
    return folder


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_on_disk(folder):
    expected = {"suite.json", f"{BACKBONE}/{TASK_NAMES[0]}Val/nonlinear_zeroshot.pt"}
    for name in TASK_NAMES:
        expected |= {f"{BACKBONE}/{name}Val/nonlinear_finetuned.pt", f"{BACKBONE}/head_{name}Val.pt"}
        expected |= {f"images/{name}/val.arrow", f"images/{name}/test.arrow"}
    assert set(files_of(folder)) == expected


def test_suite_json_describes_the_files(folder):
    suite = suite_from_json(json.loads((folder / "suite.json").read_text()), folder)
    assert (suite.name, suite.profile, suite.seed) == ("demo", "reduced", 0)
    assert suite.is_prepared
    assert tuple(task.name for task in suite.tasks) == TASK_NAMES
    for task, declared in zip(suite.tasks, TASKS, strict=True):
        assert task.classes == declared.classes
        for split, count in (("val", 20), ("test", 24)):
            images, labels = open_images(suite.images_path(task.name, split)).read(0, count)
            expected_images, expected_labels = task_split(TINY, declared, split)
            assert torch.equal(images, expected_images)
            assert torch.equal(labels, expected_labels)


def test_experts_differ_from_zero_shot_in_the_whole_image_tower_and_nowhere_else(folder):
    suite = suite_in(TINY, folder)
    zero_shot = Checkpoint(suite.zero_shot_path(BACKBONE))
    for task in TASK_NAMES:
        expert = Checkpoint(suite.expert_path(BACKBONE, task))
        check_checkpoint(expert, zero_shot, task)
        assert list(expert.shapes) == list(zero_shot.shapes)
        moved = {name for name in zero_shot.names if not torch.equal(expert.tensor(name), zero_shot.tensor(name))}
        assert moved == set(zero_shot.names) - LEFTOVERS
        assert all(expert.dtype(name) == torch.float32 for name in expert.names)


def test_heads_are_those_of_the_pretrained_text_tower(folder):
    model = build_clip(TINY)
    pretrain(model, TINY)
    suite = suite_in(TINY, folder)
    zero_shot = Checkpoint(suite.zero_shot_path(BACKBONE))
    torch.testing.assert_close(zero_shot.tensor("model.visual.proj"), model.visual.proj.detach(), rtol=0, atol=0)
    for task in TASKS:
        weight, bias = load_head(
            suite.head_path(BACKBONE, task.name), num_classes=len(task.classes), embed_dim=TINY.embed_dim
        )
        with bitwise_repeatable():
            assert torch.equal(weight, zero_shot_head(model, task))
        assert not bias.any()
        scale = zero_shot.tensor("model.logit_scale").exp()
        torch.testing.assert_close(weight.norm(dim=1), scale.expand(len(weight)))


def test_preparing_again_changes_nothing(folder, monkeypatch):
    before = files_of(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    monkeypatch.setattr(stages, "pretrain", None)  # calling it would fail
    monkeypatch.setattr(stages, "finetune", None)
    prepare(TINY, folder)
    assert files_of(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")} == times


def test_an_interrupted_preparation_continues(folder, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill_at(countdown):
        real = stages.save_state_dict

        def save(path, tensors):
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                (path.parent / f".{path.name}.123.tmp").write_bytes(b"half a file")
                raise Killed
            real(path, tensors)

        monkeypatch.setattr(stages, "save_state_dict", save)

    kill_at(1)  # the zero-shot weights
    with pytest.raises(Killed):
        prepare(TINY, tmp_path)
    monkeypatch.undo()
    kill_at(4)  # zero-shot, two experts, then the third
    with pytest.raises(Killed):
        prepare(TINY, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "suite.json").exists()
    # 18 experts, and the images of the 17 tasks that were not begun
    with pytest.raises(SuiteError, match=r"52 of 81 files .* missing"):
        finish(TINY, tmp_path)
    saved = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    prepare(TINY, tmp_path)
    assert all(path.stat().st_mtime_ns == time for path, time in saved.items()), "finished files are kept"
    assert files_of(tmp_path) == files_of(folder), "the same bytes as an undisturbed preparation"


def test_files_do_not_depend_on_the_process_that_wrote_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 424242)
    prepare(TINY, tmp_path)
    assert (tmp_path / "suite.json").read_text() == (folder / "suite.json").read_text(), "the fingerprint differs"
    different = {name for name, content in files_of(tmp_path).items() if content != files_of(folder)[name]}
    assert not different


def test_a_task_needs_the_pretrained_model(tmp_path):
    with pytest.raises(CheckpointError, match="nonlinear_zeroshot"):
        task_stage(TINY, tmp_path, "Shapes")
    with pytest.raises(SuiteError, match="no task 'Nonsense'"):
        task_stage(TINY, tmp_path, "Nonsense")


def test_stages_leave_torch_as_it_was(tmp_path):
    recipe = replace(TINY, pretrain_steps=1)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
    seen = []
    pretrain_stage(recipe, tmp_path, progress=lambda done, steps: seen.append((done, steps)))
    task_stage(recipe, tmp_path, "Shapes", progress=lambda done, steps: seen.append((done, steps)))
    assert seen == [(1, 1), (1, 2), (2, 2)]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()) == before


def test_reduced_experts_are_better_than_zero_shot(tmp_path):
    recipe = replace(make_recipe("reduced"), pretrain_steps=60, val_images=120)
    pretrain_stage(recipe, tmp_path)
    suite = suite_in(recipe, tmp_path)
    gains = []
    for name in ("Colours", "Flags", "Digits", "Backgrounds"):
        task_stage(recipe, tmp_path, name)
        images, labels = task_split(recipe, stages.demo_task(name), "val")
        accuracies = []
        for path in (suite.zero_shot_path(BACKBONE), suite.expert_path(BACKBONE, name)):
            checkpoint = Checkpoint(path)
            encoder = stages.build_image_encoder(checkpoint.shapes)
            encoder.load_state_dict({key: checkpoint.tensor(f"model.{key}") for key in encoder.state_dict()})
            head, _ = load_head(
                suite.head_path(BACKBONE, name),
                num_classes=len(suite.task(name).classes),
                embed_dim=recipe.embed_dim,
            )
            with torch.no_grad():
                predicted = (encoder(normalise(to_pixels(images))) @ head.mT).argmax(dim=1)
            accuracies.append((predicted == labels).float().mean().item())
        gains.append(accuracies[1] - accuracies[0])
    assert sum(gains) / len(gains) > 0.05
