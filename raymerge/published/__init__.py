"""Published figures, to print beside our own or to divide by: Table 1, and the accuracies of single models."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from raymerge.records import Accuracies, Cell, Split


@dataclass(frozen=True)
class PublishedAverage:
    """Test averages over tasks, fractions 0..1 with the three decimals that were printed."""

    accuracy: float
    normalized_accuracy: float | None


def published_average(cell: Cell) -> PublishedAverage | None:
    """What the paper reports for `cell`; None for another backbone, method or set of tasks.

    Source: Marczak et al. 2025, arXiv:2502.04959, Table 1.
    """
    if frozenset(cell.tasks) != frozenset(_table()["tasks"][: cell.num_tasks]):
        return None
    for row in _table()["table1"]:
        if (row["backbone"], row["num_tasks"], row["method"]) == (cell.backbone, cell.num_tasks, cell.method):
            normalized = row["normalized_accuracy"]
            return PublishedAverage(
                accuracy=round(row["accuracy"] / 100, 4),
                normalized_accuracy=None if normalized is None else round(normalized / 100, 4),
            )
    return None


def expert_accuracies(suite: str, profile: str) -> Accuracies:
    """What was published of the experts of a collection, each on its own task; empty for any other suite.

    `sources` of single_task.json says where each comes from. These are the denominators of the published normalized
    accuracies.
    """
    return _flat(_single_task()["fine-tuned"].get(f"{suite}/{profile}", {}))


def zero_shot_accuracies(suite: str) -> Accuracies:
    """What was published of OpenAI's zero-shot models, on the tasks of a collection; empty for any other suite."""
    return _flat(_single_task()["zero-shot"]) if suite == "tall-masks" else {}


def _flat(nested: Mapping[str, Mapping[Split, Mapping[str, float]]]) -> Accuracies:
    return {
        (backbone, task, split): value
        for backbone, splits in nested.items()
        for split, values in splits.items()
        for task, value in values.items()
    }


@functools.cache
def _single_task() -> dict:
    return json.loads(resources.files(__name__).joinpath("single_task.json").read_text(encoding="utf-8"))


@functools.cache
def _table() -> dict:
    return json.loads(resources.files(__name__).joinpath("table1.json").read_text(encoding="utf-8"))
