"""IDX files, as Fashion-MNIST has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.fashion_mnist import FILES
from raymerge.rehearsal.raw import Drawn
from raymerge.rehearsal.raw.mnist import write_idx_pair


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    for split, drawn in splits.items():
        write_idx_pair(root / "FashionMNIST" / "FashionMNIST" / "raw", FILES[split], drawn)
