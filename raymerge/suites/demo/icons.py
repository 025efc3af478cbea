"""Faces, weather icons and card symbols."""

import math

from raymerge.suites.demo.fields import (
    Field,
    Point,
    arc,
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

LINE = 0.11


def _eye(x: float) -> Field:
    return disc(x, -0.22, 0.15)


def _shut_eye(x: float) -> Field:
    return stroke([(x - 0.16, -0.22), (x + 0.16, -0.22)], 0.09)


def _mouth(bend: float) -> Field:
    """From one corner to the other; positive bends are smiles."""
    xs = [i / 6 * 0.45 for i in range(-6, 7)]
    points: list[Point] = [(x, 0.36 + bend * (0.5 - (x / 0.45) ** 2)) for x in xs]
    return stroke(points, LINE)


def _face(*features: Field) -> Field:
    return union(ring(0.0, 0.0, 0.88, LINE), *features)


FACES = {
    "happy": _face(_eye(-0.33), _eye(0.33), _mouth(0.3)),
    "sad": _face(_eye(-0.33), _eye(0.33), _mouth(-0.3)),
    "neutral": _face(_eye(-0.33), _eye(0.33), _mouth(0.0)),
    "surprised": _face(_eye(-0.33), _eye(0.33), disc(0.0, 0.38, 0.24)),
    "winking": _face(_shut_eye(-0.33), _eye(0.33), _mouth(0.3)),
    "sleepy": _face(_shut_eye(-0.33), _shut_eye(0.33), disc(0.0, 0.4, 0.14)),
    "angry": _face(
        stroke([(-0.52, -0.42), (-0.16, -0.16)], LINE), stroke([(0.52, -0.42), (0.16, -0.16)], LINE), _mouth(-0.3)
    ),
    "cool": _face(box(0.0, -0.24, 0.7, 0.2), _mouth(0.3)),
}


def _cloud(y: float) -> Field:
    return union(
        disc(-0.45, y + 0.1, 0.32), disc(0.0, y - 0.15, 0.42), disc(0.5, y + 0.1, 0.32), box(0.0, y + 0.22, 0.5, 0.2)
    )


def _spokes(count: int, inner: float, outer: float) -> list[Field]:
    angles = [2 * math.pi * i / count for i in range(count)]
    return [stroke([point_at(a, inner), point_at(a, outer)], LINE) for a in angles]


WEATHER = {
    "sun": union(disc(0.0, 0.0, 0.42), *_spokes(8, 0.66, 0.9)),
    "moon": minus(disc(-0.05, 0.0, 0.88), disc(0.4, -0.2, 0.75)),
    "cloud": _cloud(0.05),
    "rain": union(_cloud(-0.4), *(stroke([(x + 0.12, 0.2), (x - 0.12, 0.8)], LINE) for x in (-0.5, 0.0, 0.5))),
    "snow": union(*_spokes(6, 0.0, 0.9)),
    "lightning": polygon([(0.25, -0.95), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 0.95), (0.6, -0.2), (0.05, -0.2)]),
    "rainbow": union(*(stroke(arc(0.0, 0.55, radius, -0.25, 0.25), 0.1) for radius in (0.35, 0.65, 0.95))),
    "wind": union(
        stroke([(-0.9, -0.2), (0.35, -0.2), *arc(0.35, -0.45, 0.25, 0.5, -0.25)], LINE),
        stroke([(-0.6, 0.15), (0.85, 0.15)], LINE),
        stroke([(-0.9, 0.5), (0.1, 0.5), *arc(0.1, 0.72, 0.22, 0.0, 0.75)], LINE),
    ),
}


def heart(y: float, up: float = 1.0) -> Field:
    """Two lobes and a point; `up` = -1 turns it upside down."""
    return union(
        disc(-0.4, y - 0.3 * up, 0.45),
        disc(0.4, y - 0.3 * up, 0.45),
        polygon([(-0.8, y - 0.1 * up), (0.0, y - 0.35 * up), (0.8, y - 0.1 * up), (0.0, y + 0.9 * up)]),
    )


_STEM = polygon([(0.0, 0.3), (0.3, 0.95), (-0.3, 0.95)])
_PETALS = [disc(*point_at(2 * math.pi * i / 5, 0.58), 0.33) for i in range(5)]

SUITS = {
    "hearts": heart(0.0),
    "spades": union(heart(-0.05, up=-1.0), _STEM),
    "diamonds": polygon([(0.0, -0.95), (0.65, 0.0), (0.0, 0.95), (-0.65, 0.0)]),
    "clubs": union(disc(0.0, -0.5, 0.4), disc(-0.45, 0.15, 0.4), disc(0.45, 0.15, 0.4), _STEM),
    "crown": polygon([(-0.8, 0.7), (-0.9, -0.5), (-0.4, 0.05), (0.0, -0.8), (0.4, 0.05), (0.9, -0.5), (0.8, 0.7)]),
    "anchor": union(
        ring(0.0, -0.7, 0.2, LINE),
        stroke([(0.0, -0.5), (0.0, 0.85)], LINE),
        stroke([(-0.4, -0.2), (0.4, -0.2)], LINE),
        stroke(arc(0.0, 0.1, 0.75, 0.25, 0.75), LINE),
    ),
    "key": union(
        ring(-0.5, 0.0, 0.34, 0.13),
        stroke([(-0.1, 0.0), (0.9, 0.0)], LINE),
        stroke([(0.45, 0.0), (0.45, 0.4)], LINE),
        stroke([(0.85, 0.0), (0.85, 0.4)], LINE),
    ),
    "flower": minus(union(regular_polygon(5, 0.5), *_PETALS), disc(0.0, 0.0, 0.2)),
}
