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
        SuiteError: open_clip has no such model, or a configuration lacks a part.
    """
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


def image_size(backbone: Backbone) -> int:
    """Height and width of the images that a backbone takes."""
    size = model_config(backbone)["vision_cfg"].get("image_size", 224)
    return size[0] if isinstance(size, Sequence) else size


def has_quick_gelu(backbone: Backbone) -> bool:
    """Whether the blocks have QuickGELU: as declared, or as the model's configuration says."""
    return backbone.quick_gelu or bool(backbone.model and model_config(backbone).get("quick_gelu"))
