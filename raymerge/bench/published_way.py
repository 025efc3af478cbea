"""Evaluation as the published code does it: every image is decoded and transformed again for every model.

Transcribed from its `eval_single_dataset`: a DataLoader in batches of 32 that applies CLIP's transform, the encoder,
the head on features of unit length, an argmax. With photos made up for it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

BATCH_SIZE = 32
PHOTO_SIZE = (500, 375)
"""Width and height, the commonest among photos that were collected from the web for such datasets."""
QUALITY = 90
"""Of JPEG."""


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write made-up photos as JPEG, smooth with some noise, where `ImageFolder` finds them; returns their paths."""
    generator = np.random.default_rng(0)
    paths = [folder / "photos" / f"{number:06d}.jpg" for number in range(count)]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(PHOTO_SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = smooth + generator.normal(0, 8, smooth.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return paths


def photo_loader(folder: Path, transform: Callable[[Image.Image], Tensor], workers: int) -> DataLoader:
    """The loader of the published code.

    Args:
        transform: from a photo to what the encoder takes.
        workers: processes that decode; 0: this one.
    """
    return DataLoader(ImageFolder(str(folder), transform=transform), batch_size=BATCH_SIZE, num_workers=workers)


@torch.no_grad()
def evaluate(encoder: nn.Module, loader: DataLoader, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
    """The classes of the images, batch by batch, where the encoder is."""
    device = next(encoder.parameters()).device
    for images, _ in loader:
        features = encoder(images.to(device))
        features = features / features.norm(dim=-1, keepdim=True)
        yield (features @ weight.T + bias).argmax(dim=1)
