"""The demo's CLIP: activation, tokens, heads, and the names of its tensors."""

import open_clip.model
import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from raymerge.errors import CheckpointError
from raymerge.suites.demo.clip import (
    CONTEXT_LENGTH,
    assert_quick_gelu,
    build_clip,
    build_image_encoder,
    published_state,
    text_directions,
    tokenize,
    vocabulary,
    zero_shot_head,
)
from raymerge.suites.demo.concepts import CONCEPTS, TEMPLATES, caption
from raymerge.suites.demo.recipe import demo_task, make_recipe


@pytest.fixture(scope="module")
def model():
    return build_clip(make_recipe("reduced")).eval()


def test_quick_gelu_is_used_and_asserted(model):
    x = torch.linspace(-3, 3, 50)
    for block in model.visual.transformer.resblocks:
        torch.testing.assert_close(block.mlp.gelu(x), x * torch.sigmoid(1.702 * x))
    vision = open_clip.model.CLIPVisionCfg(image_size=32, layers=1, width=48, head_width=48, patch_size=8)
    text = open_clip.model.CLIPTextCfg(context_length=8, vocab_size=9, width=16, heads=2, layers=1)
    with pytest.raises(AssertionError, match="expected QuickGELU, found GELU"):
        assert_quick_gelu(open_clip.model.CLIP(16, vision, text, quick_gelu=False))


def test_the_model_follows_from_the_recipe_and_leaves_the_random_state_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = build_clip(make_recipe("reduced"))
    assert torch.equal(torch.rand(3), expected)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    other = build_clip(make_recipe("reduced", seed=1))
    assert not torch.equal(other.visual.proj, model.visual.proj)


def test_every_caption_fits_its_context():
    texts = [caption(*concept, template) for concept in CONCEPTS for template in TEMPLATES]
    assert max(len(text.split()) for text in texts) + 1 == CONTEXT_LENGTH
    tokens = tokenize(texts)
    assert len(torch.unique(tokens, dim=0)) == len(texts)
    assert (tokens.argmax(dim=1) == torch.tensor([len(text.split()) for text in texts])).all(), "the end is read"
    assert sorted(vocabulary().values()) == list(range(1, len(vocabulary()) + 1))
    words = vocabulary()
    assert tokenize(["the digit two"])[0].tolist() == [
        *(words[word] for word in ("the", "digit", "two")),
        len(words) + 1,
        *[0] * (CONTEXT_LENGTH - 4),
    ]


def test_a_head_is_the_scaled_mean_text_embedding(model):
    task = demo_task("LettersKT")
    head = zero_shot_head(model, task)
    embeddings = torch.stack(
        [
            F.normalize(
                torch.stack(
                    [
                        F.normalize(model.encode_text(tokenize([template.format(f"the letter {letter}")]))[0], dim=0)
                        for template in TEMPLATES
                    ]
                ).sum(dim=0),
                dim=0,
            )
            for letter in "klmnopqrst"
        ]
    )
    torch.testing.assert_close(head, (model.logit_scale.exp() * embeddings).detach())
    assert not head.requires_grad
    norms = text_directions(model, task.family, task.classes).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(10))


def test_published_names_and_order(model):
    names = list(published_state(model))
    assert names[:4] == [
        "model.positional_embedding",
        "model.text_projection",
        "model.logit_scale",
        "model.visual.class_embedding",
    ]
    assert names[-3:] == ["model.token_embedding.weight", "model.ln_final.weight", "model.ln_final.bias"]
    assert not any(name.startswith("model.transformer.") for name in names)
    assert "model.visual.transformer.resblocks.0.attn.in_proj_weight" in names


@pytest.mark.parametrize("variant", ["full", "reduced"])
def test_the_encoder_is_the_image_tower_of_the_file(variant):
    trained = build_clip(make_recipe(variant, seed=7)).eval()
    state = published_state(trained)
    encoder = build_image_encoder({name: value.shape for name, value in state.items()})
    assert not encoder.training
    assert_quick_gelu(encoder)
    visual = {name: value for name, value in state.items() if name.startswith("model.visual.")}
    encoder.load_state_dict({name.removeprefix("model."): value for name, value in visual.items()}, strict=True)
    images = torch.randn(3, 3, 32, 32, generator=Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), trained.encode_image(images))


def test_foreign_shapes_are_refused():
    with pytest.raises(CheckpointError, match=r"lacks 'model\.visual\.proj'"):
        build_image_encoder({"model.visual.conv1.weight": (96, 3, 8, 8)})
