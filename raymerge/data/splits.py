"""The validation split: which training images are held out."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raymerge.data._dataset import Dataset, Layout, Samples
from raymerge.records import Split

MAX_VAL = 5000


def drawn_indices(num_train: int) -> tuple[list[int], list[int]]:
    """Numbers of the training images that stay, and of those held out for validation, both in the published order.

    As the published code draws them: torch's `random_split` with a generator seeded with 0 takes the last tenth, at
    most 5000, of one random permutation.
    """
    import torch

    order = torch.randperm(num_train, generator=torch.Generator().manual_seed(0)).tolist()
    num_val = min(num_train // 10, MAX_VAL)
    return order[: num_train - num_val], order[num_train - num_val :]


def index_hash(indices: Sequence[int]) -> str:
    """First 16 hex digits of the SHA-256 of the indices in order, each a little-endian int64."""
    return hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()[:16]


def read_split(dataset: Dataset, root: Path, split: Split | str, layout: Layout | None = None) -> Samples:
    """One split as raymerge uses it: "train" without the images held out, "val", or "test".

    Args:
        root: the data root, which all datasets share.
        layout: how the dataset lies there; None: found by looking.
    Raises:
        DataError: the dataset is not there, or its files are damaged.
    """
    layout = layout or dataset.find_layout(root)
    if split == "test" or dataset.num_own_val is not None:
        return layout.read(root, split)  # type: ignore[arg-type]
    samples = layout.read(root, "train")
    train, val = drawn_indices(len(samples))
    return samples.subset(val if split == "val" else train)
