"""Merges as Ray tasks: planned, sharded by cost, cached by content, their results owned by the driver."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from raymerge.errors import RaymergeError, first_line
from raymerge.merge_request import Family, Merge, MergeRequest, group_merges, request_for
from raymerge.suites import Suite

POLL_S = 0.05
MAX_RETRIES = 20
"""Processes or nodes that one task may lose; its results are computed again as well when their node is lost."""
MAX_MOVES = 5
"""How often a part of a merge is started again because nodes have come or gone meanwhile."""


@dataclass
class _Group:
    """Merges that are computed together."""

    merges: tuple[Merge, ...]
    request: MergeRequest
    hashes: list[str]
    shards: list[list[Any]] = field(default_factory=list)
    """Per shard, one reference per merge."""
    num_running: int = 0
    failed: bool = False


class MergeJobs:
    """Computes merges in the background, at most `max_parallel` tasks at a time, and says which are there.

    The first task of a group says how many shards there are, and does all the work if there is but one.
    """

    def __init__(
        self,
        suite: Suite,
        hashes: Mapping[Path, str],
        cache: Path,
        moments: Path,
        *,
        families: Sequence[Family],
        max_parallel: Callable[[], int],
        publish: Callable[[str, list[Any]], None],
        placement: Callable[[bool], Mapping[str, Any]] = lambda wary: {},
    ):
        """
        Args:
            families: `Sweep.families`.
            hashes: SHA-256 of every checkpoint.
            cache: folder of merged updates, on the machine that merges.
            moments: folder of input moments.
            max_parallel: how many tasks run at once, by now.
            publish: told a merge id and the references of its shards.
            placement: options of Ray that keep a task to the nodes that have the checkpoints, by now; when told to be
                wary, off those as well of which that is not known yet.
        """
        self._suite = suite
        self._hashes = hashes
        self._cache = cache
        self._moments = moments
        self._families = families
        self._max_parallel = max_parallel
        self._publish = publish
        self._placement = placement
        self._lock = threading.Condition()
        self._known: set[str] = set()
        self._references: dict[str, list[Any]] = {}
        self._failures: dict[str, str] = {}
        self._waiting: deque[Callable[[], None]] = deque()
        self._running: dict[Any, Callable[[Any], None]] = {}
        """By the task's first result: what to do with it."""
        self._owners: dict[Any, tuple[_Group, Mapping[str, Any], Callable[[], None] | None]] = {}
        """By the same: whose it is, where it could run, and how to start it again if that may be done."""
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="merges", daemon=True)
        self._thread.start()

    def is_merged(self, merge: Merge) -> bool:
        return merge.merge_id in self._references

    def want(self, merges: Sequence[Merge]) -> None:
        """Start what is not known yet."""
        with self._lock:
            new = [merge for merge in merges if merge.merge_id not in self._known]
            for planned in group_merges(new, self._suite, self._families):
                request = request_for(self._suite, planned, self._moments)
                hashes = [self._hashes[path] for path in (request.zero_shot, *request.experts, *request.moments)]
                group = _Group(planned.merges, request, hashes)
                self._known |= {merge.merge_id for merge in planned.merges}
                self._waiting.append(lambda group=group: self._start_first(group))
            self._lock.notify()

    def take_failures(self) -> dict[str, str]:
        """Errors, by merge id, of merges that turned out to be impossible since the last call."""
        with self._lock:
            failures, self._failures = self._failures, {}
            return failures

    def held(self) -> list[str]:
        with self._lock:
            return list(self._references)

    def release(self, merge_ids: Sequence[str]) -> None:
        """Forget merges that nobody needs any more; their memory is freed."""
        with self._lock:
            for merge_id in merge_ids:
                self._references.pop(merge_id, None)
                self._known.discard(merge_id)

    def close(self) -> None:
        """Start nothing more and let go of everything."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._thread.join()

    # --- in the background --------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._lock:
                while not (self._closed or self._waiting or self._running):
                    self._lock.wait()
                if self._closed:
                    return
                while self._waiting and len(self._running) < self._max_parallel():
                    self._waiting.popleft()()
                running = list(self._running)
            ready, _ = ray.wait(running, num_returns=1, timeout=POLL_S)
            with self._lock:
                for reference in ready:
                    self._finish(reference)

    def _finish(self, reference: Any) -> None:
        take = self._running.pop(reference)
        group, placed, again = self._owners.pop(reference)
        group.num_running -= 1
        try:
            take(ray.get(reference))
        except (RaymergeError, RayError) as error:
            if again is not None and placed != self._placement(True):  # it may have run where files are missing
                self._waiting.appendleft(again)
                return
            if not group.failed:
                self._failures |= {merge.merge_id: f"{first_line(error)}." for merge in group.merges}
            group.failed = True

    def _start(
        self, task: Any, group: _Group, take: Callable[[Any, list[Any]], None], *args: Any, num_moved: int = 0
    ) -> None:
        if group.failed:
            return
        placed = self._placement(num_moved > 0)
        returned = task.options(num_returns=1 + len(group.merges), **placed).remote(
            group.request, group.hashes, *args, self._cache
        )
        first, *updates = returned
        group.num_running += 1
        self._running[first] = lambda value: take(value, updates)

        def again() -> None:
            self._start(task, group, take, *args, num_moved=num_moved + 1)

        self._owners[first] = (group, placed, again if num_moved < MAX_MOVES else None)

    def _start_first(self, group: _Group) -> None:
        def take(plan: tuple[int, Any], updates: list[Any]) -> None:
            num_shards, statistics = plan
            group.shards = [[] for _ in range(num_shards)]
            if num_shards == 1:
                self._take_shard(group, 0, updates)
                return
            for shard in reversed(range(num_shards)):  # onto the front of the queue, the costliest first
                self._waiting.appendleft(lambda shard=shard: self._start_shard(group, shard, statistics))

        self._start(_first_task, group, take)

    def _start_shard(self, group: _Group, shard: int, statistics: Any) -> None:
        self._start(_shard_task, group, lambda _, updates: self._take_shard(group, shard, updates), shard, statistics)

    def _take_shard(self, group: _Group, shard: int, updates: list[Any]) -> None:
        group.shards[shard] = updates
        if not all(group.shards):
            return
        for merge, references in zip(group.merges, zip(*group.shards, strict=True), strict=True):
            self._publish(merge.merge_id, list(references))
            self._references[merge.merge_id] = list(references)


@ray.remote(num_cpus=1, max_retries=MAX_RETRIES)
def _first_task(request: MergeRequest, hashes: list[str], cache: Path) -> tuple[Any, ...]:
    """The number of shards and the statistics of a flat-vector method, then the updates if there is one shard."""
    from raymerge import merge_cache, merging

    _one_thread()
    num_shards = len(merging.shards_of(request))
    statistics = None if merge_cache.has_cached(request, hashes, cache) else merging.read_statistics(request)
    if num_shards > 1:
        return (num_shards, statistics), *(None for _ in request.outputs)
    return (1, None), *_arrays(merge_cache.cached_merge_shard(request, hashes, 0, statistics, cache))


@ray.remote(num_cpus=1, max_retries=MAX_RETRIES)
def _shard_task(request: MergeRequest, hashes: list[str], shard: int, statistics: Any, cache: Path) -> tuple[Any, ...]:
    """None, then one shard of every update."""
    from raymerge import merge_cache

    _one_thread()
    return None, *_arrays(merge_cache.cached_merge_shard(request, hashes, shard, statistics, cache))


def _arrays(updates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As numpy, which Ray shares between the processes of a machine without copies."""
    return [{name: value.numpy() for name, value in update.items()} for update in updates]


def _one_thread() -> None:
    """One torch thread per task: bitwise the same updates on any machine, and no oversubscription."""
    import torch

    torch.set_num_threads(1)
