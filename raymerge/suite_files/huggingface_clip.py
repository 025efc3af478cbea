"""The names of CLIP's image tower in transformers, and what they are in open_clip.

transformers keeps query, key and value apart, and applies the projection as a Linear, whose weight is the transpose of
open_clip's matrix. `pre_layrnorm` is spelled like that. Files of a CLIPVisionModel have no projection.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from raymerge.errors import CheckpointError

VISION_PREFIX = "vision_model."
"""Of the image tower; newer versions of transformers leave it out where there is nothing else."""
PROJECTION = "visual_projection.weight"

_OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_OF_A_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PARAMETERS = ("weight", "bias")
_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
"""In the order of the rows of open_clip's joint matrix."""
_IGNORED = ("text_model.", "text_projection.", "logit_scale", "embeddings.position_ids")
"""Beginnings of names that are no part of the image tower, or no parameters."""

SourcePart = tuple[tuple[str, ...], Literal["as it is", "stacked", "transposed"]]
"""Names in the source, and how one tensor is made of them."""


def is_huggingface_name(name: str) -> bool:
    """Whether only an image tower of transformers has a tensor of this name."""
    return name.removeprefix(VISION_PREFIX) == _OUTSIDE["conv1.weight"]


def published_parts(path: Path, names: Collection[str]) -> dict[str, SourcePart]:
    """Every tensor of open_clip's image tower, by its name there, as made of tensors of transformers.

    Args:
        path: of the checkpoint, for messages.
        names: of its tensors.
    Raises:
        CheckpointError: some tensor is missing, or one is unknown.
    """
    prefix = VISION_PREFIX if any(name.startswith(VISION_PREFIX) for name in names) else ""
    blocks = {found[1] for name in names if (found := re.match(rf"{prefix}encoder\.layers\.(\d+)\.", name))}
    parts: dict[str, SourcePart] = {name: ((prefix + theirs,), "as it is") for name, theirs in _OUTSIDE.items()}
    for block in range(len(blocks)):
        ours, theirs = f"transformer.resblocks.{block}.", f"{prefix}encoder.layers.{block}."
        for parameter in _PARAMETERS:
            joint = tuple(f"{theirs}self_attn.{name}.{parameter}" for name in _QUERY_KEY_VALUE)
            parts[f"{ours}attn.in_proj_{parameter}"] = (joint, "stacked")
            for name, other in _OF_A_BLOCK.items():
                parts[f"{ours}{name}.{parameter}"] = ((f"{theirs}{other}.{parameter}",), "as it is")
    if PROJECTION in names:
        parts["proj"] = ((PROJECTION,), "transposed")
    needed = [name for sources, _ in parts.values() for name in sources]
    missing = sorted(set(needed) - set(names))
    unknown = sorted(
        name for name in set(names) - set(needed) if not name.removeprefix(VISION_PREFIX).startswith(_IGNORED)
    )
    if missing or unknown:
        what = f"lacks '{missing[0]}'" if missing else f"has '{unknown[0]}', which no CLIP image tower has"
        raise CheckpointError(
            f"{path}: {what} ({len(missing)} tensors missing, {len(unknown)} unknown). Is it transformers' CLIP?"
        )
    return parts
