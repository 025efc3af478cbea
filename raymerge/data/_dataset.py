"""What a dataset file declares, and the samples its readers return. Imports no torch, so that plans stay quick."""

import fnmatch
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymerge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

RawSplit = Literal["train", "val", "test"]
"""A split as it lies on the disk. Only a dataset with a validation folder of its own is read with "val"."""


@dataclass(frozen=True)
class Samples:
    """Labelled images in a fixed order, decoded when asked for. Pickles, so that processes can share the decoding."""

    labels: Sequence[int]
    """Of every image, in order; counted from 0 as in `Dataset.classes`."""
    image: Callable[[int], "Image"]
    """Image number i: mode RGB, or L where the published loader leaves it grey. Raises DataError naming the file."""
    name: Callable[[int], str]
    """Where image number i is: a path, or `file[index]`."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int]) -> "Samples":
        """The samples with these numbers, in this order."""
        return Samples([self.labels[i] for i in indices], _chosen(self.image, indices), _chosen(self.name, indices))


def _chosen(function: Callable[[int], Any], indices: Sequence[int]) -> "_Chosen":
    if isinstance(function, _Chosen):
        return _Chosen(function.function, [function.indices[i] for i in indices])
    return _Chosen(function, indices)


@dataclass(frozen=True)
class _Chosen:
    function: Callable[[int], Any]
    indices: Sequence[int]

    def __call__(self, number: int) -> Any:
        return self.function(self.indices[number])

    def __reduce__(self) -> Any:
        """Another process receives what these images need, and not the whole split, where it can be taken apart."""
        taken = self.function.take(self.indices) if hasattr(self.function, "take") else None  # type: ignore[attr-defined]
        return (_Chosen, (self.function, self.indices)) if taken is None else (_itself, (taken,))


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset lies on the disk."""

    name: Literal["reference", "torchvision", "huggingface"]
    """Whose it is: the published code's, torchvision's own where it differs, or a Hugging Face repository's."""
    needs: tuple[str, ...]
    """Files or folders that have to exist, relative to the data root; `*` matches within one name."""
    read: Callable[[Path, RawSplit], Samples]
    """Reads a split under the data root. Raises DataError: a file is missing, damaged or of another content."""

    def missing(self, root: Path) -> list[str]:
        """Those of `needs` that are not there."""
        return [need for need in self.needs if not _exists(root, need)]


def _exists(root: Path, need: str) -> bool:
    folders = [root]
    for part in Path(need).parts:
        if "*" in part:
            listed = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
            folders = [entry for entry in listed if fnmatch.fnmatchcase(entry.name, part)]
        else:
            folders = [folder / part for folder in folders if (folder / part).exists()]
    return bool(folders)


@dataclass(frozen=True)
class Torchvision:
    """Download with a class of torchvision, where its address still works."""

    class_name: str
    root: str = "."
    """Relative to the data root, so that the files come to lie in a layout that is read."""
    arguments: tuple[tuple[tuple[str, object], ...], ...] = ()
    """Keyword arguments of every call, such as ((("train", True),), (("train", False),))."""


@dataclass(frozen=True)
class HuggingFace:
    """Download a dataset repository, to <data root>/huggingface/<owner>/<name>, or some of its files elsewhere."""

    repo: str
    patterns: tuple[str, ...] = ("*.parquet",)
    folder: str | None = None
    """Where the files go, relative to the data root; None: huggingface/<repo>."""


@dataclass(frozen=True)
class ByHand:
    """What a person has to do where no download works."""

    steps: str
    """What to get from where, and into which folder under the data root to put it."""


Source = Torchvision | HuggingFace | ByHand


@dataclass(frozen=True)
class Dataset:
    """One of the datasets, as the published work uses it."""

    name: str
    classes: tuple[str, ...]
    """As they stand in prompts, in the order of the labels."""
    templates: tuple[str, ...]
    """Prompts with one `{}` for the class."""
    num_train: int
    """Images of the training split before validation images are taken from it; 0: not known beforehand."""
    num_test: int
    layouts: tuple[Layout, ...]
    """In the order in which they are looked for."""
    sources: tuple[Source, ...]
    """How to get it, the best first."""
    folders: tuple[str, ...] = ()
    """Names of the classes as raw files spell them, in the order of the labels, where they differ from `classes`."""
    num_own_val: int | None = None
    """Size of a validation split with files of its own; None: validation images are drawn from the training split."""
    val_sha256: str | None = None
    """First 16 hex digits of the SHA-256 of the validation indices (see `splits.index_hash`)."""
    note: str = ""
    """What a user should know, in one sentence."""

    @property
    def num_val(self) -> int:
        """Size of the validation split: a tenth of the training split, at most 5000."""
        return min(self.num_train // 10, 5000) if self.num_own_val is None else self.num_own_val

    def find_layout(self, root: Path, fetch: str = "") -> Layout:
        """The first layout that lies under a data root.

        Args:
            fetch: the command that gets the dataset, where it is another than usual.
        Raises:
            DataError: none does; says what each one lacks.
        """
        lacking = []
        for layout in self.layouts:
            missing = layout.missing(root)
            if not missing:
                return layout
            lacking.append(f"the {layout.name} layout lacks {missing[0]}")
        fetch = fetch or f"raymerge data fetch {self.name} --data {shlex.quote(str(root))}"
        raise DataError(
            f"{self.name}: not found under {root}: {'; '.join(lacking)}. Get it, or be told how, with: {fetch}"
        )
