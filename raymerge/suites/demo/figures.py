"""The field of every class of the families which are drawn from one figure per class."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from raymerge.suites.demo.concepts import FAMILIES
from raymerge.suites.demo.fields import (
    Field,
    box,
    disc,
    minus,
    point_at,
    polygon,
    regular_polygon,
    ring,
    stroke,
    union,
)
from raymerge.suites.demo.glyphs import DIGIT_FIELDS, LETTER_FIELDS
from raymerge.suites.demo.icons import FACES, SUITS, WEATHER, heart

SHAPES = {
    "circle": disc(0.0, 0.0, 0.8),
    "square": box(0.0, 0.0, 0.7, 0.7),
    "triangle": regular_polygon(3, 0.95),
    "cross": union(box(0.0, 0.0, 0.85, 0.28), box(0.0, 0.0, 0.28, 0.85)),
    "star": regular_polygon(5, 0.95, inner_radius=0.4),
    "ring": ring(0.0, 0.0, 0.64, 0.22),
    "diamond": polygon([(0.0, -0.9), (0.9, 0.0), (0.0, 0.9), (-0.9, 0.0)]),
    "crescent": minus(disc(0.0, 0.0, 0.85), disc(0.42, 0.0, 0.65)),
    "hexagon": regular_polygon(6, 0.88),
    "heart": heart(0.0),
}

SPOT_CELLS = (-0.55, 0.0, 0.55)
"""Centres of the rows and columns of a 3 x 3 board of spots."""

_PIPS = {  # cells of the board, numbered row by row
    "one": (4,),
    "two": (0, 8),
    "three": (0, 4, 8),
    "four": (0, 2, 6, 8),
    "five": (0, 2, 4, 6, 8),
    "six": (0, 2, 3, 5, 6, 8),
}


def _dice(cells: tuple[int, ...]) -> Field:
    field = box(0.0, 0.0, 0.92, 0.92)
    for cell in cells:
        field = minus(field, disc(SPOT_CELLS[cell % 3], SPOT_CELLS[cell // 3], 0.19))
    return field


def _arrow(eighths: int) -> Field:
    """Head and shaft, turned clockwise from pointing up."""
    turn = eighths * math.pi / 4
    outline = [(0.0, 0.95), (0.62, 0.15), (0.22, 0.15), (0.22, -0.9), (-0.22, -0.9), (-0.22, 0.15), (-0.62, 0.15)]
    return polygon([point_at(turn + math.atan2(right, up), math.hypot(right, up)) for right, up in outline])


def _clock(eighths: int) -> Field:
    return union(ring(0.0, 0.0, 0.86, 0.1), stroke([(0.0, 0.0), point_at(eighths * math.pi / 4, 0.6)], 0.13))


_FIELDS: dict[str, dict[str, Field]] = {
    "shape": SHAPES,
    "digit": DIGIT_FIELDS,
    "letter": LETTER_FIELDS,
    "dice": {name: _dice(cells) for name, cells in _PIPS.items()},
    "arrow": {name: _arrow(i) for i, name in enumerate(FAMILIES["arrow"].classes)},
    "clock": {name: _clock(i + 1) for i, name in enumerate(FAMILIES["clock"].classes)},
    "face": FACES,
    "weather": WEATHER,
    "suit": SUITS,
}

FIGURES: dict[str, Float[Tensor, "classes samples samples"]] = {
    family: torch.stack([fields[name] for name in FAMILIES[family].classes]) for family, fields in _FIELDS.items()
}
"""Fields by family, classes in the order of `FAMILIES`."""
