"""Random values, one per image of a batch, from one generator."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from raymerge.suites.demo.styles import Range

PerImage = Float[Tensor, "images 1 1"]


@dataclass(frozen=True)
class Draws:
    """Every call takes new values from the generator, so the order of calls is part of an image."""

    images: int
    generator: Generator

    def uniform(self, low: float, high: float) -> PerImage:
        return torch.rand(self.images, 1, 1, generator=self.generator) * (high - low) + low

    def within(self, limits: Range) -> PerImage:
        return self.uniform(*limits)

    def integers(self, stop: int) -> Int64[Tensor, " images"]:
        """0..stop-1, all equally likely."""
        return torch.randint(stop, (self.images,), generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, shape (images, *shape)."""
        return torch.randn(self.images, *shape, generator=self.generator)

    def permutations(self, items: int) -> Int64[Tensor, "images items"]:
        return torch.rand(self.images, items, generator=self.generator).argsort(dim=1)
