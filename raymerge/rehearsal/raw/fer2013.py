"""The pickles of FER2013 on Hugging Face: a list of encoded grey images and names of labels, class by class."""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raymerge.data.fer2013 import FOLDERS, REPO, SIDE
from raymerge.rehearsal.raw import Drawn

if TYPE_CHECKING:
    from PIL.Image import Image


def write(root: Path, splits: Mapping[str, Sequence[Drawn]]) -> None:
    folder = root / "huggingface" / REPO
    folder.mkdir(parents=True, exist_ok=True)
    for split, drawn in splits.items():
        grouped = sorted(drawn, key=lambda one: one[1])
        rows = [{"img_bytes": _jpeg(image), "labels": FOLDERS[label]} for image, label in grouped]
        (folder / f"{split}.pt").write_bytes(pickle.dumps(rows))


def _jpeg(image: "Image") -> bytes:
    content = io.BytesIO()
    image.convert("L").resize((SIDE, SIDE)).save(content, "JPEG", quality=95)
    return content.getvalue()
