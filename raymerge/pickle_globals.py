"""Which classes and functions a file of `torch.save` names, read without importing or calling any of them."""

import _compat_pickle
import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUM_LEGACY_PICKLES = 5
"""At the start of a file of torch before 1.6: a number, a version, the system, the object, the keys of its storages."""

_OF_DAMAGE = (OSError, EOFError, ArithmeticError, LookupError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file, or one that is no pickle, raises."""


def pickle_globals(path: Path) -> list[str]:
    """Dotted names, sorted, as far as the file can be read.

    This is for messages: a pickle may be written so that a name is not seen. What may be loaded is decided by the
    loader, which looks at every name when it is used.
    """
    found: set[str] = set()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".pkl"):
                        with archive.open(name) as file:
                            found.update(_of_pickle(file))
        else:
            with path.open("rb") as file:
                for _ in range(NUM_LEGACY_PICKLES):
                    found.update(_of_pickle(file))
    except _OF_DAMAGE:  # what was seen until then counts
        pass
    return sorted(found)


def _of_pickle(file: Any) -> Iterator[str]:
    """Names in the pickle that begins here; leaves the file behind it."""
    pushed: list[str | None] = []  # the strings among what was put on the stack, in order
    memo: dict[int, str | None] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            yield _dotted(*str(argument).split(" ", 1))
            pushed.append(None)
        elif name == "STACK_GLOBAL":
            module, attribute = [None, None, *pushed][-2:]
            yield f"{module or '?'}.{attribute or '?'}"
            pushed.append(None)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else int(argument)] = pushed[-1] if pushed else None
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            pushed.append(memo.get(int(argument or 0)))
        else:
            pushed.append(argument if isinstance(argument, str) else None)


def _dotted(module: str, name: str) -> str:
    """A name as Python 3 has it; torch writes those of Python 2, such as `__builtin__.set`."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[(module, name)]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
