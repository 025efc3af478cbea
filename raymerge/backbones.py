"""Image encoders by backbone name, with the activation the checkpoints were trained with."""

from collections.abc import Mapping, Sequence

from torch import nn

from raymerge.errors import SuiteError
from raymerge.suites.demo import clip as demo_clip
from raymerge.suites.demo.recipe import BACKBONE as DEMO_BACKBONE


def build_image_encoder(backbone: str, shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """An encoder whose parameters are named as in the checkpoint after `model.`; its values are still random.

    Args:
        shapes: of every tensor of a checkpoint of this backbone.
    Raises:
        SuiteError: no such backbone.
        CheckpointError: the shapes are of another backbone.
    """
    if backbone == DEMO_BACKBONE:
        return demo_clip.build_image_encoder(shapes)
    raise SuiteError(f"unknown backbone '{backbone}'. Known: {DEMO_BACKBONE}.")
