"""How an image is photographed. A task's domain shift is a `Style` that differs from the pre-training style."""

from dataclasses import dataclass
from typing import Literal

Range = tuple[float, float]
Palette = Literal["any", "white-on-black", "grey", "low-contrast"]


@dataclass(frozen=True)
class Style:
    """The defaults are the style of the pre-training images; a pair is the range a value is drawn from per image."""

    jitter: float = 0.1
    """Largest offset of the object from the middle, in half image sides, per axis."""
    scale: Range = (0.7, 0.95)
    """Size of the object, in half image sides."""
    rotation: float = 6.0
    """Largest rotation in degrees."""
    frequency: Range = (3.0, 4.5)
    """Periods of a pattern per image side."""
    outline: bool = False
    """Draw the edge of a shape instead of the whole of it."""
    any_polarity: bool = False
    """Dark objects on light ground too; otherwise the lighter of the two colours is the object's."""
    palette: Palette = "any"
    texture: Range = (0.0, 0.15)
    """Strength of a smooth random pattern in the background."""
    clutter: int = 0
    """Number of coloured strokes behind the object."""
    invert: bool = False
    blur: int = 0
    """Radius of a box blur in pixels."""
    contrast: Range = (0.9, 1.1)
    light: Range = (0.85, 1.1)
    """Factor on all pixel values."""
    noise: Range = (0.0, 0.08)
    """Standard deviation of pixel noise."""


WEB = Style()
"""The style of the pre-training images."""
