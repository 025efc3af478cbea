"""Encoders that open_clip builds, their activation above all, and text towers with pretrained weights."""

import functools
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from own_suite import MODEL
from torch import nn

from raymerge.backbones import (
    build_clip,
    build_image_encoder,
    check_activation,
    encoder_shapes,
    pretrained_clip,
    tokenizer,
)
from raymerge.checkpoints import save_state_dict
from raymerge.errors import CheckpointError, SuiteError
from raymerge.model_config import embed_dim, has_quick_gelu, image_size, model_config
from raymerge.suites import Backbone
from raymerge.suites.published import openai_backbone
from raymerge.suites.tall_masks import BACKBONES


def small(**changes: Any) -> Backbone:
    return Backbone("small", "", **{"model": MODEL, "quick_gelu": True, **changes})


def activations(model: nn.Module) -> set[str]:
    return {type(module.gelu).__name__ for module in model.modules() if hasattr(module, "gelu")}


# --- QuickGELU ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_openai_models_have_quick_gelu_in_the_installed_open_clip(name):
    """Since 2.29, open_clip gives a plain name GELU, and only warns."""
    with torch.device("meta"):
        encoder = build_image_encoder(openai_backbone(name), {})
        plain = CLIP(**open_clip.get_model_config(name))
    assert activations(encoder) == {"QuickGELU"}
    assert activations(plain.visual) == {"GELU"}, "so that it has to be asked for"


@pytest.mark.parametrize(
    ("model", "quick_gelu", "expected"),
    [
        ("ViT-B-32-quickgelu", False, "QuickGELU"),
        ("ViT-B-32", True, "QuickGELU"),
        ("ViT-B-32", False, "GELU"),
        (MODEL, True, "QuickGELU"),
        (MODEL, False, "GELU"),
        ({**MODEL, "quick_gelu": True}, False, "QuickGELU"),
    ],
)
def test_the_activation_is_what_is_declared_or_what_the_model_has(model, quick_gelu, expected):
    backbone = small(model=model, quick_gelu=quick_gelu)
    assert has_quick_gelu(backbone) == (expected == "QuickGELU")
    with torch.device("meta"):
        assert activations(build_image_encoder(backbone, {})) == {expected}
        assert activations(build_clip(backbone)) == {expected}, "in both towers"


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_wrong_activation_is_found(monkeypatch, quick_gelu):
    """As if open_clip took no notice of what it was asked for."""
    from open_clip import model as open_clip_model

    real = open_clip_model._build_vision_tower
    monkeypatch.setattr(
        open_clip_model,
        "_build_vision_tower",
        lambda dim, config, asked, *rest: real(dim, config, not quick_gelu, *rest),
    )
    found, expected = ("GELU", "QuickGELU") if quick_gelu else ("QuickGELU", "GELU")
    for build in (lambda b: build_image_encoder(b, {}), build_clip, encoder_shapes):
        with pytest.raises(
            SuiteError, match=rf"'small': open_clip built it with {found}, expected {expected}; install"
        ):
            build(small(quick_gelu=quick_gelu))


def test_a_wrong_activation_in_the_text_tower_is_found(monkeypatch):
    from open_clip import model as open_clip_model

    real = open_clip_model._build_text_tower
    monkeypatch.setattr(
        open_clip_model, "_build_text_tower", lambda dim, config, asked, *rest: real(dim, config, False)
    )
    with pytest.raises(SuiteError, match="open_clip built it with GELU, expected QuickGELU"):
        build_clip(small())


def test_one_block_of_another_kind_is_enough():
    encoder = build_image_encoder(small(), {})
    encoder.visual.transformer.resblocks[1].mlp.gelu = nn.GELU()  # type: ignore[union-attr, index]
    with pytest.raises(SuiteError, match="open_clip built it with GELU, QuickGELU, expected QuickGELU"):
        check_activation(encoder, small(), True)
    with pytest.raises(SuiteError, match="open_clip built it with no such blocks, expected QuickGELU"):
        check_activation(nn.Linear(2, 2), small(), True)
    check_activation(nn.Linear(2, 2), small(), False)


# --- what is built --------------------------------------------------------------------------------------------------


def test_an_encoder_gives_the_features_of_open_clip():
    backbone = small()
    encoder = build_image_encoder(backbone, {})
    model = CLIP(16, CLIPVisionCfg(**MODEL["vision_cfg"]), CLIPTextCfg(**MODEL["text_cfg"]), quick_gelu=True).eval()
    model.visual.load_state_dict({name.removeprefix("visual."): v for name, v in encoder.state_dict().items()})
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(encoder(images), model.encode_image(images))
    assert not encoder.training


@pytest.mark.parametrize(
    ("name", "num_tensors", "num_parameters"),
    [("ViT-B-32", 152, 87_849_216), ("ViT-B-16", 152, 86_192_640), ("ViT-L-14", 296, 303_966_208)],
)
def test_shapes_are_the_published_ones(name, num_tensors, num_parameters):
    shapes = encoder_shapes(openai_backbone(name))
    assert len(shapes) == num_tensors
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == num_parameters
    assert all(key.startswith("model.visual.") for key in shapes)
    assert shapes["model.visual.proj"] == {"ViT-L-14": (1024, 768)}.get(name, (768, 512))


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build_image_encoder(small(), {})
    build_clip(small())
    encoder_shapes(small())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_configuration_says():
    assert (image_size(openai_backbone("ViT-L-14-336")), embed_dim(openai_backbone("ViT-L-14"))) == (336, 768)
    assert image_size(small(model={**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "image_size": [48, 48]}})) == 48
    assert model_config(small()) == MODEL


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"widht": 3}, "backbone 'small': open_clip cannot build its model (TypeError: "),
        ({"head_width": 64}, "backbone 'small': open_clip cannot build its model ("),
        ({"width": "wide"}, "backbone 'small': open_clip cannot build its model ("),
        ({"patch_size": 0}, "backbone 'small': open_clip cannot build its model ("),
    ],
)
def test_a_configuration_that_is_wrong_is_one_sentence(change, expected):
    backbone = small(model={**MODEL, "vision_cfg": {**MODEL["vision_cfg"], **change}})
    for build in (functools.partial(build_image_encoder, shapes={}), build_clip, encoder_shapes):
        with pytest.raises(SuiteError) as caught:
            build(backbone)
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)


# --- text towers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model."])
def test_pretrained_weights_of_a_file(tmp_path, prefix):
    state = build_clip(small()).state_dict()
    save_state_dict(tmp_path / "clip.pt", {prefix + name: value + 1 for name, value in state.items()})
    model = pretrained_clip(small(pretrained=str(tmp_path / "clip.pt")))
    assert all(torch.equal(value, state[name] + 1) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(
    ("backbone", "error", "expected"),
    [
        (small(), CheckpointError, "backbone 'small' has no pretrained text tower"),
        (
            small(pretrained="openai"),
            CheckpointError,
            "'openai' is neither a file nor weights that open_clip has for a model",
        ),
        (
            small(model="ViT-B-32", pretrained="opneai"),
            CheckpointError,
            "'opneai' is neither a file nor weights that open_clip has for ViT-B-32. Did you mean 'openai'?",
        ),
        (
            small(model="ViT-B-32", pretrained="openai", quick_gelu=False),
            SuiteError,
            "the weights 'openai' of ViT-B-32 were trained with QuickGELU, but it has GELU; say 'quick_gelu: true'",
        ),
        (
            small(model="ViT-B-32", pretrained="laion2b_s34b_b79k"),
            SuiteError,
            "the weights 'laion2b_s34b_b79k' of ViT-B-32 were trained with GELU, but it has QuickGELU; say",
        ),
    ],
)
def test_pretrained_weights_that_cannot_be(backbone, error, expected):
    with pytest.raises(error) as caught:
        pretrained_clip(backbone)
    assert expected in str(caught.value)


def test_without_a_network_pretrained_weights_are_one_sentence(monkeypatch, caplog):
    """open_clip by itself would try for a minute, and log errors."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("raymerge.suite_files.hub_files.cached_file", lambda repo, names: None)
    with pytest.raises(CheckpointError) as caught:
        pretrained_clip(openai_backbone("ViT-B-32"))
    assert str(caught.value) == (
        "backbone 'ViT-B-32': the weights 'openai' of ViT-B-32 cannot be loaded (HF_HUB_OFFLINE is set, and the "
        "cache has nothing of timm/vit_base_patch32_clip_224.openai); is there a network, or are they in the cache of "
        "HF_HOME?"
    )
    assert not caplog.records


def test_pretrained_weights_in_the_cache_are_loaded_with_quick_gelu(tmp_path, monkeypatch):
    """open_clip is given the file, and asked for the right activation."""
    asked: list[tuple[Any, ...]] = []
    whole = build_clip(openai_backbone("ViT-B-32"))

    def create_model(name: str, *, pretrained: str, force_quick_gelu: bool) -> nn.Module:
        asked.append((name, pretrained, force_quick_gelu))
        return whole

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(
        "raymerge.suite_files.hub_files.cached_file", lambda repo, names: Path("/cache") / repo / names[0]
    )
    model = pretrained_clip(openai_backbone("ViT-B-32"))
    assert asked == [("ViT-B-32", "/cache/timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors", True)]
    assert torch.equal(model.state_dict()["text_projection"], whole.state_dict()["text_projection"])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            "ViT-L-14-CLIPA",
            "its text tower takes the tokens of bert-base-uncased, not of CLIP; give the heads as files.",
        ),
        ("roberta-ViT-B-32", "its text tower takes the tokens of roberta-base"),
    ],
)
def test_other_tokenizers_are_refused(model, expected):
    with pytest.raises(SuiteError) as caught:
        tokenizer(small(model=model))
    assert expected in str(caught.value)


def test_text_towers_of_other_makers_are_refused():
    for model in ("roberta-ViT-B-32", {name: MODEL[name] for name in ("embed_dim", "vision_cfg")}):
        with pytest.raises(SuiteError, match="its text tower is not one of CLIP's; give the heads as files"):
            build_clip(small(model=model))


def test_tokens_fit_the_text_tower():
    tokens = tokenizer(small())(["a photo of a cat", "b"])
    assert tokens.shape == (2, 77)
    assert tokenizer(small(model={**MODEL, "text_cfg": {"context_length": 9}}))(["a"]).shape == (1, 9)
