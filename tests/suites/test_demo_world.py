"""Rendering: what a label looks like, and what a style does to it."""

from dataclasses import replace

import pytest
import torch
from torch import Generator

from raymerge.suites.demo.concepts import COLOURS, CONCEPTS, FAMILIES, FLAGS
from raymerge.suites.demo.recipe import TASKS, make_recipe
from raymerge.suites.demo.splits import task_split, to_pixels
from raymerge.suites.demo.styles import WEB, Style
from raymerge.suites.demo.web import COLOUR_RELEVANCE, web_batch
from raymerge.suites.demo.world import COLOUR_VALUES, normalise, render

PLAIN = Style(
    jitter=0.0,
    scale=(0.8, 0.8),
    rotation=0.0,
    texture=(0.0, 0.0),
    contrast=(1.0, 1.0),
    light=(1.0, 1.0),
    noise=(0.0, 0.0),
)
"""Nothing random but colours and, in some families, form."""


def draw(family, labels, style=PLAIN, seed=0):
    return render(family, torch.tensor(labels), Generator().manual_seed(seed), style)


def mask_of(images):
    """What differs from the top left pixel, which in a plain image is the ground."""
    return (images - images[:, :, :1, :1]).abs().amax(dim=1) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("style", [WEB, Style(any_polarity=True, palette="grey", clutter=2, invert=True, blur=1)])
def test_equal_generators_give_equal_bits(family, style):
    labels = list(range(len(FAMILIES[family].classes)))
    first, second = draw(family, labels, style), draw(family, labels, style)
    other = draw(family, labels, style, seed=1)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (len(labels), 3, 32, 32)
    assert first.images.min() >= 0
    assert first.images.max() <= 1


def test_objects_and_grounds_have_the_colours_they_say():
    for family, corner, centre in (("colour", "ground_colours", "labels"), ("background", "labels", "object_colours")):
        labels = torch.arange(10).repeat(20)
        rendered = draw(family, labels.tolist())
        named = {"labels": labels, **rendered._asdict()}
        solid = torch.isin(rendered.object_colours, torch.arange(10))
        nominal = COLOUR_VALUES[named[corner]]
        # each paint is up to a few times 0.06 off its nominal value
        assert (rendered.images[:, :, 0, 0] - nominal).abs().mean() < 0.06
        assert (rendered.images[solid, :, 0, 0] - nominal[solid]).abs().max() < 0.3
        middle = rendered.images[:, :, 16, 16]
        off = (middle - COLOUR_VALUES[named[centre]]).abs().amax(dim=1)
        assert (off < 0.25).float().mean() > 0.75, "all but rings and crescents have ink in the middle"


def test_the_object_is_the_lighter_one_unless_told():
    labels = [0] * 200
    lightness = COLOUR_VALUES.sum(dim=1)
    web, any_polarity = draw("shape", labels), draw("shape", labels, replace(PLAIN, any_polarity=True))
    assert (lightness[web.object_colours] >= lightness[web.ground_colours]).all()
    darker = lightness[any_polarity.object_colours] < lightness[any_polarity.ground_colours]
    assert 0.3 < darker.float().mean() < 0.7
    for rendered in (web, any_polarity):
        assert (rendered.object_colours != rendered.ground_colours).all()


def test_positions_lie_row_by_row():
    for seed in range(3):
        rendered = draw("position", list(range(9)), replace(PLAIN, palette="white-on-black"), seed)
        ink = rendered.images.mean(dim=1) > 0.5
        for label in range(9):
            rows, columns = ink[label].nonzero(as_tuple=True)
            centre = (torch.stack([rows, columns]).float().mean(dim=1) + 0.5) / 32 * 2 - 1
            expected = torch.tensor([label // 3 - 1, label % 3 - 1]) * 0.6
            torch.testing.assert_close(centre, expected, atol=0.05, rtol=0.0)


def test_the_number_of_spots_is_the_class():
    rendered = draw("count", list(range(6)) * 5, replace(PLAIN, palette="white-on-black"))
    for image, label in zip(rendered.images, list(range(6)) * 5, strict=True):
        assert _islands(image.mean(dim=0) > 0.5) == label + 1


def _islands(ink):
    """Number of connected areas, by repeatedly flooding one."""
    ink, count = ink.clone(), 0
    while ink.any():
        flood = torch.zeros_like(ink)
        flood[tuple(ink.nonzero()[0])] = True
        while True:
            grown = torch.nn.functional.max_pool2d(flood[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
            grown &= ink
            if torch.equal(grown, flood):
                break
            flood = grown
        ink &= ~flood
        count += 1
    return count


def test_blobs_grow_with_their_class():
    areas = (draw("size", [0, 1, 2, 3] * 10, replace(PLAIN, palette="white-on-black")).images.mean(dim=1) > 0.5).sum(
        dim=(1, 2)
    )
    areas = areas.view(10, 4)
    assert (areas[:, :-1] < areas[:, 1:]).all()


def test_flags_have_their_stripes():
    names = list(FLAGS)
    images = draw("flag", list(range(len(names)))).images
    for image, (direction, colours) in zip(images, FLAGS.values(), strict=True):
        for i, colour in enumerate(colours):
            offset = round((i - 1) * 0.8 * (0.5 if direction == "horizontal" else 2 / 3) * 16)
            row, column = (16 + offset, 16) if direction == "horizontal" else (16, 16 + offset)
            torch.testing.assert_close(image[:, row, column], torch.tensor(COLOURS[colour]), atol=1e-6, rtol=0.0)


def test_pattern_grain_follows_the_frequency():
    for frequency in (3.0, 6.0):
        style = replace(PLAIN, palette="white-on-black", frequency=(frequency, frequency))
        column = draw("pattern", [0] * 20, style).images[:, 0, :, 16] > 0.5
        edges = (column[:, 1:] != column[:, :-1]).sum(dim=1).float()
        assert (edges - 2 * frequency).abs().max() <= 1, "two edges per period"


def test_all_classes_of_a_pattern_differ():
    style = replace(PLAIN, palette="white-on-black", frequency=(4.0, 4.0))
    images = (draw("pattern", list(range(10)), style).images.mean(dim=1) > 0.5).flatten(1)
    assert len({tuple(image.tolist()) for image in images}) == 10
    horizontal, vertical = draw("pattern", [0, 1], style).images
    assert horizontal.std(dim=2).max() < 1e-5 < horizontal.std(dim=1).min()
    assert vertical.std(dim=1).max() < 1e-5 < vertical.std(dim=2).min()


def test_photographic_shifts_by_hand():
    def photograph(**shift):
        # black and white, so that no paint is brighter than 1 and cut off
        return draw("shape", [0], replace(PLAIN, palette="white-on-black", **shift)).images

    plain = photograph()
    torch.testing.assert_close(photograph(invert=True), 1 - plain)
    torch.testing.assert_close(photograph(light=(0.5, 0.5)), 0.5 * plain)
    torch.testing.assert_close(photograph(contrast=(0.5, 0.5)), 0.25 + 0.5 * plain)
    torch.testing.assert_close(photograph(blur=1)[0, :, 16, 9], plain[0, :, 15:18, 8:11].mean(dim=(1, 2)))
    quiet = photograph(light=(0.5, 0.5), contrast=(0.5, 0.5))
    noise = photograph(light=(0.5, 0.5), contrast=(0.5, 0.5), noise=(0.02, 0.02)) - quiet
    assert noise.std().item() == pytest.approx(0.02, rel=0.1)


def test_palettes():
    outlined = draw("shape", [0], replace(PLAIN, outline=True, palette="white-on-black")).images
    filled = draw("shape", [0], replace(PLAIN, palette="white-on-black")).images
    assert filled[0, :, 16, 16].tolist() == pytest.approx([0.95] * 3)
    assert filled[0, :, 0, 0].tolist() == pytest.approx([0.05] * 3)
    assert outlined[0, :, 16, 16].tolist() == pytest.approx([0.05] * 3), "an outline is hollow"
    grey = draw("shape", [0] * 50, replace(PLAIN, palette="grey")).images
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    assert ((grey[:, 0, 0, 0] - grey[:, 0, 16, 16]).abs() > 0.3).all()


def test_splits_are_balanced_repeatable_and_different():
    recipe = replace(make_recipe("reduced"), val_images=60, test_images=60, train_images=60)
    for task in TASKS[:3]:
        splits = {split: task_split(recipe, task, split) for split in ("train", "val", "test")}
        for split, (images, labels) in splits.items():
            assert images.shape == (60, 32, 32, 3)
            counts = torch.bincount(labels, minlength=len(task.classes))
            assert counts.max() - counts.min() <= 1
            again = task_split(recipe, task, split)
            assert torch.equal(images, again[0])
            assert torch.equal(labels, again[1])
        pooled = torch.cat([images for images, _ in splits.values()]).flatten(1)
        assert len(torch.unique(pooled, dim=0)) == 180, "an image of one split must not be in another"
        seeded = task_split(replace(recipe, seed=1), task, "val")[0]
        assert not torch.equal(seeded, splits["val"][0])


def test_labels_of_a_part_of_a_family_start_at_zero():
    recipe = replace(make_recipe("reduced"), val_images=20)
    task = next(task for task in TASKS if task.name == "LettersKT")
    images, labels = task_split(recipe, task, "val")
    clean = replace(task, style=replace(PLAIN, palette="white-on-black"))
    images, labels = task_split(recipe, clean, "val")
    letter_t = (to_pixels(images)[labels == 9].mean(dim=1) > 0.5).float().mean(dim=0)
    reference = (draw("letter", [19], clean.style).images.mean(dim=1) > 0.5).float()[0]
    assert torch.equal(letter_t, reference), "class 9 of K..T is the letter T"


def test_pixels_are_normalised():
    white = normalise(torch.ones(1, 3, 32, 32))
    torch.testing.assert_close(white, torch.full_like(white, 2.0))
    stored = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    stored[0, 3, 5, 1] = 255
    assert to_pixels(stored)[0, 1, 3, 5] == 1
    assert to_pixels(stored).sum() == 1


def test_web_captions_are_relevant_to_their_images():
    batch = web_batch(200, Generator().manual_seed(0))
    assert len(batch.captions) == len(CONCEPTS)
    assert batch.images.shape == (200, 3, 32, 32)
    assert set(batch.relevance.unique().tolist()) == {0.0, COLOUR_RELEVANCE, 1.0}
    for row in batch.relevance:
        families = [CONCEPTS[i][0] for i in row.nonzero()[:, 0].tolist()]
        main = [CONCEPTS[i][0] for i in (row == 1).nonzero()[:, 0].tolist()]
        assert len(main) == 1
        if main[0] in ("flag", "pattern"):
            assert families == main
        else:
            assert set(families) == {main[0], "colour", "background"}
    again = web_batch(200, Generator().manual_seed(0))
    assert torch.equal(batch.images, again.images)
    assert batch.captions == again.captions
