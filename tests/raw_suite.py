"""A suite file with raw datasets of a few images, for tests of what is done with them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raw_images import drawn

from raymerge.rehearsal.raw import write_raw
from raymerge.suite_file import load_suite_file
from raymerge.suites.published import PublishedSuite

SIDE = 32
"""Height and width of cached images."""
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 1, "layers": 1},
}
BIRDS = ("gull", "owl", "wren")


def raw_suite(
    folder: Path, tasks: Sequence[str | Mapping[str, Any]] = ("MNIST",), *, any_size: bool = True, side: int = SIDE
) -> PublishedSuite:
    """The suite of `folder/suite.yaml`, with data in `folder/data`. Nothing but the file is written."""
    folder.mkdir(parents=True, exist_ok=True)
    model = {**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "image_size": side}}
    spec = {
        "name": "mine",
        "any_size": any_size,
        "backbones": {"tiny": {"model": model, "quick_gelu": True}},
        "tasks": list(tasks),
    }
    (folder / "suite.yaml").write_text(json.dumps(spec))  # which is YAML, too
    return load_suite_file(folder / "suite.yaml")


def write_mnist(folder: Path, num_train: int = 40, num_test: int = 21) -> None:
    """Grey images of all ten digits; a tenth of the training images is for validation."""
    splits = {"train": drawn(10, num_train), "test": drawn(10, num_test, seed=1)}
    write_raw("mnist", folder / "data", splits)


def write_birds(folder: Path, per_class: int = 4, *, own_val: bool = False) -> list[Path]:
    """Colour images of several sizes in a folder per class, for a task with `folder: birds`. Returns their paths."""
    shutil.rmtree(folder / "data" / "birds", ignore_errors=True)
    paths = []
    for seed, split in enumerate(("train", "val", "test") if own_val else ("train", "test")):
        for label, bird in enumerate(BIRDS):
            target = folder / "data" / "birds" / split / bird
            target.mkdir(parents=True)
            for number, (image, _) in enumerate(drawn(1, per_class, seed=10 * seed + label, size=(50 + seed, 41))):
                paths.append(target / f"{number}.png")
                image.save(paths[-1])
    return paths


BIRDS_TASK = {"name": "Birds", "folder": "birds"}


def damage(path: Path) -> None:
    """Cut an image file short, so that it cannot be decoded."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
