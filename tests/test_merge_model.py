"""Whole merged models: against float64 references, in every dtype, with what the file says of itself."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference_models
import safetensors
import safetensors.torch
import torch
from some_models import (
    MERGING,
    SETTINGS,
    UNTOUCHED,
    WITH_REFERENCE,
    assert_identical,
    names_in,
    some_moments,
    some_states,
    write_states,
)
from torch import Tensor

from raymerge import __version__
from raymerge.checkpoints import open_checkpoint, save_state_dict
from raymerge.errors import CheckpointError, MergeInputError, OutputError
from raymerge.evaluation import Evaluator
from raymerge.merge_model import (
    Inputs,
    MergedModel,
    Written,
    check_models,
    open_inputs,
    origin_of,
    write_model,
)
from raymerge.merge_request import InputFiles
from raymerge.method_point import MethodPoint, merging_method
from raymerge.methods import METHODS
from raymerge.methods._method import FixedAlpha
from raymerge.notes import note

ALPHA = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    write_states(folder, *some_states())
    return folder


def files_in(folder: Path) -> InputFiles:
    return InputFiles(folder / "zero.pt", {f"task{i}": folder / f"expert{i}.pt" for i in range(3)})


def inputs_in(folder: Path, method: str = "iso-c") -> Inputs:
    files = files_in(folder)
    moments = [folder / f"moments{i}.safetensors" for i in range(3)] if merging_method(method).moments else []
    return Inputs(
        open_checkpoint(files.base),
        {name: open_checkpoint(path) for name, path in files.experts.items()},
        {f"task{i}": open_checkpoint(path) for i, path in enumerate(moments)},
    )


def point(method: str, alpha: float | None = ALPHA, *, update_only: bool = False, **params: Any) -> MethodPoint:
    return MethodPoint(method, {**SETTINGS[method], **params}, alpha, update_only)


def merged_states(inputs: Inputs, point: MethodPoint) -> dict[str, Tensor]:
    merged = MergedModel(inputs, point)
    return {name: merged.tensor(name) for name in merged.kinds}


def written(path: Path, folder: Path, point: MethodPoint, **kwargs: Any) -> Written:
    inputs, hashes = open_inputs(files_in(folder))
    return write_model(path, MergedModel(inputs, point), origin_of(files_in(folder), hashes), **kwargs)


def reference(method: str, zero_shot: Mapping[str, Tensor], experts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    deltas = reference_models.task_vectors(zero_shot, experts)
    return reference_models.merged_update(method, deltas, SETTINGS[method], some_moments(len(experts)))


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        torch.testing.assert_close(
            found[name].double(), value.double(), rtol=rtol, atol=rtol * float(value.abs().max()), msg=name
        )


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WITH_REFERENCE)
def test_every_method_against_its_reference(folder, method):
    zero_shot, experts = some_states()
    update = reference(method, zero_shot, experts)
    inputs = inputs_in(folder, method)
    found = merged_states(inputs, point(method))
    assert_close(found, {name: value.double() + ALPHA * update[name] for name, value in zero_shot.items()}, 1e-5)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert_close(merged_states(inputs, point(method, update_only=True)), update, 1e-5)


def test_the_merged_model_is_what_a_sweep_evaluates(folder):
    """Bit by bit: the same update, added in the same way."""

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text_projection = torch.nn.Parameter(torch.empty(4, 4))

    inputs, encoder = inputs_in(folder), Encoder()
    evaluator = Evaluator(
        encoder, inputs.base, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), device=torch.device("cpu"), batch_size=1
    )
    evaluator.set_weights(merged_states(inputs, point("iso-c", update_only=True)), ALPHA)
    assert torch.equal(encoder.text_projection, merged_states(inputs, point("iso-c"))["model.text_projection"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_that_of_the_base(tmp_path, dtype):
    """The sum is computed in float32 or wider, and rounded once."""
    zero_shot, experts = some_states()
    zero_shot = {name: value.to(dtype) for name, value in zero_shot.items()}
    experts = [{n: zero_shot[n] if n == UNTOUCHED else v for n, v in expert.items()} for expert in experts]
    write_states(tmp_path, zero_shot, experts)
    wide = torch.promote_types(dtype, torch.float32)
    deltas = {
        name: torch.stack([expert[name].to(wide) - value.to(wide) for expert in experts]).float()
        for name, value in zero_shot.items()
    }
    found = merged_states(inputs_in(tmp_path), point("task-arithmetic"))
    assert {value.dtype for value in found.values()} == {dtype}
    for name, value in zero_shot.items():
        update = deltas[name].double().sum(dim=0)
        exact = value.double() + ALPHA * update
        # half a unit in the last place of the result, and what float32 does to the update
        allowed = 0.501 * torch.finfo(dtype).eps * exact.abs() + 1e-6
        assert ((found[name].double() - exact).abs() <= allowed).all(), name
    update = merged_states(inputs_in(tmp_path), point("task-arithmetic", update_only=True))
    assert {value.dtype for value in update.values()} == {torch.float32}


def test_unchanged_and_integer_tensors_are_the_bases_own(tmp_path):
    zero_shot, experts = some_states()
    extra = {"model.position_ids": torch.arange(5), "model.mask": torch.tensor([True, False])}
    write_states(tmp_path, zero_shot | extra, [expert | extra for expert in experts])
    merged = MergedModel(inputs_in(tmp_path), point("iso-c"))
    found = {name: merged.tensor(name) for name in merged.kinds}
    assert_identical({name: found[name] for name in (UNTOUCHED, *extra)}, {UNTOUCHED: zero_shot[UNTOUCHED], **extra})
    assert merged.changed == set(zero_shot) - {UNTOUCHED}
    update = merged_states(inputs_in(tmp_path), point("iso-c", update_only=True))
    assert update.keys() == zero_shot.keys(), "an update has no integers"
    assert torch.equal(update[UNTOUCHED], torch.zeros_like(zero_shot[UNTOUCHED]))


def test_alpha_scales_the_update(folder):
    zero_shot, _ = some_states()
    assert_identical(merged_states(inputs_in(folder), point("iso-c", 0.0)), zero_shot)
    plus, minus = (merged_states(inputs_in(folder), point("iso-c", alpha)) for alpha in (1.0, -1.0))
    for name, value in zero_shot.items():
        torch.testing.assert_close((plus[name] + minus[name]) / 2, value)


def test_an_overflow_is_told(tmp_path):
    zero_shot, experts = some_states()
    write_states(tmp_path, {name: value.half() for name, value in zero_shot.items()}, experts)
    with pytest.raises(MergeInputError) as caught:
        merged_states(inputs_in(tmp_path), point("task-arithmetic", 1e7))
    assert "has values beyond 65504, the largest of the base model's dtype torch.float16" in str(caught.value)
    write_states(tmp_path, zero_shot, [{n: v + 1e9 for n, v in expert.items()} for expert in experts])
    with pytest.raises(MergeInputError, match=r"alpha 1e\+30, has values beyond 3.4028e\+38"):
        merged_states(inputs_in(tmp_path), point("task-arithmetic", 1e30))


# --- the file -------------------------------------------------------------------------------------------------------


def test_what_the_file_holds_and_says(folder, tmp_path):
    path = tmp_path / "new" / "m.safetensors"
    found = written(path, folder, point("ties"))
    assert_identical(safetensors.torch.load_file(path), merged_states(inputs_in(folder), point("ties")))

    def sha256(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()

    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata == found.metadata
    assert metadata == {
        "format": "pt",
        "raymerge_version": __version__,
        "method": "ties",
        "parameters": '{"keep": 0.3}',
        "alpha": "0.7",
        "update_only": "false",
        "base": json.dumps({"file": "zero.pt", "sha256": sha256(folder / "zero.pt")}),
        "experts": json.dumps(
            [
                {"name": f"task{i}", "file": f"expert{i}.pt", "sha256": sha256(folder / f"expert{i}.pt")}
                for i in range(3)
            ]
        ),
        "notes": "[]",
    }
    assert (found.sha256, found.num_bytes) == (sha256(path), path.stat().st_size)
    assert (found.num_changed, found.num_unchanged) == (8, 1)
    assert names_in(tmp_path / "new") == ["m.safetensors"]


def test_an_update_has_no_alpha_of_its_own(folder, tmp_path):
    metadata = written(tmp_path / "u.safetensors", folder, point("iso-c", None, update_only=True)).metadata
    assert metadata["update_only"] == "true"
    assert "alpha" not in metadata
    assert written(tmp_path / "u.safetensors", folder, point("iso-c", 2.0, update_only=True)).metadata["alpha"] == "2.0"


@pytest.mark.parametrize("method", ["iso-cts", "ties", "consensus-ta"])
def test_equal_arguments_are_equal_bytes(folder, tmp_path, method):
    first = written(tmp_path / "a" / "m.safetensors", folder, point(method))
    again = written(tmp_path / "b" / "m.safetensors", folder, point(method))
    assert (tmp_path / "a" / "m.safetensors").read_bytes() == (tmp_path / "b" / "m.safetensors").read_bytes()
    assert first.sha256 == again.sha256
    assert written(tmp_path / "c" / "m.safetensors", folder, point(method, 0.8)).sha256 != first.sha256


def test_notes_go_into_the_file(folder, tmp_path, monkeypatch):
    """They are known at the end, when the header is laid out already; what does not fit is counted."""
    merge_tensors = MergedModel._update
    many = 0

    def noting(self: MergedModel, name: str) -> Any:
        for i in range(many):
            note(f'{name}: note {i}, "quoted" {"x" * 300}')
        return merge_tensors(self, name)

    monkeypatch.setattr(MergedModel, "_update", noting)
    for many in (1, 50):
        found = written(tmp_path / f"{many}.safetensors", folder, point("iso-c"))
        with safetensors.safe_open(tmp_path / f"{many}.safetensors", framework="pt") as file:
            notes = json.loads(file.metadata()["notes"])
        assert len(found.notes) == 9 * many
        if many == 1:
            assert notes == list(found.notes)
        else:
            assert 10 < len(notes) < 450
            assert notes[:-1] == list(found.notes[: len(notes) - 1])
            assert notes[-1] == f"and {450 - len(notes) + 1} more"


def test_a_failure_in_the_middle_leaves_nothing(folder, tmp_path, monkeypatch):
    value = MergedModel._value

    def failing(self: MergedModel, name: str) -> Tensor:
        if name == "model.visual.ln.bias":
            raise error
        return value(self, name)

    monkeypatch.setattr(MergedModel, "_value", failing)
    for error in (MergeInputError("no"), KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(error)):
            written(tmp_path / "new" / "folder" / "m.safetensors", folder, point("iso-c"))
        assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_made(folder):
    with pytest.raises(OutputError, match=r"^/proc/new/m\.safetensors: cannot be written \(No such file or directory;"):
        written(Path("/proc/new/m.safetensors"), folder, point("iso-c"))


def test_memory_does_not_grow_with_the_model(tmp_path):
    """400 MB of checkpoints and 80 MB of result are merged in far less, beyond the mapped files."""
    value = torch.zeros(1000, 1000)
    names = [f"{i}.bias" for i in range(20)]
    save_state_dict(tmp_path / "zero.pt", dict.fromkeys(names, value))
    for i in range(4):
        save_state_dict(tmp_path / f"expert{i}.pt", dict.fromkeys(names, value + i + 1))
    script = """
import sys, threading, time
from pathlib import Path
from raymerge.merge_model import MergedModel, open_inputs, origin_of, write_model
from raymerge.merge_request import InputFiles
from raymerge.method_point import MethodPoint

def anonymous_mb():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024

folder = Path(sys.argv[1])
files = InputFiles(folder / "zero.pt", {str(i): folder / f"expert{i}.pt" for i in range(4)})
before, peak, done = anonymous_mb(), 0.0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous_mb())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
inputs, hashes = open_inputs(files)
merged = MergedModel(inputs, MethodPoint("task-arithmetic", {}, 0.5))
write_model(folder / "m.safetensors", merged, origin_of(files, hashes))
done = True
thread.join()
print(peak - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 70, "one tensor of each expert is 16 MB, and one of the result 4 MB"
    found = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name], torch.full((1000, 1000), 5.0)) for name in names)


def test_a_gpu_that_is_too_small(folder, monkeypatch):
    def out_of_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("raymerge.methods.iso_c.METHOD", replace(METHODS["iso-c"], factorise=out_of_memory))
    with pytest.raises(MergeInputError, match="is too large for the memory of the GPU"):
        merged_states(inputs_in(folder), point("iso-c"))


def test_missing_moments_are_found_before_the_models_are_read(folder, monkeypatch):
    moments = {name: folder / "nowhere" / f"{name}.safetensors" for name in files_in(folder).experts}
    files = replace(files_in(folder), moments=moments, stats_command="raymerge stats --suite s")
    monkeypatch.setattr("raymerge.merge_model.check_models", None)  # calling it fails
    with pytest.raises(
        CheckpointError, match=r"no such file of input moments\. Collect it with: raymerge stats --suite s"
    ):
        open_inputs(files)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_layouts_are_checked_before_values(tmp_path):
    zero_shot, experts = some_states()
    experts[0] = {**experts[0], "model.visual.ln.bias": torch.full((7,), torch.nan)}
    experts[2] = {**experts[2], "model.visual.ln.bias": torch.zeros(8)}
    write_states(tmp_path, zero_shot, experts)
    with pytest.raises(CheckpointError, match=r"expert 'task2': 'model.visual.ln.bias' is \(8,\)"):
        check_models(inputs_in(tmp_path))
    write_states(tmp_path, zero_shot, experts[:2] + experts[:1])
    with pytest.raises(CheckpointError, match=r"expert 'task0': 'model.visual.ln.bias' has 7 NaN"):
        check_models(inputs_in(tmp_path))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"x": torch.tensor([torch.inf])}, "zero.pt: base model: 'x' has 1 NaN or infinite values of 1."),
        ({"x": torch.ones(1), "z": torch.ones(1, dtype=torch.complex64)}, "'z' of dtype torch.complex64 cannot be sto"),
        ({"x": torch.ones(1), "__metadata__": torch.ones(1)}, "'__metadata__' of dtype torch.float32 cannot be stored"),
        ({"x": torch.ones(1).to(torch.float8_e5m2)}, "'x' of dtype torch.float8_e5m2 cannot be stored"),
        ({"x": torch.ones(1, dtype=torch.int64)}, "holds no floating-point tensor. Is it a model?"),
        ({}, "holds no floating-point tensor. Is it a model?"),
    ],
)
def test_bases_that_are_no_models(tmp_path, base, message):
    write_states(tmp_path, base, [base] * 3)
    with pytest.raises(CheckpointError) as caught:
        check_models(inputs_in(tmp_path))
    assert message in str(caught.value)


def test_an_expert_in_eight_bits_is_refused(tmp_path):
    write_states(tmp_path, {"x": torch.ones(1)}, [{"x": torch.ones(1).to(torch.float8_e4m3fn)}] * 3)
    with pytest.raises(CheckpointError, match=r"'x' has dtype torch.float8_e4m3fn, expected a float dtype of 16 bits"):
        check_models(inputs_in(tmp_path))


def test_fixed_alphas_are_the_declared_ones():
    """`point` above gives every method an alpha, which only `method_point` may refuse."""
    assert [name for name in MERGING if isinstance(merging_method(name).alpha, FixedAlpha)] == ["weight-averaging"]
