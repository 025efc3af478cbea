"""Writers of every dataset's raw format, one file per dataset, named like the file in `raymerge/data` that reads it.

Each has `write(root, splits)`, and writes the reference layout under the data root.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

Drawn = tuple["Image", int]
"""An RGB image of any size, and its label in the order of `Dataset.classes`."""


def write_raw(module: str, root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    """Write a dataset as its raw files.

    Args:
        module: the name of its file in `raymerge/data`, such as "mnist".
        splits: images of "train" and "test", and of "val" where the dataset has files of its own for it. Order within
            a class is kept; where the raw format groups images by class, they are grouped.
    """
    importlib.import_module(f"{__name__}.{module}").write(root, splits)
