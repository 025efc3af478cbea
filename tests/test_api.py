"""`raymerge.merge`: what it returns, from what, and what it refuses."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reference_models
import safetensors.torch
import torch
from some_models import (
    MERGING,
    SETTINGS,
    UNTOUCHED,
    WITH_REFERENCE,
    assert_identical,
    some_moments,
    some_states,
    write_states,
)
from tiny_suite import BACKBONE, tiny_moments, tiny_suite
from torch import Tensor

import raymerge
from raymerge.checkpoints import Checkpoint, save_state_dict
from raymerge.errors import CheckpointError, MergeInputError, UsageError
from raymerge.merge_model import MergedModel, open_inputs
from raymerge.merge_request import InputFiles
from raymerge.method_point import MethodPoint


def changed(state: dict[str, Tensor], name: str, value: object) -> dict[str, Tensor]:
    return {**state, name: value}  # type: ignore[dict-item]


def arguments_of(method: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {} if method == "weight-averaging" else {"alpha": 0.7}
    if method in ("scale-svd", "iso-iasad"):
        arguments["moments"] = some_moments()
    return {**arguments, **SETTINGS[method]}


@pytest.mark.parametrize("method", WITH_REFERENCE)
def test_every_method(method):
    zero_shot, experts = some_states()
    arguments = arguments_of(method)
    found = raymerge.merge(zero_shot, experts, method=method, **arguments)
    deltas = reference_models.task_vectors(zero_shot, experts)
    update = reference_models.merged_update(method, deltas, SETTINGS[method], some_moments())
    alpha = arguments.get("alpha", 1 / 3)
    assert found.keys() == zero_shot.keys()
    for name, value in zero_shot.items():
        expected = value.double() + alpha * update[name]
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert found[name].dtype == torch.float32


def test_files_and_state_dicts_give_the_same(tmp_path):
    zero_shot, experts = some_states()
    write_states(tmp_path, zero_shot, experts)
    safetensors.torch.save_file(experts[1], tmp_path / "one.safetensors")
    in_memory = raymerge.merge(zero_shot, experts, method="iso-c", alpha=1.0)
    named = {"a": str(tmp_path / "expert0.pt"), "b": tmp_path / "one.safetensors", "c": experts[2]}
    assert_identical(raymerge.merge(tmp_path / "zero.pt", named, method="iso-c", alpha=1.0), in_memory)
    files = InputFiles(tmp_path / "zero.pt", {str(i): tmp_path / f"expert{i}.pt" for i in range(3)})
    merged = MergedModel(open_inputs(files)[0], MethodPoint("iso-c", {}, 1.0))
    assert_identical({name: merged.tensor(name) for name in merged.kinds}, in_memory)


def test_the_result_is_its_own():
    zero_shot, experts = some_states()
    before = {name: value.clone() for name, value in zero_shot.items()}
    zero_shot["model.logit_scale"] = torch.nn.Parameter(zero_shot["model.logit_scale"])
    found = raymerge.merge(zero_shot, experts, method="iso-c", alpha=0.0)
    for value in found.values():
        assert not value.requires_grad
        value.fill_(9.0)
    assert_identical({name: value.detach() for name, value in zero_shot.items()}, before)


def test_moments_of_a_suite(tmp_path):
    suite = tiny_suite(tmp_path / "suite", num_tasks=2)
    tiny_moments(suite, tmp_path / "moments")
    base = suite.zero_shot_path(BACKBONE)
    experts = {task.name: suite.expert_path(BACKBONE, task.name) for task in suite.tasks}
    folder = tmp_path / "moments" / BACKBONE

    def merged(**kwargs: object) -> dict[str, Tensor]:
        kwargs = {"moments": folder, "experts": experts} | kwargs
        return raymerge.merge(base, method="scale-svd", alpha=0.5, **kwargs)  # type: ignore[arg-type]

    found = merged()
    assert not torch.equal(found["model.visual.proj"], Checkpoint(base).tensor("model.visual.proj"))
    files = {name: folder / f"{name}.safetensors" for name in experts}
    assert_identical(merged(moments=files), found)
    assert_identical(
        merged(moments=[safetensors.torch.load_file(file) for file in files.values()], experts=list(experts.values())),
        found,
    )
    with pytest.raises(CheckpointError, match="collected from another expert"):
        merged(moments=dict(zip(files, reversed(files.values()), strict=True)))
    with pytest.raises(CheckpointError, match=r"nowhere/Task0.safetensors: no such file of input moments"):
        merged(moments=tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"there are moments of \['Task0'\], expected those of the experts, \['Task0'"):
        merged(moments={"Task0": files["Task0"]})
    with pytest.raises(UsageError, match="needs input moments, which 'raymerge stats' collects: give moments="):
        merged(moments=None)


NAN = torch.full((7,), torch.nan)
BIAS = "model.visual.ln.bias"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "iso_c"}, UsageError, "unknown method 'iso_c'. Did you mean 'iso-c'?"),
        ({"method": "zero-shot"}, UsageError, "is a reference that merged models are compared with"),
        ({"alpha": None}, UsageError, "method 'iso-c' needs an alpha"),
        ({"device": "gpu"}, UsageError, "device is 'gpu', expected 'cpu' or 'cuda'."),
        ({"device": "mps"}, UsageError, "device is 'mps', expected 'cpu' or 'cuda'."),
        ({"keep": 0.3}, UsageError, "method 'iso-c' has no parameter 'keep'. It has none."),
        ({"experts": []}, UsageError, "there are no experts to merge"),
        ({"experts": "a.pt"}, UsageError, "'a.pt' is one model, expected a list of them or a dict by name."),
        ({"moments": "x"}, UsageError, "method 'iso-c' uses no input moments; leave moments out."),
        ({"base": "nowhere.pt"}, CheckpointError, "nowhere.pt: no such checkpoint file."),
        (
            {"base": {"x": torch.ones(1), "epoch": 1}},
            CheckpointError,
            "base: expected a path or a state dict, which holds tensors alone.",
        ),
        (
            {"base": {}},
            CheckpointError,
            "expert 0: expert '0' has 'model.logit_scale', which the zero-shot",
        ),
        ({"experts": [{"x": torch.ones(1)}]}, CheckpointError, "expert 0: expert '0' lacks 'model.logit_scale'"),
        (
            {"base": changed(some_states()[0], BIAS, NAN)},
            CheckpointError,
            "base: base model: 'model.visual.ln.bias'",
        ),
        (
            {"experts": {"cars": changed(some_states()[1][0], BIAS, NAN)}},
            CheckpointError,
            "expert cars: expert 'cars': 'model.visual.ln.bias' has 7 NaN or infinite values of 7.",
        ),
        ({"method": "consensus-ta", "mask_lambda": [0.1, 0.2]}, UsageError, "is [0.1, 0.2], expected one number, or "),
        ({"alpha": 1e30, "base": {n: v * 1e9 for n, v in some_states()[0].items()}}, MergeInputError, "smaller alpha"),
    ],
)
def test_mistakes(changes, error, message):
    zero_shot, experts = some_states()
    arguments = {"base": zero_shot, "experts": experts, "method": "iso-c", "alpha": 1.0} | changes
    with pytest.raises(error) as caught:
        raymerge.merge(**arguments)
    assert message in str(caught.value)


def test_experts_without_a_change():
    zero_shot, _ = some_states()
    assert_identical(raymerge.merge(zero_shot, [zero_shot, zero_shot], method="iso-cts", alpha=1.0), zero_shot)


def test_importing_raymerge_imports_nothing_heavy():
    script = "import sys, raymerge; dir(raymerge); print(sorted({'torch', 'ray', 'typer'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "merge" in dir(raymerge)
    with pytest.raises(AttributeError, match="module 'raymerge' has no attribute 'merg'"):
        raymerge.merg  # noqa: B018


def test_a_file_in_the_working_folder(tmp_path, monkeypatch):
    zero_shot, experts = some_states()
    monkeypatch.chdir(tmp_path)
    save_state_dict(Path("x.pt"), experts[0])
    found = raymerge.merge(zero_shot, ["x.pt"], method="task-arithmetic", alpha=1.0)
    for name, value in experts[0].items():
        torch.testing.assert_close(found[name], value)
    assert torch.equal(found[UNTOUCHED], zero_shot[UNTOUCHED])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    zero_shot, experts = some_states()
    with pytest.raises(UsageError, match="device is 'cuda:0', but torch finds no CUDA device on this machine"):
        raymerge.merge(zero_shot, experts, method="iso-c", alpha=1.0, device="cuda:0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("method", MERGING)
def test_on_a_gpu(method):
    zero_shot, experts = some_states()
    arguments = arguments_of(method)
    expected = raymerge.merge(zero_shot, experts, method=method, **arguments)
    for name, value in raymerge.merge(zero_shot, experts, method=method, device="cuda", **arguments).items():
        assert value.device.type == "cpu"
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
