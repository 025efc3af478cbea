"""Figures of Table 1 as published, to print beside our own."""

import functools
import json
from dataclasses import dataclass
from importlib import resources

from raymerge.records import Cell


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


@functools.cache
def _table() -> dict:
    return json.loads(resources.files(__name__).joinpath("table1.json").read_text(encoding="utf-8"))
