"""Safetensors files, written tensor by tensor: at no time is more than one of them in memory.

A file is a header, which says where every tensor is, and then the tensors. safetensors itself wants all tensors at
once, and writes metadata in another order in every process; here equal arguments give equal bytes.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from raymerge.whole_file import whole_file

METADATA_KEY = "__metadata__"
"""The name that no tensor can have."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What can be stored, by the format's name for it."""

Kinds = Mapping[str, tuple[torch.dtype, Sequence[int]]]
"""Dtype and shape by name."""

_CANNOT_RESERVE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def write_safetensors(
    path: Path,
    kinds: Kinds,
    tensor: Callable[[str], Tensor],
    metadata: Callable[[], Mapping[str, str]],
    *,
    room: int = 0,
    on_complete: Callable[[], None] = lambda: None,
) -> str:
    """Write a file that gets its name only once its content is on the disk. Returns its SHA-256.

    Args:
        path: in a folder that exists. A file that is there is replaced.
        kinds: of every tensor; their dtypes are among DTYPES.
        tensor: gives the values; asked for every name once, after the space on the disk is reserved.
        metadata: asked before the first tensor, and again after the last one, when it counts.
        room: bytes by which the metadata may grow in between, in UTF-8 within JSON.
        on_complete: of `whole_file`.
    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    names = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))  # aligned without gaps
    ends, end = {}, 0
    for name in names:
        dtype, shape = kinds[name]
        ends[name] = end = end + dtype.itemsize * math.prod(shape)
    start = _padded(len(_header(kinds, ends, metadata())) + room)
    with whole_file(path, on_complete) as file:
        _reserve(file, 8 + start + end)
        file.seek(8 + start)
        for name in names:
            value = tensor(name)
            assert (value.dtype, tuple(value.shape)) == (kinds[name][0], tuple(kinds[name][1])), name
            file.write(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        header = _header(kinds, ends, metadata())
        assert len(header) <= start, "the metadata have outgrown their room"
        file.seek(0)
        file.write(start.to_bytes(8, "little") + header.ljust(start))
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(kinds: Kinds, ends: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {METADATA_KEY: dict(sorted(metadata.items()))}
    begin = 0
    for name, end in ends.items():
        dtype, shape = kinds[name]
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()


def _padded(size: int) -> int:
    return size + -size % 8


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the space now, so that a full disk is found before any work; what is not written reads as zeros."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    file.truncate(size)
