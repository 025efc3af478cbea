"""Input moments: against the same encoder by hand, and over every way its modules compute."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from encoder_by_hand import moments_by_hand, run_by_hand
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from raymerge.errors import EvaluationError, SuiteError
from raymerge.input_moments import InputMoments, attended
from raymerge.suites.demo.clip import HEAD_WIDTH, ImageEncoder, build_clip
from raymerge.suites.demo.recipe import IMAGE_SIZE, DemoRecipe

RECIPE = DemoRecipe(width=2 * HEAD_WIDTH, layers=2, patch_size=16, embed_dim=8, text_width=16, text_layers=1)
NUM_HEADS = 2
TOKENS = (IMAGE_SIZE // 16) ** 2 + 1
IMAGES = torch.randn(7, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ROUNDING = 1e-7
"""What storing a moment in single precision may change, relatively."""
TOWER: dict[str, Any] = {"image_size": 8, "patch_size": 4, "width": 6, "layers": 1, "heads": 2, "mlp_ratio": 2.0}


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter moved at random, so that no bias is zero and no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def two_layers() -> nn.Module:
    return shaken(ImageEncoder(build_clip(RECIPE).visual)).double()


@pytest.fixture
def encoder() -> nn.Module:
    return two_layers()


def state_of(encoder: nn.Module) -> dict[str, Tensor]:
    return {f"model.{name}": value.detach() for name, value in encoder.state_dict().items()}


def moments_of(encoder: nn.Module, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    seen = InputMoments(encoder)
    with seen, torch.inference_mode():
        for batch in batches:
            encoder(batch)
    return seen.moments()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = ROUNDING) -> None:
    assert list(found) == sorted(expected)
    for name, value in found.items():
        error = (value.double() / expected[name].double() - 1).abs().max()
        assert error <= rtol, f"{name}: {error}"


# --- values ----------------------------------------------------------------------------------------------------------


def test_the_encoder_by_hand_is_the_encoder(encoder):
    with torch.no_grad():
        features = encoder(IMAGES)
    by_hand, _ = run_by_hand(state_of(encoder), IMAGES, NUM_HEADS)
    torch.testing.assert_close(features, by_hand, rtol=1e-9, atol=1e-9)


def test_by_hand(encoder):
    expected = moments_by_hand(state_of(encoder), IMAGES, NUM_HEADS)
    assert_same(moments_of(encoder, [IMAGES]), expected)


def test_by_hand_in_single_precision(encoder):
    expected = moments_by_hand(state_of(encoder), IMAGES, NUM_HEADS)
    assert_same(moments_of(encoder.float(), IMAGES.float().split(3)), expected, rtol=1e-4)


def test_every_matrix_has_moments_that_broadcast(encoder):
    matrices = {name: value for name, value in state_of(encoder).items() if value.ndim == 2}
    moments = moments_of(encoder, [IMAGES])
    assert moments.keys() == matrices.keys()
    assert len(moments) == 2 + 4 * RECIPE.layers
    for name, value in moments.items():
        rows, cols = matrices[name].shape
        along_rows = name in ("model.visual.proj", "model.visual.positional_embedding")
        assert value.shape == ((rows, 1) if along_rows else (1, cols)), name
        assert value.dtype == torch.float32
        assert not value.is_inference()
        assert (value > 0).all()
    assert moments["model.visual.positional_embedding"].tolist() == TOKENS * [[torch.tensor(1 / TOKENS).item()]]


def test_kinds(encoder):
    kinds = InputMoments(encoder).kinds
    block = "model.visual.transformer.resblocks.1."
    assert kinds[block + "attn.in_proj_weight"] == kinds[block + "mlp.c_fc.weight"] == "resid"
    assert kinds[block + "attn.out_proj.weight"] == "attention"
    assert kinds[block + "mlp.c_proj.weight"] == "mlp"
    assert kinds["model.visual.proj"] == "resid"
    assert kinds["model.visual.positional_embedding"] == "position"
    assert len(kinds) == 2 + 4 * RECIPE.layers


@pytest.mark.parametrize("cuts", [[], [1], [6], [2, 3], [1, 2, 3, 4, 5, 6]])
def test_batches_and_order_change_nothing(encoder, cuts):
    order = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(len(cuts)))
    assert_same(moments_of(encoder, IMAGES[order].tensor_split(cuts)), moments_of(encoder, [IMAGES]))


def test_images_are_weighed_alike(encoder):
    """The last batch being smaller is no reason for its images to count for more."""
    batches = [IMAGES[:6], IMAGES[6:]]
    once = [moments_of(encoder, [batch]) for batch in batches]
    expected = {name: (6 * value + once[1][name]) / 7 for name, value in once[0].items()}
    assert_same(moments_of(encoder, batches), expected, rtol=3 * ROUNDING)


def test_sums_of_many_images_lose_nothing():
    """A million squares of 1 after one of 1e12: a sum in single precision would not move."""
    tower = VisionTransformer(**TOWER, output_dim=6).eval()
    linear, key = tower.transformer.resblocks[0].mlp.c_fc, "model.visual.transformer.resblocks.0.mlp.c_fc.weight"
    seen = InputMoments(ImageEncoder(tower))
    with torch.inference_mode(), seen:
        tower(torch.zeros(1, 3, 8, 8))  # every matrix meets something
        linear(torch.full((1, 6), 1e6))
        for batch in torch.ones(1_000_000, 6).split(10_000):
            linear(batch)
    total = seen.moments()[key].double() * (1_000_001 + 5)
    torch.testing.assert_close(total, torch.full((1, 6), 1e12 + 1e6, dtype=torch.float64), rtol=2 * ROUNDING, atol=0)


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_modes_of_the_encoder_do_not_matter(encoder, grad, training):
    seen = InputMoments(encoder.train(training))
    with seen:
        for batch in IMAGES.split(4):
            with grad():
                encoder(batch)
    assert not any(value.requires_grad for value in seen.moments().values())
    assert_same(seen.moments(), moments_by_hand(state_of(encoder), IMAGES, NUM_HEADS))


def test_watching_ends_with_the_context(encoder):
    with torch.inference_mode():
        before = encoder(IMAGES)
        seen = InputMoments(encoder)
        encoder(100 * IMAGES)
        with seen:
            assert torch.equal(encoder(IMAGES), before)
        first = seen.moments()
        encoder(100 * IMAGES)
    assert_same(seen.moments(), first, rtol=0)
    assert_same(moments_of(encoder, [IMAGES]), first, rtol=0)


# --- the input of out_proj -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("width", "heads", "batch_first"), [(8, 2, True), (4, 1, True), (6, 3, True), (8, 2, False)])
def test_out_proj_of_what_was_attended_is_the_output(width, heads, batch_first, grad, training):
    block = shaken(ResidualAttentionBlock(width, heads, batch_first=batch_first)).double().train(training)
    x = torch.randn(3, 5, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with grad():
        output = block.attention(block.ln_1(x))
        inputs = attended(block.attn, block.ln_1(x))
        expected = F.linear(inputs, block.attn.out_proj.weight, block.attn.out_proj.bias)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(inputs, output, atol=0.1), "its input is not its output"


def test_the_fast_path_of_attention_is_covered(encoder, monkeypatch):
    """Evaluation computes attention in one native call, where no hook of a part is called."""
    native, calls = torch._native_multi_head_attention, []

    def spy(*args: Any) -> Any:
        calls.append(args[4])
        return native(*args)

    monkeypatch.setattr(torch, "_native_multi_head_attention", spy)
    found = moments_of(encoder, [IMAGES])
    assert calls == RECIPE.layers * [NUM_HEADS]
    assert_same(found, moments_by_hand(state_of(encoder), IMAGES, NUM_HEADS))


# --- other towers ----------------------------------------------------------------------------------------------------


def test_real_vit_b_32():
    visual = open_clip.create_model("ViT-B-32", pretrained=None, force_quick_gelu=True).visual
    encoder = ImageEncoder(visual).eval()
    seen = InputMoments(encoder)
    with seen, torch.inference_mode():
        encoder(torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    moments = seen.moments()
    shapes = {f"model.{name}": tuple(p.shape) for name, p in encoder.named_parameters() if p.ndim == 2}
    assert len(shapes) == 50
    assert moments.keys() == shapes.keys()
    for name, (rows, cols) in shapes.items():
        assert moments[name].shape in ((1, cols), (rows, 1)), name
    assert Counter(seen.kinds.values()) == {"resid": 25, "attention": 12, "mlp": 12, "position": 1}
    assert moments["model.visual.positional_embedding"].shape == (50, 1)
    assert moments["model.visual.proj"].shape == (768, 1)


@pytest.mark.parametrize(
    "variant", [{}, {"final_ln_after_pool": True}, {"pool_type": "avg"}, {"ls_init_value": 0.1}, {"no_ln_pre": True}]
)
def test_the_input_of_proj_is_what_it_multiplies(variant):
    """With the identity as proj, the features are its input."""
    tower, images = shaken(VisionTransformer(**TOWER, output_dim=6, **variant)).double(), IMAGES[:, :, :8, :8]
    with torch.no_grad():
        tower.proj.copy_(torch.eye(6))
        features = tower(images)
    moments = moments_of(ImageEncoder(tower), [images])["model.visual.proj"]
    torch.testing.assert_close(moments.double(), features.square().mean(dim=0)[:, None], rtol=ROUNDING, atol=0)


def with_adapter(tower: VisionTransformer) -> None:
    tower.transformer.resblocks[0].mlp.add_module("adapter", nn.Linear(6, 6))


def with_head(tower: VisionTransformer) -> None:
    tower.head = nn.Linear(6, 2)


def with_bias_of_keys(tower: VisionTransformer) -> None:
    tower.transformer.resblocks[0].attn = nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True)


def with_other_width_of_keys(tower: VisionTransformer) -> None:
    tower.transformer.resblocks[0].attn = nn.MultiheadAttention(6, 2, batch_first=True, kdim=3)


def with_other_mlp(tower: VisionTransformer) -> None:
    tower.transformer.resblocks[0].mlp = nn.Sequential(nn.Linear(6, 6))


def with_weight_norm(tower: VisionTransformer) -> None:
    nn.utils.parametrizations.weight_norm(tower.transformer.resblocks[0].mlp.c_fc)


@pytest.mark.parametrize(
    ("variant", "change", "named"),
    [
        ({}, with_adapter, "model.visual.transformer.resblocks.0.mlp.adapter.weight"),
        ({}, with_head, "model.visual.head.weight"),
        ({}, with_bias_of_keys, "model.visual.transformer.resblocks.0.attn.in_proj_weight"),
        ({}, with_other_width_of_keys, "model.visual.transformer.resblocks.0.attn.q_proj_weight"),
        ({}, with_other_mlp, "model.visual.transformer.resblocks.0.mlp.0.weight"),
        ({}, with_weight_norm, "model.visual.transformer.resblocks.0.mlp.c_fc.parametrizations.weight.original0"),
        ({"qk_norm": True}, None, "model.visual.transformer.resblocks.0.attn.in_proj_weight"),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, None, "model.visual.proj"),
    ],
)
def test_matrices_that_cannot_be_watched_are_named(variant, change, named):
    tower = VisionTransformer(**TOWER, output_dim=6, **variant)
    if change:
        change(tower)
    with pytest.raises(SuiteError, match=f"first '{named}'.*Leave this backbone out"):
        InputMoments(ImageEncoder(tower))


def test_other_encoders_are_refused():
    with pytest.raises(SuiteError, match=r"1 matrices \(of 1\) .* first 'model\.weight'"):
        InputMoments(nn.Linear(2, 2))


@pytest.mark.parametrize("given", [{"attn_mask": torch.zeros(3, 3)}, {"k_x": torch.zeros(1, 3, 6)}])
def test_attention_that_is_more_than_of_itself_is_refused(given):
    tower = VisionTransformer(**TOWER, output_dim=6)
    with InputMoments(ImageEncoder(tower)), pytest.raises(EvaluationError, match="called an attention with a mask"):
        tower.transformer.resblocks[0].attention(torch.zeros(1, 3, 6), **given)


def test_matrices_that_meet_nothing_are_named(encoder):
    seen = InputMoments(encoder)
    with pytest.raises(EvaluationError, match=r"'model\.visual\.proj' met no input"):
        seen.moments()
    with seen:
        encoder.visual.transformer(torch.zeros(1, 2, RECIPE.width, dtype=torch.float64))
    with pytest.raises(EvaluationError, match=r"'model\.visual\.proj' met no input"):
        seen.moments()


def test_inputs_that_are_not_finite_are_named(encoder):
    with pytest.raises(EvaluationError, match=r"'model\.visual\.proj' met inputs that are NaN or infinite"):
        moments_of(encoder, [torch.full_like(IMAGES, torch.nan)])
