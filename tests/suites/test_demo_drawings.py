"""Signed distance fields and the figures made of them."""

import math

import pytest
import torch

from raymerge.suites.demo.concepts import FAMILIES
from raymerge.suites.demo.fields import (
    X,
    Y,
    arc,
    box,
    disc,
    minus,
    point_at,
    polygon,
    regular_polygon,
    ring,
    sample,
    stroke,
    union,
)
from raymerge.suites.demo.figures import FIGURES
from raymerge.suites.demo.glyphs import DIGITS, LETTERS


def at(field, x, y):
    """Value of a field at a point of the drawing."""
    position = torch.tensor([[[x]], [[y]]])
    return sample(field[None], torch.tensor([0]), position[0][None], position[1][None]).item()


@pytest.mark.parametrize(
    ("field", "x", "y", "distance"),
    [
        (disc(0.1, -0.2, 0.5), 0.1, -0.2 + 0.3, 0.2),
        (disc(0.0, 0.0, 0.5), 0.9, 0.0, -0.4),
        (ring(0.0, 0.0, 0.6, 0.1), 0.0, 0.55, 0.05),
        (ring(0.0, 0.0, 0.6, 0.1), 0.0, 0.3, -0.2),
        (box(0.0, 0.1, 0.7, 0.3), 0.0, 0.3, 0.1),
        (box(0.0, 0.1, 0.7, 0.3), 0.9, 0.1, -0.2),
        (stroke([(-0.5, 0.0), (0.5, 0.0)], 0.1), 0.2, 0.3, -0.2),
        (stroke([(-0.5, 0.0), (0.5, 0.0)], 0.1), 0.9, 0.3, -0.4),  # from the end: a 3-4-5 triangle
        (polygon([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]), 0.0, 0.3, 0.2),
        (polygon([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]), -0.9, 0.8, -0.5),
        (union(disc(-0.5, 0.0, 0.2), disc(0.5, 0.0, 0.3)), 0.4, 0.0, 0.2),
        (minus(disc(0.0, 0.0, 0.8), disc(0.0, 0.0, 0.3)), 0.2, 0.0, -0.1),
    ],
)
def test_distances_by_hand(field, x, y, distance):
    assert at(field, x, y) == pytest.approx(distance, abs=0.01)


def test_points_are_counted_clockwise_from_the_top():
    assert point_at(0.0, 0.5) == pytest.approx((0.0, -0.5))
    assert point_at(math.pi / 2, 0.5, 0.1, 0.2) == pytest.approx((0.6, 0.2))
    assert arc(0.0, 0.0, 1.0, 0.25, 0.5)[-1] == pytest.approx((0.0, 1.0))


def test_a_square_is_a_regular_polygon():
    diamond = polygon([point_at(i * math.pi / 2, 0.8) for i in range(4)])
    torch.testing.assert_close(regular_polygon(4, 0.8), diamond)


def test_a_star_has_as_many_rays_as_it_says():
    star = regular_polygon(5, 0.9, inner_radius=0.4)
    circle = [point_at(2 * math.pi * i / 200, 0.7) for i in range(200)]
    inside = torch.tensor([at(star, x, y) > 0 for x, y in circle])
    assert (inside != inside.roll(1)).sum() == 10, "a circle through the rays enters and leaves each of them"


def test_the_inside_of_a_polygon_agrees_with_half_planes():
    corners = [(-0.6, -0.4), (0.7, -0.5), (0.1, 0.8)]
    inside = torch.ones_like(X, dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        inside &= (x1 - x0) * (Y - y0) - (y1 - y0) * (X - x0) > 0
    assert torch.equal(polygon(corners) > 0, inside)


@pytest.mark.parametrize("family", FIGURES)
def test_classes_are_distinct_and_inside_the_drawing(family):
    fields = FIGURES[family]
    assert len(fields) == len(FAMILIES[family].classes)
    assert torch.isfinite(fields).all()
    drawn = fields > 0
    for i in range(len(drawn)):
        assert 0.03 < drawn[i].float().mean() < 0.7
        for j in range(i):
            different = (drawn[i] ^ drawn[j]).float().mean()
            assert different > 0.008, f"{FAMILIES[family].classes[i]} looks like {FAMILIES[family].classes[j]}"
    border = torch.cat([fields[:, 0], fields[:, -1], fields[:, :, 0], fields[:, :, -1]], dim=1)
    assert (border < 0).all(), "a figure that touches the border would be smeared beyond it"


def test_glyphs_stay_on_their_lattice():
    points = [point for strokes in [*DIGITS.values(), *LETTERS.values()] for point in strokes.replace("|", "").split()]
    assert {len(point) for point in points} == {2}
    assert {point[0] for point in points} == set("01234")
    assert {point[1] for point in points} == set("0123456")
    assert tuple(DIGITS) == FAMILIES["digit"].classes
    assert tuple(LETTERS) == FAMILIES["letter"].classes


def test_arrows_point_where_they_say():
    for name, (x, y) in {"up": (0.0, -1.0), "right": (1.0, 0.0), "down": (0.0, 1.0), "left": (-1.0, 0.0)}.items():
        field = FIGURES["arrow"][FAMILIES["arrow"].classes.index(name)]
        # beside the shaft there is ink only at the head
        head, tail = (0.4 * x + 0.4 * y, 0.4 * y + 0.4 * x), (-0.4 * x + 0.4 * y, -0.4 * y + 0.4 * x)
        assert at(field, *head) > 0
        assert at(field, *tail) < 0


def test_clocks_point_at_eighths_of_a_turn():
    two, six = (FIGURES["clock"][FAMILIES["clock"].classes.index(name)] for name in ("two", "six"))
    assert at(two, 0.4, 0.0) > 0 > at(two, -0.4, 0.0)
    assert at(six, -0.4, 0.0) > 0 > at(six, 0.4, 0.0)


def test_dice_show_their_number_of_holes():
    for number, field in enumerate(FIGURES["dice"], start=1):
        holes = [at(field, x, y) < 0 for x in (-0.55, 0.0, 0.55) for y in (-0.55, 0.0, 0.55)]
        assert sum(holes) == number
