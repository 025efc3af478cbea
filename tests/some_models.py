"""Small checkpoints of one model and its experts, for tests of merging, and whole merges of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from raymerge.checkpoints import save_state_dict
from raymerge.merge_request import MergeRequest, Output
from raymerge.merging import merge_shard, read_statistics, shards_of
from raymerge.methods import METHODS

SHAPES: dict[str, tuple[int, ...]] = {
    "model.visual.out_proj.weight": (6, 6),
    "model.visual.c_fc.weight": (9, 5),
    "model.visual.c_proj.weight": (4, 8),
    "model.visual.conv1.weight": (4, 3, 2, 2),
    "model.visual.ln.bias": (7,),
    "model.logit_scale": (),
    "model.positional_embedding": (3, 4),
    "model.text_projection": (4, 4),
    "model.token_embedding.weight": (5, 4),
}
UNTOUCHED = "model.token_embedding.weight"
CHOSEN: dict[str, dict[str, Any]] = {
    "weight-averaging": {},
    "task-arithmetic": {},
    "ties": {"keep": 0.3},
    "consensus-ta": {"mask_lambda": (0.3, 0.5, 0.4), "min_tasks": 2.0},
    "tsv-m": {},
    "iso-c": {},
    "iso-cts": {"common_space_fraction": 0.5},
    "spectrum-interpolation": {"beta": 0.25},
    "truncated-iso-c": {"rank_fraction": 0.75},
    "scale-svd": {"sparsity": 0.1, "rank_ratio": 0.5, "num_iters": 3.0, "prune_level": "row", "apply": "per_task"},
    "iso-iasad": {
        "sparsity": 0.1,
        "rank_ratio": 0.5,
        "num_iters": 3.0,
        "prune_level": "element",
        "center": "restore_mean",
    },
}
WITH_REFERENCE = sorted(CHOSEN)
"""Methods that `reference_models` merges with as well."""
MERGING = sorted(name for name in METHODS if METHODS.declaration(name).kind == "merging")
SETTINGS = {name: {p.name: p.default for p in METHODS.declaration(name).parameters} for name in MERGING} | CHOSEN
OUTPUTS = {
    "iso-cts": [Output({"common_space_fraction": f}) for f in (0.2, 0.5, 0.8)],
    "ties": [Output({"keep": keep}) for keep in (0.1, 0.4, 1.0)],
    "consensus-ta": [
        Output({"mask_lambda": 0.2, "min_tasks": 2.0}, task=2),
        Output({"mask_lambda": (0.2, 0.4, 0.3), "min_tasks": 1.0}),
        Output({"mask_lambda": 0.6, "min_tasks": 2.0}, task=0),
    ],
}
INPUTS_ALONG_ROWS = ("model.visual.c_proj.weight",)
HASHES = ["z", "a", "b", "c"]


def some_states(num_experts: int = 3, seed: int = 0) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    zero_shot = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    experts = [
        {n: v + 0.1 * torch.randn(v.shape, generator=generator) * (n != UNTOUCHED) for n, v in zero_shot.items()}
        for _ in range(num_experts)
    ]
    return zero_shot, experts


def some_moments(num_experts: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    """Of the inputs of every matrix that moves, per expert."""
    generator = torch.Generator().manual_seed(seed)

    def moment(name: str, shape: tuple[int, ...]) -> Tensor:
        size = (shape[0], 1) if name in INPUTS_ALONG_ROWS else (1, shape[1])
        return torch.randn(size, generator=generator).exp()

    matrices = {n: s for n, s in SHAPES.items() if len(s) == 2 and n not in (UNTOUCHED, "model.text_projection")}
    return [{name: moment(name, shape) for name, shape in matrices.items()} for _ in range(num_experts)]


def write_states(folder: Path, zero_shot: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]]) -> None:
    save_state_dict(folder / "zero.pt", zero_shot)
    for i, (expert, moments) in enumerate(zip(experts, some_moments(len(experts)), strict=True)):
        save_state_dict(folder / f"expert{i}.pt", expert)
        safetensors.torch.save_file(moments, folder / f"moments{i}.safetensors")


def request_of(folder: Path, method: str, *outputs: Output, num_experts: int = 3) -> MergeRequest:
    experts = tuple(folder / f"expert{i}.pt" for i in range(num_experts))
    moments = tuple(folder / f"moments{i}.safetensors" for i in range(num_experts)) if METHODS[method].moments else ()
    return MergeRequest(folder / "zero.pt", experts, method, outputs or (Output(SETTINGS[method]),), moments)


def merge_all(request: MergeRequest) -> list[dict[str, Tensor]]:
    """Whole updates, shard by shard."""
    statistics = read_statistics(request)
    updates: list[dict[str, Tensor]] = [{} for _ in request.outputs]
    for names in shards_of(request):
        for update, part in zip(updates, merge_shard(request, names, statistics), strict=True):
            assert not update.keys() & part.keys()
            update |= part
    return updates


def assert_identical(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def names_in(folder: Path) -> list[str]:
    """Of the files and folders in it, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())
