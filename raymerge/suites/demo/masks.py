"""Where the object is: its pose, and how much of every pixel belongs to it."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from raymerge.suites.demo.draws import Draws, PerImage
from raymerge.suites.demo.fields import sample
from raymerge.suites.demo.figures import FIGURES, SPOT_CELLS
from raymerge.suites.demo.recipe import IMAGE_SIZE
from raymerge.suites.demo.styles import Style

Labels = Int64[Tensor, " images"]
Mask = Float[Tensor, "images height width"]

_AXIS = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1
Y, X = torch.meshgrid(_AXIS, _AXIS, indexing="ij")
"""Position of every pixel's centre; the image spans -1..1 in both directions, y points down."""

BLOB_SIZES = torch.tensor([0.2, 0.38, 0.6, 0.9])
SHARPNESS = 7.0
"""Inverse width of an edge: 1/7 of half an image side, two pixels."""


@dataclass(frozen=True)
class Pose:
    """Centre, size and clockwise rotation (radians) of every object."""

    x: PerImage
    y: PerImage
    scale: PerImage
    angle: PerImage

    def object_coordinates(self) -> tuple[Mask, Mask]:
        """Where every pixel lies on the object, which fills -1..1."""
        dx, dy = X - self.x, Y - self.y
        cos, sin = self.angle.cos(), self.angle.sin()
        return (dx * cos + dy * sin) / self.scale, (dy * cos - dx * sin) / self.scale


def draw_pose(family: str, labels: Labels, draws: Draws, style: Style) -> Pose:
    x, y = draws.uniform(-style.jitter, style.jitter), draws.uniform(-style.jitter, style.jitter)
    scale = draws.within(style.scale)
    angle = draws.uniform(-style.rotation, style.rotation) * math.pi / 180
    if family == "position":
        x, y = 0.6 * _per_image(labels % 3 - 1) + 0.5 * x, 0.6 * _per_image(labels // 3 - 1) + 0.5 * y
        scale = 0.38 * scale
    if family == "size":
        scale = _per_image(BLOB_SIZES[labels]) * (0.75 + 0.25 * scale)
    return Pose(x, y, scale, angle)


def draw_mask(family: str, labels: Labels, pose: Pose, draws: Draws, style: Style) -> Mask:
    """Share of every pixel which the object covers, 0..1."""
    u, v = pose.object_coordinates()
    if family == "pattern":
        # a pattern covers the whole image, so its grain must not depend on the object's size
        return _pattern(labels, u * pose.scale, v * pose.scale, draws, style)
    if family == "count":
        return _spots(labels, pose, draws)
    if family == "flag":
        return fill(torch.minimum(1 - u.abs(), 0.75 - v.abs()) * pose.scale)
    if family in FIGURES:
        figures, figure = FIGURES[family], labels
    else:  # the object's form says nothing about the class
        figures = FIGURES["shape"][:2] if family in ("position", "size") else FIGURES["shape"]
        figure = draws.integers(len(figures))
    field = sample(figures, figure, u, v) * pose.scale
    if style.outline:
        field = 0.1 - (field - 0.1).abs()
    return fill(field)


def fill(field: Mask, sharpness: float = SHARPNESS) -> Mask:
    """A signed distance as coverage: 0 outside, 1 inside, a ramp at the edge."""
    return (field * sharpness + 0.5).clamp(0.0, 1.0)


def _pattern(labels: Labels, u: Mask, v: Mask, draws: Draws, style: Style) -> Mask:
    """Periodic functions of the position, one per class; positive where the object's colour is."""
    frequency, phase = draws.within(style.frequency), draws.uniform(0.0, 2 * math.pi)
    omega = math.pi * frequency

    def wave(z: Mask) -> Mask:
        return torch.sin(z * omega + phase)

    row = torch.floor(v * frequency / 1.5)
    across, along = torch.cos(2 * math.pi * v * frequency / 1.5), torch.cos(0.75 * omega * u + math.pi * row)
    waves = [
        wave(v),  # horizontal
        wave(u),  # vertical
        wave(0.7 * (u + v)),  # diagonal
        torch.minimum(wave(u), wave(v)) - 0.1,  # dotted
        wave(u) * wave(v),  # checkered
        wave(torch.hypot(u, v)),  # concentric
        torch.sin(8 * torch.atan2(v, u) + phase),  # radial
        wave(v + 0.12 * torch.sin(6 * u)),  # wavy
        torch.maximum(wave(u), wave(v)) - 0.6,  # grid
        torch.maximum(across, along) - 0.7,  # brick
    ]
    return fill(torch.stack(waves)[labels, torch.arange(len(labels))], sharpness=2.0)


def _spots(labels: Labels, pose: Pose, draws: Draws) -> Mask:
    """Label + 1 spots in different cells of a 3 x 3 board."""
    cells = draws.permutations(9)
    radius = 0.14 + 0.075 * pose.scale
    centres = torch.tensor(SPOT_CELLS)
    mask = torch.zeros(len(labels), *X.shape)
    for spot in range(int(labels.max()) + 1):
        x = _per_image(centres[cells[:, spot] % 3]) + draws.uniform(-0.04, 0.04)
        y = _per_image(centres[cells[:, spot] // 3]) + draws.uniform(-0.04, 0.04)
        shown = _per_image(spot <= labels)
        mask = torch.maximum(mask, fill(radius - torch.hypot(X - x, Y - y)) * shown)
    return mask


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None]
