"""IDX files, as EMNIST has them: each image is stored column by column, so that it comes out transposed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raymerge.data.emnist import REFERENCE
from raymerge.rehearsal.raw import Drawn
from raymerge.rehearsal.raw.mnist import write_idx_pair

if TYPE_CHECKING:
    from PIL.Image import Image


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    for split, drawn in splits.items():
        write_idx_pair(root / REFERENCE, f"emnist-digits-{split}", [(_transposed(image), n) for image, n in drawn])


def write_letters(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    """The same of the letters, whose labels count from 1 in the files."""
    for split, drawn in splits.items():
        write_idx_pair(root / REFERENCE, f"emnist-letters-{split}", [(_transposed(image), n + 1) for image, n in drawn])


def _transposed(image: "Image") -> "Image":
    from PIL.Image import Transpose

    return image.transpose(Transpose.TRANSPOSE)
