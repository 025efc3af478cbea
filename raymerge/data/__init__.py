"""DATASETS: every file of this folder that declares a `Dataset` at module level is found by scanning the folder.

Files that start with an underscore, and modules without a declaration, are no datasets. A declaration imports neither
torch nor torchvision; its readers do, when they are called.
"""

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from raymerge.data._dataset import ByHand, Dataset, HuggingFace, Layout, Samples, Source, Torchvision
from raymerge.errors import DataError, did_you_mean

__all__ = [
    "ByHand",
    "Dataset",
    "HuggingFace",
    "Layout",
    "Samples",
    "Source",
    "Torchvision",
    "dataset",
    "datasets",
    "module_of",
]


@cache
def datasets() -> Mapping[str, Dataset]:
    """Every declared dataset by name, in alphabetical order."""
    found: dict[str, Dataset] = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"{__name__}.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, Dataset):
                assert found.setdefault(value.name, value) is value, f"two datasets are called {value.name}"
    return dict(sorted(found.items()))


def dataset(name: str) -> Dataset:
    """The dataset called `name`.

    Raises:
        DataError: there is none.
    """
    known = datasets()
    if name not in known:
        raise DataError(f"unknown dataset '{name}'. {did_you_mean(name, known)}")
    return known[name]


def module_of(name: str) -> str | None:
    """The file, less suffix, that declares the dataset called `name`; None if none does."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"{__name__}.{path.stem}")
        if any(isinstance(value, Dataset) and value.name == name for value in vars(module).values()):
            return path.stem
    return None
