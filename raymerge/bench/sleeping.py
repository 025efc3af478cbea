"""Evaluators that sleep instead of computing. Their processes import neither torch nor Ray Tune."""

import asyncio
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raymerge.records import EvalJob, Failed, Scored

SLOWER = 2.0
ONE_IN = 4
"""Every so many evaluators one is slower."""


def shard_seconds(number: int, seconds: float) -> float:
    """What a shard takes on one evaluator: every fourth is slower by two."""
    return seconds * (SLOWER if number % ONE_IN == ONE_IN - 1 else 1.0)


class SleepingEvaluators:
    """Some evaluators in one process, an async actor. Each has one call in flight, as a process of its own has."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._busy: set[int] = set()

    async def ready(self, number: int, backbones: Sequence[str]) -> str:
        return "none"

    async def run(self, number: int, *jobs: EvalJob) -> list[Scored | Failed]:
        """Score shards with shares that follow from their weights and tasks."""
        if number in self._busy:
            return [Failed(f"evaluator {number} was called again before its first call was done")] * len(jobs)
        self._busy.add(number)
        try:
            seconds = shard_seconds(number, self._seconds)
            if seconds:
                await asyncio.sleep(seconds * len(jobs))
        finally:
            self._busy.remove(number)
        return [self._score(job, seconds) for job in jobs]

    @staticmethod
    def _score(job: EvalJob, seconds: float) -> Scored:
        share = 0.3 + 0.6 * zlib.crc32(f"{job.weights_id}/{job.task}".encode()) / 2**32
        # the time it was to take: waking up late is no evaluation
        return Scored(round(share * (job.stop - job.start)), job.stop - job.start, seconds)


@dataclass(frozen=True)
class _Method:
    method: Any
    number: int

    def remote(self, *arguments: Any) -> Any:
        return self.method.remote(self.number, *arguments)


@dataclass(frozen=True)
class OneOfSeveral:
    """One evaluator of an actor that hosts several, to be called as if the actor were its own."""

    actor: Any
    number: int

    @property
    def ready(self) -> _Method:
        return _Method(self.actor.ready, self.number)

    @property
    def run(self) -> _Method:
        return _Method(self.actor.run, self.number)
