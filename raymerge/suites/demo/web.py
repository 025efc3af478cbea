"""The pre-training stream: images in the web style, and a bank of captions which fit them more or less."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from raymerge.suites.demo.concepts import CONCEPTS, FAMILIES, TEMPLATES, caption
from raymerge.suites.demo.world import normalise, render

COLOUR_RELEVANCE = 0.25
"""Of the captions that name the object's and the ground's colour, where the caption of the image's own class has 1."""

_FIRST = {family: CONCEPTS.index((family, FAMILIES[family].classes[0])) for family in FAMILIES}
"""Where a family begins in the bank."""
_FREQUENCY = torch.tensor([len(family.classes) for family in FAMILIES.values()]).sqrt()
"""Between equally many images per family and equally many per class."""


class WebBatch(NamedTuple):
    images: Float[Tensor, "images 3 height width"]
    """Normalised."""
    captions: list[str]
    """One for every concept there is, whether shown or not."""
    relevance: Float[Tensor, "images captions"]


def web_batch(num_images: int, generator: Generator) -> WebBatch:
    """Fresh images of randomly chosen concepts. Naming every concept makes negatives plenty in small batches."""
    drawn = torch.multinomial(_FREQUENCY, num_images, replacement=True, generator=generator)
    images, relevance = [], []
    for family, count in zip(FAMILIES, torch.bincount(drawn, minlength=len(FAMILIES)).tolist(), strict=True):
        if count:
            family_images, family_relevance = _of_family(family, count, generator)
            images.append(family_images)
            relevance.append(family_relevance)
    templates = torch.randint(len(TEMPLATES), (len(CONCEPTS),), generator=generator).tolist()
    captions = [caption(*concept, TEMPLATES[t]) for concept, t in zip(CONCEPTS, templates, strict=True)]
    return WebBatch(normalise(torch.cat(images)), captions, torch.cat(relevance))


def _of_family(
    family: str, count: int, generator: Generator
) -> tuple[Float[Tensor, "images 3 height width"], Float[Tensor, "images captions"]]:
    labels = torch.randint(len(FAMILIES[family].classes), (count,), generator=generator)
    rendered = render(family, labels, generator)
    relevance, row = torch.zeros(count, len(CONCEPTS)), torch.arange(count)
    if family not in ("flag", "pattern"):  # which have several colours, or no object
        relevance[row, _FIRST["colour"] + rendered.object_colours] = COLOUR_RELEVANCE
        relevance[row, _FIRST["background"] + rendered.ground_colours] = COLOUR_RELEVANCE
    relevance[row, _FIRST[family] + labels] = 1.0
    return rendered.images, relevance
