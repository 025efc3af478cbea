"""Safetensors files written tensor by tensor, and files that are absent or whole."""

import errno
import hashlib
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from some_models import names_in
from torch import Tensor

from raymerge import model_file, whole_file
from raymerge.model_file import DTYPES, write_safetensors

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor(7.0),
    "half": torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16),
    "ids": torch.arange(3),
    "flag": torch.tensor([True]),
    "nothing": torch.zeros(0, 4),
    'a "quoted" ü': torch.tensor([1.5], dtype=torch.float64),
}


def kinds_of(tensors: Mapping[str, Tensor]) -> dict:
    return {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}


def write(path: Path, tensors: Mapping[str, Tensor] = TENSORS, **kwargs) -> str:
    kwargs = {"tensor": tensors.__getitem__, "metadata": lambda: {"about": "ü"}} | kwargs
    return write_safetensors(path, kinds_of(tensors), **kwargs)


def test_round_trip(tmp_path):
    sha256 = write(tmp_path / "x.safetensors")
    found = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"about": "ü"}
    assert sha256 == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    assert names_in(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path, dtype):
    value = torch.tensor([[0, 1, 1]]).to(dtype)
    write(tmp_path / "x.safetensors", {"x": value})
    found = safetensors.torch.load_file(tmp_path / "x.safetensors")["x"]
    assert (found.dtype, found.tolist()) == (dtype, value.tolist())


def test_views_are_written_as_themselves(tmp_path):
    square = torch.arange(9.0).reshape(3, 3)
    tensors = {"transposed": square.T, "column": square[:, 1], "expanded": torch.ones(()).expand(2, 2)}
    write(tmp_path / "x.safetensors", tensors)
    found = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_tensors_lie_where_they_can_be_mapped(tmp_path):
    """Every tensor begins at a multiple of its item size."""
    write(tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    order = sorted(TENSORS, key=lambda name: -TENSORS[name].dtype.itemsize)
    sizes = [TENSORS[name].dtype.itemsize for name in order]
    assert sizes == sorted(sizes, reverse=True)
    assert len(data) == 8 + size + sum(value.nbytes for value in TENSORS.values())


def test_one_tensor_after_another_once_the_space_is_there(tmp_path):
    """Every tensor is asked for once, into a file that has its full size already."""
    asked = []

    def tensor(name: str) -> Tensor:
        (temporary,) = tmp_path.iterdir()
        assert temporary.stat().st_blocks * 512 >= 100_000
        asked.append(name)
        return torch.zeros(5000)

    tensors = {name: torch.zeros(5000) for name in "edcba"}
    write(tmp_path / "x.safetensors", tensors, tensor=tensor)
    assert asked == list("abcde")


def test_metadata_that_grow(tmp_path):
    """They are asked for at the end, when there may be more of them; equal ones make equal bytes."""
    seen = {"a": "1"}

    def tensor(name: str) -> Tensor:
        seen["notes"] = "n" * 400
        return TENSORS[name]

    write(tmp_path / "x.safetensors", tensor=tensor, metadata=lambda: seen, room=500)
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == seen
        assert torch.equal(file.get_tensor("b"), TENSORS["b"])
    seen.pop("notes")
    with pytest.raises(AssertionError, match="outgrown"):
        write(tmp_path / "y.safetensors", tensor=tensor, metadata=lambda: seen, room=200)
    assert names_in(tmp_path) == ["x.safetensors"]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["posix_fallocate", "fsync"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, where, error):
    def fail(*args: object) -> None:
        raise error

    path = tmp_path / "x.safetensors"
    path.write_text("old")
    monkeypatch.setattr({"posix_fallocate": model_file, "fsync": whole_file}[where].os, where, fail)
    with pytest.raises(type(error)):
        write(path)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["x.safetensors"]


def test_a_full_disk_is_found_before_any_tensor(tmp_path):
    """The limit on file sizes is the kernel's own, so a process of its own meets it."""
    script = """
import errno, resource, sys, torch
from pathlib import Path
from raymerge.model_file import write_safetensors
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_safetensors(Path(sys.argv[1]), {"x": (torch.float32, (5000,))}, lambda name: print("asked"), dict)
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    command = [sys.executable, "-c", script, str(tmp_path / "x.safetensors")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "EFBIG\n"
    assert names_in(tmp_path) == []


def test_a_file_system_that_cannot_reserve(tmp_path, monkeypatch):
    def unsupported(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(model_file.os, "posix_fallocate", unsupported)
    write(tmp_path / "x.safetensors")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "x.safetensors")["b"], TENSORS["b"])


# --- whole files ----------------------------------------------------------------------------------------------------


def test_the_name_comes_last(tmp_path):
    events = []
    path = tmp_path / "x"
    with whole_file.whole_file(path, lambda: events.append(path.exists())) as file:
        file.write(b"new")
        assert not path.exists()
    assert events == [False]
    assert path.read_bytes() == b"new"


def test_threads_do_not_share_temporary_files(tmp_path):
    barrier = threading.Barrier(4)

    def write_one(text: bytes) -> None:
        with whole_file.whole_file(tmp_path / "x") as file:
            barrier.wait(timeout=30)
            file.write(text * 100_000)
            barrier.wait(timeout=30)

    threads = [threading.Thread(target=write_one, args=(text,)) for text in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "x").read_bytes()
    assert content in [text * 100_000 for text in (b"a", b"b", b"c", b"d")]
    assert names_in(tmp_path) == ["x"]


def test_made_directories_go_away_when_nothing_is_in_them(tmp_path):
    (tmp_path / "old").mkdir()

    def fail_in(folder: Path, leaving: str | None = None) -> None:
        with whole_file.made_directory(folder):
            if leaving is not None:
                (folder.parent / leaving).touch()
            raise NotADirectoryError(str(folder.is_dir()))

    with pytest.raises(NotADirectoryError, match="True"):
        fail_in(tmp_path / "old" / "a" / "b")
    assert names_in(tmp_path / "old") == []
    with pytest.raises(NotADirectoryError, match="True"):
        fail_in(tmp_path / "old" / "a" / "b", leaving="other")
    assert names_in(tmp_path / "old" / "a") == ["other"]
    with whole_file.made_directory(tmp_path / "new"):
        pass
    assert (tmp_path / "new").is_dir()
