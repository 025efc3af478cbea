"""Reading checkpoints and heads of the published layout, and refusing what is not."""

import contextlib
import os
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raymerge import checkpoints, whole_file
from raymerge.checkpoints import (
    HEAD_CLASS,
    Checkpoint,
    check_checkpoint,
    check_values,
    file_sha256,
    load_head,
    open_checkpoint,
    save_head,
    save_safetensors,
    save_state_dict,
)
from raymerge.errors import CheckpointError

STATE = {
    "model.visual.proj": torch.arange(12.0).reshape(3, 4),
    "model.logit_scale": torch.tensor(4.6),
    "model.half": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
}


def write(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        save_state_dict(path, state)
    return path


@pytest.fixture(params=["x.pt", "x.safetensors"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- state dicts ----------------------------------------------------------------------------------------------------


def test_state_dict_round_trip(path):
    checkpoint = Checkpoint(write(path, STATE))
    assert checkpoint.names == sorted(STATE)
    assert checkpoint.shapes == {"model.half": (2,), "model.logit_scale": (), "model.visual.proj": (3, 4)}
    for name, value in STATE.items():
        assert torch.equal(checkpoint.tensor(name), value)
        assert checkpoint.dtype(name) == value.dtype


def test_saved_files_hold_an_ordered_dict_of_whole_tensors(tmp_path):
    """A slice is written as itself, not with the storage that it is a view of."""
    rows = torch.arange(1_000_000.0).reshape(1000, 1000)
    save_state_dict(tmp_path / "deep" / "x.pt", {"b": rows[:, :2], "a": torch.nn.Parameter(rows[0])})
    content = torch.load(tmp_path / "deep" / "x.pt", weights_only=True)
    assert type(content) is OrderedDict
    assert list(content) == ["b", "a"]
    assert torch.equal(content["b"], rows[:, :2])
    assert not content["a"].requires_grad
    assert (tmp_path / "deep" / "x.pt").stat().st_size < 20_000
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["x.pt"], "no temporary file is left"


METADATA = {"format": "1", "about": 'a "quoted" ü', "kinds": '{"a": "b"}', "b": "", "c": "2", "d": "3"}


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    save_safetensors(path, {**STATE, "model.slice": STATE["model.visual.proj"].T}, METADATA)
    checkpoint = Checkpoint(path)
    assert checkpoint.metadata() == METADATA
    assert checkpoint.names == sorted([*STATE, "model.slice"])
    for name, value in {**STATE, "model.slice": STATE["model.visual.proj"].T}.items():
        assert torch.equal(checkpoint.tensor(name), value)
        assert checkpoint.dtype(name) == value.dtype
    assert [file.name for file in path.parent.iterdir()] == ["x.safetensors"]


def test_equal_tensors_and_metadata_are_equal_bytes(tmp_path):
    """Whatever the order they are given in; safetensors alone shuffles the metadata at every call."""
    save_safetensors(tmp_path / "a.safetensors", STATE, METADATA)
    save_safetensors(tmp_path / "b.safetensors", dict(reversed(STATE.items())), dict(reversed(METADATA.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    save_safetensors(tmp_path / "c.safetensors", STATE, {**METADATA, "c": "3"})
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "c.safetensors").read_bytes()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_safetensors_that_cannot_be_written_leave_the_old_file(tmp_path, monkeypatch, error):
    def fail(descriptor: int) -> None:
        raise error

    path = tmp_path / "x.safetensors"
    save_safetensors(path, STATE, METADATA)
    before = path.read_bytes()
    monkeypatch.setattr(whole_file.os, "fsync", fail)
    with pytest.raises(type(error)):
        save_safetensors(path, {}, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_tensors_are_mapped_and_not_read(tmp_path):
    path = write(tmp_path / "x.pt", {"big": torch.zeros(2_000_000), "small": torch.ones(1)})
    checkpoint = Checkpoint(path)
    with zipfile.ZipFile(path) as archive:
        (entry,) = (i for i in archive.infolist() if i.file_size == 8_000_000)
    with path.open("r+b") as file:  # what is mapped sees the file change
        file.seek(entry.header_offset + 4096)
        file.write(b"\xff" * 4096)
    assert not torch.isfinite(checkpoint.tensor("big")).all()


def test_an_older_torch_file_is_read(tmp_path):
    torch.save(OrderedDict(STATE), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(Checkpoint(tmp_path / "x.pt").tensor("model.visual.proj"), STATE["model.visual.proj"])


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999])
def test_truncated_file_is_refused(path, kept):
    content = write(path, STATE | {"model.more": torch.ones(3000)}).read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refused(path)


def test_every_truncation_is_refused(path):
    content = write(path, {"a": torch.ones(2)}).read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        refused(path)


@pytest.mark.parametrize("content", [b"hello, world\n", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04"])
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    refused(path)


def test_missing_files_and_folders_are_refused(path):
    assert refused(path) == f"{path}: no such checkpoint file."
    path.mkdir()
    assert refused(path) == f"{path}: no such checkpoint file."
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        open_checkpoint(path.parent / "none" / "x.pt")


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), {"a": torch.ones(1), "epoch": 3}, "text"])
def test_other_content_than_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    assert f"holds {type(content).__name__}, expected a dict of tensors" in refused(tmp_path / "x.pt")


class RunsCode:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_is_refused_and_not_run(tmp_path, new_format):
    bomb = {"a": torch.ones(1), "b": RunsCode(tmp_path / "exploded")}
    torch.save(bomb, tmp_path / "x.pt", _use_new_zipfile_serialization=new_format)
    message = refused(tmp_path / "x.pt")
    if new_format:
        assert "refused, because loading it would run code" in message
        assert "pathlib" in message
        assert "Convert it to safetensors where you trust it." in message
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "exploded").exists(), "the bomb is real"


def test_a_whole_module_is_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    assert "it needs torch.nn.modules.linear.Linear." in refused(tmp_path / "x.pt")


def test_a_head_is_not_a_state_dict(tmp_path):
    save_head(tmp_path / "x.pt", torch.ones(2, 3))
    refused(tmp_path / "x.pt")


def test_open_checkpoint_keeps_files_open_until_they_change(tmp_path):
    path = write(tmp_path / "x.pt", {"a": torch.zeros(2)})
    first = open_checkpoint(path)
    assert open_checkpoint(path) is first
    write(path, {"a": torch.ones(3)})
    os.utime(path, ns=(1, 1))
    assert open_checkpoint(path).shapes == {"a": (3,)}


def test_file_sha256_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- comparing an expert with the zero-shot model ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model.visual.proj": None}, "lacks 'model.visual.proj' (1 keys missing, 0 unexpected)"),
        (
            {"model.visual.proj": None, "model.half": None, "other": torch.ones(1)},
            "lacks 'model.half' (2 keys missing, 1 unexpected)",
        ),
        ({"z": torch.ones(1)}, "has 'z', which the zero-shot model lacks (0 keys missing, 1 unexpected)"),
        ({"model.visual.proj": torch.ones(4, 3)}, "'model.visual.proj' is (4, 3), zero-shot is (3, 4)"),
        ({"model.logit_scale": torch.ones(1)}, "'model.logit_scale' is (1,), zero-shot is ()"),
        (
            {"model.visual.proj": torch.tensor([[0.0, torch.nan, torch.inf, -torch.inf]] * 3)},
            "'model.visual.proj' has 9 NaN or infinite values of 12",
        ),
        ({"model.logit_scale": torch.tensor(4)}, "'model.logit_scale' has dtype torch.int64, expected a float dtype"),
    ],
)
def test_an_expert_that_does_not_fit(path, changes, expected):
    zero_shot = Checkpoint(write(path.with_stem("zero"), STATE))
    state = {name: value for name, value in (STATE | changes).items() if value is not None}
    expert = Checkpoint(write(path, state))
    with pytest.raises(CheckpointError) as caught:
        check_checkpoint(expert, zero_shot, "Cars")
    assert str(caught.value).startswith(f"{path}: expert 'Cars'")
    assert expected in str(caught.value)


def test_an_expert_that_fits(path):
    zero_shot = Checkpoint(write(path.with_stem("zero"), STATE))
    expert = Checkpoint(write(path, {name: (value + 1).double() for name, value in STATE.items()}))
    check_checkpoint(expert, zero_shot, "Cars")  # another precision is fine
    check_values(expert, "model.half", "expert")


@pytest.mark.parametrize("ids", [torch.arange(1, 4), torch.arange(3).int() + 1])
def test_integers_are_shared_with_the_zero_shot_model(path, ids):
    zero_shot = Checkpoint(write(path.with_stem("zero"), STATE | {"ids": torch.arange(3)}))
    check_checkpoint(Checkpoint(write(path.with_stem("same"), STATE | {"ids": torch.arange(3)})), zero_shot, "Cars")
    with pytest.raises(CheckpointError, match="'ids' holds integers"):
        check_checkpoint(Checkpoint(write(path, STATE | {"ids": ids})), zero_shot, "Cars")


# --- heads ----------------------------------------------------------------------------------------------------------

WEIGHT = torch.arange(6.0).reshape(2, 3) + 0.5


def test_head_round_trip(tmp_path):
    save_head(tmp_path / "head_CarsVal.pt", WEIGHT)
    weight, bias = load_head(tmp_path / "head_CarsVal.pt", num_classes=2, embed_dim=3)
    assert torch.equal(weight, WEIGHT)
    assert torch.equal(bias, torch.zeros(2))
    assert not weight.requires_grad
    assert weight.dtype == bias.dtype == torch.float32


def test_head_of_half_precision_is_widened(tmp_path):
    save_head(tmp_path / "h.pt", WEIGHT.bfloat16())
    weight, bias = load_head(tmp_path / "h.pt", num_classes=2, embed_dim=3)
    assert torch.equal(weight, WEIGHT)
    assert weight.dtype == bias.dtype == torch.float32


def test_head_is_pickled_as_the_published_ones(tmp_path):
    """The file names the published class and nothing else outside torch, and has the published attributes."""
    save_head(tmp_path / "h.pt", WEIGHT)
    with zipfile.ZipFile(tmp_path / "h.pt") as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        opcodes = list(pickletools.genops(archive.read(name)))
    named = {str(arg).replace(" ", ".") for op, arg, _ in opcodes if op.name == "GLOBAL"}
    assert HEAD_CLASS == "src.models.modeling.ClassificationHead"
    assert HEAD_CLASS in named
    assert all(n.startswith(("torch.", "collections.", HEAD_CLASS, "__builtin__.", "builtins.")) for n in named)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "h.pt") == [HEAD_CLASS]
    strings = {arg for op, arg, _ in opcodes if op.name.startswith(("BINUNICODE", "SHORT_BINUNICODE"))}
    assert {"normalize", "weight", "bias", "in_features", "out_features"} <= strings


def test_head_of_the_real_class_is_read(tmp_path, monkeypatch):
    """What a program writes whose class really is at that path."""
    with checkpoints._published_head_class() as head_class:
        head: Any = head_class(3, 2)
        head.normalize = True
        head.eval()
        torch.save(head, tmp_path / "h.pt")
    weight, bias = load_head(tmp_path / "h.pt", num_classes=2, embed_dim=3)
    assert torch.equal(weight, head.weight)
    assert torch.equal(bias, head.bias)
    assert bias.any()


@pytest.mark.parametrize("present", [False, True])
def test_save_head_leaves_modules_as_they_were(tmp_path, monkeypatch, present):
    if present:
        for name in ("src", "src.models"):
            monkeypatch.setitem(sys.modules, name, pickle)  # any module will do
    before = dict(sys.modules)
    save_head(tmp_path / "h.pt", WEIGHT)
    assert {name: sys.modules[name] for name in sys.modules if name.startswith("src")} == {
        name: before[name] for name in before if name.startswith("src")
    }
    (tmp_path / "h.pt").unlink()
    (tmp_path / "h.pt").mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - of the rename; the state must be restored after any error
        save_head(tmp_path / "h.pt", WEIGHT)
    assert set(sys.modules) == set(before)


def save_other_head(path: Path, **changes: Any) -> None:
    with checkpoints._published_head_class() as head_class:
        head: Any = head_class(3, 2)
        head.normalize = True
        for name, value in changes.items():
            setattr(head, name, torch.nn.Parameter(value) if isinstance(value, Tensor) else value)
        torch.save(head, path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"normalize": False}, "not a head with weight, bias and normalize=True"),
        ({"_parameters": {"weight": 1.0, "bias": 2.0}}, "not a head with weight, bias and normalize=True"),
        ({"normalize": 1}, "not a head with weight, bias and normalize=True"),
        ({"bias": None}, "not a head with weight, bias and normalize=True"),
        ({"weight": None}, "not a head with weight, bias and normalize=True"),
        ({"weight": torch.ones(3, 2)}, "the head is (3, 2), expected (2, 3)"),
        ({"weight": torch.ones(2, 4)}, "the head is (2, 4), expected (2, 3)"),
        ({"bias": torch.ones(1)}, "expected (2, 3)"),
        ({"weight": torch.tensor([[0, 1, torch.nan], [0, 0, 0]])}, "the head has NaN or infinite values"),
        ({"bias": torch.tensor([0, torch.inf])}, "the head has NaN or infinite values"),
    ],
)
def test_wrong_heads_are_refused(tmp_path, changes, expected):
    save_other_head(tmp_path / "h.pt", **changes)
    with pytest.raises(CheckpointError) as caught:
        load_head(tmp_path / "h.pt", num_classes=2, embed_dim=3)
    assert str(caught.value).startswith(f"{tmp_path / 'h.pt'}: ")
    assert expected in str(caught.value)


def test_a_head_without_normalize_is_refused(tmp_path):
    with checkpoints._published_head_class() as head_class:
        torch.save(head_class(3, 2), tmp_path / "h.pt")
    with pytest.raises(CheckpointError, match="normalize=True"):
        load_head(tmp_path / "h.pt", num_classes=2, embed_dim=3)


def head_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_head(path, num_classes=2, embed_dim=3)
    return str(caught.value)


def test_heads_of_other_classes_are_refused(tmp_path):
    torch.save(torch.nn.Linear(3, 2), tmp_path / "linear.pt")
    assert "it needs torch.nn.modules.linear.Linear." in head_error(tmp_path / "linear.pt")
    save_state_dict(tmp_path / "state.pt", {"weight": WEIGHT})
    assert f"holds OrderedDict, expected a pickled {HEAD_CLASS}." in head_error(tmp_path / "state.pt")
    torch.save({"head": RunsCode(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    assert "refused, because loading it would run code" in head_error(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_head_that_carries_code_is_refused(tmp_path):
    """The allow-list lets the head's class through, not what is hidden in its state."""
    save_other_head(tmp_path / "h.pt", extra=RunsCode(tmp_path / "exploded"))
    message = head_error(tmp_path / "h.pt")
    assert "pathlib.Path" in message
    assert HEAD_CLASS not in message, "only what is at fault is named"
    assert not (tmp_path / "exploded").exists()


def test_missing_and_truncated_heads_are_refused(tmp_path):
    assert head_error(tmp_path / "h.pt") == f"{tmp_path / 'h.pt'}: no such head file."
    save_head(tmp_path / "h.pt", WEIGHT)
    content = (tmp_path / "h.pt").read_bytes()
    for length in range(0, len(content), 101):
        (tmp_path / "h.pt").write_bytes(content[:length])
        head_error(tmp_path / "h.pt")


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), new_format=st.booleans())
def test_damaged_files_are_read_or_refused(tmp_path_factory, position, value, new_format):
    """Whatever a wrong byte makes of a pickle, the user gets an error that names the file."""
    path = tmp_path_factory.getbasetemp() / f"damaged-{new_format}.pt"
    torch.save({"a": torch.ones(4, 3)}, path, _use_new_zipfile_serialization=new_format)
    content = bytearray(path.read_bytes())
    content[int(position * min(len(content), 600))] = value
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert isinstance(Checkpoint(path).shapes, dict)


@pytest.mark.parametrize("program", [b"\x80\x02a.", b"\x80\x02(u.", b"\x80\x020.", b"\x80\x02K\x01K\x02\x93."])
def test_pickles_that_make_no_sense_are_refused(tmp_path, program):
    (tmp_path / "x.pt").write_bytes(program)
    refused(tmp_path / "x.pt")


@given(rows=st.integers(1, 5), cols=st.integers(1, 5), seed=st.integers(0, 99))
def test_any_head_comes_back(tmp_path_factory, rows, cols, seed):
    path = tmp_path_factory.mktemp("heads") / "h.pt"
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    save_head(path, weight)
    assert torch.equal(load_head(path, num_classes=rows, embed_dim=cols)[0], weight)
