"""Loading without code: what is refused, what it is called, and that nothing ran."""

import io
import os
import pickle
import threading
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from published_code import modules_of_the_published_code

from raymerge.checkpoints import HEAD_CLASSES, Checkpoint, load_head, save_head, save_safetensors
from raymerge.errors import CheckpointError
from raymerge.pickle_globals import pickle_globals


class Writes:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "I ran")


class MakesFolder(Writes):
    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path) + "-folder",)


def save(content: Any, path: Path, *, legacy: bool) -> None:
    """As torch saves today, or as it did before 1.6."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older format holds the source code of modules, where it is found
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def message_of(load: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_name_at_fault_is_listed_and_none_is_called(tmp_path, legacy):
    ran = tmp_path / "ran"
    content = OrderedDict(a=torch.ones(2), b=[Writes(ran)], c={"deep": (MakesFolder(ran),)})
    save(content, tmp_path / "x.pt", legacy=legacy)
    message = message_of(Checkpoint, tmp_path / "x.pt")
    assert "refused, because loading it would run code: it needs " in message
    named = message.split("it needs ")[1].split(". Convert")[0].split(", ")
    path_class = f"{type(ran).__module__}.{type(ran).__name__}"
    assert {f"{os.mkdir.__module__}.mkdir", path_class} <= set(named)
    assert not any(name.startswith(("torch", "collections")) for name in named), "torch's own are not at fault"
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pt"]
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert ran.exists(), "the file is a real threat"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_head_with_something_else_inside_is_refused(tmp_path, legacy):
    with modules_of_the_published_code() as code:
        head = code.ClassificationHead(normalize=True, weights=torch.ones(2, 3))
        head.extra = {"deep": [Writes(tmp_path / "ran")]}
        save(head, tmp_path / "head.pt", legacy=legacy)
    message = message_of(load_head, tmp_path / "head.pt", num_classes=2, embed_dim=3)
    assert "pathlib." in message
    assert "src.models" not in message
    assert not (tmp_path / "ran").exists()


def test_a_hidden_name_is_refused_though_it_cannot_be_listed(tmp_path):
    """A pickle of protocol 4 names things by strings on the stack, which may come from anywhere."""
    with (tmp_path / "x.pt").open("wb") as file:
        pickle.dump({"a": Writes(tmp_path / "ran")}, file, protocol=4)
    message_of(Checkpoint, tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()
    assert any(name.startswith("pathlib") for name in pickle_globals(tmp_path / "x.pt"))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_names_in_pickles_of_every_protocol(tmp_path, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([OrderedDict(), {1, 2}, io.open], protocol))
    names = pickle_globals(tmp_path / "x.pkl")
    assert {"collections.OrderedDict", "io.open"} <= set(names)
    assert not any("?" in name for name in names)


def test_names_of_python_2_are_those_of_python_3(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"c__builtin__\nset\n0c__builtin__\nxrange\n.")
    assert pickle_globals(tmp_path / "x.pkl") == ["builtins.range", "builtins.set"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02c", b"hello", b"cos\nsystem\nX\xff\xff\xff\xff"])
def test_names_of_damaged_files(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    assert pickle_globals(tmp_path / "x.pkl") == (["os.system"] if b"system" in content else [])


def test_what_other_packages_have_allowed_stays_refused_and_allowed(tmp_path):
    torch.save({"a": Path("x")}, tmp_path / "x.pt")
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([type(Path())]):
        assert "pathlib" in message_of(Checkpoint, tmp_path / "x.pt")
        assert type(Path()) in torch.serialization.get_safe_globals()
        save_head(tmp_path / "head.pt", torch.ones(2, 3))
        load_head(tmp_path / "head.pt", num_classes=2, embed_dim=3)
        assert type(Path()) in torch.serialization.get_safe_globals()
    assert torch.serialization.get_safe_globals() == before


def test_threads_load_heads_and_state_dicts_together(tmp_path):
    """The list of what is allowed belongs to the process."""
    save_head(tmp_path / "head.pt", torch.ones(2, 3))
    torch.save({"a": torch.ones(1)}, tmp_path / "state.pt")
    failures = []

    def work(number: int) -> None:
        try:
            for _ in range(25):
                if number % 2:
                    load_head(tmp_path / "head.pt", num_classes=2, embed_dim=3)
                else:
                    Checkpoint(tmp_path / "state.pt")
        except CheckpointError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_heads_of_the_known_classes_are_read(tmp_path, name):
    weight = torch.arange(6.0).reshape(2, 3)
    with modules_of_the_published_code(name.rpartition(".")[0]) as code:
        torch.save(code.ClassificationHead(normalize=True, weights=weight), tmp_path / "head.pt")
    assert name in pickle_globals(tmp_path / "head.pt")
    found, bias = load_head(tmp_path / "head.pt", num_classes=2, embed_dim=3)
    assert torch.equal(found, weight)
    assert torch.equal(bias, torch.zeros(2))


def test_a_head_of_the_format_before_torch_1_6_cannot_be_read(tmp_path):
    with modules_of_the_published_code() as code:
        save(code.ClassificationHead(normalize=True, weights=torch.ones(2, 3)), tmp_path / "head.pt", legacy=True)
    message = message_of(load_head, tmp_path / "head.pt", num_classes=2, embed_dim=3)
    assert "in the format of torch before 1.6" in message
    assert "Save it again with a newer torch" in message


@pytest.mark.parametrize("name", ["src.models.heads", "src.models", "modeling", "src.models.modeling2"])
def test_heads_of_any_other_class_path_are_refused(tmp_path, name):
    with modules_of_the_published_code(name) as code:
        torch.save(code.ClassificationHead(normalize=True, weights=torch.ones(2, 3)), tmp_path / "head.pt")
    message = message_of(load_head, tmp_path / "head.pt", num_classes=2, embed_dim=3)
    assert f"it needs {name}.ClassificationHead. Convert" in message


def test_a_whole_pickled_encoder_is_refused_with_all_its_classes(tmp_path):
    with modules_of_the_published_code() as code:
        encoder = code.ImageEncoder({"image_size": 8, "patch_size": 4, "width": 8, "layers": 1, "head_width": 8}, 4)
        torch.save(encoder, tmp_path / "finetuned.pt")
    message = message_of(Checkpoint, tmp_path / "finetuned.pt")
    for name in ("src.models.modeling.ImageEncoder", "open_clip.model.CLIP", "torch.nn.modules.conv.Conv2d"):
        assert name in message


def test_a_head_that_was_saved_on_a_gpu_is_read_on_a_machine_without_one(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    save_head(tmp_path / "cpu.pt", weight)
    with zipfile.ZipFile(tmp_path / "cpu.pt") as old, zipfile.ZipFile(tmp_path / "gpu.pt", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                tag, gpu = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
                assert content.count(tag) == 1  # later ones refer to it
                content = content.replace(tag, gpu)
            new.writestr(entry.filename, content)
    found, _ = load_head(tmp_path / "gpu.pt", num_classes=2, embed_dim=3)
    assert torch.equal(found, weight)
    assert found.device.type == "cpu"


def test_heads_as_safetensors(tmp_path):
    weight, bias = torch.arange(6.0).reshape(2, 3), torch.tensor([0.5, -1.0])
    save_head(tmp_path / "head.safetensors", weight, bias)
    found = load_head(tmp_path / "head.safetensors", num_classes=2, embed_dim=3)
    assert torch.equal(found[0], weight)
    assert torch.equal(found[1], bias)
    save_safetensors(tmp_path / "plain.safetensors", {"weight": weight, "bias": bias}, {})
    message = message_of(load_head, tmp_path / "plain.safetensors", num_classes=2, embed_dim=3)
    assert "not a head with weight, bias and normalize=True" in message
