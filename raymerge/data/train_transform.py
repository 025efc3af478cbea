"""From a decoded image to the pixels of a training step: all of CLIP's train transform before normalisation."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SCALE = (0.9, 1.0)
"""Share of the image's area that a crop covers."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop."""
TRIES = 10
"""Crops that are drawn until one fits into the image; after that, the largest central one is taken."""


def to_train_pixels(image: "Image", size: int, generator: "torch.Generator") -> np.ndarray:
    """Crop at random, resize (bicubic, antialiased), then turn grey into RGB, as published.

    Args:
        image: mode RGB or L, of any size.
        size: of the square that comes out.
    Returns:
        uint8, (size, size, 3).
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    top, left, height, width = crop_box(image.width, image.height, generator)
    square = [size, size]
    cropped = F.resized_crop(image, top, left, height, width, square, InterpolationMode.BICUBIC)  # type: ignore[arg-type]
    return np.array(cropped.convert("RGB"))  # type: ignore[attr-defined]


def crop_box(width: int, height: int, generator: "torch.Generator") -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop.

    The same draws as torchvision's `RandomResizedCrop` takes, but from a generator instead of the state that all
    threads of a process share.
    """
    import torch

    low, high = torch.log(torch.tensor(RATIO)).tolist()
    for _ in range(TRIES):
        area = width * height * torch.empty(1).uniform_(*SCALE, generator=generator).item()
        ratio = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(torch.randint(height - crop_height + 1, (1,), generator=generator))
            left = int(torch.randint(width - crop_width + 1, (1,), generator=generator))
            return top, left, crop_height, crop_width
    crop_width = min(width, round(height * RATIO[1]))
    crop_height = min(height, round(width / RATIO[0]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
