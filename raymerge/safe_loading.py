"""Loading what `torch.save` wrote without running anything that the file asks for.

torch's restricted loader builds tensors and plain containers. Everything else a file names has to be in a list, and is
refused where it is not.
"""

import contextlib
import pickle
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from raymerge.errors import CheckpointError
from raymerge.not_data import PICKLE_START, not_data
from raymerge.pickle_globals import pickle_globals

_LOADING = threading.Lock()


def load_without_code(path: Path, stand_ins: Mapping[str, type] | None = None) -> Any:
    """The content of a file of `torch.save`, its tensors on the CPU and, where the format allows, memory-mapped.

    Args:
        stand_ins: classes of ours that are built in place of foreign ones, by the path the file names. Nothing else
            that is not torch's own is let through, whatever other packages have allowed.
    Raises:
        CheckpointError: the file names something else, all of which is listed; or it is damaged.
    """
    check_is_data(path)
    stand_ins, is_zip = stand_ins or {}, False
    try:
        is_zip = zipfile.is_zipfile(path)  # only this format of torch's can be mapped
        with _only_allowed(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        offending = [name for name in pickle_globals(path) if name not in stand_ins and name not in _allowed_by_torch()]
        if offending:
            raise CheckpointError(
                f"{path}: refused, because loading it would run code: it needs {', '.join(offending)}. "
                "Convert it to safetensors where you trust it."
            ) from None
        if not is_zip and _is_pickle(path):  # a module then names its class in a way that the restricted loader refuses
            raise CheckpointError(
                f"{path}: not a checkpoint of plain tensors; or a module in the format of torch before 1.6, which "
                "cannot be read without running it. Save it again with a newer torch."
            ) from None
        raise CheckpointError(f"{path}: not a checkpoint of plain tensors ({type(error).__name__}).") from None
    except Exception as error:  # a damaged pickle is a random program: it fails with whatever error it likes
        raise CheckpointError(f"{path}: truncated or not a checkpoint ({_reason(error)}). Fetch it again.") from None


def check_is_data(path: Path) -> None:
    """Raise CheckpointError if the file is what a failed download leaves, such as a web page."""
    if what := not_data(path):
        raise CheckpointError(f"{path}: is {what}, expected a checkpoint. Fetch it again.")


@contextlib.contextmanager
def _only_allowed(stand_ins: Mapping[str, type]) -> Iterator[None]:
    """The list of what may be loaded belongs to the process: other packages add to it, and threads share it."""
    with _LOADING:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _allowed_by_torch() -> set[str]:
    from torch import _weights_only_unpickler

    listed = getattr(_weights_only_unpickler, "_get_allowed_globals", dict)  # private, and only for a message
    return set(listed())


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == PICKLE_START


def _reason(error: BaseException) -> str:
    """The first sentence of torch's message, which may run over a whole paragraph."""
    text = str(error).strip().split(". ")[0]
    return text.splitlines()[0] if any(character.isalpha() for character in text) else type(error).__name__
