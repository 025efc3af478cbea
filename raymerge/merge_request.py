"""From the merges a sweep wants to requests that share reading and factorisation. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raymerge.records import Point, content_id
from raymerge.suites import Suite

MAX_OUTPUT_BYTES = 512 * 2**20
"""Of all outputs of one request: what a merge task may hold in memory and return at once."""


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


def group_merges(merges: Sequence[Merge], suite: Suite) -> Iterator[tuple[Merge, ...]]:
    """Merges of one method over one set of experts together, within MAX_OUTPUT_BYTES a group."""
    groups: dict[tuple[str, tuple[str, ...], str], list[Merge]] = {}
    for merge in merges:
        groups.setdefault((merge.backbone, merge.tasks, merge.method), []).append(merge)
    for (backbone, _, _), members in groups.items():
        model_bytes = suite.zero_shot_path(backbone).stat().st_size
        size = max(1, MAX_OUTPUT_BYTES // max(1, model_bytes))
        for start in range(0, len(members), size):
            yield tuple(members[start : start + size])


def request_for(suite: Suite, group: Sequence[Merge]) -> MergeRequest:
    """The request whose outputs are the merges of a group, in order."""
    first = group[0]
    outputs = (Output(m.params, None if m.task is None else m.tasks.index(m.task)) for m in group)
    return MergeRequest(
        suite.zero_shot_path(first.backbone),
        tuple(suite.expert_path(first.backbone, task) for task in first.tasks),
        first.method,
        tuple(outputs),
    )
