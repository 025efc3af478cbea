"""Labels to images: place an object, colour it, paint it on its ground, photograph it.

Whole batches are drawn at once. Randomness comes from the generator alone: equal arguments, equal bits.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from raymerge.suites.demo.concepts import COLOURS, FLAGS
from raymerge.suites.demo.draws import Draws
from raymerge.suites.demo.masks import Labels, Pose, X, Y, draw_mask, draw_pose, fill
from raymerge.suites.demo.recipe import IMAGE_SIZE, MEAN, STD
from raymerge.suites.demo.styles import WEB, Style

Pixels = Float[Tensor, "images 3 height width"]

COLOUR_VALUES = torch.tensor(list(COLOURS.values()))
_STRIPES = torch.tensor([[list(COLOURS).index(c) for c in colours] for _, colours in FLAGS.values()])
_IS_HORIZONTAL = torch.tensor([direction == "horizontal" for direction, _ in FLAGS.values()])


class Rendered(NamedTuple):
    images: Pixels
    """Red, green and blue, 0..1."""
    object_colours: Labels
    ground_colours: Labels
    """Indices into `COLOURS`. A flag has the colours of its stripes instead."""


def render(family: str, labels: Labels, generator: Generator, style: Style = WEB) -> Rendered:
    """One image per label, a label being the index of a class in its family."""
    draws = Draws(len(labels), generator)
    objects, grounds = _colours(family, labels, draws, style)
    pose = draw_pose(family, labels, draws, style)
    mask = draw_mask(family, labels, pose, draws, style)[:, None]
    paint, ground = _paints(objects, grounds, draws, style)
    if family == "flag":
        paint = _stripes(labels, pose)
    ground = _with_clutter(_with_texture(ground, draws, style), draws, style)
    return Rendered(_photograph(ground + (paint - ground) * mask, draws, style), objects, grounds)


def normalise(images: Pixels) -> Pixels:
    """Pixels 0..1 as the image tower wants them."""
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _colours(family: str, labels: Labels, draws: Draws, style: Style) -> tuple[Labels, Labels]:
    """Two different colours: the object's, the ground's."""
    objects, apart = draws.integers(len(COLOURS)), draws.integers(len(COLOURS) - 1) + 1
    if family == "background":
        return (labels + apart) % len(COLOURS), labels
    if family == "colour":
        return labels, (labels + apart) % len(COLOURS)
    grounds = (objects + apart) % len(COLOURS)
    if style.any_polarity:
        return objects, grounds
    lightness = COLOUR_VALUES.sum(dim=1)
    darker = lightness[objects] < lightness[grounds]
    return torch.where(darker, grounds, objects), torch.where(darker, objects, grounds)


def _paints(objects: Labels, grounds: Labels, draws: Draws, style: Style) -> tuple[Pixels, Pixels]:
    """Uniform areas of the two colours, each a little off its nominal value, through the style's palette."""
    paint = COLOUR_VALUES[objects] + 0.06 * draws.normal(3)
    ground = COLOUR_VALUES[grounds] + 0.06 * draws.normal(3)
    if style.palette == "white-on-black":
        paint, ground = torch.full_like(paint, 0.95), torch.full_like(ground, 0.05)
    elif style.palette == "grey":
        grey = draws.uniform(0.0, 1.0)[:, 0]
        other = (grey + draws.uniform(0.35, 0.65)[:, 0]) % 1.0
        paint, ground = grey.expand_as(paint), other.expand_as(ground)
    elif style.palette == "low-contrast":
        paint = ground + 0.45 * (paint - ground)
    area = (IMAGE_SIZE, IMAGE_SIZE)
    return paint[:, :, None, None].expand(-1, -1, *area), ground[:, :, None, None].expand(-1, -1, *area)


def _stripes(labels: Labels, pose: Pose) -> Pixels:
    u, v = pose.object_coordinates()
    across = torch.where(_IS_HORIZONTAL[labels][:, None, None], v / 0.75, u)
    stripe = (across > -1 / 3).long() + (across > 1 / 3).long()
    colours = torch.gather(_STRIPES[labels], 1, stripe.flatten(1))
    return COLOUR_VALUES[colours].view(*stripe.shape, 3).permute(0, 3, 1, 2)


def _with_texture(ground: Pixels, draws: Draws, style: Style) -> Pixels:
    """Smooth random colour, four control points per side."""
    texture = F.interpolate(draws.normal(3, 4, 4), size=IMAGE_SIZE, mode="bilinear")
    return ground + texture * draws.within(style.texture)[..., None]


def _with_clutter(ground: Pixels, draws: Draws, style: Style) -> Pixels:
    """Strokes of random colours."""
    for _ in range(style.clutter):
        dx, dy = X - draws.uniform(-1.0, 1.0), Y - draws.uniform(-1.0, 1.0)
        angle = draws.uniform(0.0, math.pi)
        half_width, half_length = draws.uniform(0.04, 0.09), draws.uniform(0.2, 0.5)
        along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        mask = fill(torch.minimum(half_width - across.abs(), half_length - along.abs()))[:, None]
        colour = COLOUR_VALUES[draws.integers(len(COLOURS))][:, :, None, None]
        ground = ground + (colour - ground) * mask
    return ground


def _photograph(scene: Pixels, draws: Draws, style: Style) -> Pixels:
    if style.invert:
        scene = 1 - scene
    if style.blur:
        padded = F.pad(scene, (style.blur,) * 4, mode="reflect")
        scene = F.avg_pool2d(padded, kernel_size=2 * style.blur + 1, stride=1)
    contrast, light, noise = (draws.within(r)[..., None] for r in (style.contrast, style.light, style.noise))
    scene = ((scene - 0.5) * contrast + 0.5) * light
    return (scene + noise * draws.normal(*scene.shape[1:])).clamp(0.0, 1.0)
