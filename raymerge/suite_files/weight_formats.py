"""Whose names the tensors of a checkpoint have, and how the published ones are made of them.

published      `model.visual.*`, and what is left of the text tower: the state dict of the published `ImageEncoder`
open-clip      `visual.*` and the text tower: the state dict of open_clip's CLIP
huggingface    `vision_model.*`, of transformers' CLIPVisionModel, CLIPVisionModelWithProjection or CLIPModel

The blocks of a text tower are dropped, as in published files. What is left of it never moves when an image encoder is
fine-tuned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raymerge.checkpoints import PREFIX, Checkpoint
from raymerge.errors import CheckpointError
from raymerge.suite_files.huggingface_clip import VISION_PREFIX, is_huggingface_name, published_parts

Format = Literal["published", "open-clip", "huggingface"]
VISUAL = PREFIX + "visual."
PROJECTION = VISUAL + "proj"
TEXT_LEFTOVERS = (
    *("positional_embedding", "text_projection", "logit_scale"),
    *("token_embedding.weight", "ln_final.weight", "ln_final.bias"),
)
"""Of the text tower, in published files."""
_DROPPED = ("transformer.", "text.", "attn_mask", "logit_bias")
"""Beginnings of names that published files do not have."""

How = Literal["as it is", "stacked", "transposed"]


@dataclass(frozen=True)
class Part:
    """One tensor of the published format, as a function of tensors of a source."""

    names: tuple[str, ...]
    """In the source; more than one are stacked."""
    how: How = "as it is"

    def shape(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        first = tuple(shapes[self.names[0]])
        if self.how == "transposed":
            return first[::-1]
        return (sum(shapes[name][0] for name in self.names), *first[1:]) if self.how == "stacked" else first

    def tensor(self, read: Callable[[str], Tensor]) -> Tensor:
        values = [read(name) for name in self.names]
        if self.how == "stacked":
            return torch.cat(values)
        return values[0].T.contiguous() if self.how == "transposed" else values[0]


@dataclass(frozen=True)
class Recipe:
    """A checkpoint in the published format, tensor by tensor."""

    format: Format
    parts: Mapping[str, Part]
    """By published name."""
    dropped: tuple[str, ...]
    """Names in the source that no part uses."""


def recipe_of(source: Checkpoint) -> Recipe:
    """How to make a published checkpoint of a source, whose format its names tell.

    Raises:
        CheckpointError: the names are of no format that is known, or some that belong together are missing.
    """
    names = set(source.names)
    if any(name.startswith(VISUAL) for name in names):
        found: Format = "published"
        parts = {name: Part((name,)) for name in names if not name.removeprefix(PREFIX).startswith(_DROPPED)}
    elif any(name.startswith("visual.") for name in names):
        found = "open-clip"
        parts = {PREFIX + name: Part((name,)) for name in names if not name.startswith(_DROPPED)}
    elif any(is_huggingface_name(name) for name in names):
        found = "huggingface"
        parts = {VISUAL + name: Part(*part) for name, part in published_parts(source.path, names).items()}
    else:
        examples = ", ".join(repr(name) for name in sorted(names)[:3]) or "nothing"
        raise CheckpointError(
            f"{source.path}: holds {examples}, expected the names of a published checkpoint ('{VISUAL}...'), of "
            f"open_clip ('visual....') or of transformers ('{VISION_PREFIX}...'). Is it a CLIP image encoder?"
        )
    unknown = [name for name in parts if not _is_published(name)]
    if unknown:
        raise CheckpointError(f"{source.path}: has '{unknown[0]}', which is no part of CLIP ({len(unknown)} such).")
    used = {name for part in parts.values() for name in part.names}
    return Recipe(found, dict(sorted(parts.items())), tuple(sorted(names - used)))


def _is_published(name: str) -> bool:
    return name.startswith(VISUAL) or name.removeprefix(PREFIX) in TEXT_LEFTOVERS
