"""Sweeps over model-merging methods on Ray."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`raymerge.merge`, from `raymerge.api` once it is asked for: importing the package stays light."""
    if name == "merge":
        return importlib.import_module("raymerge.api").merge
    raise AttributeError(f"module 'raymerge' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), "merge"]
