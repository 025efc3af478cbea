"""The pickles of CIFAR-100: a row of bytes per image, with a fine and a coarse label each."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raymerge.data.cifar100 import CLASSES
from raymerge.rehearsal.raw import Drawn


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for split, drawn in splits.items():
        images = np.stack([np.asarray(image.resize((32, 32))) for image, _ in drawn])
        batch = {
            "filenames": [f"{CLASSES[label]}_{number:06d}.png" for number, (_, label) in enumerate(drawn)],
            "batch_label": f"{split}ing batch 1 of 1",
            "fine_labels": [label for _, label in drawn],
            "coarse_labels": [label // 5 for _, label in drawn],
            "data": images.transpose(0, 3, 1, 2).reshape(len(drawn), -1),
        }
        _write(folder / split, batch)
    _write(
        folder / "meta", {"fine_label_names": list(CLASSES), "coarse_label_names": [f"coarse_{i}" for i in range(20)]}
    )


def _write(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))
