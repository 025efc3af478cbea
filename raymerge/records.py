"""The frozen values that cross layers: cells, trials, shards, scores.

Identity is content: the same trial has the same `trial_id` in every run, on every machine.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Split = Literal["val", "test"]
Stage = Literal["reference", "calibration", "search", "test"]
Status = Literal["finished", "pruned", "failed"]

RunOutcome = Literal["finished", "interrupted", "failed"]
"""How the work of one driver on a sweep ended."""
Accuracies = Mapping[tuple[str, str, Split], float]
"""Fractions 0..1 by backbone, task and split."""

SPLITS: tuple[Split, ...] = ("val", "test")


def content_id(value: Any, *, length: int = 16) -> str:
    """Hex id of a JSON-like value; key order and tuple versus list do not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Cell:
    """One number of Table 1: a method on the first tasks of a backbone."""

    backbone: str
    tasks: tuple[str, ...]
    method: str

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    def __str__(self) -> str:
        return f"{self.backbone}/{self.num_tasks} tasks/{self.method}"


@dataclass(frozen=True)
class Point:
    """Where in a cell's search space a trial sits. `params` excludes alpha; values are JSON scalars or tuples."""

    alpha: float
    params: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        # tuples become lists so that a point read back from Parquet has the same content id
        return {"alpha": self.alpha, **{k: list(v) if isinstance(v, tuple) else v for k, v in self.params.items()}}


@dataclass(frozen=True)
class Predictions:
    """What a model says of every image, beside the truth: classes in the order of the images, int32, little-endian."""

    predicted: bytes
    labels: bytes


@dataclass(frozen=True)
class TaskScore:
    """Top-1 of one task on one split. Counts are integers, so shards add up in any order."""

    task: str
    correct: int
    total: int
    seconds: float = 0.0
    predictions: Predictions | None = None
    """Where the sweep stores them; on their way to the results only."""

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


@dataclass(frozen=True)
class EvalJob:
    """A shard of one split under one set of weights: images start..stop-1 under theta_0 + alpha * update."""

    backbone: str
    task: str
    split: Split
    start: int
    stop: int
    weights_id: str
    """Equal ids are equal weights, so a worker that has them set need not set them again."""
    alpha: float
    update_id: str | None
    """None: theta_0 itself."""
    update: Any = None
    """Whatever the executor's `fetch` turns into the update."""
    with_predictions: bool = False
    """Whether the outcome holds them, beside the counts."""


@dataclass(frozen=True)
class Scored:
    correct: int
    total: int
    seconds: float
    predictions: Predictions | None = None


def task_score(task: str, shards: Sequence[Scored]) -> TaskScore:
    """All shards of a task together; their order matters to predictions alone."""
    answers = [shard.predictions for shard in shards if shard.predictions is not None]
    predictions = None
    if len(answers) == len(shards):
        predictions = Predictions(b"".join(a.predicted for a in answers), b"".join(a.labels for a in answers))
    return TaskScore(
        task,
        sum(shard.correct for shard in shards),
        sum(shard.total for shard in shards),
        sum(shard.seconds for shard in shards),
        predictions,
    )


@dataclass(frozen=True)
class Failed:
    error: str


@dataclass(frozen=True)
class NotYet:
    """The update is still on its way, or is computed again because the machine that had it is gone."""

    no_room: str = ""
    """Why the evaluator's machine could not take it now even if it came; empty: it could."""


@dataclass(frozen=True)
class ServiceStats:
    """What the evaluators of a sweep have done since its first shard, and what they have before them."""

    num_evaluators: int = 0
    num_busy: int = 0
    num_queued: int = 0
    """Shards that wait for an evaluator."""
    images: int = 0
    busy_s: float = 0.0
    """Time spent on shards, added up over evaluators, shards in work included."""
    present_s: float = 0.0
    """Time that evaluators were there, each from its first shard on, added up."""

    @property
    def occupancy(self) -> float | None:
        """Share of their time that evaluators were busy."""
        return min(1.0, max(0.0, self.busy_s / self.present_s)) if self.present_s > 0 else None

    def since(self, earlier: "ServiceStats") -> "ServiceStats":
        """What was done between two moments; counts of the moment are those of the later one."""
        return replace(
            self,
            images=self.images - earlier.images,
            busy_s=self.busy_s - earlier.busy_s,
            present_s=self.present_s - earlier.present_s,
        )


@dataclass(frozen=True)
class TaskReference:
    """What a task's accuracy is divided by (normalized accuracy) and measured from (NAI)."""

    expert_accuracy: float
    zero_shot_accuracy: float
    source: str = "measured"


@dataclass(frozen=True)
class TrialRecord:
    """One finished, pruned or failed trial with the score of every task it was evaluated on."""

    trial_id: str
    cell: Cell
    point: Point
    stage: Stage
    split: Split
    status: Status
    scores: tuple[TaskScore, ...] = ()
    references: Mapping[str, TaskReference] = field(default_factory=dict)
    generation: int = 0
    """Which batch of its cell's search suggested it; -1 outside a search."""
    index: int = 0
    """Position within the cell's search: the order in which outcomes are told to the sampler."""
    seconds: float = 0.0
    """Wall time from submission to the last score."""
    images: int = 0
    """Images this trial really put through an encoder; 0 when every score was known already."""
    occupancy: float | None = None
    """Share of their time that all evaluators of the sweep were busy while it ran, whoever's shards they had."""
    device: str = ""
    error: str | None = None
    finished_at: float = 0.0
    """Unix time in seconds."""

    @property
    def average_accuracy(self) -> float:
        return _mean([score.accuracy for score in self.scores])

    @property
    def average_normalized_accuracy(self) -> float:
        """Mean over tasks of merged / expert accuracy (not the ratio of means)."""
        return _mean([score.accuracy / self.references[score.task].expert_accuracy for score in self.scores])

    def without_predictions(self) -> "TrialRecord":
        """The same record with counts alone, small enough to be kept."""
        if all(score.predictions is None for score in self.scores):
            return self
        return replace(self, scores=tuple(replace(score, predictions=None) for score in self.scores))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
