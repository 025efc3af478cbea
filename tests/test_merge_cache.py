"""The cache of merged updates: what it knows, what it survives."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from some_models import (
    HASHES,
    MERGING,
    OUTPUTS,
    SETTINGS,
    assert_identical,
    merge_all,
    request_of,
    some_states,
    write_states,
)
from torch import Tensor

from raymerge import merge_cache, merging
from raymerge.merge_cache import cached_merge_shard, has_cached, merge_key
from raymerge.merge_request import MergeRequest, Output
from raymerge.merging import merge_shard, read_statistics, shards_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    write_states(folder, *some_states())
    return folder


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SHARD_COST", 20.0)


class Counting:
    """Counts the shards that are computed and not read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.computed: list[tuple[Output, ...]] = []
        monkeypatch.setattr(merge_cache, "merge_shard", self._merge)

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
    assert sub.name == merge_key(request, HASHES, Output(SETTINGS[method]))
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


def test_the_key_of_an_output(folder):
    request = request_of(folder, "consensus-ta")

    def key(
        setting: dict[str, Any], request: MergeRequest = request, hashes: Sequence[str] = HASHES, **rest: Any
    ) -> str:
        return merge_key(request, hashes, Output(setting, **rest))

    setting = {"mask_lambda": (0.2, 0.3), "min_tasks": 2.0}
    found = key(setting)
    assert len(found) == 32
    assert found == key({"min_tasks": 2.0, "mask_lambda": [0.2, 0.3]})
    assert found == key(setting, replace(request, outputs=()))
    assert found == key(setting, tasks=(0, 1, 2)), "all tasks, said in another way"
    others = [
        key(setting | {"mask_lambda": (0.3, 0.2)}),
        key(setting | {"min_tasks": 1.0}),
        key(setting, replace(request, method="ties")),
        key(setting, tasks=(0, 1)),
        key(setting, tasks=(1, 0, 2)),
    ]
    assert len({found, *others}) == 6


def test_a_set_of_tasks_is_known_by_its_checkpoints_in_any_request(folder):
    request = request_of(folder, "tsv-m")
    smaller = replace(request, experts=request.experts[:2])
    assert merge_key(request, HASHES, Output(tasks=(0, 1))) == merge_key(smaller, HASHES[:3], Output())


def test_what_is_planned_matters_where_outputs_share_work(folder):
    for method, matters in (("tsv-m", True), ("iso-c", False), ("ties", False)):
        request = request_of(folder, method)
        planned = replace(request, planned=(Output(SETTINGS[method]), Output(SETTINGS[method], tasks=(0, 1))))
        same = merge_key(request, HASHES, Output(SETTINGS[method])) == merge_key(
            planned, HASHES, Output(SETTINGS[method])
        )
        assert same is not matters
        again = replace(planned, planned=planned.planned[::-1] * 2)
        assert merge_key(again, HASHES, Output()) == merge_key(planned, HASHES, Output())


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
        ("merge_cache.py", True),
        ("linalg.py", True),
        ("checkpoints.py", True),
        ("methods/iso_c.py", True),
        ("methods/_order_statistic.py", True),
        ("evaluation.py", False),
        ("driver.py", False),
    ],
)
def test_the_key_changes_with_the_code_that_merges(tmp_path, monkeypatch, changed, matters):
    package = Path(merge_cache.__file__).parent
    shutil.copytree(package, tmp_path / "raymerge", ignore=shutil.ignore_patterns("__pycache__", "suites"))
    monkeypatch.setattr(merge_cache, "__file__", str(tmp_path / "raymerge" / "merge_cache.py"))
    before = merge_cache.code_version.__wrapped__()
    with (tmp_path / "raymerge" / changed).open("a") as file:
        file.write("# a fixed bug\n")
    assert (merge_cache.code_version.__wrapped__() != before) is matters


def test_the_key_changes_with_the_code_version(folder, monkeypatch):
    before = merge_key(request_of(folder, "iso-c"), HASHES, Output())
    monkeypatch.setattr(merge_cache, "code_version", lambda: "another")
    assert merge_key(request_of(folder, "iso-c"), HASHES, Output()) != before
