"""Converting whole suites: what is written, what is left alone, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_by_hand import random_state
from own_suite import CLASSES, EMBED_DIM, MODEL, NAME, VISION, own_suite
from published_code import write_collection
from torch import Tensor

from raymerge.backbones import build_clip
from raymerge.checkpoints import Checkpoint, check_checkpoint, file_sha256, load_head, save_state_dict
from raymerge.errors import CheckpointError, OutputError
from raymerge.suite_files.convert import Conversion, convert_suite
from raymerge.suites import Backbone
from raymerge.suites.fusionbench import expert_repo, fusionbench, zero_shot_repo
from raymerge.suites.published import PublishedSuite

TASKS = {NAME: list(CLASSES)}
SIZES = {"width": 32, "layers": 2, "patch": 16, "image": 32, "dim": EMBED_DIM}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def suite(tmp_path: Path) -> PublishedSuite:
    made = own_suite(tmp_path)
    write_collection(made.root, NAME, VISION, EMBED_DIM, CLASSES)
    return made


def statuses(done: list[Conversion]) -> list[str]:
    return [entry.status for entry in done]


def assert_equal(path: Path, expected: dict[str, Tensor]) -> None:
    found = Checkpoint(path)
    assert found.names == sorted(expected)
    for name, value in expected.items():
        assert torch.equal(found.tensor(name), value), name


# --- published files ------------------------------------------------------------------------------------------------


def test_every_file_is_written_once_and_then_read(suite):
    sources = {(k, t): suite.source(k, NAME, t) for k in ("expert", "head") for t in CLASSES}
    states = {task: torch.load(sources["expert", task]) for task in CLASSES}
    heads = {task: load_head(sources["head", task], num_classes=10, embed_dim=EMBED_DIM) for task in CLASSES}
    done = convert_suite(suite, TASKS)
    assert statuses(done) == ["converted"] * 7
    assert [(entry.kind, entry.task) for entry in done[:3]] == [
        ("zero-shot", None),
        ("expert", "MNIST"),
        ("head", "MNIST"),
    ]
    for entry in done:
        assert entry.path.is_relative_to(suite.converted)
        assert entry.num_bytes == entry.path.stat().st_size
        assert entry.num_tensors == len(Checkpoint(entry.path).names)
        assert (entry.num_completed, entry.num_dropped, entry.problem) == (0, 0, "")
    assert (
        suite.zero_shot_path(NAME) == done[0].path == suite.converted / NAME / "MNISTVal/nonlinear_zeroshot.safetensors"
    )
    for task in CLASSES:
        assert suite.expert_path(NAME, task) == suite.converted / NAME / f"{task}Val/nonlinear_finetuned.safetensors"
        assert_equal(suite.expert_path(NAME, task), states[task])
        found = load_head(suite.head_path(NAME, task), num_classes=10, embed_dim=EMBED_DIM)
        assert suite.head_path(NAME, task).suffix == ".safetensors"
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, heads[task], strict=True))


def test_a_converted_file_says_what_it_was_made_of(suite):
    convert_suite(suite, TASKS)
    source = suite.source("expert", NAME, "SVHN")
    assert source is not None
    metadata = Checkpoint(suite.expert_path(NAME, "SVHN")).metadata()
    assert json.loads(metadata["raymerge.sources"]) == [
        {
            "file": f"weights/{NAME}/SVHNVal/nonlinear_finetuned.pt",
            "bytes": source.stat().st_size,
            "sha256": file_sha256(source),
        }
    ]
    assert (metadata["format"], metadata["raymerge.made_from"]) == ("pt", "published")
    assert suite.expert_path(NAME, "SVHN").stat().st_mtime_ns == source.stat().st_mtime_ns


def test_what_is_up_to_date_is_left_alone(suite, monkeypatch):
    paths = [entry.path for entry in convert_suite(suite, TASKS)]
    before = [path.stat().st_ino for path in paths]
    monkeypatch.setattr("raymerge.suite_files.converted_file.file_sha256", None)  # nor is a source read to see that
    assert statuses(convert_suite(suite, TASKS)) == ["up to date"] * 7
    assert [path.stat().st_ino for path in paths] == before


def test_force_writes_the_same_bytes_again(suite):
    paths = [entry.path for entry in convert_suite(suite, TASKS)]
    before, content = [path.stat().st_ino for path in paths], [path.read_bytes() for path in paths]
    assert statuses(convert_suite(suite, TASKS, force=True)) == ["converted"] * 7
    assert all(path.stat().st_ino != inode for path, inode in zip(paths, before, strict=True))
    assert [path.read_bytes() for path in paths] == content


def test_a_source_that_was_touched_is_recognised_and_one_that_changed_converted_again(suite):
    convert_suite(suite, TASKS)
    source = suite.source("expert", NAME, "SVHN")
    assert source is not None
    os.utime(source, (1e9, 1e9))
    assert suite.expert_path(NAME, "SVHN") == source, "it might be another one"
    done = convert_suite(suite, TASKS)
    assert statuses(done) == ["up to date"] * 7
    assert suite.expert_path(NAME, "SVHN").suffix == ".safetensors"
    state = {name: value + 1 for name, value in torch.load(source).items()}
    torch.save(state, source)  # of the same size
    assert suite.expert_path(NAME, "SVHN") == source
    done = convert_suite(suite, TASKS)
    assert [entry.task for entry in done if entry.status == "converted"] == ["SVHN"]
    assert_equal(suite.expert_path(NAME, "SVHN"), state)


@pytest.mark.parametrize("damage", ["truncated", "empty", "of another version", "without metadata"])
def test_a_damaged_conversion_is_repaired(suite, damage):
    path = {entry.task: entry.path for entry in convert_suite(suite, TASKS) if entry.kind == "expert"}["KMNIST"]
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    state = safetensors.torch.load(content)
    if damage == "truncated":
        path.write_bytes(content[:-8])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "of another version":
        path.write_bytes(content.replace(b'"raymerge.conversion":"1"', b'"raymerge.conversion":"0"'))
    else:
        safetensors.torch.save_file(state, path)
    os.utime(path, ns=(time, time))
    done = convert_suite(suite, TASKS)
    assert [entry.task for entry in done if entry.status == "converted"] == ["KMNIST"]
    assert path.read_bytes() == content


def test_sources_may_be_removed_afterwards(suite):
    paths = [entry.path for entry in convert_suite(suite, TASKS)]
    for path in sorted(suite.root.rglob("*.pt")):
        path.unlink()
    done = convert_suite(suite, TASKS)
    assert statuses(done) == ["up to date"] * 7
    assert [entry.path for entry in done] == paths
    assert done[0].made_from == "published"
    assert suite.expert_path(NAME, "MNIST") == paths[1]


def test_another_folder_becomes_a_collection_of_its_own(suite, tmp_path):
    done = convert_suite(suite, TASKS, folder=tmp_path / "out")
    assert statuses(done) == ["converted"] * 7
    assert not suite.converted.exists()
    moved = own_suite(tmp_path / "elsewhere", weights=str(tmp_path / "out"))
    assert moved.expert_path(NAME, "SVHN") == tmp_path / "out" / NAME / "SVHNVal/nonlinear_finetuned.safetensors"
    assert statuses(convert_suite(moved, TASKS)) == ["as it is"] * 7, "they are read where they lie"
    assert not moved.converted.exists()


def test_an_interrupted_conversion_leaves_no_half_file(suite, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raymerge.whole_file.os.fsync", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        convert_suite(suite, TASKS)
    assert not [path for path in suite.converted.rglob("*") if path.is_file()]


# --- what is wrong with files ---------------------------------------------------------------------------------------


def problem(suite: PublishedSuite, task: str = "SVHN", kind: str = "expert") -> str:
    done = convert_suite(suite, TASKS)
    (entry,) = (entry for entry in done if (entry.kind, entry.task) == (kind, task))
    assert entry.problem
    assert [e for e in done if e.problem] == [entry], "the others are converted even so"
    assert not entry.path.exists() or entry.status == "broken"
    return f"{entry.status}: {entry.problem}"


def test_experts_that_do_not_fit_are_named(suite):
    source = suite.source("expert", NAME, "SVHN")
    assert source is not None
    state = torch.load(source)
    torch.save(state | {"model.visual.proj": torch.ones(3, 3)}, source)
    assert "'model.visual.proj' is (3, 3), expected (32, 16) as expert 'SVHN': the zero-shot model has it" in problem(
        suite
    )
    torch.save({name: value for name, value in state.items() if "ln_post.bias" not in name}, source)
    assert "lacks 'model.visual.ln_post.bias'" in problem(suite)
    torch.save(state | {"model.visual.ln_post.bias": torch.full((32,), torch.nan)}, source)
    assert "'model.visual.ln_post.bias' has 32 NaN or infinite values of 32" in problem(suite)
    torch.save({"model": state}, source)
    assert "holds dict, expected a dict of tensors" in problem(suite)
    source.unlink()
    assert problem(suite) == (
        f"missing: {NAME}/SVHN: no expert file under {suite.root}, looked for {NAME}/SVHNVal/nonlinear_finetuned."
    )


def test_a_head_of_another_size_is_named(suite):
    source = suite.source("head", NAME, "SVHN")
    assert source is not None
    other = own_suite(suite.root.parent / "other")
    write_collection(other.root, NAME, VISION, EMBED_DIM, {"SVHN": 11})
    os.replace(other.root / NAME / "head_SVHNVal.pt", source)  # noqa: PTH105
    assert "the head is (11, 16), expected (10, 16)" in problem(suite, kind="head")


def test_a_head_that_is_not_there_can_be_built_and_is_no_problem(suite):
    source = suite.source("head", NAME, "SVHN")
    assert source is not None
    source.unlink()
    done = convert_suite(suite, TASKS)
    assert [(entry.kind, entry.task) for entry in done if entry.task == "SVHN"] == [("expert", "SVHN")]


def test_a_zero_shot_model_of_another_backbone_stops_everything(suite):
    source = suite.source("zero-shot", NAME)
    assert source is not None
    torch.save(torch.load(source) | {"model.visual.proj": torch.ones(32, 8)}, source)
    with pytest.raises(CheckpointError, match=r"'model.visual.proj' is \(32, 8\), expected \(32, 16\) as small has it"):
        convert_suite(suite, TASKS)


def test_without_a_zero_shot_model_one_sentence_says_so(suite):
    for path in suite.root.rglob("nonlinear_zeroshot.pt"):
        path.unlink()
    with pytest.raises(CheckpointError) as caught:
        convert_suite(suite, TASKS)
    expected = suite.root / NAME / "MNISTVal" / "nonlinear_zeroshot.pt"
    assert str(caught.value).startswith(
        f"{expected}: no such file, and it cannot be made instead: backbone 'small' has no"
    )


def test_the_zero_shot_model_is_made_of_pretrained_weights(suite, tmp_path):
    state = build_clip(Backbone(NAME, "", model=MODEL)).state_dict()
    save_state_dict(tmp_path / "clip.pt", state)
    suite = own_suite(tmp_path, backbone={"pretrained": "clip.pt"})
    for path in suite.root.rglob("nonlinear_zeroshot.pt"):
        path.unlink()
    done = convert_suite(suite, TASKS)
    assert done[0].status == "made"
    assert suite.zero_shot_path(NAME) == done[0].path
    kept = {f"model.{name}": value for name, value in state.items() if not name.startswith("transformer.")}
    assert_equal(done[0].path, kept)
    assert statuses(done[1:]) == ["converted"] * 6, "the experts are compared with it"
    assert convert_suite(suite, TASKS)[0].status == "up to date"
    write_collection(suite.root, NAME, VISION, EMBED_DIM, CLASSES)  # the published one is there after all
    source = suite.source("zero-shot", NAME)
    assert source is not None
    os.utime(source, (2e9, 2e9))
    assert suite.zero_shot_path(NAME) == source
    assert convert_suite(suite, TASKS)[0].status == "converted"


# --- other formats --------------------------------------------------------------------------------------------------


def test_files_of_open_clip_get_their_prefix(tmp_path):
    suite = own_suite(
        tmp_path, ["MNIST", "SVHN"], files={"zero_shot": "{backbone}/clip", "expert": "{backbone}/{task}.pt"}
    )
    state = build_clip(Backbone(NAME, "", model=MODEL)).state_dict()
    save_state_dict(suite.root / NAME / "clip.pt", state)
    for number, task in enumerate(("MNIST", "SVHN"), start=1):
        save_state_dict(
            suite.root / NAME / f"{task}.pt", {n: v + number * n.startswith("visual.") for n, v in state.items()}
        )
    done = convert_suite(suite, {NAME: ["MNIST", "SVHN"]})
    assert statuses(done) == ["converted"] * 3
    assert {entry.made_from for entry in done} == {"open-clip"}
    assert all(entry.num_dropped == sum(name.startswith("transformer.") for name in state) for entry in done)
    assert done[2].path == suite.converted / NAME / "SVHN.safetensors"
    kept = {f"model.{n}": v + 2 * n.startswith("visual.") for n, v in state.items() if not n.startswith("transformer.")}
    assert_equal(suite.expert_path(NAME, "SVHN"), kept)
    check_checkpoint(Checkpoint(suite.expert_path(NAME, "SVHN")), Checkpoint(suite.zero_shot_path(NAME)), "SVHN")


def fusionbench_suite(tmp_path: Path, **zero_shot: Any) -> PublishedSuite:
    """Two experts and a zero-shot model of sizes that are not those of a ViT-B-32."""
    suite = fusionbench(weights=tmp_path / "weights")
    write_model(suite.root / zero_shot_repo("ViT-B-32"), random_state(**SIZES, **zero_shot))
    for number, task in enumerate(("EMNIST", "Cars"), start=1):
        write_model(suite.root / expert_repo("ViT-B-32", task), random_state(**SIZES, seed=number, projection=False))
    return suite


def write_model(folder: Path, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    safetensors.torch.save_file(state, folder / "model.safetensors")


@pytest.fixture
def small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B-32 is small."""
    monkeypatch.setattr("raymerge.model_config._read_config", lambda backbone: MODEL)


@pytest.mark.usefixtures("small_vit")
def test_fusionbench_takes_the_projection_of_the_zero_shot_model(tmp_path):
    suite = fusionbench_suite(tmp_path, extra=True)
    assert not suite.expert_path("ViT-B-32", "Cars").exists(), "nothing else is read than what is converted"
    done = convert_suite(suite, {"ViT-B-32": ["EMNIST", "Cars"]})
    assert statuses(done) == ["converted"] * 3
    assert [entry.num_completed for entry in done] == [0, 1, 1]
    assert {entry.made_from for entry in done} == {"huggingface"}
    zero_shot, expert = Checkpoint(suite.zero_shot_path("ViT-B-32")), Checkpoint(suite.expert_path("ViT-B-32", "Cars"))
    assert zero_shot.names == expert.names
    assert all(name.startswith("model.visual.") for name in expert.names), "there is no text tower to keep"
    projection = random_state(**SIZES)["visual_projection.weight"].T
    assert torch.equal(zero_shot.tensor("model.visual.proj"), projection)
    assert torch.equal(expert.tensor("model.visual.proj"), projection)
    theirs = random_state(**SIZES, seed=2)
    joint = [theirs[f"vision_model.encoder.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    ours = expert.tensor("model.visual.transformer.resblocks.1.attn.in_proj_weight")
    assert torch.equal(ours, torch.cat(joint))
    recorded = json.loads(expert.metadata()["raymerge.sources"])
    assert [entry["file"] for entry in recorded] == [
        "weights/tanganke/clip-vit-base-patch32_stanford-cars/model.safetensors",
        "converted/ViT-B-32/MNISTVal/nonlinear_zeroshot.safetensors",
    ]
    assert statuses(convert_suite(suite, {"ViT-B-32": ["EMNIST", "Cars"]})) == ["up to date"] * 3


@pytest.mark.usefixtures("small_vit")
def test_an_expert_is_completed_again_with_another_zero_shot_model(tmp_path):
    suite = fusionbench_suite(tmp_path)
    convert_suite(suite, {"ViT-B-32": ["Cars"]})
    path = suite.root / zero_shot_repo("ViT-B-32") / "model.safetensors"
    safetensors.torch.save_file(random_state(**SIZES, seed=7), path)
    os.utime(path, (2e9, 2e9))
    assert statuses(convert_suite(suite, {"ViT-B-32": ["Cars"]})) == ["converted"] * 2
    projection = random_state(**SIZES, seed=7)["visual_projection.weight"].T
    assert torch.equal(Checkpoint(suite.expert_path("ViT-B-32", "Cars")).tensor("model.visual.proj"), projection)


@pytest.mark.usefixtures("small_vit")
def test_a_zero_shot_model_without_projection_is_refused(tmp_path):
    suite = fusionbench_suite(tmp_path, projection=False)
    with pytest.raises(CheckpointError, match="zero-shot model of ViT-B-32 has no projection"):
        convert_suite(suite, {"ViT-B-32": ["Cars"]})


@pytest.mark.usefixtures("small_vit")
@pytest.mark.parametrize("folder", ["tanganke/{}", "{}", "tanganke--{}"])
def test_fusionbench_is_found_with_and_without_its_owner(tmp_path, folder):
    suite = fusionbench(weights=tmp_path)
    name = "clip-vit-base-patch32_mnist"
    write_model(tmp_path / folder.format(name), random_state(**SIZES))
    assert suite.source("expert", "ViT-B-32", "MNIST") == tmp_path / folder.format(name) / "model.safetensors"


def test_experts_of_transformers_beside_a_published_zero_shot_model_keep_its_text_leftovers(suite):
    """They do not move: the zero-shot model's are right for every expert."""
    source = suite.source("expert", NAME, "SVHN")
    assert source is not None
    source.unlink()
    write_model(source.parent / "x", random_state(**SIZES, projection=False))
    os.replace(source.parent / "x" / "model.safetensors", source.with_suffix(".safetensors"))  # noqa: PTH105
    done = convert_suite(suite, TASKS)
    (entry,) = (entry for entry in done if (entry.kind, entry.task) == ("expert", "SVHN"))
    assert (entry.status, entry.num_completed) == ("converted", 7)
    expert, zero_shot = Checkpoint(suite.expert_path(NAME, "SVHN")), Checkpoint(suite.zero_shot_path(NAME))
    assert expert.names == zero_shot.names
    assert torch.equal(expert.tensor("model.token_embedding.weight"), zero_shot.tensor("model.token_embedding.weight"))
