"""Labels of points that cover neither each other nor the points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

FONT_SIZE = 10
_CHARACTER = 0.56 * FONT_SIZE
_HEIGHT = 1.1 * FONT_SIZE
_POINT = 4.0
"""Radius."""
_DISTANCES = (8.0, 15.0, 24.0, 34.0, 46.0)
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.7), (0.8, -0.7), (-0.8, 0.7), (-0.8, -0.7))
_PASSES = 3


@dataclass(frozen=True)
class Place:
    """Where a label begins, ends or has its middle, by `align`; and the end of a line from its point, if it is far."""

    x: float
    y: float
    align: Literal["left", "center", "right"]
    line_x: float
    line_y: float
    is_far: bool


def places(
    points: Sequence[tuple[float, float]], labels: Sequence[str], width: int | float, height: int | float
) -> list[Place]:
    """Where to write a label for every point of a panel: near it, and over as little as can be.

    Greedy, from the first point to the last, in a few passes.

    Args:
        points: in pixels from a corner of the panel.
    """
    dots = np.array([(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points])
    panel = np.array([0, 0, width, height])
    boxes = np.zeros_like(dots)  # of the labels that have a place: left, top, right, bottom
    found: dict[int, Place] = {}
    for _ in range(_PASSES):
        for i, (point, label) in enumerate(zip(points, labels, strict=True)):
            options = list(_options(point, len(label) * _CHARACTER / 2))
            places, tried, distances = zip(*options, strict=True)
            boxes[i] = 0
            tried = np.array(tried)
            covered = _overlap(tried[:, None], np.concatenate([dots, boxes])).sum(1)
            outside = _overlap(tried, tried) - _overlap(tried, panel)
            choice = int(np.argmin(covered + 2 * outside + 0.6 * np.array(distances)))
            found[i], boxes[i] = places[choice], tried[choice]
    return [found[i] for i in range(len(points))]


def _options(point: tuple[float, float], half: float) -> Iterator[tuple[Place, tuple[float, ...], float]]:
    """Places of a label of this half width, the box it takes there, and its distance."""
    x, y = point
    for distance in _DISTANCES:
        for dx, dy in _DIRECTIONS:
            at_x, at_y = x + dx * distance, y + dy * distance
            align: Literal["left", "center", "right"] = "left" if dx > 0 else "right" if dx < 0 else "center"
            left = {"left": at_x, "center": at_x - half, "right": at_x - 2 * half}[align]
            box = (left, at_y - _HEIGHT / 2, left + 2 * half, at_y + _HEIGHT / 2)
            end = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
            yield Place(at_x, at_y, align, *end, distance > _DISTANCES[0]), box, distance


def _overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Areas that boxes share, over their leading dimensions."""
    size = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    return np.maximum(size, 0).prod(-1)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The values moved apart a little: neighbours in order are at least a gap apart, and all are between the limits.

    Values that are too near form a cluster, spread evenly about its mean, or as near to it as the limits allow.
    """

    def ends(cluster: Sequence[int]) -> tuple[float, float]:
        length = gap * (len(cluster) - 1)
        middle = sum(values[i] for i in cluster) / len(cluster)
        start = max(low, min(middle - length / 2, high - length))
        return start, start + length

    clusters: list[list[int]] = []
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        clusters.append([i])
        while len(clusters) > 1 and ends(clusters[-2])[1] + gap > ends(clusters[-1])[0]:
            last = clusters.pop()
            clusters[-1] += last
    moved = [0.0] * len(values)
    for cluster in clusters:
        for position, i in enumerate(cluster):
            moved[i] = ends(cluster)[0] + position * gap
    return moved
