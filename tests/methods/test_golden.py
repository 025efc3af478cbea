"""Parity with outputs of the published code, computed in float32: relative Frobenius error of every tensor <= 1e-4."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from raymerge.methods import METHODS

FOLDER = Path(__file__).parent.parent / "golden"


@cache
def load(file: str) -> tuple[list[str], dict[str, dict[str, Tensor]]]:
    """The declared outputs, and the tensors by group and name."""
    with safe_open(FOLDER / file, framework="pt") as stored:
        outputs = json.loads(stored.metadata()["outputs"])
        groups: dict[str, dict[str, Tensor]] = {}
        for key in stored.keys():  # noqa: SIM118 - the handle is no mapping
            group, name = key.rsplit("/", 1)
            groups.setdefault(group, {})[name] = stored.get_tensor(key)
    return outputs, groups


@cache
def task_tensors(file: str) -> dict[str, Tensor]:
    groups = load(file)[1]
    experts = [groups[group] for group in sorted(groups) if group.startswith("expert")]
    return {
        name: torch.stack([expert[name] - base for expert in experts]) for name, base in groups["pretrained"].items()
    }


def method_of(output: str) -> tuple[str, dict]:
    """iso-cts@0.8 and the like: the method's name and its parameters."""
    name, _, setting = output.partition("@")
    if name == "ties":
        return name, {"keep": float(setting) / 100}
    if name == "iso-cts":
        return name, {"common_space_fraction": float(setting)}
    if name == "consensus-ta":
        lam, k = setting.split(",")
        return name, {"mask_lambda": float(lam.removeprefix("lambda=")), "min_tasks": float(k.removeprefix("k="))}
    assert not setting
    return name, {}


def is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and "text_projection" not in name


CASES = [(path.name, output) for path in sorted(FOLDER.glob("*.safetensors")) for output in load(path.name)[0]]


def test_every_golden_output_is_covered():
    assert len(CASES) >= 48
    assert {output.partition("@")[0] for _, output in CASES} == {
        *("task-arithmetic", "ties", "consensus-ta", "tall-mask", "tsv-m", "iso-c", "iso-cts")
    }


@pytest.mark.parametrize(("file", "output"), [case for case in CASES if not case[1].startswith("tall-mask")])
def test_merged_update(file, output):
    name, params = method_of(output)
    method, tasks = METHODS[name], task_tensors(file)
    extra = {"statistic": method.statistic(tasks.values, **params)} if method.statistic else {}
    for key, expected in load(file)[1][output].items():
        if method.matrices == "all" or is_matrix(key, expected):
            factors = method.factorise(tasks[key]) if method.factorise else tasks[key]
            update = method.merge(factors, **params, **extra)
        else:
            update = tasks[key].mean(dim=0)
        error = torch.linalg.vector_norm(update - expected) / torch.linalg.vector_norm(expected).clamp(min=1e-30)
        assert error <= 1e-4, key
        if name in ("ties", "consensus-ta"):
            assert torch.equal(update == 0, expected == 0), key


@pytest.mark.parametrize(("file", "output"), [case for case in CASES if case[1].startswith("tall-mask")])
def test_tall_masks(file, output):
    groups, tasks = load(file)[1], task_tensors(file)
    task_update = METHODS["consensus-ta"].task_update
    for task in range(len(next(iter(tasks.values())))):
        for key, expected in groups[f"{output}/{task:02d}"].items():
            total = tasks[key].sum(dim=0)
            assert (total != 0).all(), "so that the mask can be read off the update"
            update = task_update(tasks[key], task, mask_lambda=float(output.partition("@")[2]))
            assert torch.equal(update, total * expected), key
            assert torch.equal(update != 0, expected.bool()), key
