"""A suite file of one small backbone, which open_clip builds in a moment, and a published collection for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from published_code import TEXT
from ruamel.yaml import YAML

from raymerge.suite_file import load_suite_file
from raymerge.suites.published import PublishedSuite

NAME = "small"
EMBED_DIM = 16
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
MODEL = {"embed_dim": EMBED_DIM, "vision_cfg": VISION, "text_cfg": TEXT}
CLASSES = {"MNIST": 10, "SVHN": 10, "KMNIST": 10}
"""Known datasets and their classes."""


def suite_file(
    folder: Path,
    tasks: Sequence[str | Mapping[str, Any]] = tuple(CLASSES),
    *,
    quick_gelu: bool = True,
    backbone: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write `folder`/suite.yaml."""
    content = {
        "name": "own",
        "backbones": {NAME: {"model": MODEL, "quick_gelu": quick_gelu, **(backbone or {})}},
        "tasks": [task if isinstance(task, str) else dict(task) for task in tasks],
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "suite.yaml"
    with path.open("wb") as file:
        YAML().dump(content, file)
    return path


def own_suite(
    folder: Path, tasks: Sequence[str | Mapping[str, Any]] = tuple(CLASSES), **changes: Any
) -> PublishedSuite:
    return load_suite_file(suite_file(folder, tasks, **changes))
