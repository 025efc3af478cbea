"""Formats of other programs, told by their names, and turned into the published one."""

from pathlib import Path

import pytest
import torch
from huggingface_by_hand import embeddings, random_state
from torch import Tensor

from raymerge.backbones import build_clip, build_image_encoder
from raymerge.checkpoints import PREFIX, Checkpoint
from raymerge.errors import CheckpointError
from raymerge.suite_files.weight_formats import recipe_of
from raymerge.suites import Backbone

SIZES = {"width": 24, "layers": 3, "patch": 8, "image": 24, "dim": 12}
HEADS = 3
CONFIG = {
    "embed_dim": SIZES["dim"],
    "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 24, "layers": 3, "head_width": 8},
    "text_cfg": {"context_length": 7, "vocab_size": 20, "width": 8, "heads": 2, "layers": 1},
}
BACKBONE = Backbone("small", "", model=CONFIG, quick_gelu=True)


def source(state: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint.of_tensors("x.safetensors", state)


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    checkpoint = source(state)
    return {name: part.tensor(checkpoint.tensor) for name, part in recipe_of(checkpoint).parts.items()}


def refused(state: dict[str, Tensor]) -> str:
    with pytest.raises(CheckpointError) as caught:
        recipe_of(source(state))
    return str(caught.value)


@torch.no_grad()
def our_embeddings(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    encoder = build_image_encoder(BACKBONE, {}).double()
    encoder.load_state_dict({name.removeprefix(PREFIX): value for name, value in state.items()})
    return encoder(pixels.double())


# --- transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
@pytest.mark.parametrize("extra", [False, True])
def test_embeddings_are_those_of_transformers(prefix, extra):
    state = random_state(**SIZES, prefix=prefix, extra=extra)
    pixels = torch.randn(5, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    found = our_embeddings(converted(state), pixels)
    expected = embeddings(state, pixels, heads=HEADS, prefix=prefix)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_query_key_and_value_are_not_interchangeable():
    """So the test above would fail in any other order."""
    state = random_state(**SIZES)
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    swapped = {name.replace("k_proj", "?").replace("q_proj", "k_proj").replace("?", "q_proj"): value
               for name, value in state.items()}  # fmt: skip
    assert (our_embeddings(converted(swapped), pixels) - embeddings(state, pixels, heads=HEADS)).abs().max() > 0.01


def test_shapes_are_known_before_a_tensor_is_read():
    checkpoint = source(random_state(**SIZES, extra=True))
    for part in recipe_of(checkpoint).parts.values():
        assert part.shape(checkpoint.shapes) == tuple(part.tensor(checkpoint.tensor).shape)


def test_what_a_clip_model_has_beside_its_image_tower_is_dropped():
    recipe = recipe_of(source(random_state(**SIZES, extra=True)))
    assert recipe.format == "huggingface"
    assert set(recipe.dropped) == {
        *("logit_scale", "text_projection.weight", "text_model.final_layer_norm.weight"),
        *("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"),
    }
    assert all(name.startswith("model.visual.") for name in recipe.parts)


def test_a_vision_model_has_no_projection():
    assert "model.visual.proj" not in recipe_of(source(random_state(**SIZES, projection=False))).parts


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"-": "vision_model.encoder.layers.1.self_attn.k_proj.bias"},
            "layers.1.self_attn.k_proj.bias' (1 tensors miss",
        ),
        ({"-": "vision_model.post_layernorm.weight"}, "lacks 'vision_model.post_layernorm.weight'"),
        ({"+": "vision_model.encoder.layers.1.adapter.weight"}, "has 'vision_model.encoder.layers.1.adapter.weight'"),
        ({"+": "classifier.weight"}, "has 'classifier.weight', which no CLIP image tower has"),
        ({"+": "vision_model.encoder.layers.7.layer_norm1.weight"}, "lacks 'vision_model.encoder.layers.3."),
    ],
)
def test_a_transformers_model_that_is_not_whole(change, expected):
    state = random_state(**SIZES)
    state.pop(change.get("-", ""), None)
    state |= {change["+"]: torch.ones(1)} if "+" in change else {}
    assert expected in refused(state)


# --- open_clip and published files ----------------------------------------------------------------------------------


def test_a_whole_open_clip_model_loses_the_blocks_of_its_text_tower():
    state = build_clip(BACKBONE).state_dict()
    recipe = recipe_of(source(state))
    assert recipe.format == "open-clip"
    kept = {PREFIX + name for name in state if not name.startswith("transformer.")}
    assert set(recipe.parts) == kept
    assert {"model.text_projection", "model.logit_scale", "model.token_embedding.weight"} <= kept
    assert set(recipe.dropped) == {name for name in state if name.startswith("transformer.")}
    for name, value in converted(state).items():
        assert value is state[name.removeprefix(PREFIX)]


def test_a_published_file_is_what_it_is():
    state = {PREFIX + name: value for name, value in build_clip(BACKBONE).state_dict().items()}
    recipe = recipe_of(source(state))  # with its text tower, as an encoder has that was saved with keep_lang
    assert recipe.format == "published"
    assert all(part.names == (name,) for name, part in recipe.parts.items())
    assert all(name.startswith("model.transformer.") for name in recipe.dropped)


def test_an_image_tower_alone_is_enough():
    recipe = recipe_of(source({"visual.proj": torch.ones(2, 3), "attn_mask": torch.ones(1)}))
    assert (list(recipe.parts), recipe.dropped) == (["model.visual.proj"], ("attn_mask",))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (
            {"encoder.0.weight": torch.ones(1), "a": torch.ones(1)},
            "holds 'a', 'encoder.0.weight', expected the names of",
        ),
        ({}, "holds nothing, expected the names of"),
        ({"visual.proj": torch.ones(1), "head.weight": torch.ones(1)}, "has 'model.head.weight', which is no part of"),
        (
            {"model.visual.proj": torch.ones(1), "epoch": torch.ones(1)},
            "has 'epoch', which is no part of CLIP (1 such)",
        ),
    ],
)
def test_other_models_are_refused(state, expected):
    assert expected in refused(state)
    assert str(Path("x.safetensors")) in refused(state)
