"""Pickled batches, as CIFAR-10 has them."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raymerge.data.cifar10 import BATCHES, CLASSES, FOLDER
from raymerge.rehearsal.raw import Drawn


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for split, drawn in splits.items():
        names = BATCHES[split]
        for number, (name, chosen) in enumerate(zip(names, np.array_split(range(len(drawn)), len(names)), strict=True)):
            _write(
                folder / name,
                {
                    "batch_label": f"{split} batch {number + 1} of {len(names)}",
                    "labels": [drawn[i][1] for i in chosen],
                    "data": _planes([drawn[i] for i in chosen]),
                    "filenames": [f"{CLASSES[drawn[i][1]]}_s_{i:06}.png" for i in chosen],
                },
            )
    _write(folder / "batches.meta", {"num_cases_per_batch": 10_000, "label_names": list(CLASSES), "num_vis": 3072})


def _planes(drawn: Sequence[Drawn]) -> np.ndarray:
    """Images as rows of 3072 bytes: the red plane, then the green, then the blue one."""
    pixels = [np.asarray(image.convert("RGB").resize((32, 32))).transpose(2, 0, 1).ravel() for image, _ in drawn]
    return np.stack(pixels) if pixels else np.empty((0, 3072), np.uint8)


def _write(path: Path, content: Mapping[str, object]) -> None:
    """A pickle that every Python reads."""
    path.write_bytes(pickle.dumps(content, protocol=2))
