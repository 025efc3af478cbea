"""The numbers of the demo suite: its 20 tasks, its training, and the address of its content.

Imports the standard library only, so that a plan of a sweep needs no torch.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import raymerge
from raymerge.errors import SuiteError
from raymerge.suites.demo.concepts import FAMILIES
from raymerge.suites.demo.styles import Style

BACKBONE = "demo-vit"
IMAGE_SIZE = 32
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)

Variant = Literal["full", "reduced"]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class DemoTask:
    """One task: classes of one family, seen in a style of its own."""

    name: str
    family: str
    style: Style
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DemoRecipe:
    """Everything the content of the suite follows from, except the drawings themselves (see `content_address`)."""

    seed: int = 0
    variant: Variant = "full"

    # model
    width: int = 192
    """Of the image tower; a multiple of `HEAD_WIDTH` in clip.py."""
    layers: int = 2
    patch_size: int = 8
    embed_dim: int = 96
    text_width: int = 64
    text_layers: int = 2

    # contrastive pre-training
    pretrain_steps: int = 500
    pretrain_batch: int = 128
    pretrain_warmup: int = 40
    matrix_learning_rate: float = 4e-3
    """Of Muon, for the weight matrices of both towers' blocks."""
    other_learning_rate: float = 2e-3
    """Of AdamW, for all other parameters."""
    pretrain_weight_decay: float = 0.05

    # fine-tuning
    finetune_steps: int = 112
    finetune_batch: int = 32
    finetune_warmup: int = 10
    finetune_learning_rate: float = 5e-4
    finetune_weight_decay: float = 0.01

    # images per task
    train_images: int = 2048
    val_images: int = 128
    test_images: int = 400

    def num_images(self, split: Split) -> int:
        return {"train": self.train_images, "val": self.val_images, "test": self.test_images}[split]


VARIANTS: dict[Variant, DemoRecipe] = {
    "full": DemoRecipe(),
    # small enough for tests: experts are better than zero-shot, but far from good
    "reduced": DemoRecipe(
        variant="reduced",
        width=96,
        layers=1,
        patch_size=16,
        embed_dim=48,
        text_width=32,
        text_layers=1,
        pretrain_steps=120,
        pretrain_batch=96,
        pretrain_warmup=10,
        matrix_learning_rate=0.03,
        other_learning_rate=0.004,
        finetune_steps=48,
        finetune_learning_rate=0.002,
        train_images=512,
        val_images=40,
        test_images=40,
    ),
}


def make_recipe(variant: Variant = "full", seed: int = 0) -> DemoRecipe:
    return replace(VARIANTS[variant], seed=seed)


def _task(name: str, family: str, style: Style, classes: slice = slice(None)) -> DemoTask:
    return DemoTask(name, family, style, FAMILIES[family].classes[classes])


# The order is such that the first 8, the first 14 and all 20 tasks have about the same mean zero-shot accuracy, so that
# task sets of different size compare like with like.
TASKS: tuple[DemoTask, ...] = (
    _task("Shapes", "shape", Style(any_polarity=True, texture=(0.25, 0.45), noise=(0.05, 0.1))),
    _task("Digits", "digit", Style(palette="white-on-black", rotation=10.0, blur=1, scale=(0.55, 0.75))),
    _task("Colours", "colour", Style(light=(0.45, 0.75), scale=(0.4, 0.8), noise=(0.05, 0.15), clutter=2)),
    _task("Faces", "face", Style(invert=True, palette="white-on-black", scale=(0.7, 0.9))),
    _task("Flags", "flag", Style(rotation=25.0, light=(0.4, 0.7), noise=(0.08, 0.15), scale=(0.4, 0.8))),
    _task("LowLightShapes", "shape", Style(light=(0.15, 0.3), noise=(0.01, 0.03))),
    _task("Dice", "dice", Style(rotation=10.0, light=(0.25, 0.5), contrast=(0.5, 0.8), scale=(0.6, 0.85))),
    _task("LettersKT", "letter", Style(invert=True), slice(10, 20)),
    _task("LettersAJ", "letter", Style(palette="grey", rotation=8.0, clutter=1), slice(0, 10)),
    _task("Arrows", "arrow", Style(rotation=8.0, palette="low-contrast", any_polarity=True, noise=(0.04, 0.1))),
    _task("Counting", "count", Style(scale=(0.6, 0.8), invert=True), slice(0, 4)),
    _task("CardSymbols", "suit", Style(rotation=12.0, light=(0.2, 0.4), noise=(0.02, 0.05), contrast=(0.5, 0.8))),
    _task("SketchShapes", "shape", Style(outline=True, palette="white-on-black", rotation=12.0)),
    _task(
        "WeatherIcons", "weather", Style(palette="low-contrast", any_polarity=True, noise=(0.06, 0.12), rotation=12.0)
    ),
    _task("Patterns", "pattern", Style(palette="low-contrast", noise=(0.04, 0.1), contrast=(0.5, 0.8))),
    _task("StreetDigits", "digit", Style(any_polarity=True, texture=(0.2, 0.35), clutter=1)),
    _task("Positions", "position", Style(clutter=1, any_polarity=True, texture=(0.2, 0.35))),
    _task("FineTextures", "pattern", Style(frequency=(5.0, 6.0), light=(0.5, 0.8), noise=(0.03, 0.1))),
    _task("Clocks", "clock", Style(palette="grey", noise=(0.03, 0.1), scale=(0.7, 0.95))),
    _task("Backgrounds", "background", Style(clutter=4, light=(0.5, 0.8), scale=(0.8, 1.2), contrast=(0.6, 0.9))),
)

TASK_NAMES: tuple[str, ...] = tuple(task.name for task in TASKS)


def demo_task(name: str) -> DemoTask:
    """The declaration of a task.

    Raises:
        SuiteError: the suite has no such task.
    """
    for task in TASKS:
        if task.name == name:
            return task
    raise SuiteError(f"demo: no task '{name}'. Known: {', '.join(TASK_NAMES)}.")


def describe(recipe: DemoRecipe) -> dict[str, Any]:
    """What `suite.json` says about the suite, all but the fingerprint of its files."""
    backbone = {
        "zero_shot": f"{BACKBONE}/{TASK_NAMES[0]}Val/nonlinear_zeroshot.pt",
        "image_size": IMAGE_SIZE,
        "mean": list(MEAN),
        "std": list(STD),
    }
    images = {"val": recipe.val_images, "test": recipe.test_images}
    return {
        "format": 1,
        "name": "demo",
        "profile": recipe.variant,
        "seed": recipe.seed,
        "backbones": {BACKBONE: backbone},
        "tasks": [{"name": task.name, "classes": list(task.classes), "images": images} for task in TASKS],
    }


def stream_seed(recipe: DemoRecipe, *path: str) -> int:
    """Seed of one random stream, e.g. ("Shapes", "val"). It does not depend on the order of the tasks."""
    text = "/".join((str(recipe.seed), *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def content_address(recipe: DemoRecipe) -> str:
    """Hex id of the suite's content: of the recipe's values, and of the source of this folder and of the training loop.

    A prepared suite is found again by this id. It changes with any byte of the source, comments included: preparing
    once more is cheaper than trusting a stale suite.
    """
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for source in [*sorted(Path(__file__).parent.glob("*.py")), Path(raymerge.__file__).parent / "training.py"]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
