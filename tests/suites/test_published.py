"""Published collections: which file of which folder is read, whatever was downloaded, and what is declared of them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from raymerge.data import datasets
from raymerge.errors import SuiteError
from raymerge.records import SPLITS
from raymerge.suites.fusionbench import expert_repo, fusionbench, zero_shot_repo
from raymerge.suites.published import PublishedSuite, existing_file, with_counts
from raymerge.suites.tall_masks import BACKBONES, PROFILES, TASKS, tall_masks


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def suite(tmp_path: Path) -> PublishedSuite:
    return tall_masks(weights=tmp_path / "weights", data=tmp_path / "data")


def touch(folder: Path, relative: str, seconds: float = 1e9) -> Path:
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))
    return path


# --- what is declared -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_the_collection(profile):
    suite = tall_masks(profile)
    assert tuple(suite.backbones) == BACKBONES
    assert tuple(task.name for task in suite.tasks) == TASKS
    assert [task.name for task in suite.tasks[:8]] == [
        *("Cars", "DTD", "EuroSAT", "GTSRB", "MNIST", "RESISC45", "SVHN", "SUN397")
    ]
    for backbone in suite.backbones.values():
        assert (backbone.model, backbone.quick_gelu, backbone.pretrained) == (backbone.name, True, "openai")
    assert all(task.classes and task.templates for task in suite.tasks)
    assert all(suite.datasets[task.name].name in datasets() for task in suite.tasks)
    for task in suite.tasks:
        declared = suite.datasets[task.name]
        assert dict(task.images) == {"val": declared.num_val, "test": declared.num_test}
        assert len(task.classes) == len(declared.classes)


def test_the_profiles_differ_in_the_images_of_dtd():
    legacy, corrected = tall_masks("paper-legacy"), tall_masks("corrected")
    assert tall_masks().profile == "paper-legacy"
    differing = [t for t in TASKS if legacy.datasets[t] != corrected.datasets[t]]
    assert differing == ["DTD"]
    assert (legacy.datasets["DTD"].name, corrected.datasets["DTD"].name) == ("DTD-leaky", "DTD")
    assert legacy.root != corrected.root
    assert legacy.converted != corrected.converted


def test_fusionbench_has_other_letters():
    suite = fusionbench()
    assert tuple(task.name for task in suite.tasks) == TASKS
    assert len(suite.task("EMNIST").classes) == 26
    assert len(tall_masks().task("EMNIST").classes) == 10
    assert suite.datasets["DTD"].name == "DTD"
    assert suite.needs_conversion


def test_repositories_of_fusionbench():
    assert zero_shot_repo("ViT-L-14") == "openai/clip-vit-large-patch14"
    suffixes = [expert_repo("ViT-B-16", task).partition("patch16_")[2] for task in TASKS]
    assert suffixes == [
        *("stanford-cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "svhn", "sun397", "stl10"),
        *("oxford-iiit-pet", "oxford_flowers102", "cifar100", "pcam", "fer2013", "cifar10", "food101"),
        *("fashion_mnist", "rendered-sst2", "emnist_letters", "kmnist"),
    ]


def test_unknown_profiles():
    with pytest.raises(SuiteError, match="suite 'tall-masks' has no profile 'new'"):
        tall_masks("new")
    with pytest.raises(SuiteError, match="suite 'fusionbench' has no profile 'corrected'"):
        fusionbench("corrected")


def test_what_it_is_called_on_the_command_line(tmp_path, suite):
    assert tall_masks("corrected").argument == "tall-masks --profile corrected"
    folders = f"--data {tmp_path / 'data'} --weights {tmp_path / 'weights'}"
    assert suite.argument == f"tall-masks --profile paper-legacy {folders}"
    spaced = tall_masks(weights=tmp_path / "my weights")
    assert spaced.argument == f"tall-masks --profile paper-legacy --weights '{tmp_path / 'my weights'}'"
    assert replace(suite, option="my suite.yaml", usual=(suite.root, suite.data)).argument == "'my suite.yaml'"


# --- which file is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "single_task", "checkpoints", "models/checkpoints", "ckpts", "models/ckpts"])
@pytest.mark.parametrize("backbone", ["ViT-B-16", "VIT-B-16", "vit-b-16"])
def test_wherever_it_was_downloaded_to_and_however_it_is_spelled(suite, folder, backbone):
    place = suite.root / folder / backbone
    expert = touch(place, "DTDVal/nonlinear_finetuned.pt")
    zero_shot = touch(place, "MNISTVal/nonlinear_zeroshot.pt")
    head = touch(place, "head_DTDVal.pt")
    assert suite.expert_path("ViT-B-16", "DTD") == expert
    assert suite.zero_shot_path("ViT-B-16") == zero_shot
    assert suite.head_path("ViT-B-16", "DTD") == head
    assert suite.file_label(expert) == f"weights/{expert.relative_to(suite.root)}"


def test_a_folder_of_the_right_name_without_the_file_hides_nothing(suite):
    """The masks came into `ViT-B-16`, the checkpoints into `VIT-B-16`."""
    (suite.root / "single_task" / "ViT-B-16" / "DTDVal").mkdir(parents=True)
    touch(suite.root, "single_task/ViT-B-16/TALL_mask_8task.npy")
    expert = touch(suite.root, "single_task/VIT-B-16/dtdval/nonlinear_finetuned.pt")
    assert suite.expert_path("ViT-B-16", "DTD") == expert


def test_files_of_other_tasks_and_backbones_are_not_taken(suite):
    touch(suite.root, "ViT-B-16/DTDVal/nonlinear_finetuned.pt")
    (suite.root / "ViT-B-32" / "CarsVal" / "nonlinear_finetuned.pt").mkdir(parents=True)  # a folder, not a file
    for backbone, task in (("ViT-B-32", "DTD"), ("ViT-B-16", "Cars"), ("ViT-B-32", "Cars")):
        assert not suite.expert_path(backbone, task).is_file()
    assert suite.expert_path("ViT-B-32", "DTD") == suite.root / "ViT-B-32" / "DTDVal" / "nonlinear_finetuned.pt"


def test_the_zero_shot_model_of_mnist_comes_before_its_copies(suite):
    assert suite.zero_shot_path("ViT-B-32") == suite.root / "ViT-B-32" / "MNISTVal" / "nonlinear_zeroshot.pt"
    plain = touch(suite.root, "ViT-B-32/zeroshot.pt")
    assert suite.zero_shot_path("ViT-B-32") == plain
    copy = touch(suite.root, "ViT-B-32/SVHNVal/nonlinear_zeroshot.pt")
    assert suite.zero_shot_path("ViT-B-32") == copy
    first = touch(suite.root, "ViT-B-32/DTDVal/nonlinear_zeroshot.pt")
    assert suite.zero_shot_path("ViT-B-32") == first, "in the order of the tasks"
    mnist = touch(suite.root, "ViT-B-32/MNISTVal/nonlinear_zeroshot.pt")
    assert suite.zero_shot_path("ViT-B-32") == mnist


def test_a_head_that_is_not_there_will_be_built(suite, tmp_path):
    path = suite.head_path("ViT-B-32", "DTD")
    assert path.is_relative_to(tmp_path / "cache" / "heads" / "ViT-B-32")
    assert path == suite.built_head_path("ViT-B-32", "DTD")
    assert suite.file_label(path) == f"heads/ViT-B-32/{path.name}"
    tasks = tuple(replace(t, templates=("{}",)) if t.name == "DTD" else t for t in suite.tasks)
    assert replace(suite, tasks=tasks).head_path("ViT-B-32", "DTD") != path
    assert tall_masks("corrected").head_path("ViT-B-32", "DTD") == path, "the same classes and prompts"
    published = touch(suite.root, "ViT-B-32/head_DTDVal.pt")
    assert suite.head_path("ViT-B-32", "DTD") == published


def test_safetensors_come_before_pickles(suite):
    touch(suite.root, "ViT-B-32/DTDVal/nonlinear_finetuned.pt")
    better = touch(suite.root, "ViT-B-32/DTDVal/nonlinear_finetuned.safetensors")
    assert suite.expert_path("ViT-B-32", "DTD") == better


def test_a_converted_file_is_read_while_its_source_is_the_same(suite):
    name = "ViT-B-32/DTDVal/nonlinear_finetuned"
    converted = touch(suite.converted, f"{name}.safetensors")
    assert suite.expert_path("ViT-B-32", "DTD") == converted
    assert suite.file_label(converted) == f"converted/{name}.safetensors"
    source = touch(suite.root, f"single_task/{name}.pt")
    assert suite.expert_path("ViT-B-32", "DTD") == converted
    os.utime(source, (1e9 + 1.5, 1e9 + 1.5))  # file systems round
    assert suite.expert_path("ViT-B-32", "DTD") == converted
    for seconds in (1e9 + 3, 1e9 - 3):  # another file, newer or older
        os.utime(source, (seconds, seconds))
        assert suite.expert_path("ViT-B-32", "DTD") == source
    assert suite.source("expert", "ViT-B-32", "DTD") == source
    assert suite.converted_file("expert", "ViT-B-32", "DTD") == converted


def test_conversions_of_another_folder_are_not_read(suite, tmp_path):
    touch(suite.converted, "ViT-B-32/DTDVal/nonlinear_finetuned.safetensors")
    other = tall_masks(weights=tmp_path / "other")
    assert other.expert_path("ViT-B-32", "DTD") == tmp_path / "other" / "ViT-B-32/DTDVal/nonlinear_finetuned.pt"


def test_fusionbench_reads_nothing_but_what_is_converted(tmp_path):
    suite = fusionbench(weights=tmp_path)
    source = touch(tmp_path, "tanganke/clip-vit-base-patch32_dtd/model.safetensors")
    wrong = touch(tmp_path, "ViT-B-32/DTDVal/nonlinear_finetuned.pt")
    expected = suite.converted / "ViT-B-32/DTDVal/nonlinear_finetuned.safetensors"
    assert suite.source("expert", "ViT-B-32", "DTD") == source
    assert suite.expert_path("ViT-B-32", "DTD") == expected
    assert touch(suite.converted, "ViT-B-32/DTDVal/nonlinear_finetuned.safetensors", 5e8) == expected
    assert suite.expert_path("ViT-B-32", "DTD") == expected
    assert wrong != expected
    head = touch(tmp_path, "ViT-B-32/head_DTDVal.pt")
    assert suite.head_path("ViT-B-32", "DTD") == head, "a head that somebody put there is as good as one that is built"


def test_names_without_case(tmp_path):
    touch(tmp_path, "A/b/C.pt")
    touch(tmp_path, "a/B/c.pt")
    assert existing_file(tmp_path, "A/b/C.pt") == tmp_path / "A/b/C.pt"
    assert existing_file(tmp_path, "a/B/c.pt") == tmp_path / "a/B/c.pt"
    assert existing_file(tmp_path, "a/b/c.pt") == tmp_path / "a/B/c.pt", "the closest first"
    assert existing_file(tmp_path, "a/b/d.pt") is None
    assert existing_file(tmp_path / "none", "a/b/d.pt") is None


# --- images ---------------------------------------------------------------------------------------------------------


def test_images_are_cached_by_dataset_and_size(tmp_path, suite):
    images = suite.image_cache("DTD")
    assert images == suite.images_folder / "DTD-leaky" / "224px"
    assert suite.images_path("DTD", "val") == images / "val.arrow"
    other = fusionbench(data=suite.data)
    assert other.image_cache("MNIST") == suite.image_cache("MNIST"), "the same images, whichever suite"
    assert other.image_cache("DTD") != images
    assert tall_masks(data=tmp_path / "elsewhere" / "data").images_folder != suite.images_folder


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": {"val": "x"}}', '{"images": 3}'])
def test_numbers_of_images_that_are_not_declared_are_those_that_are_cached(suite, content):
    cached = suite.image_cache("MNIST") / "dataset.json"
    cached.parent.mkdir(parents=True)
    cached.write_text(json.dumps({"images": dict.fromkeys(SPLITS, 7)}))
    assert dict(with_counts(suite).task("MNIST").images) == dict(suite.task("MNIST").images)
    suite = replace(suite, any_size=True)
    declared = dict(suite.task("MNIST").images)
    cached.write_text(content)
    assert dict(with_counts(suite).task("MNIST").images) == declared, "what cannot be read is not believed"
    cached.write_text(json.dumps({"images": dict.fromkeys(SPLITS, 7)}))
    assert dict(with_counts(suite).task("MNIST").images) == {"val": 7, "test": 7}
