"""Merging through files: which tensors, in which shards, by which rule, from which cache."""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import reference_models
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raymerge import merge_request, merging
from raymerge.checkpoints import save_state_dict
from raymerge.errors import CheckpointError, MergeInputError
from raymerge.merge_request import MAX_OUTPUT_BYTES, Merge, MergeRequest, Output, group_merges, request_for
from raymerge.merging import (
    cached_merge_shard,
    has_cached,
    is_matrix,
    merge_key,
    merge_shard,
    read_statistics,
    shards_of,
)
from raymerge.methods import METHODS
from raymerge.suites import Backbone, Suite

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
SETTINGS: dict[str, dict[str, Any]] = {
    "weight-averaging": {},
    "task-arithmetic": {},
    "ties": {"keep": 0.3},
    "consensus-ta": {"mask_lambda": (0.3, 0.5, 0.4), "min_tasks": 2.0},
    "tsv-m": {},
    "iso-c": {},
    "iso-cts": {"common_space_fraction": 0.5},
}
MERGING = sorted(name for name in METHODS if METHODS.declaration(name).kind == "merging")
HASHES = ["z", "a", "b", "c"]


def some_states(num_experts: int = 3, seed: int = 0) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    zero_shot = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    experts = [
        {n: v + 0.1 * torch.randn(v.shape, generator=generator) * (n != UNTOUCHED) for n, v in zero_shot.items()}
        for _ in range(num_experts)
    ]
    return zero_shot, experts


def write_states(folder: Path, zero_shot: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]]) -> None:
    save_state_dict(folder / "zero.pt", zero_shot)
    for i, expert in enumerate(experts):
        save_state_dict(folder / f"expert{i}.pt", expert)


def request_of(folder: Path, method: str, *outputs: Output, num_experts: int = 3) -> MergeRequest:
    experts = tuple(folder / f"expert{i}.pt" for i in range(num_experts))
    return MergeRequest(folder / "zero.pt", experts, method, outputs or (Output(SETTINGS[method]),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    write_states(folder, *some_states())
    return folder


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SHARD_COST", 50.0)


def merge_all(request: MergeRequest) -> list[dict[str, Tensor]]:
    """Whole updates, shard by shard."""
    statistics = read_statistics(request)
    updates: list[dict[str, Tensor]] = [{} for _ in request.outputs]
    for names in shards_of(request):
        for update, part in zip(updates, merge_shard(request, names, statistics), strict=True):
            assert not update.keys() & part.keys()
            update |= part
    return updates


def assert_updates_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 1e-5) -> None:
    """`found` may lack tensors that are zero, and only those."""
    assert found.keys() <= expected.keys()
    for name, value in expected.items():
        if name not in found:
            assert not value.any(), f"{name} is missing"
            continue
        assert found[name].shape == value.shape
        torch.testing.assert_close(found[name].double(), value, rtol=rtol, atol=rtol * float(value.abs().max()))


def assert_identical(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- which tensors are matrices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ndim", "expected"),
    [
        ("model.visual.transformer.resblocks.0.attn.in_proj_weight", 2, True),
        ("model.visual.positional_embedding", 2, True),
        ("model.visual.proj", 2, True),
        ("model.token_embedding.weight", 2, True),
        ("model.text_projection", 2, False),
        ("model.visual.conv1.weight", 4, False),
        ("model.visual.class_embedding", 1, False),
        ("model.visual.ln_post.bias", 1, False),
        ("model.logit_scale", 0, False),
        ("three", 3, False),
    ],
)
def test_matrices_are_as_published(name, ndim, expected):
    assert is_matrix(name, ndim) is expected


# --- shards ---------------------------------------------------------------------------------------------------------


def fake_shapes(monkeypatch: pytest.MonkeyPatch, shapes: Mapping[str, tuple[int, ...]]) -> None:
    monkeypatch.setattr(merging, "open_checkpoint", lambda path: SimpleNamespace(shapes=dict(shapes)))


def fake_request(method: str = "iso-c", num_experts: int = 2) -> MergeRequest:
    return MergeRequest(Path("zero"), (Path("expert"),) * num_experts, method)


def cost(name: str, shape: tuple[int, ...], method: str, num_experts: int) -> int:
    work = min(shape) if method == "iso-c" and len(shape) == 2 and "text_projection" not in name else 1
    return math.prod(shape) * work * num_experts


shapes_strategy = st.dictionaries(
    st.text("abc", min_size=1, max_size=5), st.lists(st.integers(1, 9), max_size=4).map(tuple), min_size=1, max_size=30
)


@given(
    shapes=shapes_strategy,
    shard_cost=st.integers(1, 400),
    max_shards=st.integers(1, 12),
    num_experts=st.integers(1, 3),
    method=st.sampled_from(["iso-c", "ties"]),
)
def test_shards_hold_every_tensor_once_and_are_balanced(shapes, shard_cost, max_shards, num_experts, method):
    request = fake_request(method, num_experts)
    with pytest.MonkeyPatch.context() as patch:
        fake_shapes(patch, shapes)
        patch.setattr(merging, "SHARD_COST", shard_cost)
        patch.setattr(merging, "MAX_SHARDS", max_shards)
        shards = shards_of(request)
        fake_shapes(patch, dict(sorted(shapes.items(), reverse=True)))
        assert shards_of(request) == shards, "the order in the file does not matter"
    assert Counter(name for shard in shards for name in shard) == Counter(list(shapes))
    assert all(shards)
    costs = {name: cost(name, shape, method, num_experts) for name, shape in shapes.items()}
    total, largest = sum(costs.values()), max(costs.values())
    assert len(shards) == min(math.ceil(total / shard_cost), max_shards, len(shapes))
    loads = [sum(costs[name] for name in shard) for shard in shards]
    assert loads == sorted(loads, reverse=True)
    # Graham's bound; and longest first: the last tensor of the fullest shard is no dearer than any before it
    assert loads[0] <= total / len(shards) + (1 - 1 / len(shards)) * largest
    assert all([costs[n] for n in shard] == sorted((costs[n] for n in shard), reverse=True) for shard in shards)
    if len(shards[0]) > 1:
        assert loads[0] - costs[shards[0][-1]] <= loads[-1]


def test_shards_by_hand(monkeypatch):
    """Costs for two experts: m1 72, m2 16, proj 50, bias 18, and m3 2."""
    shapes = {"m1": (3, 4), "m2": (2, 2), "text_projection": (5, 5), "bias": (9,), "m3": (1, 1)}
    fake_shapes(monkeypatch, shapes)
    monkeypatch.setattr(merging, "SHARD_COST", 79.0)  # 158 / 79: two shards
    assert shards_of(fake_request()) == [["text_projection", "bias", "m2"], ["m1", "m3"]]
    monkeypatch.setattr(merging, "SHARD_COST", 78.9)
    assert len(shards_of(fake_request())) == 3
    monkeypatch.setattr(merging, "SHARD_COST", 158.0)
    assert shards_of(fake_request()) == [["m1", "text_projection", "bias", "m2", "m3"]]
    assert len(shards_of(fake_request(num_experts=3))) == 2
    monkeypatch.setattr(merging, "SHARD_COST", 51.0)  # a method without SVD costs 102: 24 + 8 + 50 + 18 + 2
    assert shards_of(fake_request("ties")) == [["text_projection", "m3"], ["m1", "bias", "m2"]]


def test_shards_depend_on_no_output(folder, many_shards):
    one = request_of(folder, "iso-cts")
    two = request_of(folder, "iso-cts", Output({"common_space_fraction": 0.1}), Output({"common_space_fraction": 0.9}))
    assert shards_of(one) == shards_of(two)
    assert len(shards_of(one)) > 3


# --- updates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_shards", ["one", "many"])
@pytest.mark.parametrize("method", MERGING)
def test_updates_are_those_of_a_whole_model_in_memory(folder, method, num_shards, request):
    if num_shards == "many":
        request.getfixturevalue("many_shards")
    assert (len(shards_of(request_of(folder, method))) > 1) == (num_shards == "many")
    (update,) = merge_all(request_of(folder, method))
    deltas = reference_models.task_vectors(*some_states())
    assert_updates_close(update, reference_models.merged_update(method, deltas, SETTINGS[method]))
    assert UNTOUCHED not in update
    assert len(update) == len(SHAPES) - 1
    assert all(value.dtype == torch.float32 for value in update.values())


@pytest.mark.parametrize("task", range(3))
def test_updates_of_single_tasks(folder, many_shards, task):
    zero_shot, experts = some_states()
    deltas = reference_models.task_vectors(zero_shot, experts)
    setting = {"mask_lambda": 0.4, "min_tasks": 2.0}
    own, masked = (
        merge_all(request_of(folder, method, Output(given, task)))[0]
        for method, given in (("fine-tuned", {}), ("consensus-ta", setting))
    )
    assert_updates_close(own, {name: value[task] for name, value in deltas.items()}, rtol=0.0)
    assert_updates_close(masked, reference_models.tall_mask_update(deltas, task, 0.4))


@pytest.mark.parametrize("method", MERGING)
def test_shards_change_no_bit(folder, method, monkeypatch):
    (whole,) = merge_all(request_of(folder, method))
    monkeypatch.setattr(merging, "SHARD_COST", 1.0)
    (parts,) = merge_all(request_of(folder, method))
    assert_identical(parts, whole)


OUTPUTS = {
    "iso-cts": [Output({"common_space_fraction": f}) for f in (0.2, 0.5, 0.8)],
    "ties": [Output({"keep": keep}) for keep in (0.1, 0.4, 1.0)],
    "consensus-ta": [
        Output({"mask_lambda": 0.2, "min_tasks": 2.0}, task=2),
        Output({"mask_lambda": (0.2, 0.4, 0.3), "min_tasks": 1.0}),
        Output({"mask_lambda": 0.6, "min_tasks": 2.0}, task=0),
    ],
}


@pytest.mark.parametrize("method", OUTPUTS)
def test_outputs_of_one_request_equal_requests_of_their_own(folder, method, many_shards):
    outputs = OUTPUTS[method]
    alone = [merge_all(request_of(folder, method, output))[0] for output in outputs]
    together = merge_all(request_of(folder, method, *outputs))
    assert not torch.equal(*(update["model.visual.out_proj.weight"] for update in alone[:2]))
    for one, other in zip(together, alone, strict=True):
        assert_identical(one, other)


def test_outputs_share_the_factorisation(folder, monkeypatch):
    calls = []
    method = METHODS["iso-cts"]

    def counting(task_matrices: Tensor) -> Any:
        calls.append(tuple(task_matrices.shape))
        assert method.factorise
        return method.factorise(task_matrices)

    monkeypatch.setattr(merging, "METHODS", {"iso-cts": replace(method, factorise=counting)})
    merge_all(request_of(folder, "iso-cts", *OUTPUTS["iso-cts"]))
    assert sorted(calls) == [(3, 3, 4), (3, 4, 8), (3, 6, 6), (3, 9, 5)], "once per matrix that changed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_experts_of_other_precision(tmp_path, dtype):
    zero_shot, experts = some_states()
    experts = [{name: value.to(dtype) for name, value in expert.items()} for expert in experts]
    write_states(tmp_path, {name: value.to(dtype) for name, value in zero_shot.items()}, experts)
    rounded = {name: value.to(dtype) for name, value in zero_shot.items()}
    deltas = reference_models.task_vectors(rounded, experts)
    for method in ("task-arithmetic", "iso-c", "ties"):
        (update,) = merge_all(request_of(tmp_path, method))
        assert_updates_close(update, reference_models.merged_update(method, deltas, SETTINGS[method]))
        assert all(value.dtype == torch.float32 for value in update.values())


def test_half_precision_is_widened_before_it_is_subtracted(tmp_path):
    """1 and 1 / 512 are bfloat16 numbers, their difference is not."""
    one, small = torch.tensor([1.0]).bfloat16(), torch.tensor([1 / 512]).bfloat16()
    write_states(tmp_path, {"a": small}, [{"a": one}])
    (update,) = merge_all(request_of(tmp_path, "task-arithmetic", num_experts=1))
    assert update["a"].item() == 1 - 1 / 512 != (one - small).item()


def test_safetensors_and_pt_give_the_same_bits(folder, tmp_path):
    zero_shot, experts = some_states()
    safetensors.torch.save_file(zero_shot, tmp_path / "zero.safetensors")
    for i, expert in enumerate(experts):
        safetensors.torch.save_file(expert, tmp_path / f"expert{i}.safetensors")
    converted = MergeRequest(
        tmp_path / "zero.safetensors",
        tuple(tmp_path / f"expert{i}.safetensors" for i in range(3)),
        "iso-c",
    )
    assert_identical(merge_all(converted)[0], merge_all(request_of(folder, "iso-c"))[0])


def test_no_expert_changed_anything(tmp_path):
    zero_shot, _ = some_states()
    write_states(tmp_path, zero_shot, [zero_shot] * 3)
    for method in MERGING:
        assert merge_all(request_of(tmp_path, method)) == [{}]


@pytest.mark.parametrize("method", [*MERGING, "fine-tuned"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["model.visual.ln.bias", "model.visual.c_fc.weight"])
def test_a_value_that_is_not_finite_is_named(tmp_path, method, value, name):
    zero_shot, experts = some_states()
    experts[1][name].view(-1)[2] = value
    write_states(tmp_path, zero_shot, experts)
    request = request_of(tmp_path, method, Output(SETTINGS.get(method, {}), 1 if method == "fine-tuned" else None))
    with pytest.raises(MergeInputError) as caught:
        merge_all(request)
    assert str(caught.value).startswith(f"'{name}', merged by {method}: task tensor 1 of 3 has {value} at ")


def test_a_wrong_setting_names_no_tensor(folder):
    with pytest.raises(MergeInputError, match=r"^merged by ties: ties: keep is 2.0"):
        merge_all(request_of(folder, "ties", Output({"keep": 2.0})))


def test_a_missing_file_is_named(folder):
    request = replace(request_of(folder, "iso-c"), experts=(folder / "nobody.pt",))
    with pytest.raises(CheckpointError, match=r"nobody\.pt: no such checkpoint file"):
        merge_all(request)


# --- the cache ------------------------------------------------------------------------------------------------------


class Counting:
    """Counts the shards that are computed and not read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.computed: list[tuple[Output, ...]] = []
        monkeypatch.setattr(merging, "merge_shard", self._merge)

    def _merge(self, request: MergeRequest, names: Sequence[str], statistics: Sequence[Any]) -> Any:
        assert len(statistics) == len(request.outputs)
        self.computed.append(request.outputs)
        return merge_shard(request, names, statistics)

    def take(self) -> int:
        count = len(self.computed)
        self.computed.clear()
        return count


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def merge_cached(
    request: MergeRequest, cache: Path, hashes: Sequence[str] = HASHES, statistics: Sequence[Any] | None = None
) -> list[dict[str, Tensor]]:
    updates: list[dict[str, Tensor]] = [{} for _ in request.outputs]
    for shard in range(len(shards_of(request))):
        for update, part in zip(updates, cached_merge_shard(request, hashes, shard, statistics, cache), strict=True):
            update |= part
    return updates


@pytest.mark.parametrize("method", MERGING)
def test_what_is_cached_is_not_computed_again(folder, tmp_path, method, counting, many_shards):
    request = request_of(folder, method)
    expected = merge_all(request)
    assert not has_cached(request, HASHES, tmp_path)
    first = merge_cached(request, tmp_path, statistics=read_statistics(request))
    assert counting.take() == len(shards_of(request)) > 1
    assert has_cached(request, HASHES, tmp_path)
    second = merge_cached(request, tmp_path)
    assert counting.take() == 0
    for update in (*first, *second):
        assert_identical(update, expected[0])
    (sub,) = tmp_path.iterdir()
    assert sub.name == merge_key(request, HASHES, SETTINGS[method])
    assert {file.name for file in sub.iterdir()} == {f"{i}.safetensors" for i in range(len(shards_of(request)))}


def test_the_cache_knows_what_an_update_depends_on(folder, tmp_path, counting):
    request = request_of(folder, "iso-cts")
    merge_cached(request, tmp_path)
    assert counting.take() == 1
    for hashes in (["y", "a", "b", "c"], ["z", "a", "b", "d"], ["z", "b", "a", "c"]):
        assert not has_cached(request, hashes, tmp_path)
        merge_cached(request, tmp_path, hashes)
        assert counting.take() == 1
    for method, setting in (("iso-c", {}), ("iso-cts", {"common_space_fraction": 0.6})):
        merge_cached(request_of(folder, method, Output(setting)), tmp_path)
        assert counting.take() == 1
    merge_cached(request, tmp_path)
    assert counting.take() == 0


def test_the_key_of_a_setting(folder):
    request = request_of(folder, "consensus-ta")
    key = merge_key(request, HASHES, {"mask_lambda": (0.2, 0.3), "min_tasks": 2.0})
    assert key == merge_key(request, HASHES, {"min_tasks": 2.0, "mask_lambda": [0.2, 0.3]})
    assert key != merge_key(request, HASHES, {"mask_lambda": (0.3, 0.2), "min_tasks": 2.0})
    assert key != merge_key(request, HASHES, {"mask_lambda": (0.2, 0.3), "min_tasks": 1.0})
    assert key != merge_key(replace(request, method="ties"), HASHES, {"mask_lambda": (0.2, 0.3), "min_tasks": 2.0})
    assert key == merge_key(replace(request, outputs=()), HASHES, {"mask_lambda": (0.2, 0.3), "min_tasks": 2.0})
    assert len(key) == 32


def test_only_missing_outputs_are_computed(folder, tmp_path, counting):
    outputs = OUTPUTS["ties"]
    expected = merge_all(request_of(folder, "ties", *outputs))
    merge_cached(request_of(folder, "ties", outputs[1]), tmp_path)
    counting.take()
    request = request_of(folder, "ties", *outputs)
    assert not has_cached(request, HASHES, tmp_path)
    found = merge_cached(request, tmp_path, statistics=read_statistics(request))
    assert counting.computed == [(outputs[0], outputs[2])]
    for update, one in zip(found, expected, strict=True):
        assert_identical(update, one)
    assert has_cached(request, HASHES, tmp_path)


def test_updates_of_single_tasks_are_not_kept(folder, tmp_path, counting):
    request = request_of(folder, "fine-tuned", Output({}, 1))
    expected = merge_all(request)
    for _ in range(2):
        assert_identical(merge_cached(request, tmp_path)[0], expected[0])
        assert counting.take() == 1
    assert not has_cached(request, HASHES, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_shard_is_computed_again(folder, tmp_path, counting, damage):
    request = request_of(folder, "ties")
    expected = merge_cached(request, tmp_path)
    (file,) = tmp_path.glob("*/0.safetensors")
    file.write_bytes(file.read_bytes()[:-5] if damage is None else damage)
    counting.take()
    assert_identical(merge_cached(request, tmp_path)[0], expected[0])
    assert counting.take() == 1
    assert_identical(merge_cached(request, tmp_path)[0], expected[0])
    assert counting.take() == 0


def test_a_cache_that_somebody_deletes(folder, tmp_path, counting):
    """`statistics` is None because the cache was complete, and then it is not."""
    request = request_of(folder, "ties")
    merge_cached(request, tmp_path)
    shutil.rmtree(tmp_path)
    assert_identical(merge_cached(request, tmp_path)[0], merge_all(request)[0])


def refuses_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cache").write_text("a file where the cache should be")
    return tmp_path / "cache"


def has_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def fail(*args: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    return tmp_path / "cache"


@pytest.mark.parametrize("broken", [refuses_folders, has_a_full_disk])
def test_a_cache_that_cannot_be_written_costs_no_merge(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Path]
):
    request = request_of(folder, "iso-c")
    cache = broken(tmp_path, monkeypatch)
    assert_identical(merge_cached(request, cache)[0], merge_all(request)[0])
    assert not has_cached(request, HASHES, cache)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path != cache] == []


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("merging.py", True),
        ("linalg.py", True),
        ("checkpoints.py", True),
        ("methods/iso_c.py", True),
        ("methods/_order_statistic.py", True),
        ("evaluation.py", False),
        ("driver.py", False),
    ],
)
def test_the_key_changes_with_the_code_that_merges(tmp_path, monkeypatch, changed, matters):
    package = Path(merging.__file__).parent
    shutil.copytree(package, tmp_path / "raymerge", ignore=shutil.ignore_patterns("__pycache__", "suites"))
    monkeypatch.setattr(merging, "__file__", str(tmp_path / "raymerge" / "merging.py"))
    before = merging._code_version.__wrapped__()
    with (tmp_path / "raymerge" / changed).open("a") as file:
        file.write("# a fixed bug\n")
    assert (merging._code_version.__wrapped__() != before) is matters


def test_the_key_changes_with_the_code_version(folder, monkeypatch):
    before = merge_key(request_of(folder, "iso-c"), HASHES, {})
    monkeypatch.setattr(merging, "_code_version", lambda: "another")
    assert merge_key(request_of(folder, "iso-c"), HASHES, {}) != before


# --- from merges to requests ----------------------------------------------------------------------------------------


def test_a_merge_is_named_by_what_determines_it():
    merge = Merge("vit", ("A", "B"), "iso-cts", {"common_space_fraction": 0.5, "x": (1.0, 2.0)})
    same = Merge("vit", ("A", "B"), "iso-cts", {"x": [1.0, 2.0], "common_space_fraction": 0.5})
    assert merge.merge_id == same.merge_id
    others = [
        replace(merge, backbone="other"),
        replace(merge, tasks=("B", "A")),
        replace(merge, method="ties"),
        replace(merge, params={"common_space_fraction": 0.6, "x": (1.0, 2.0)}),
        replace(merge, task="A"),
        replace(merge, task="B"),
    ]
    assert len({merge.merge_id, *(other.merge_id for other in others)}) == 7


def test_merges_that_share_a_factorisation_are_one_request(tmp_path, monkeypatch):
    backbones = {name: Backbone(name, f"{name}-zero", (0.5,) * 3, (0.5,) * 3) for name in ("vit", "other")}
    suite = Suite("tiny", "tiny", 0, tmp_path, backbones, ())
    for name in backbones:
        suite.zero_shot_path(name).write_bytes(b"x" * 100)
    iso = [Merge("vit", ("A", "B"), "iso-cts", {"common_space_fraction": f}) for f in (0.1, 0.2, 0.3)]
    experts = [Merge("vit", (task,), "fine-tuned", {}, task) for task in ("A", "B")]
    masked = [Merge("vit", ("A", "B"), "consensus-ta", {"mask_lambda": 0.2}, task) for task in ("B", "A")]
    other = Merge("other", ("A", "B"), "iso-cts", {"common_space_fraction": 0.1})
    mixed = [iso[0], experts[0], masked[0], iso[1], other, masked[1], experts[1], iso[2]]
    assert list(group_merges(mixed, suite)) == [tuple(iso), (experts[0],), tuple(masked), (other,), (experts[1],)]
    monkeypatch.setattr(merge_request, "MAX_OUTPUT_BYTES", 299)  # two outputs of 100 bytes fit
    assert list(group_merges(iso, suite)) == [tuple(iso[:2]), (iso[2],)]
    monkeypatch.setattr(merge_request, "MAX_OUTPUT_BYTES", 300)
    assert list(group_merges(iso, suite)) == [tuple(iso)]
    monkeypatch.setattr(merge_request, "MAX_OUTPUT_BYTES", 10)  # one always does
    assert list(group_merges(iso, suite)) == [(merge,) for merge in iso]
    assert MAX_OUTPUT_BYTES == 512 * 1024 * 1024

    assert request_for(suite, masked) == MergeRequest(
        tmp_path / "vit-zero",
        (suite.expert_path("vit", "A"), suite.expert_path("vit", "B")),
        "consensus-ta",
        (Output({"mask_lambda": 0.2}, task=1), Output({"mask_lambda": 0.2}, task=0)),
    )
    assert request_for(suite, iso).outputs == tuple(Output({"common_space_fraction": f}) for f in (0.1, 0.2, 0.3))
