"""Heads from prompts, against arithmetic of their own, and the files in which they are kept."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from own_suite import EMBED_DIM, MODEL, NAME, VISION, own_suite
from published_code import write_collection
from torch import Tensor, nn

from raymerge.backbones import build_clip
from raymerge.checkpoints import load_head, save_state_dict
from raymerge.data import dataset
from raymerge.errors import CheckpointError, SuiteError
from raymerge.heads import build_heads, missing_heads
from raymerge.suite_files.convert import convert_suite
from raymerge.suites import Backbone
from raymerge.suites.published import PublishedSuite

ANIMALS = {"name": "Animals", "dataset": "MNIST", "classes": [f"animal {i}" for i in range(10)]}
TEMPLATES = ["a photo of a {}.", "a {curly} drawing of the {}.", "{}"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        clip = build_clip(Backbone(NAME, "", model=MODEL))
        with torch.no_grad():
            for parameter in clip.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return clip


def suite_of(tmp_path: Path, model: nn.Module, *tasks: Any, **backbone: Any) -> PublishedSuite:
    save_state_dict(tmp_path / "towers" / "clip.pt", model.state_dict())
    return own_suite(tmp_path, tasks, backbone={"pretrained": "towers/clip.pt", **backbone})


@torch.no_grad()
def text_embedding(model: nn.Module, text: str) -> Tensor:
    """One text through the text tower, step by step, in float64: (dim,)."""
    s = {name: value.double() for name, value in model.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = (centred**2).mean(dim=-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]

    tokens = SimpleTokenizer(context_length=77)([text])[0]
    x = s["token_embedding.weight"][tokens] + s["positional_embedding"]
    block, num_heads, width = "transformer.resblocks.0", 2, 16
    q, k, v = (norm(x, f"{block}.ln_1") @ s[f"{block}.attn.in_proj_weight"].T + s[f"{block}.attn.in_proj_bias"]).chunk(
        3, dim=-1
    )
    heads = []
    for start in range(0, width, width // num_heads):
        part = slice(start, start + width // num_heads)
        scores = q[:, part] @ k[:, part].T / (width // num_heads) ** 0.5
        scores = scores.masked_fill(torch.ones(77, 77).triu(1).bool(), -torch.inf)  # no token sees a later one
        heads.append(scores.softmax(dim=-1) @ v[:, part])
    x = x + torch.cat(heads, dim=-1) @ s[f"{block}.attn.out_proj.weight"].T + s[f"{block}.attn.out_proj.bias"]
    inner = norm(x, f"{block}.ln_2") @ s[f"{block}.mlp.c_fc.weight"].T + s[f"{block}.mlp.c_fc.bias"]
    inner = inner * torch.sigmoid(1.702 * inner)
    x = x + inner @ s[f"{block}.mlp.c_proj.weight"].T + s[f"{block}.mlp.c_proj.bias"]
    return norm(x, "ln_final")[int(tokens.argmax())] @ s["text_projection"]  # the end of the text is the largest token


def expected_head(model: nn.Module, classes: list[str], prompts: dict[str, list[str]]) -> Tensor:
    rows = []
    for name in classes:
        units = [embedding / embedding.norm() for embedding in (text_embedding(model, p) for p in prompts[name])]
        mean = torch.stack(units).mean(dim=0)
        rows.append(mean / mean.norm())
    return model.state_dict()["logit_scale"].double().exp() * torch.stack(rows)


def test_a_head_is_the_scaled_mean_of_unit_prompt_embeddings(tmp_path, model):
    suite = suite_of(tmp_path, model, {**ANIMALS, "templates": TEMPLATES})
    (path,) = build_heads(suite, NAME, ["Animals"])
    assert path == suite.head_path(NAME, "Animals")
    weight, bias = load_head(path, num_classes=10, embed_dim=EMBED_DIM)
    prompts = {
        name: [f"a photo of a {name}.", f"a {{curly}} drawing of the {name}.", name] for name in ANIMALS["classes"]
    }
    expected = expected_head(model, ANIMALS["classes"], prompts)
    torch.testing.assert_close(weight.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(weight.norm(dim=1), model.logit_scale.exp().expand(10))  # type: ignore[operator]
    assert (expected[0] - expected[1]).abs().max() > 0.01, "classes differ by more than the tolerance"
    assert not bias.any()


def test_a_known_dataset_has_its_classes_and_prompts(tmp_path, model):
    suite = suite_of(tmp_path, model, "MNIST")
    assert suite.task("MNIST").classes == dataset("MNIST").classes == tuple("0123456789")
    (path,) = build_heads(suite, NAME, ["MNIST"])
    weight, _ = load_head(path, num_classes=10, embed_dim=EMBED_DIM)
    expected = expected_head(model, ["7"], {"7": ['a photo of the number: "7".']})
    torch.testing.assert_close(weight[7].double(), expected[0], atol=1e-4, rtol=1e-5)


def test_a_head_is_kept_until_something_that_it_depends_on_changes(tmp_path, model):
    first = suite_of(tmp_path, model, {**ANIMALS, "templates": TEMPLATES})
    (path,) = build_heads(first, NAME, ["Animals"])
    time = path.stat().st_mtime_ns
    assert build_heads(first, NAME, ["Animals"]) == []
    assert missing_heads(first, NAME, ["Animals"]) == []
    assert path.stat().st_mtime_ns == time
    paths = {path}
    for change in ({"templates": TEMPLATES[:2]}, {"classes": [*ANIMALS["classes"][:9], "cat"], "templates": TEMPLATES}):
        other = suite_of(tmp_path, model, {**ANIMALS, **change})
        assert missing_heads(other, NAME, ["Animals"]) == ["Animals"]
        paths |= set(build_heads(other, NAME, ["Animals"]))
    assert len(paths) == 3
    assert all(path.is_file() for path in paths)
    changed = {name: value + 0.01 * (name == "ln_final.bias") for name, value in model.state_dict().items()}
    save_state_dict(tmp_path / "towers" / "clip.pt", changed)  # other weights of the same name
    assert missing_heads(first, NAME, ["Animals"]) == ["Animals"]


def test_a_published_head_comes_first(tmp_path, model):
    suite = suite_of(tmp_path, model, "MNIST", "SVHN")
    folder = suite.root / NAME
    write_collection(suite.root, NAME, VISION, EMBED_DIM, {"MNIST": 10})
    shutil.rmtree(folder / "MNISTVal")
    assert suite.head_path(NAME, "MNIST") == folder / "head_MNISTVal.pt"
    assert missing_heads(suite, NAME, ["MNIST", "SVHN"]) == ["SVHN"]
    told: list[str] = []
    (built,) = build_heads(suite, NAME, ["MNIST", "SVHN"], lambda what, share: told.append(what))
    assert built == suite.head_path(NAME, "SVHN") == suite.built_head_path(NAME, "SVHN")
    assert told == ["loading the text tower of small", "small/SVHN"]
    (folder / "head_MNISTVal.pt").unlink()
    assert missing_heads(suite, NAME, ["MNIST"]) == ["MNIST"]


def test_weights_of_another_model_would_give_heads_that_err(tmp_path, model):
    suite = suite_of(tmp_path, model, "MNIST")
    write_collection(suite.root, NAME, VISION, EMBED_DIM, {})  # a zero-shot model that knows nothing of the text tower
    with pytest.raises(CheckpointError, match=r"its 'model\.text_projection' is not that of the pretrained weights"):
        build_heads(suite, NAME, ["MNIST"])
    state = {f"model.{name}": value.half() for name, value in model.state_dict().items() if name[:12] != "transformer."}
    save_state_dict(suite.zero_shot_path(NAME), state)  # the right one, rounded
    assert len(build_heads(suite, NAME, ["MNIST"])) == 1


def test_the_zero_shot_model_that_is_made_of_the_pretrained_weights_fits_them(tmp_path, model):
    suite = suite_of(tmp_path, model, "MNIST")
    convert_suite(suite, {NAME: []})
    assert len(build_heads(suite, NAME, ["MNIST"])) == 1


@pytest.mark.parametrize(
    ("task", "backbone", "error", "expected"),
    [
        ("MNIST", {"pretrained": None}, CheckpointError, "backbone 'small' has no pretrained text tower"),
        (
            "MNIST",
            {"pretrained": "no/file.pt"},
            CheckpointError,
            "is neither a file nor weights that open_clip has for a",
        ),
        (
            {"name": "Mine", "folder": "mine"},
            {},
            SuiteError,
            "task 'Mine' lacks 'classes:', or its images, in the suite",
        ),
    ],
)
def test_what_cannot_be_built(tmp_path, model, task, backbone, error, expected):
    suite = suite_of(tmp_path, model, task, **backbone)
    name = suite.tasks[0].name
    with pytest.raises(error) as caught:
        build_heads(suite, NAME, [name])
    assert expected in str(caught.value)
    assert not suite.head_path(NAME, name).exists()


def test_without_prompts_there_is_no_head(tmp_path, model):
    suite = suite_of(tmp_path, model, "MNIST")
    suite = replace(suite, tasks=tuple(replace(task, templates=()) for task in suite.tasks))
    with pytest.raises(SuiteError, match="task 'MNIST' lacks 'templates:' in the suite's file"):
        build_heads(suite, NAME, ["MNIST"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: {n: v for n, v in s.items() if n != "ln_final.bias"}, "lacks 'ln_final.bias', which small needs"),
        (lambda s: {**s, "ln_final.bias": torch.ones(3)}, "does not fit small: size mismatch for ln_final.bias"),
    ],
)
def test_text_towers_that_do_not_fit(tmp_path, model, change, expected):
    suite = suite_of(tmp_path, model, "MNIST")
    save_state_dict(tmp_path / "towers" / "clip.pt", change(model.state_dict()))
    with pytest.raises(CheckpointError) as caught:
        build_heads(suite, NAME, ["MNIST"])
    assert expected in str(caught.value)
