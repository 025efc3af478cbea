"""Made-up pictures: every class of a dataset has a pattern of coloured squares, seen through noise."""

import hashlib

import numpy as np
from PIL.Image import Image, Resampling, fromarray

from raymerge.rehearsal.raw import Drawn

SQUARES = 6
"""Along each side."""
NOISE = 12
"""Standard deviation, of 255."""


def pictures(dataset: str, split: str, num_classes: int, count: int, *, side: int, repeats: int = 1) -> list[Drawn]:
    """Pictures with labels: `repeats` of every class, then of single classes until there are `count`.

    Equal arguments give equal pictures.
    """
    labels = list(range(num_classes)) * repeats
    generator = np.random.default_rng(_seed(dataset, split))
    labels += generator.integers(0, num_classes, max(0, count - len(labels))).tolist()
    return [(_picture(_pattern(dataset, label), side, generator), label) for label in labels]


def _pattern(dataset: str, label: int) -> np.ndarray:
    """(squares, squares, 3) uint8, dark or light enough that its grey version differs as well."""
    return np.random.default_rng(_seed(dataset, str(label))).integers(0, 256, (SQUARES, SQUARES, 3), dtype=np.uint8)


def _picture(pattern: np.ndarray, side: int, generator: np.random.Generator) -> Image:
    enlarged = np.asarray(fromarray(pattern).resize((side, side), Resampling.NEAREST), dtype=np.float32)
    noisy = enlarged + generator.normal(0, NOISE, enlarged.shape)
    return fromarray(noisy.clip(0, 255).astype(np.uint8))


def _seed(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:8], "big")
