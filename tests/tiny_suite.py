"""A suite with the published layout, prepared in a second: tiny random networks instead of trained ones."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raymerge.checkpoints import PREFIX, Checkpoint, file_sha256, save_head, save_state_dict
from raymerge.errors import SuiteError
from raymerge.images import write_images
from raymerge.moment_files import Origin, image_matrices, write_moments
from raymerge.suites import Suite, moments_path, suite_from_json, write_suite_json
from raymerge.suites.demo.clip import build_clip, build_image_encoder, published_state
from raymerge.suites.demo.recipe import BACKBONE, IMAGE_SIZE, DemoRecipe

EMBED_DIM = 16
RECIPE = DemoRecipe(width=48, layers=1, patch_size=16, embed_dim=EMBED_DIM, text_width=16, text_layers=1)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NOISY_LABELS = 0.1


def tiny_suite(
    root: Path,
    *,
    num_tasks: int = 4,
    images: int = 24,
    seed: int = 0,
    width: int = RECIPE.width,
    described: Mapping[str, Any] | None = None,
) -> Suite:
    """Write a suite called "tiny" to `root` and return it, or the one whose `suite.json` is given.

    Task number i, counted from 0, has 3 + i % 2 classes, `images` + i validation images and `images` test images, so
    tasks are not reported in the order of the suite. The experts are random steps away from the zero-shot model, and
    the label of an image is mostly what its task's expert sees in it, so that experts are good, the zero-shot model
    is bad, and models merged with a small alpha are in between. Equal arguments give equal files.
    """
    generator = torch.Generator().manual_seed(seed)
    described = described or description(num_tasks, images, seed)
    suite = suite_from_json(described, root)
    state = published_state(build_clip(replace(RECIPE, width=width)))
    save_state_dict(suite.zero_shot_path(BACKBONE), state)
    for task in suite.tasks:
        expert = {name: value + _step(name, value, generator) for name, value in state.items()}
        # what all images have in common would make them all of one class
        common = features(expert, _blots(100, generator)).mean(dim=0)
        weight = torch.randn(len(task.classes), EMBED_DIM, generator=generator)
        weight = 20 * F.normalize(weight - torch.outer(weight @ common, common) / common.dot(common))
        save_state_dict(suite.expert_path(BACKBONE, task.name), expert)
        save_head(suite.head_path(BACKBONE, task.name), weight)
        for split, count in task.images.items():
            pixels = _blots(count, generator)
            labels = logits(expert, weight, pixels).argmax(dim=1)
            noisy = torch.rand(count, generator=generator) < NOISY_LABELS
            labels[noisy] = (labels[noisy] + 1) % len(task.classes)
            write_images(suite.images_path(task.name, split), pixels, labels)
    write_suite_json(root, described)
    return suite


def stop_preparation(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Let preparing a suite fail instead of starting Ray. Returns what will have been asked for."""
    events: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def connected(address: str | None, *, debug: bool) -> Iterator[str]:
        events.append((address, debug))
        yield "slots"

    def prepare(suite: Suite, slots: Any, report: Any) -> None:
        events.append((suite.name, suite.profile, suite.seed, slots))
        report("pre-training", 0.5)
        raise SuiteError("the preparation stops here.")

    monkeypatch.setattr("raymerge.cluster.connected", connected)
    monkeypatch.setattr("raymerge.preparation.prepare_suite", prepare)
    return events


def tiny_moments(suite: Suite, folder: Path) -> None:
    """Write input moments of the experts to `folder`: random ones, which say nothing about the images."""
    generator = torch.Generator().manual_seed(suite.seed)
    for task in suite.tasks:
        expert = Checkpoint(suite.expert_path(BACKBONE, task.name))
        matrices = image_matrices(expert.shapes)
        moments = {name: torch.randn(1, cols, generator=generator).exp() for name, (_, cols) in matrices.items()}
        moments[PREFIX + "visual.proj"] = torch.randn(RECIPE.width, 1, generator=generator).exp()
        origin = Origin("tiny", "tiny", suite.seed, BACKBONE, task.name, 1, "0", file_sha256(expert.path))
        write_moments(moments_path(folder, BACKBONE, task.name), moments, dict.fromkeys(moments, "resid"), origin)


def description(num_tasks: int, images: int, seed: int) -> dict[str, Any]:
    """What `suite.json` says."""
    return {
        "format": 1,
        "name": "tiny",
        "profile": "tiny",
        "seed": seed,
        "backbones": {
            BACKBONE: {"zero_shot": f"{BACKBONE}/Task0Val/nonlinear_zeroshot.pt", "mean": list(MEAN), "std": list(STD)}
        },
        "tasks": [
            {
                "name": f"Task{i}",
                "classes": [f"class{c}" for c in range(3 + i % 2)],
                "images": {"val": images + i, "test": images},
            }
            for i in range(num_tasks)
        ],
    }


@torch.no_grad()
def features(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Of all images at once, of unit length, shape (images, dim), in the precision of `state`.

    Args:
        state: keys as in a checkpoint.
        pixels: uint8, shape (images, height, width, 3).
    """
    dtype = state[PREFIX + "visual.proj"].dtype
    encoder = build_image_encoder({name: tuple(value.shape) for name, value in state.items()}).to(dtype)
    encoder.load_state_dict({name: state[PREFIX + name] for name in encoder.state_dict()})
    images = (pixels.to(dtype) / 255 - torch.tensor(MEAN, dtype=dtype)) / torch.tensor(STD, dtype=dtype)
    return F.normalize(encoder(images.permute(0, 3, 1, 2)))


def logits(state: dict[str, Tensor], weight: Tensor, pixels: Tensor) -> Tensor:
    """Shape (images, classes); written apart from the package, for tests to compare it with."""
    return features(state, pixels) @ weight.T


def _blots(count: int, generator: torch.Generator) -> Tensor:
    """Images of four by four squares of random colours."""
    squares = torch.randint(0, 256, (count, 4, 4, 3), generator=generator, dtype=torch.uint8)
    size = IMAGE_SIZE // 4
    return squares.repeat_interleave(size, dim=1).repeat_interleave(size, dim=2)


def _step(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """From the zero-shot model to an expert; the text leftovers stay as they are."""
    if not name.startswith(PREFIX + "visual."):
        return torch.zeros_like(value)
    size = 0.15 * float(value.std()) if value.ndim >= 2 else 0.02
    return size * torch.randn(value.shape, generator=generator)
