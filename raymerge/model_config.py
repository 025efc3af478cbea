"""What open_clip's configuration files say of a model, read without importing open_clip or torch."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raymerge.errors import SuiteError, did_you_mean
from raymerge.suites import Backbone

Config = Mapping[str, Any]
"""A model as open_clip's configuration files describe it: embed_dim, vision_cfg, text_cfg."""


def model_config(backbone: Backbone) -> Config:
    """The configuration of a backbone's model.

    Raises:
        SuiteError: open_clip has no such model, a configuration lacks a part, or its image tower is not a plain ViT.
    """
    config = _read_config(backbone)
    if why := _unsupported(config):
        named = f"{backbone.model} " if isinstance(backbone.model, str) else "its model "
        raise SuiteError(
            f"backbone '{backbone.name}': {named}{why}; raymerge reads open_clip's own vision transformers, such as "
            "ViT-B-32."
        )
    return config


def _unsupported(config: Config) -> str | None:
    """Why an image tower cannot be merged or evaluated here, if it cannot."""
    vision = config["vision_cfg"]
    if not isinstance(vision, Mapping):
        return f"has {type(vision).__name__} as vision_cfg, expected a mapping"
    if vision.get("timm_model_name"):
        return "takes its image tower from timm"
    if isinstance(vision.get("layers"), list | tuple):
        return "is a ResNet, whose running statistics are no parameters"
    if vision.get("output_tokens"):
        return "gives tokens beside its features, as CoCa does"
    size = vision.get("image_size", 224)
    if isinstance(size, Sequence) and len(set(size)) != 1:
        return f"takes images of {' x '.join(map(str, size))} pixels, expected a square"
    return None


def _read_config(backbone: Backbone) -> Config:
    if isinstance(backbone.model, str):
        spec = find_spec("open_clip")
        folder = Path(next(iter((spec and spec.submodule_search_locations) or ()), "")) / "model_configs"
        known = {path.stem: path for path in folder.glob("*.json")}
        if backbone.model not in known:
            hint = did_you_mean(backbone.model, known).split("Known:")[0]
            raise SuiteError(
                f"backbone '{backbone.name}': open_clip has no model '{backbone.model}'. {hint}"
                "'python -c \"import open_clip; print(open_clip.list_models())\"' lists them."
            )
        return json.loads(known[backbone.model].read_text())
    config = backbone.model or {}
    missing = [key for key in ("embed_dim", "vision_cfg") if key not in config]
    if missing:
        raise SuiteError(
            f"backbone '{backbone.name}': its model lacks '{missing[0]}'; write it as open_clip's files do."
        )
    return config


def embed_dim(backbone: Backbone) -> int:
    """Size of a feature, which a head has to fit."""
    return model_config(backbone)["embed_dim"]


def image_size(backbone: Backbone) -> int:
    """Height and width of the images that a backbone takes."""
    size = model_config(backbone)["vision_cfg"].get("image_size", 224)
    return size[0] if isinstance(size, Sequence) else size


def has_quick_gelu(backbone: Backbone) -> bool:
    """Whether the blocks have QuickGELU: as declared, or as the model's configuration says."""
    return backbone.quick_gelu or bool(backbone.model and model_config(backbone).get("quick_gelu"))
