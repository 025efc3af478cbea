"""From the merges of a sweep to requests that share work."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge import merge_request
from raymerge.merge_request import (
    MAX_OUTPUT_BYTES,
    SHARD_BYTES,
    Group,
    Merge,
    MergeRequest,
    Output,
    families_of,
    group_merges,
    request_for,
)
from raymerge.suites import Backbone, Suite, moments_path

MOMENTS = Path("moments")
EIGHT, TWELVE, OTHERS = ("A", "B"), ("A", "B", "C"), ("C", "D")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Zero-shot files of 100 bytes."""
    backbones = {name: Backbone(name, f"{name}-zero", (0.5,) * 3, (0.5,) * 3) for name in ("vit", "other")}
    suite = Suite("tiny", "tiny", 0, tmp_path, backbones, ())
    for name in backbones:
        suite.zero_shot_path(name).write_bytes(b"x" * 100)
    return suite


def iso_cts(tasks: tuple[str, ...], *fractions: float, backbone: str = "vit") -> list[Merge]:
    return [Merge(backbone, tasks, "iso-cts", {"common_space_fraction": f}) for f in fractions]


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


@given(
    st.permutations(
        [
            *iso_cts(EIGHT, 0.1, 0.2),
            *iso_cts(TWELVE, 0.1, 0.2),
            *iso_cts(OTHERS, 0.5),
            *iso_cts(EIGHT, 0.1, backbone="other"),
            Merge("vit", EIGHT, "tsv-m"),
        ]
    )
)
def test_families_are_nested_sets_of_one_method_whatever_the_order(merges):
    families = {frozenset(m.merge_id for m in family): family for family in families_of(merges)}
    expected = [
        [*iso_cts(EIGHT, 0.1, 0.2), *iso_cts(TWELVE, 0.1, 0.2)],
        iso_cts(OTHERS, 0.5),
        iso_cts(EIGHT, 0.1, backbone="other"),
        [Merge("vit", EIGHT, "tsv-m")],
    ]
    assert set(families) == {frozenset(m.merge_id for m in family) for family in expected}
    assert all(family[0].tasks == max((m.tasks for m in family), key=len) for family in families.values())
    again = {frozenset(m.merge_id for m in family): family for family in families_of(merges[::-1])}
    assert again == families


def test_merges_without_a_family_are_grouped_by_what_they_read(suite, monkeypatch):
    iso = iso_cts(EIGHT, 0.1, 0.2, 0.3)
    experts = [Merge("vit", (task,), "fine-tuned", {}, task) for task in EIGHT]
    masked = [Merge("vit", EIGHT, "consensus-ta", {"mask_lambda": 0.2}, task) for task in ("B", "A")]
    other = iso_cts(EIGHT, 0.1, backbone="other")
    mixed = [iso[0], experts[0], masked[0], iso[1], *other, masked[1], experts[1], iso[2]]
    groups = [tuple(iso), (experts[0],), tuple(masked), tuple(other), (experts[1],)]
    assert list(group_merges(mixed, suite)) == [Group(merges) for merges in groups]
    monkeypatch.setattr(merge_request, "MAX_OUTPUT_BYTES", 299)  # two outputs of 100 bytes fit
    assert [group.merges for group in group_merges(iso, suite)] == [tuple(iso[:2]), (iso[2],)]
    monkeypatch.setattr(merge_request, "MAX_OUTPUT_BYTES", 300)
    assert [group.merges for group in group_merges(iso, suite)] == [tuple(iso)]
    monkeypatch.setattr(merge_request, "MAX_OUTPUT_BYTES", 10)  # one always does
    assert [group.merges for group in group_merges(iso, suite)] == [(merge,) for merge in iso]
    monkeypatch.setattr(merge_request, "MAX_OUTPUT_BYTES", 40)  # of a large model, a shard counts
    monkeypatch.setattr(merge_request, "SHARD_BYTES", 20)
    assert [group.merges for group in group_merges(iso, suite)] == [tuple(iso[:2]), (iso[2],)]
    assert MAX_OUTPUT_BYTES == 32 * SHARD_BYTES == 512 * 1024 * 1024

    assert request_for(suite, Group(tuple(masked)), MOMENTS) == MergeRequest(
        suite.zero_shot_path("vit"),
        (suite.expert_path("vit", "A"), suite.expert_path("vit", "B")),
        "consensus-ta",
        (Output({"mask_lambda": 0.2}, task=1), Output({"mask_lambda": 0.2}, task=0)),
    )


def test_a_method_that_needs_moments_reads_those_of_every_task(suite):
    (group,) = group_merges([Merge("vit", ("B", "A"), "scale-svd", {"sparsity": 0.1})], suite)
    request = request_for(suite, group, MOMENTS)
    assert request.moments == tuple(moments_path(MOMENTS, "vit", task) for task in ("B", "A"))


def test_a_request_of_a_family_reads_its_largest_set_and_plans_all_of_it(suite, monkeypatch):
    small, large = iso_cts(("C", "A"), 0.1, 0.2), iso_cts(TWELVE, 0.1)
    families = families_of([*small, *large])
    (group,) = group_merges([small[1], large[0], small[0]], suite, families)
    assert group.merges == (large[0], small[1], small[0]), "outputs of the same tasks follow each other"
    request = request_for(suite, group, MOMENTS)
    assert request.experts == tuple(suite.expert_path("vit", task) for task in TWELVE)
    fractions = [{"common_space_fraction": f} for f in (0.1, 0.2)]
    assert request.outputs == (
        Output(fractions[0]),
        Output(fractions[1], tasks=(2, 0)),
        Output(fractions[0], tasks=(2, 0)),
    )
    assert sorted(request.planned, key=repr) == sorted(request.outputs, key=repr)
    (part,) = group_merges([small[0]], suite, families)
    assert request_for(suite, part, MOMENTS) == replace(request, outputs=request.outputs[2:])
    monkeypatch.setattr(merge_request, "MAX_OUTPUT_BYTES", 100)
    parts = [request_for(suite, part, MOMENTS) for part in group_merges([*small, *large], suite, families)]
    assert len(parts) == 3
    assert all(part.planned == request.planned for part in parts), "however it is cut, the same is planned"
