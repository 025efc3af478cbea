"""MATLAB files, as SVHN has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raymerge.rehearsal.raw import Drawn


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    import scipy.io

    folder = root / "svhn"
    folder.mkdir(parents=True, exist_ok=True)
    for split, drawn in splits.items():
        pixels = np.stack([np.asarray(image.resize((32, 32))) for image, _ in drawn], axis=-1)
        digits = np.array([[label or 10] for _, label in drawn], dtype=np.uint8)
        scipy.io.savemat(folder / f"{split}_32x32.mat", {"X": pixels, "y": digits}, do_compression=True)
