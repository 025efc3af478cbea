"""IDX files, as Kuzushiji-MNIST has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from raymerge.data.kmnist import FILES
from raymerge.rehearsal.raw import Drawn
from raymerge.rehearsal.raw.mnist import write_idx_pair


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    for split, drawn in splits.items():
        write_idx_pair(root / "KMNIST" / "KMNIST" / "raw", FILES[split], drawn)
