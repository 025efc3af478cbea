"""The demo's CLIP: its two towers, its word tokenizer, and the zero-shot heads its text tower gives."""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from raymerge.errors import CheckpointError
from raymerge.suites.demo.concepts import CONCEPTS, TEMPLATES, caption
from raymerge.suites.demo.recipe import IMAGE_SIZE, DemoRecipe, DemoTask, stream_seed

HEAD_WIDTH = 48
"""Width of one attention head of the image tower. State dicts do not tell it, so it is the same in every variant."""
CONTEXT_LENGTH = 8
"""Words of the longest caption, and the end."""
TEXT_HEADS = 4
PREFIX = "model."
"""What the published files put before every key of the CLIP model."""

ImageBatch = Float[Tensor, "images 3 height width"]


def build_clip(recipe: DemoRecipe) -> CLIP:
    """A freshly initialised model. The caller's random state is left alone."""
    vision = CLIPVisionCfg(
        image_size=IMAGE_SIZE,
        layers=recipe.layers,
        width=recipe.width,
        head_width=HEAD_WIDTH,
        patch_size=recipe.patch_size,
    )
    text = CLIPTextCfg(
        context_length=CONTEXT_LENGTH,
        vocab_size=len(vocabulary()) + 2,
        width=recipe.text_width,
        heads=TEXT_HEADS,
        layers=recipe.text_layers,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(recipe, "initialisation"))
        # OpenAI's CLIP, hence every published expert, has QuickGELU
        model = CLIP(recipe.embed_dim, vision, text, quick_gelu=True)
    assert_quick_gelu(model)
    return model


class ImageEncoder(nn.Module):
    """The image tower alone, under the keys it has in the files: `visual.*`."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def forward(self, images: ImageBatch) -> Float[Tensor, "images dim"]:
        """Embeddings of normalised images, not yet of unit length."""
        return self.visual(images)


def build_image_encoder(shapes: Mapping[str, Sequence[int]]) -> ImageEncoder:
    """An image tower with the sizes found in a checkpoint, in evaluation mode; its values are still random.

    Its state dict has the file's keys less "model.", except the text leftovers, which no image passes through.

    Args:
        shapes: shape of every tensor of the checkpoint, with or without the prefix "model.".
    Raises:
        CheckpointError: these are not the shapes of a demo image tower.
    """
    sizes = {name.removeprefix(PREFIX): tuple(shape) for name, shape in shapes.items()}
    try:
        width, embed_dim = sizes["visual.proj"]
        patch_size = sizes["visual.conv1.weight"][-1]
    except (KeyError, ValueError):
        raise CheckpointError(
            "demo-vit: the checkpoint lacks 'model.visual.proj' or 'model.visual.conv1.weight', so it is not of the "
            "demo suite. Prepare the suite again."
        ) from None
    layers = sum(name.endswith("attn.in_proj_weight") and name.startswith("visual.") for name in sizes)
    recipe = DemoRecipe(width=width, embed_dim=embed_dim, patch_size=patch_size, layers=layers)
    return ImageEncoder(build_clip(recipe).visual).eval()


def assert_quick_gelu(model: nn.Module) -> None:
    """An activation has no parameters: the wrong one would load cleanly and lower every accuracy in silence."""
    activations = [module.gelu for name, module in model.named_modules() if name.endswith(".mlp")]
    assert activations, "the model has no MLP blocks"
    for activation in activations:
        assert type(activation).__name__ == "QuickGELU", f"expected QuickGELU, found {type(activation).__name__}"


def published_state(model: CLIP) -> dict[str, Tensor]:
    """The tensors of a published file, in its order: the image tower and what is left of the text tower."""
    return {
        PREFIX + name: value.detach().clone()
        for name, value in model.state_dict().items()
        if not name.startswith("transformer.")
    }


@cache
def vocabulary() -> dict[str, int]:
    """Number of every word of every caption. 0 is padding, one more than the largest number ends a text."""
    captions = {caption(family, name, template) for family, name in CONCEPTS for template in TEMPLATES}
    words = {word for text in captions for word in text.split()}
    return {word: number for number, word in enumerate(sorted(words), start=1)}


def tokenize(texts: Sequence[str]) -> Int64[Tensor, "texts context"]:
    words = vocabulary()
    end = len(words) + 1  # the text tower reads its output where the token is largest
    tokens = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        numbers = [words[word] for word in text.split()] + [end]
        row[: len(numbers)] = torch.tensor(numbers)
    return tokens


@torch.no_grad()
def text_directions(model: CLIP, family: str, classes: Sequence[str]) -> Float[Tensor, "classes dim"]:
    """Unit text embedding of every class: the mean over the templates, renormalised."""
    per_template = [
        F.normalize(model.encode_text(tokenize([caption(family, name, template) for name in classes])), dim=-1)
        for template in TEMPLATES
    ]
    return F.normalize(torch.stack(per_template).mean(dim=0), dim=-1)


@torch.no_grad()
def zero_shot_head(model: CLIP, task: DemoTask) -> Float[Tensor, "classes dim"]:
    """Weight of a task's head, exp(logit scale) times the text directions, as in the published heads (bias zero)."""
    return model.logit_scale.exp() * text_directions(model, task.family, task.classes)
