"""PCAM: patches of lymph nodes with or without tumour tissue (Veeling et al. 2018)."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymerge.data._dataset import ByHand, Dataset, HuggingFace, Layout, RawSplit, Samples
from raymerge.data._readers import parquet_split
from raymerge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = ("lymph node", "lymph node containing metastatic tumor tissue")
REPO = "1aurent/PatchCamelyon"
FOLDER = "PCAM/pcam"
CHUNK_CACHE_BYTES = 64 * 2**20  # a chunk is decompressed once for all of its images, which are read in order


def read_files(root: Path, split: RawSplit) -> Samples:
    stem = f"{root / FOLDER}/camelyonpatch_level_2_split_{split}"
    path, labelled = Path(f"{stem}_x.h5"), Path(f"{stem}_y.h5")
    shape = _array(path, "x", os.getpid()).shape
    if len(shape) != 4 or shape[1:] != (96, 96, 3):
        raise DataError(f"{path}: 'x' is {shape}, expected (images, 96, 96, 3); get the file again.")
    labels = _labels(labelled)
    if len(labels) != shape[0]:
        raise DataError(f"{path}: {shape[0]} images but {len(labels)} labels in {labelled.name}; get both again.")
    images = _Patches(path)
    return Samples(labels, images, images.name)


def _labels(path: Path) -> list[int]:
    try:
        labels = np.asarray(_array(path, "y", os.getpid())[:, 0, 0, 0]).astype(np.int64)
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"{path}: 'y' cannot be read as (images, 1, 1, 1) ({error}); get the file again.") from None
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"{path}: has labels from {labels.min()} to {labels.max()}, not 0 and 1; get the file again.")
    return labels.tolist()


@dataclass(frozen=True)
class _Patches:
    """Images of one file, which every process opens for itself: an open HDF5 file can be neither pickled nor forked."""

    path: Path

    def __call__(self, number: int) -> "Image":
        from PIL import Image

        try:
            return Image.fromarray(np.asarray(_array(self.path, "x", os.getpid())[number]))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.name(number)}: cannot be read ({error}); get the file again.") from None

    def name(self, number: int) -> str:
        return f"{self.path}[{number}]"


@lru_cache(maxsize=4)
def _array(path: Path, name: str, process: int) -> Any:
    """An array on the disk, opened once by each process."""
    import h5py

    try:
        return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)[name]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; get the dataset again.") from None
    except (OSError, KeyError) as error:
        raise DataError(
            f"{path}: not an HDF5 file with '{name}' ({error}); unpack it if it is compressed, or get it again."
        ) from None


def read_parquet(root: Path, split: RawSplit) -> Samples:
    return parquet_split(root, REPO, split, class_names=CLASSES)  # labels are False and True


DATASET = Dataset(
    name="PCAM",
    classes=CLASSES,
    templates=("this is a photo of {}",),
    num_train=262_144,
    num_test=32_768,
    val_sha256="a015500f04b60b72",
    layouts=(
        Layout(
            "reference",
            needs=tuple(
                f"{FOLDER}/camelyonpatch_level_2_split_{part}.h5" for part in ("train_x", "train_y", "test_x", "test_y")
            ),
            read=read_files,
        ),
        Layout("huggingface", needs=(f"huggingface/{REPO}",), read=read_parquet),
    ),
    sources=(
        HuggingFace(REPO),
        ByHand(
            "Download camelyonpatch_level_2_split_{train,test}_{x,y}.h5.gz from https://zenodo.org/records/2546921 "
            "into PCAM/pcam/ under the data root, and unpack the four files with gunzip (8 GB)."
        ),
    ),
    note="The official validation split is not used; whether the copy on Hugging Face keeps the order is not known.",
)
