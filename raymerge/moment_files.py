"""Files of input moments: one safetensors file per backbone and task, with where its values come from.

    <folder>/<backbone>/<task>.safetensors

docs/statistics.md describes the format.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from raymerge import __version__
from raymerge.checkpoints import PREFIX, Checkpoint, save_safetensors
from raymerge.errors import CheckpointError
from raymerge.records import Split

FORMAT = "1"
SPLIT: Split = "val"
"""Experts are described by the images that alpha is chosen on, so that the test split stays unseen."""
IMAGE_TOWER = PREFIX + "visual."


@dataclass(frozen=True)
class Origin:
    """What the moments of one file were collected from."""

    suite: str
    profile: str
    seed: int
    backbone: str
    task: str
    images: int
    """How many, from the first on."""
    images_sha256: str
    """Of the file that holds them."""
    expert_sha256: str
    """Of the expert's checkpoint file."""


def image_matrices(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    """The matrices of a checkpoint that every image passes through, with their shapes."""
    return {n: (s[0], s[1]) for n, s in shapes.items() if n.startswith(IMAGE_TOWER) and len(s) == 2}


def write_moments(
    path: Path, moments: Mapping[str, Float[Tensor, "rows cols"]], kinds: Mapping[str, str], origin: Origin
) -> None:
    """Write the moments of one expert.

    Args:
        moments: (1, cols) or (rows, 1), by the checkpoint's key of the matrix.
        kinds: what kind of input each matrix has, by the same keys.
    """
    metadata = {
        "format": FORMAT,
        "raymerge_version": __version__,
        "split": SPLIT,
        "kinds": json.dumps(dict(sorted(kinds.items()))),
        **{name: str(value) for name, value in asdict(origin).items()},
    }
    save_safetensors(path, moments, metadata)


def check_moments(
    path: Path,
    *,
    expert_sha256: str | None,
    shapes: Mapping[str, Sequence[int]],
    command: str = "raymerge stats --suite SUITE",
) -> Checkpoint:
    """Check a file of moments against the expert it is to be used with. Returns it, open.

    Args:
        expert_sha256: of the expert's checkpoint file; None where it is no file, and cannot be compared.
        shapes: of every tensor of the expert.
        command: what collects the file, for messages.
    Raises:
        CheckpointError: missing, truncated, collected from another expert or for another backbone, or no moments.
    """
    again = f"Collect it again with: {command}"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of input moments. Collect it with: {command}")
    try:
        moments = Checkpoint(path)
    except CheckpointError:
        raise CheckpointError(f"{path}: truncated or not a file of input moments. {again}") from None
    metadata = moments.metadata()
    kinds = _kinds(metadata)
    if metadata.get("format") != FORMAT or kinds is None:
        raise CheckpointError(
            f"{path}: not a file of input moments of format {FORMAT} (its format is {metadata.get('format')}). {again}"
        )
    if expert_sha256 is not None and metadata.get("expert_sha256") != expert_sha256:
        raise CheckpointError(
            f"{path}: collected from another expert (SHA-256 {str(metadata.get('expert_sha256'))[:12]}, this one has "
            f"{expert_sha256[:12]}). {again}"
        )
    wanted = image_matrices(shapes)
    missing = sorted(wanted.keys() - (moments.shapes.keys() & kinds.keys()))
    extra = sorted((moments.shapes.keys() | kinds.keys()) - wanted.keys())
    if missing or extra:
        what = f"lacks '{missing[0]}'" if missing else f"has '{extra[0]}', which is no image matrix of the expert"
        raise CheckpointError(f"{path}: {what} ({len(missing)} keys missing, {len(extra)} unexpected). {again}")
    for name, found in moments.shapes.items():
        rows, cols = wanted[name]
        if found not in ((1, cols), (rows, 1)):
            raise CheckpointError(
                f"{path}: '{name}' is {found}, expected (1, {cols}) or ({rows}, 1) for a matrix ({rows}, {cols}). "
                f"{again}"
            )
        values = moments.tensor(name)
        if not (torch.isfinite(values).all() and (values >= 0).all()):
            raise CheckpointError(f"{path}: '{name}' has NaN, infinite or negative values. {again}")
    return moments


def mean_moments(moments: Checkpoint) -> dict[str, float]:
    """The mean of all moments of a kind, by kind."""
    values: dict[str, list[Tensor]] = {}
    for name, kind in (_kinds(moments.metadata()) or {}).items():
        values.setdefault(kind, []).append(moments.tensor(name).flatten().double())
    return {kind: float(torch.cat(found).mean()) for kind, found in values.items()}


def _kinds(metadata: Mapping[str, str]) -> dict[str, str] | None:
    """The kind of input by key; None where the file does not say."""
    try:
        kinds = json.loads(metadata["kinds"])
    except (KeyError, ValueError):
        return None
    return kinds if isinstance(kinds, dict) else None
