"""The image tower of transformers' CLIP, by the names of its files, in float64; nothing of `raymerge` is imported."""

from collections.abc import Mapping

import torch
from torch import Tensor


def random_state(
    *,
    width: int,
    layers: int,
    patch: int,
    image: int,
    dim: int,
    seed: int = 0,
    prefix: str = "vision_model.",
    projection: bool = True,
    extra: bool = False,
) -> dict[str, Tensor]:
    """What a model saves: every parameter random, biases and norms too.

    Args:
        projection: as CLIPVisionModelWithProjection and CLIPModel have it; a CLIPVisionModel has none.
        extra: what a CLIPModel has beside, and an integer buffer of older versions.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.3) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    tokens = (image // patch) ** 2 + 1
    state = {
        f"{prefix}embeddings.class_embedding": draw(width),
        f"{prefix}embeddings.patch_embedding.weight": draw(width, 3, patch, patch, scale=0.05),
        f"{prefix}embeddings.position_embedding.weight": draw(tokens, width),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        state |= {f"{prefix}{norm}.weight": 1 + draw(width), f"{prefix}{norm}.bias": draw(width)}
    for layer in range(layers):
        block = f"{prefix}encoder.layers.{layer}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):  # their order in the files
            state |= {
                f"{block}self_attn.{name}.weight": draw(width, width),
                f"{block}self_attn.{name}.bias": draw(width),
            }
        for norm in ("layer_norm1", "layer_norm2"):
            state |= {f"{block}{norm}.weight": 1 + draw(width), f"{block}{norm}.bias": draw(width)}
        state |= {f"{block}mlp.fc1.weight": draw(4 * width, width), f"{block}mlp.fc1.bias": draw(4 * width)}
        state |= {f"{block}mlp.fc2.weight": draw(width, 4 * width), f"{block}mlp.fc2.bias": draw(width)}
    if projection:
        state["visual_projection.weight"] = draw(dim, width)
    if extra:
        state |= {
            "logit_scale": torch.tensor(4.6),
            "text_projection.weight": draw(dim, 8),
            "text_model.final_layer_norm.weight": draw(8),
            "text_model.embeddings.position_ids": torch.arange(7)[None],
            f"{prefix}embeddings.position_ids": torch.arange(tokens)[None],
        }
    return state


def embeddings(state: Mapping[str, Tensor], pixels: Tensor, *, heads: int, prefix: str = "vision_model.") -> Tensor:
    """Projected embeddings of normalised images, (images, dim), step by step as transformers' classes do."""
    s = {name.removeprefix(prefix): value.double() for name, value in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    kernel = s["embeddings.patch_embedding.weight"]
    size = kernel.shape[-1]
    corners = [(y, x) for y in range(0, pixels.shape[2], size) for x in range(0, pixels.shape[3], size)]
    patches = [
        torch.einsum("nchw,dchw->nd", pixels[:, :, y : y + size, x : x + size].double(), kernel) for y, x in corners
    ]
    first = s["embeddings.class_embedding"].expand(len(pixels), -1)
    hidden = torch.stack([first, *patches], dim=1) + s["embeddings.position_embedding.weight"]
    hidden = norm(hidden, "pre_layrnorm")
    width = hidden.shape[-1]
    layer = 0
    while f"encoder.layers.{layer}.layer_norm1.weight" in s:
        block = f"encoder.layers.{layer}."
        normed = norm(hidden, f"{block}layer_norm1")
        query, key, value = (
            linear(normed, f"{block}self_attn.{name}").unflatten(-1, (heads, width // heads)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        weights = torch.softmax(query @ key.transpose(2, 3) * (width // heads) ** -0.5, dim=-1)
        hidden = hidden + linear((weights @ value).transpose(1, 2).flatten(2), f"{block}self_attn.out_proj")
        inner = linear(norm(hidden, f"{block}layer_norm2"), f"{block}mlp.fc1")
        hidden = hidden + linear(inner * torch.sigmoid(1.702 * inner), f"{block}mlp.fc2")
        layer += 1
    return norm(hidden[:, 0], "post_layernorm") @ s["visual_projection.weight"].T
