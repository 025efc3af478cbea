"""Fine-tuning one expert: what moves, what is written, how it continues, and what is refused. No Ray here."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_world import BACKBONE, TWINS, small_world

from raymerge.backbones import build_image_encoder
from raymerge.checkpoints import Checkpoint, check_checkpoint, file_sha256, load_head, save_head, save_state_dict
from raymerge.data import dataset
from raymerge.data.splits import drawn_indices, read_split
from raymerge.data.transforms import to_pixels
from raymerge.errors import CheckpointError, DataError, OutputError, TrainingError, UsageError
from raymerge.evaluation import Evaluator
from raymerge.finetuning import expert as finetuning
from raymerge.finetuning.expert import Finetuned, Job, Machine, finetune, training_recipe
from raymerge.finetuning.files import difference, find_output, read_record
from raymerge.finetuning.recipe import EPOCHS, FinetuneRecipe, published_recipe
from raymerge.finetuning.start import prepare_backbone
from raymerge.heads import zero_shot_head
from raymerge.suite_file import load_suite_file
from raymerge.suites.published import PublishedSuite, openai_backbone
from raymerge.suites.tall_masks import TASKS, tall_masks

RECIPE = FinetuneRecipe(epochs=2, batch_size=20, accumulate=2, learning_rate=6e-3, warmup=3)
LEFTOVERS = {
    f"model.{name}"
    for name in (
        "positional_embedding",
        "text_projection",
        "logit_scale",
        "token_embedding.weight",
        "ln_final.weight",
        "ln_final.bias",
    )
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    small_world(folder, tasks=TWINS)
    return folder


@pytest.fixture
def suite(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedSuite:
    """A copy to change; the pretrained model stays where it is."""
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    shutil.copytree(sound, tmp_path / "world", ignore=shutil.ignore_patterns("clip.safetensors"))
    return load_suite_file(tmp_path / "world" / "suite.yaml")


def job_of(suite: PublishedSuite, task: str = "MNIST", recipe: FinetuneRecipe = RECIPE, **options) -> Job:
    output = find_output(suite, options.pop("output", None))
    zero_shot = prepare_backbone(output, BACKBONE, [task])
    return Job(suite, BACKBONE, task, recipe, output.of_expert(BACKBONE, task), zero_shot, **options)


def done(job: Job, machine: Machine | None = None, watch: Callable[..., bool] = lambda *args: False) -> Finetuned:
    found = finetune(job, machine or Machine(), watch)
    assert found is not None
    return found


def stop_at(step: int) -> Callable[..., bool]:
    return lambda done, steps, loss: done == step


def val_accuracy(suite: PublishedSuite, checkpoint: Path, head: Path) -> float:
    samples = read_split(suite.datasets["MNIST"], suite.data, "val")
    pixels = torch.stack([torch.from_numpy(to_pixels(samples.image(i), suite.image_size)) for i in range(len(samples))])
    weights, backbone = Checkpoint(checkpoint), suite.backbones[BACKBONE]
    encoder = build_image_encoder(backbone, weights.shapes)
    device = torch.device("cpu")
    evaluator = Evaluator(encoder, weights, mean=backbone.mean, std=backbone.std, device=device)
    classifier = load_head(head, num_classes=10, embed_dim=evaluator.embed_dim)
    return evaluator.count_correct(pixels, torch.tensor(samples.labels), *classifier) / len(samples)


# --- what it does ----------------------------------------------------------------------------------------------------


def test_only_the_image_tower_moves(suite):
    job = job_of(suite)
    head = job.files.head.read_bytes()
    result = done(job)
    zero_shot, expert = Checkpoint(job.zero_shot), Checkpoint(job.files.expert)
    check_checkpoint(expert, zero_shot, "MNIST")
    unmoved = {name for name in zero_shot.names if torch.equal(expert.tensor(name), zero_shot.tensor(name))}
    assert unmoved == LEFTOVERS
    assert {expert.dtype(name) for name in expert.names} == {torch.float32}
    assert job.files.head.read_bytes() == head
    assert result.steps == 10, "180 images, 40 a step, twice"
    assert sorted(path.name for path in (suite.root / BACKBONE).rglob("*.*")) == [
        "head_MNISTVal.pt",
        "nonlinear_finetuned.json",
        "nonlinear_finetuned.pt",
        "nonlinear_zeroshot.pt",
    ]
    assert suite.zero_shot_path(BACKBONE) == job.zero_shot == suite.root / BACKBONE / "MNISTVal/nonlinear_zeroshot.pt"
    assert suite.expert_path(BACKBONE, "MNIST") == job.files.expert


def test_the_start_is_the_pretrained_model_without_its_text_transformer(suite, sound):
    job = job_of(suite)
    pretrained, zero_shot = Checkpoint(sound / "clip.safetensors"), Checkpoint(job.zero_shot)
    kept = [name for name in pretrained.names if not name.startswith("transformer.")]
    assert zero_shot.names == [f"model.{name}" for name in kept]
    assert all(torch.equal(zero_shot.tensor(f"model.{name}"), pretrained.tensor(name)) for name in kept)


def test_an_expert_is_much_better_than_zero_shot(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    suite = small_world(tmp_path / "world", train=400)
    recipe = FinetuneRecipe(epochs=8, batch_size=16, accumulate=1, learning_rate=6e-3, warmup=10)
    job = job_of(suite, recipe=recipe)
    result = done(job)
    before = val_accuracy(suite, job.zero_shot, job.files.head)
    after = val_accuracy(suite, job.files.expert, job.files.head)
    assert before < 0.4
    assert after > 0.8
    record = read_record(job.files.record)
    assert len(record["loss"]["by_epoch"]) == 8
    assert record["loss"]["by_epoch"][-1] == result.loss < 0.5 < record["loss"]["by_epoch"][0]


def test_the_record_says_how_it_was_made(suite):
    job = job_of(suite)
    result = done(job, Machine(threads=1, workers=2))
    record = json.loads(job.files.record.read_text())
    assert record["recipe"] == {
        "epochs": 2,
        "batch_size": 20,
        "accumulate": 2,
        "learning_rate": 0.006,
        "weight_decay": 0.1,
        "warmup": 3,
        "gradient_norm": 1.0,
        "precision": "fp32",
        "max_steps": None,
        "seed": 0,
    }
    assert [record[key] for key in ("suite", "backbone", "task", "dataset")] == ["small", "tiny", "MNIST", "MNIST"]
    assert (record["num_images"], record["steps"], record["threads"]) == (180, 10, 1)
    assert record["expert_sha256"] == file_sha256(job.files.expert)
    assert record["zero_shot_sha256"] == file_sha256(job.zero_shot)
    assert record["head_sha256"] == file_sha256(job.files.head)
    assert record["loss"]["by_epoch"][-1] == result.loss
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_training_images_are_those_that_are_not_held_out(suite):
    samples = finetuning.read_samples(job_of(suite))
    everything = read_split(replace(dataset("MNIST"), num_own_val=0), suite.data, "train")
    train, val = drawn_indices(200)
    for i in (0, 90, 179):
        assert samples.image(i).tobytes() == everything.image(train[i]).tobytes()
    assert len(samples) == 180
    assert not set(train) & set(val)


def test_seeds_and_tasks_have_images_of_their_own(suite):
    digests = {}
    for task, seed in (("MNIST", 0), ("MNIST", 1), ("Twin", 0)):
        shutil.copy(suite.root / BACKBONE / "head_MNISTVal.pt", suite.root / BACKBONE / "head_TwinVal.pt")
        job = job_of(suite, task, replace(RECIPE, seed=seed))
        done(job)
        digests[task, seed] = file_sha256(job.files.expert)
        job.files.expert.unlink()
    assert len(set(digests.values())) == 3


def test_missing_heads_are_built_from_prompts(suite, sound):
    job = job_of(suite, "Twin")
    weight, bias = load_head(job.files.head, num_classes=10, embed_dim=16)
    from raymerge.backbones import pretrained_clip, tokenizer

    backbone = suite.backbones[BACKBONE]
    expected = zero_shot_head(pretrained_clip(backbone), tokenizer(backbone), suite.task("Twin"))
    torch.testing.assert_close(weight, expected)
    assert not bias.any()
    assert suite.head_path(BACKBONE, "Twin") == job.files.head


def test_max_steps_end_the_training_and_its_schedule(suite):
    job = job_of(suite, recipe=replace(RECIPE, max_steps=7))
    assert done(job).steps == 7
    assert len(read_record(job.files.record)["loss"]["by_epoch"]) == 2
    assert training_recipe(replace(RECIPE, max_steps=7), 180).steps == 7
    assert training_recipe(replace(RECIPE, max_steps=70), 180).steps == 10


def test_torch_is_left_as_it_was(suite):
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_num_threads()
    done(job_of(suite, recipe=replace(RECIPE, max_steps=1)), Machine(threads=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


# --- stopping and continuing -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The expert of a training that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMERGE_HOME", str(tmp_path_factory.mktemp("cache")))
        job = job_of(load_suite_file(sound / "suite.yaml"), output=str(tmp_path_factory.mktemp("undisturbed")))
        done(job)
        return job.files.expert.read_bytes()


@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_stopped_training_continues_to_the_same_bytes(suite, undisturbed, step):
    job = job_of(suite)
    assert finetune(job, Machine(), stop_at(step)) is None
    assert job.files.resume.exists()
    assert not job.files.expert.exists()
    seen = []

    def watch(done: int, steps: int, loss: float) -> bool:
        seen.append((done, steps))
        return False

    done(job, Machine(workers=3), watch)
    assert seen == [(i, 10) for i in range(step + 1, 11)]
    assert job.files.expert.read_bytes() == undisturbed
    assert not job.files.resume.exists()
    assert len(read_record(job.files.record)["loss"]["by_epoch"]) == 2


def test_a_stop_at_the_last_step_comes_too_late(suite, undisturbed):
    job = job_of(suite)
    done(job, watch=stop_at(10))
    assert job.files.expert.read_bytes() == undisturbed


def test_a_process_that_dies_continues_from_its_last_save(suite, undisturbed, monkeypatch):
    class Died(BaseException):
        pass

    def watch(done: int, steps: int, loss: float) -> bool:
        if done == 6:
            raise Died
        return False

    job = job_of(suite)
    with pytest.raises(Died):
        finetune(job, Machine(save_every_s=0.0), watch)
    seen = []
    done(job, watch=lambda *args: bool(seen.append(args[0])))
    assert seen == [6, 7, 8, 9, 10]
    assert job.files.expert.read_bytes() == undisturbed


def test_a_process_that_dies_while_it_saves(suite, undisturbed, monkeypatch):
    class Died(BaseException):
        pass

    job = job_of(suite)
    assert finetune(job, Machine(), stop_at(2)) is None
    before = job.files.resume.read_bytes()

    def die(*args, **kwargs) -> None:
        args[1].write(b"half a file")
        raise Died

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(Died):
        finetune(job, Machine(), stop_at(4))
    assert job.files.resume.read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setenv("RAYMERGE_HOME", str(suite.root.parent.parent / "cache"))
    done(job)
    assert job.files.expert.read_bytes() == undisturbed


def test_a_record_without_its_expert_is_no_expert(suite, undisturbed):
    job = job_of(suite)
    done(job)
    job.files.expert.unlink()
    assert job.files.status(force=False) == "to do"
    done(job)
    assert job.files.expert.read_bytes() == undisturbed


def test_other_options_do_not_continue_a_training(suite, undisturbed):
    job = job_of(suite)
    finetune(job, Machine(), stop_at(3))
    other = replace(job, recipe=replace(RECIPE, learning_rate=1e-3))
    with pytest.raises(OutputError, match=r"^tiny/MNIST: .*resume\.pt: is of a training with learning_rate 0\.006, as"):
        finetune(other, Machine())
    assert job.files.resume.exists()
    done(replace(other, force=True))
    assert read_record(job.files.record)["recipe"]["learning_rate"] == 1e-3
    assert job.files.expert.read_bytes() != undisturbed


def test_a_changed_start_does_not_continue_a_training(suite):
    job = job_of(suite)
    finetune(job, Machine(), stop_at(3))
    weight, _ = load_head(job.files.head, num_classes=10, embed_dim=16)
    save_head(job.files.head, -weight)
    with pytest.raises(OutputError, match="is of a training with head_sha256"):
        finetune(job, Machine())


def test_a_damaged_state_is_named(suite, undisturbed):
    job = job_of(suite)
    finetune(job, Machine(), stop_at(3))
    job.files.resume.write_bytes(job.files.resume.read_bytes()[:-300])
    with pytest.raises(OutputError, match=r"resume\.pt: cannot be continued from, because it is damaged; --force"):
        finetune(job, Machine())
    done(replace(job, force=True))
    assert job.files.expert.read_bytes() == undisturbed


def test_two_processes_do_not_make_the_same_expert(suite, monkeypatch):
    monkeypatch.setattr("raymerge.finetuning.files.LOCK_TIMEOUT_S", 0.05)
    job = job_of(suite)

    def watch(*args: object) -> bool:
        with pytest.raises(OutputError, match="another process is fine-tuning it"):
            finetune(job, Machine())
        return False

    done(replace(job, recipe=replace(RECIPE, max_steps=1)), watch=watch)


# --- what is there already -------------------------------------------------------------------------------------------


def test_what_there_is_to_do(suite):
    job = job_of(suite)
    files = job.files
    assert (files.status(force=False), files.status(force=True)) == ("to do", "to do")
    done(job)
    assert (files.status(force=False), files.status(force=True)) == ("finished", "to do")
    files.resume.write_bytes(b"made again, and stopped")
    assert files.status(force=False) == "to do"
    files.resume.unlink()
    state = {name: Checkpoint(files.expert).tensor(name).clone() for name in Checkpoint(files.expert).names}
    save_state_dict(files.expert, {**state, "model.visual.proj": state["model.visual.proj"] + 1})
    with pytest.raises(OutputError, match=r"is not what 'raymerge finetune' wrote, by nonlinear_finetuned\.json"):
        files.status(force=True)
    files.record.unlink()
    assert files.status(force=False) == "another's"
    with pytest.raises(OutputError, match="so it is not replaced"):
        files.status(force=True)


def test_another_output_gets_all_that_merging_needs(suite, tmp_path):
    done(job_of(suite))
    job = job_of(suite, output=str(tmp_path / "other"))
    done(job)
    assert job.zero_shot == tmp_path / "other/tiny/MNISTVal/nonlinear_zeroshot.pt"
    for name in ("MNISTVal/nonlinear_zeroshot.pt", "MNISTVal/nonlinear_finetuned.pt", "head_MNISTVal.pt"):
        assert (tmp_path / "other/tiny" / name).read_bytes() == (suite.root / BACKBONE / name).read_bytes(), name


def test_an_output_of_other_weights_or_heads(suite, tmp_path):
    output = str(tmp_path / "other")
    job = job_of(suite)
    job_of(suite, output=output)
    weight, _ = load_head(job.files.head, num_classes=10, embed_dim=16)
    save_head(job.files.head, -weight)
    with pytest.raises(CheckpointError, match=r"other/tiny/head_MNISTVal\.pt: is another head than .*weights/tiny/"):
        job_of(suite, output=output)
    state = {name: Checkpoint(job.zero_shot).tensor(name).clone() for name in Checkpoint(job.zero_shot).names}
    save_state_dict(job.zero_shot, {**state, "model.visual.proj": state["model.visual.proj"] + 1})
    with pytest.raises(CheckpointError, match=r"nonlinear_zeroshot\.pt: holds other zero-shot weights than"):
        job_of(suite, output=output)


def test_names_of_a_suite_file(suite):
    text = Path(suite.option).read_text()
    names = "{expert: 'ft/{backbone}-{task}', zero_shot: '{backbone}-base', head: 'ft/{backbone}-{task}-head'}"
    Path(suite.option).write_text(f"{text}files: {names}\n")
    suite = load_suite_file(suite.option)
    (suite.root / "ft").mkdir()
    shutil.move(suite.root / BACKBONE / "head_MNISTVal.pt", suite.root / "ft/tiny-MNIST-head.pt")
    done(job_of(suite))
    names = {str(path.relative_to(suite.root)) for path in suite.root.rglob("*.*")}
    assert names == {"ft/tiny-MNIST-head.pt", "ft/tiny-MNIST.json", "ft/tiny-MNIST.pt", "tiny-base.pt"}
    assert suite.expert_path(BACKBONE, "MNIST") == suite.root / "ft/tiny-MNIST.pt"
    assert suite.zero_shot_path(BACKBONE) == suite.root / "tiny-base.pt"


def test_zero_shot_weights_of_a_suite_without_mnist(suite):
    Path(suite.option).write_text(Path(suite.option).read_text().replace("[MNIST, {", "[{"))
    suite = load_suite_file(suite.option)
    assert prepare_backbone(find_output(suite, None), BACKBONE, ["Twin"]).parent.name == "TwinVal"


def test_published_weights_are_never_written_to(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    suite = tall_masks("corrected", weights=tmp_path / "published")
    with pytest.raises(
        UsageError, match=r"^--output is missing: experts of 'tall-masks' would lie among the published"
    ):
        find_output(suite, None)
    for folder in ("published", "published/mine"):
        with pytest.raises(UsageError, match="is the place of the published weights of 'tall-masks'; give another"):
            find_output(suite, str(tmp_path / folder))
    output = find_output(suite, str(tmp_path / "mine"))
    files = output.of_expert("ViT-B-32", "DTD")
    assert files.expert == tmp_path / "mine/ViT-B-32/DTDVal/nonlinear_finetuned.pt"
    assert files.head == tmp_path / "mine/ViT-B-32/head_DTDVal.pt"
    assert output.zero_shot("ViT-B-32") == tmp_path / "mine/ViT-B-32/MNISTVal/nonlinear_zeroshot.pt"
    with pytest.raises(UsageError, match="not a folder of this machine"):
        find_output(suite, "s3://bucket/x")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_training_that_diverges_is_told_with_its_name(suite):
    job = job_of(suite, recipe=replace(RECIPE, learning_rate=1e30, warmup=0))
    with pytest.raises(TrainingError, match=r"^tiny/MNIST: the loss is (nan|inf) at step \d+ of 10; use a smaller"):
        finetune(job, Machine())
    assert not job.files.expert.exists()
    assert not list(suite.root.rglob("*.tmp"))


def test_a_training_that_diverges_at_its_last_step(suite):
    job = job_of(suite, recipe=replace(RECIPE, learning_rate=1e39, warmup=0, max_steps=1))
    with pytest.raises(TrainingError, match=r"^tiny/MNIST: 'model\.visual\.\S+' is not finite after the last step"):
        finetune(job, Machine())
    assert not job.files.expert.exists()


def test_too_many_images_at_a_time(suite, monkeypatch):
    def out_of_memory(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("raymerge.training.Trainer.advance", out_of_memory)
    with pytest.raises(TrainingError, match=r"^tiny/MNIST: the GPU has too little memory for 20 images at a time; "):
        finetune(job_of(suite), Machine())


def test_a_disk_that_is_full(suite, monkeypatch):
    job = job_of(suite)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"resume\.pt: cannot be written \(No space left on device\)\. Make room"):
        finetune(job, Machine(save_every_s=0.0))
    with pytest.raises(OutputError, match=r"nonlinear_finetuned\.pt: cannot be written \(No space left on device\)"):
        finetune(job, Machine())
    assert sorted(path.name for path in job.files.expert.parent.iterdir()) == ["nonlinear_zeroshot.pt"]


def test_a_dataset_of_another_size(suite):
    job = job_of(replace(suite, any_size=False))
    with pytest.raises(DataError, match=r"^tiny/MNIST: MNIST: 180 training images under .*, expected 55000; get"):
        finetune(job, Machine())


def test_labels_without_a_class(suite):
    job = job_of(suite)
    tasks = tuple(replace(task, classes=task.classes[:8]) for task in suite.tasks)
    with pytest.raises(DataError, match="labels run from 0 to 9, but task 'MNIST' has 8 classes"):
        finetune(replace(job, suite=replace(suite, tasks=tasks)), Machine())


def test_zero_shot_weights_that_cannot_be_had(suite):
    backbones = {BACKBONE: replace(suite.backbones[BACKBONE], pretrained=None)}
    with pytest.raises(CheckpointError, match=r"no such zero-shot weights, and backbone 'tiny' has no 'pretrained:' "):
        job_of(replace(suite, backbones=backbones))


def change(state: dict[str, Tensor], name: str, value: Tensor | None) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in {**state, name: value}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.visual.proj", None, r"lacks 'model\.visual\.proj', which tiny needs"),
        ("model.visual.ln_post.weight", None, r"lacks 'model\.visual\.ln_post\.weight', which tiny needs"),
        ("model.visual.ln_post.weight", torch.ones(5), r"does not fit tiny: size mismatch for visual\.ln_post\.weight"),
    ],
)
def test_zero_shot_weights_that_do_not_fit(suite, name, value, message):
    job = job_of(suite)
    zero_shot = Checkpoint(job.zero_shot)
    state = {key: zero_shot.tensor(key).clone() for key in zero_shot.names}
    save_state_dict(job.zero_shot, change(state, name, value))
    with pytest.raises(CheckpointError, match=message):
        finetune(job, Machine())


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_every_published_task_has_its_number_of_epochs():
    assert set(TASKS) == set(EPOCHS) - {"DTD-leaky"}
    assert sum(EPOCHS[task] for task in TASKS) == 539
    assert (EPOCHS["Flowers102"], EPOCHS["PCAM"], EPOCHS["DTD"], EPOCHS["DTD-leaky"]) == (147, 1, 76, 76)


def test_the_published_recipe():
    recipe = published_recipe(openai_backbone("ViT-B-16"), "MNIST", "MNIST", {})
    assert recipe == FinetuneRecipe(5, 128, 1, 1e-5, 0.1, 500, 1.0, "fp32", None, 0)
    settings = training_recipe(recipe, 55_000)
    assert (settings.steps, settings.decays_vectors, settings.autocast) == (2150, True, None)
    assert training_recipe(published_recipe(openai_backbone("ViT-B-32"), "Flowers102", "x", {}), 918).steps == 1176
    large = published_recipe(openai_backbone("ViT-L-14"), "MNIST", "MNIST", {"epochs": None})
    assert (large.batch_size, large.accumulate, large.images_per_step) == (64, 2, 128)
    assert training_recipe(large, 55_000).steps == 2150


def test_changes_of_the_recipe():
    large = openai_backbone("ViT-L-14")
    changed = published_recipe(large, "MNIST", "MNIST", {"batch_size": 32, "learning_rate": 1e-4, "seed": 3})
    assert changed == FinetuneRecipe(5, 32, 1, learning_rate=1e-4, seed=3)
    assert published_recipe(large, "MNIST", "MNIST", {"accumulate": 4}).images_per_step == 256
    assert published_recipe(large, "folder-x", "X", {"epochs": 2}).epochs == 2
    with pytest.raises(UsageError, match=r"^task 'EMNIST' \(EMNIST-letters\) has no published number of epochs; give"):
        published_recipe(large, "EMNIST-letters", "EMNIST", {})


def test_differences_are_named():
    asked = {"a": 1, "recipe": {"b": (1, 2), "c": "x"}}
    assert difference({"a": 1, "recipe": {"b": [1, 2], "c": "x"}, "more": 0}, asked) is None
    assert difference({"a": 1, "recipe": {"b": [1, 3], "c": "x"}}, asked) == "b [1, 3], asked for (1, 2)"
    assert difference({"a": 1}, asked) == "b None, asked for (1, 2)"
