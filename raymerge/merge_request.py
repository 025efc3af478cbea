"""From the merges a sweep wants to requests that share reading and factorisation. No torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raymerge.methods import METHODS
from raymerge.records import Point, content_id
from raymerge.suites import Suite, moments_path

SHARD_BYTES = 16 * 2**20
"""About the size of a shard of one update of a large model."""
MAX_OUTPUT_BYTES = 512 * 2**20
"""Of one shard of all outputs of a request: what a merge task may hold in memory and return at once."""


@dataclass(frozen=True)
class Output:
    """One update wanted of a request.

    setting: the structural parameters.
    task: for `Method.task_update`, the position of the task among those of the output.
    tasks: the positions among the experts of the request of those that are merged; None for all of them.
    """

    setting: Mapping[str, Any] = field(default_factory=dict)
    task: int | None = None
    tasks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class MergeRequest:
    """One method on one ordered set of experts; all outputs share the reading and the factorisation.

    moments: for a method that needs them, the file of input moments of every expert.
    planned: all outputs that the factorisation is made for. Rounding depends on them, so they follow from what is
        to be merged alone, and not from what happens to be missing; empty for outputs that share nothing.
    """

    zero_shot: Path
    experts: tuple[Path, ...]
    method: str
    outputs: tuple[Output, ...] = (Output(),)
    moments: tuple[Path, ...] = ()
    planned: tuple[Output, ...] = ()


@dataclass(frozen=True)
class InputFiles:
    """Where the models are.

    moments: by expert; empty for a method that needs none.
    stats_command: what collects the moments, for messages.
    """

    base: Path
    experts: Mapping[str, Path]
    moments: Mapping[str, Path] = field(default_factory=dict)
    stats_command: str = "raymerge stats --suite SUITE"

    def all(self) -> list[Path]:
        return [self.base, *self.experts.values(), *self.moments.values()]


@dataclass(frozen=True)
class Merge:
    """A merged update of a suite, by what determines it. `task` is set when it is one task's own update."""

    backbone: str
    tasks: tuple[str, ...]
    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None

    @cached_property
    def merge_id(self) -> str:
        params = Point(0.0, self.params).as_dict()
        return content_id([self.backbone, self.tasks, self.method, params, self.task])


Family = tuple[Merge, ...]
"""Merges of one method that are known together, over task sets within the largest of them, so that they share work."""


def families_of(merges: Iterable[Merge]) -> list[Family]:
    """The merges of every backbone and method, those over sets of tasks within a largest set together.

    What is in a family follows from the merges alone, not from their order or from what is cached.
    """
    by_method: dict[tuple[str, str], list[Merge]] = {}
    for merge in merges:
        by_method.setdefault((merge.backbone, merge.method), []).append(merge)
    families: list[Family] = []
    for members in by_method.values():
        left = sorted(members, key=lambda merge: (-len(merge.tasks), merge.tasks, merge.merge_id))
        while left:
            largest = set(left[0].tasks)
            families.append(tuple(merge for merge in left if largest.issuperset(merge.tasks)))
            left = [merge for merge in left if not largest.issuperset(merge.tasks)]
    return families


@dataclass(frozen=True)
class Group:
    """Merges to be computed together, in order; `family` is None where they share the reading alone."""

    merges: tuple[Merge, ...]
    family: Family | None = None


def group_merges(merges: Sequence[Merge], suite: Suite, families: Sequence[Family] = ()) -> Iterator[Group]:
    """Merges of a family together, the others by method and set of experts; within MAX_OUTPUT_BYTES a group."""
    family_of = {merge.merge_id: family for family in families for merge in family}
    groups: dict[Any, tuple[Family | None, list[Merge]]] = {}
    for merge in merges:
        family = family_of.get(merge.merge_id)
        key = family[0].merge_id if family else (merge.backbone, merge.tasks, merge.method)
        groups.setdefault(key, (family, []))[1].append(merge)
    for family, members in groups.values():
        members.sort(key=lambda merge: -len(merge.tasks))  # outputs of the same tasks follow each other
        model_bytes = suite.zero_shot_path(members[0].backbone).stat().st_size
        size = max(1, MAX_OUTPUT_BYTES // max(1, min(model_bytes, SHARD_BYTES)))
        for start in range(0, len(members), size):
            yield Group(tuple(members[start : start + size]), family)


def request_for(suite: Suite, group: Group, moments: Path) -> MergeRequest:
    """The request whose outputs are the merges of a group, in order.

    Args:
        moments: folder of input moments, read by methods that need them.
    """
    first = group.merges[0]
    tasks = group.family[0].tasks if group.family else first.tasks

    def output(merge: Merge) -> Output:
        chosen = None if merge.tasks == tasks else tuple(tasks.index(task) for task in merge.tasks)
        return Output(merge.params, None if merge.task is None else merge.tasks.index(merge.task), chosen)

    return MergeRequest(
        suite.zero_shot_path(first.backbone),
        tuple(suite.expert_path(first.backbone, task) for task in tasks),
        first.method,
        tuple(map(output, group.merges)),
        moments=tuple(moments_path(moments, first.backbone, task) for task in tasks)
        if METHODS.declaration(first.method).moments
        else (),
        planned=tuple(map(output, group.family or ())),
    )
