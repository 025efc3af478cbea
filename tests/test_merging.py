"""Merging through files: which tensors, in which shards, by which rule, from which cache."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference_models
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from some_models import (
    MERGING,
    OUTPUTS,
    SETTINGS,
    SHAPES,
    UNTOUCHED,
    WITH_REFERENCE,
    assert_identical,
    merge_all,
    request_of,
    some_moments,
    some_states,
    write_states,
)
from torch import Tensor

from raymerge import merging
from raymerge.checkpoints import Checkpoint
from raymerge.errors import CheckpointError, MergeInputError
from raymerge.merge_request import MergeRequest, Output
from raymerge.merging import is_matrix, shards_of
from raymerge.methods import METHODS
from raymerge.methods._method import Method


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    write_states(folder, *some_states())
    return folder


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SHARD_COST", 20.0)


def assert_updates_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 1e-5) -> None:
    """`found` may lack tensors that are zero, and only those."""
    assert found.keys() <= expected.keys()
    for name, value in expected.items():
        if name not in found:
            assert not value.any(), f"{name} is missing"
            continue
        assert found[name].shape == value.shape
        torch.testing.assert_close(found[name].double(), value, rtol=rtol, atol=rtol * float(value.abs().max()))


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
    fake = Checkpoint.of_tensors("zero", {name: torch.empty(shape) for name, shape in shapes.items()})
    monkeypatch.setattr(merging, "open_checkpoint", lambda path: fake)


def fake_request(method: str = "iso-c", num_experts: int = 2) -> MergeRequest:
    return MergeRequest(Path("zero"), (Path("expert"),) * num_experts, method)


def cost(name: str, shape: tuple[int, ...], method: str) -> int:
    work = min(shape) if method == "iso-c" and len(shape) == 2 and "text_projection" not in name else 1
    return math.prod(shape) * work


shapes_strategy = st.dictionaries(
    st.text("abc", min_size=1, max_size=5), st.lists(st.integers(1, 9), max_size=4).map(tuple), min_size=1, max_size=30
)


@given(
    shapes=shapes_strategy,
    shard_cost=st.integers(1, 400),
    shard_bytes=st.integers(1, 4000),
    max_shards=st.integers(1, 12),
    method=st.sampled_from(["iso-c", "ties"]),
)
def test_shards_hold_every_tensor_once_and_are_balanced(shapes, shard_cost, shard_bytes, max_shards, method):
    request = fake_request(method)
    with pytest.MonkeyPatch.context() as patch:
        fake_shapes(patch, shapes)
        patch.setattr(merging, "SHARD_COST", shard_cost)
        patch.setattr(merging, "SHARD_BYTES", shard_bytes)
        patch.setattr(merging, "MAX_SHARDS", max_shards)
        shards = shards_of(request)
        fake_shapes(patch, dict(sorted(shapes.items(), reverse=True)))
        assert shards_of(request) == shards, "the order in the file does not matter"
    assert Counter(name for shard in shards for name in shard) == Counter(list(shapes))
    assert all(shards)
    costs = {name: cost(name, shape, method) for name, shape in shapes.items()}
    total, largest = sum(costs.values()), max(costs.values())
    num_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    assert len(shards) == min(math.ceil(max(total / shard_cost, num_bytes / shard_bytes)), max_shards, len(shapes))
    loads = [sum(costs[name] for name in shard) for shard in shards]
    assert loads == sorted(loads, reverse=True)
    # Graham's bound; and longest first: the last tensor of the fullest shard is no dearer than any before it
    assert loads[0] <= total / len(shards) + (1 - 1 / len(shards)) * largest
    assert all([costs[n] for n in shard] == sorted((costs[n] for n in shard), reverse=True) for shard in shards)
    if len(shards[0]) > 1:
        assert loads[0] - costs[shards[0][-1]] <= loads[-1]


def test_shards_by_hand(monkeypatch):
    """Costs: m1 36, m2 8, proj 25, bias 9, and m3 1; 51 values of four bytes."""
    shapes = {"m1": (3, 4), "m2": (2, 2), "text_projection": (5, 5), "bias": (9,), "m3": (1, 1)}
    fake_shapes(monkeypatch, shapes)
    monkeypatch.setattr(merging, "SHARD_COST", 39.5)  # 79 / 39.5: two shards
    assert shards_of(fake_request()) == [["text_projection", "bias", "m2"], ["m1", "m3"]]
    monkeypatch.setattr(merging, "SHARD_COST", 39.4)
    assert len(shards_of(fake_request())) == 3
    monkeypatch.setattr(merging, "SHARD_COST", 79.0)
    assert shards_of(fake_request()) == [["m1", "text_projection", "bias", "m2", "m3"]]
    monkeypatch.setattr(merging, "SHARD_COST", 25.5)  # a method without SVD costs 51: 12 + 4 + 25 + 9 + 1
    assert shards_of(fake_request("ties")) == [["text_projection", "m3"], ["m1", "bias", "m2"]]
    monkeypatch.setattr(merging, "SHARD_COST", 79.0)
    monkeypatch.setattr(merging, "SHARD_BYTES", 4 * 51)
    assert len(shards_of(fake_request())) == 1
    monkeypatch.setattr(merging, "SHARD_BYTES", 4 * 51 - 1)
    assert len(shards_of(fake_request())) == 2


def test_shards_depend_on_the_zero_shot_model_and_the_method_alone(folder, many_shards):
    one = request_of(folder, "iso-cts")
    two = request_of(folder, "iso-cts", Output({"common_space_fraction": 0.1}), Output({"common_space_fraction": 0.9}))
    assert shards_of(one) == shards_of(two) == shards_of(replace(one, experts=one.experts[:1]))
    assert len(shards_of(one)) > 3


# --- updates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_shards", ["one", "many"])
@pytest.mark.parametrize("method", WITH_REFERENCE)
def test_updates_are_those_of_a_whole_model_in_memory(folder, method, num_shards, request):
    if num_shards == "many":
        request.getfixturevalue("many_shards")
    assert (len(shards_of(request_of(folder, method))) > 1) == (num_shards == "many")
    (update,) = merge_all(request_of(folder, method))
    deltas = reference_models.task_vectors(*some_states())
    expected = reference_models.merged_update(method, deltas, SETTINGS[method], some_moments())
    assert_updates_close(update, expected)
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


@pytest.mark.parametrize("method", OUTPUTS)
def test_outputs_of_one_request_equal_requests_of_their_own(folder, method, many_shards):
    outputs = OUTPUTS[method]
    alone = [merge_all(request_of(folder, method, output))[0] for output in outputs]
    together = merge_all(request_of(folder, method, *outputs))
    assert not torch.equal(*(update["model.visual.out_proj.weight"] for update in alone[:2]))
    for one, other in zip(together, alone, strict=True):
        assert_identical(one, other)


@pytest.mark.parametrize("method", MERGING)
def test_outputs_of_nested_and_other_sets_of_tasks(folder, method):
    """One request over all experts gives each set what a request of that set alone gives."""
    sets = [(0, 1), (0, 2), None, (1,)]
    setting = SETTINGS[method] | ({"mask_lambda": 0.4} if method == "consensus-ta" else {})
    together = merge_all(request_of(folder, method, *(Output(setting, tasks=tasks) for tasks in sets)))
    for update, tasks in zip(together, sets, strict=True):
        request = request_of(folder, method, Output(setting))
        chosen = request.experts if tasks is None else tuple(request.experts[task] for task in tasks)
        alone = replace(request, experts=chosen)
        if request.moments and tasks is not None:
            alone = replace(alone, moments=tuple(request.moments[task] for task in tasks))
        assert_identical(update, merge_all(alone)[0])


def test_a_set_whose_experts_left_a_tensor_alone(tmp_path):
    zero_shot, experts = some_states()
    name = "model.visual.out_proj.weight"
    experts[0] = experts[0] | {name: zero_shot[name]}
    write_states(tmp_path, zero_shot, experts)
    for method in ("iso-c", "iso-cts", "tsv-m", "task-arithmetic"):
        first, every = merge_all(
            request_of(tmp_path, method, *(Output(SETTINGS[method], tasks=t) for t in ((0,), None)))
        )
        assert not first[name].any()
        assert every[name].any()


def test_integer_tensors_are_no_parameters(tmp_path):
    zero_shot, experts = some_states()
    ids = {"model.position_ids": torch.arange(5)}
    write_states(tmp_path, zero_shot | ids, [expert | ids for expert in experts])
    for method in ("iso-c", "ties"):
        (update,) = merge_all(request_of(tmp_path, method))
        assert "model.position_ids" not in update
        assert len(update) == len(SHAPES) - 1


def test_an_unchanged_tensor_takes_no_memory(folder):
    models = merging.open_models(request_of(folder, "ties"))
    task_tensors = merging.task_tensors_of(models, UNTOUCHED)
    assert task_tensors.shape == (3, *SHAPES[UNTOUCHED])
    assert task_tensors.untyped_storage().nbytes() == 4
    assert not task_tensors.any()


def test_outputs_share_the_factorisation(folder, monkeypatch):
    calls = []
    method = METHODS["iso-cts"]

    def counting(task_matrices: Tensor, **extra: Any) -> Any:
        calls.append(tuple(task_matrices.shape))
        assert method.factorise
        return method.factorise(task_matrices, **extra)

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


# --- input moments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["scale-svd", "iso-iasad"])
def test_moments_that_are_not_there(folder, method):
    request = replace(request_of(folder, method), moments=())
    with pytest.raises(
        MergeInputError, match=r"merged by .*: there are no input moments: collect them with 'raymerge st"
    ):
        merge_all(request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"moments1\.safetensors has no input moments of it"),
        (torch.ones(1, 6), r"holds moments of shape \(1, 6\) for a matrix \(9, 5\), expected \(1, 5\) or \(9, 1\)"),
        (torch.ones(5), r"holds moments of shape \(5,\) for a matrix \(9, 5\)"),
        (torch.zeros(1, 5), r"second moments of its inputs are negative, not finite or all zero"),
    ],
)
def test_moments_that_do_not_fit(folder, tmp_path, change, message):
    moments = some_moments()[1]
    name = "model.visual.c_fc.weight"
    moments = {key: value for key, value in moments.items() if key != name}
    if change is not None:
        moments[name] = change
    path = tmp_path / "moments1.safetensors"
    safetensors.torch.save_file(moments, path)
    request = request_of(folder, "scale-svd")
    request = replace(request, moments=(request.moments[0], path, request.moments[2]))
    with pytest.raises(MergeInputError, match=f"^'{name}', merged by scale-svd: .*{message}"):
        merge_all(request)


def test_decompositions_are_shared_by_planned_sets(folder, monkeypatch):
    calls = []
    method = METHODS["scale-svd"]

    def counting(task_matrices: Tensor, uses: Any, **extra: Any) -> Any:
        calls.append((task_matrices.shape[0], len(uses)))
        assert method.task_factors
        return method.task_factors(task_matrices, uses, **extra)

    setting = SETTINGS["scale-svd"]
    outputs = (Output(setting), Output(setting, tasks=(0, 1)), Output(setting | {"num_iters": 5.0}))
    request = replace(request_of(folder, "scale-svd", outputs[0], outputs[2]), planned=outputs)
    expected = merge_all(request)
    monkeypatch.setattr(merging, "METHODS", {"scale-svd": replace(method, task_factors=counting)})
    for update, one in zip(merge_all(request), expected, strict=True):
        assert_identical(update, one)
    assert calls == [(3, 3)] * 4, "once per matrix that changed, for all that is planned"


def test_products_are_in_full_precision(folder, monkeypatch):
    seen, factors = [], Method.factors

    def watched(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        return factors(*args, **kwargs)

    monkeypatch.setattr(Method, "factors", watched)
    request = request_of(folder, "iso-c")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for names in shards_of(request):
            merging.merge_shard(request, names, merging.read_statistics(request))
        assert torch.get_float32_matmul_precision() == "medium", "as the process had it"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}
