"""Signed distance fields, the material of all drawings: positive inside, negative outside, about 0 at the edge.

A field covers the square -EXTENT..EXTENT in both directions; x points right, y points down. An object normally fills
-1..1, so a field ends outside of it. All fields have shape (SAMPLES, SAMPLES), rows from top to bottom.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

SAMPLES = 64
EXTENT = 1.25

Field = Float[Tensor, "samples samples"]
Point = tuple[float, float]

_AXIS = ((torch.arange(SAMPLES) + 0.5) / SAMPLES * 2 - 1) * EXTENT
Y, X = torch.meshgrid(_AXIS, _AXIS, indexing="ij")


def disc(x: float, y: float, radius: float) -> Field:
    return radius - torch.hypot(X - x, Y - y)


def ring(x: float, y: float, radius: float, half_width: float) -> Field:
    return half_width - disc(x, y, radius).abs()


def box(x: float, y: float, half_width: float, half_height: float) -> Field:
    """Exact at the edge only: the distance used is that to the nearer pair of sides."""
    return torch.minimum(half_width - (X - x).abs(), half_height - (Y - y).abs())


def stroke(points: Sequence[Point], half_width: float) -> Field:
    """A line through the points, with round ends."""
    return half_width - _distance_to_line(points)


def polygon(corners: Sequence[Point]) -> Field:
    """The inside of a closed line, by the even-odd rule."""
    x, y = X, Y
    closed = [*corners, corners[0]]
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (x0, y0), (x1, y1) in pairwise(closed):
        if y0 == y1:  # a horizontal side is never crossed by a horizontal ray
            continue
        between = (y > min(y0, y1)) & (y <= max(y0, y1))
        inside ^= between & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    distance = _distance_to_line(closed)
    return torch.where(inside, distance, -distance)


def regular_polygon(corners: int, radius: float, inner_radius: float | None = None) -> Field:
    """A regular polygon with one corner on top; with an inner radius, a star of that many rays."""
    count = corners if inner_radius is None else 2 * corners
    radii = [inner_radius if inner_radius is not None and i % 2 else radius for i in range(count)]
    return polygon([point_at(2 * math.pi * i / count, r) for i, r in enumerate(radii)])


def point_at(clockwise_from_top: float, radius: float, x: float = 0.0, y: float = 0.0) -> Point:
    """The point at an angle (radians) and a distance from (x, y)."""
    return x + radius * math.sin(clockwise_from_top), y - radius * math.cos(clockwise_from_top)


def arc(x: float, y: float, radius: float, start: float, stop: float, pieces: int = 12) -> list[Point]:
    """Points on a circle from one angle to another, in fractions of a turn clockwise from the top."""
    angles = [2 * math.pi * (start + (stop - start) * i / pieces) for i in range(pieces + 1)]
    return [point_at(angle, radius, x, y) for angle in angles]


def union(*fields: Field) -> Field:
    return torch.stack(fields).amax(dim=0)


def minus(field: Field, hole: Field) -> Field:
    return torch.minimum(field, -hole)


def sample(
    fields: Float[Tensor, "classes samples samples"],
    classes: Int64[Tensor, " images"],
    u: Float[Tensor, "images height width"],
    v: Float[Tensor, "images height width"],
) -> Float[Tensor, "images height width"]:
    """The field of every image's class at the object's coordinates (u, v), bilinearly interpolated."""
    grid = torch.stack([u, v], dim=-1) / EXTENT
    return F.grid_sample(fields[classes][:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def _distance_to_line(points: Sequence[Point]) -> Field:
    """Distance to the nearest point of the line through at least two points."""
    nearest = torch.full_like(X, math.inf)
    for (x0, y0), (x1, y1) in pairwise(points):
        dx, dy = x1 - x0, y1 - y0
        along = ((X - x0) * dx + (Y - y0) * dy) / max(dx * dx + dy * dy, 1e-12)  # 0..1 between the ends
        along = along.clamp(0.0, 1.0)
        nearest = torch.minimum(nearest, torch.hypot(X - x0 - along * dx, Y - y0 - along * dy))
    return nearest
