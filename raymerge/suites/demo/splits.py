"""The images of a task: train, val and test, each from a random stream of its own."""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from raymerge.suites.demo.concepts import FAMILIES
from raymerge.suites.demo.recipe import DemoRecipe, DemoTask, Split, stream_seed
from raymerge.suites.demo.world import render


def task_split(
    recipe: DemoRecipe, task: DemoTask, split: Split
) -> tuple[UInt8[Tensor, "images height width 3"], Int64[Tensor, " images"]]:
    """Images as they are stored, and their labels (indices into `task.classes`), balanced and in random order."""
    generator = Generator().manual_seed(stream_seed(recipe, task.name, split))
    num_images = recipe.num_images(split)
    labels = torch.arange(num_images) % len(task.classes)
    labels = labels[torch.randperm(num_images, generator=generator)]
    first = FAMILIES[task.family].classes.index(task.classes[0])
    images = render(task.family, labels + first, generator, task.style).images
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(), labels


def to_pixels(stored: UInt8[Tensor, "images height width 3"]) -> Float[Tensor, "images 3 height width"]:
    """Stored images with values 0..1, channels first."""
    return stored.permute(0, 3, 1, 2) / 255
