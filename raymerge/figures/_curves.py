"""Points of searches: what validation says of each, and the best of them, as for every value of a parameter."""

from collections.abc import Sequence

from raymerge.analysis_tables import CELL, PARAMETERS, Frame

SEARCH = {"split": "val", "stage": "search"}
"""Rows of `curves` that a search has left: averages over tasks, and single tasks."""


def searched(curves: Frame) -> Frame:
    """Averages over tasks of validation trials, with `score`: the normalized accuracy, or the accuracy without experts.

    Where several sweeps have searched a cell, of the one that tried most points.
    """
    rows = curves[(curves["split"] == "val") & (curves["stage"] == "search") & curves["task"].isna()]
    rows = rows.assign(score=rows["normalized_accuracy"].fillna(rows["accuracy"])).sort_values("alpha", kind="stable")
    rows = rows.drop_duplicates(["results", *CELL, "alpha", *PARAMETERS])
    size = rows.groupby([*CELL, "results"], sort=False)["alpha"].transform("size")
    largest = rows.assign(size=size).sort_values("size", ascending=False, kind="stable").drop_duplicates(list(CELL))
    return rows.merge(largest[["results", *CELL]], on=["results", *CELL])


def best(points: Frame, by: Sequence[str]) -> Frame:
    """Of every group of searched points the one with the highest score; of equal ones that with the smallest alpha."""
    scored = points[points["score"].notna()].sort_values("alpha", kind="stable").reset_index(drop=True)
    found = scored.loc[scored.groupby(list(by), sort=False, dropna=False)["score"].idxmax()]
    return found.sort_values(list(by), kind="stable").reset_index(drop=True)


def of_tasks(curves: Frame, points: Frame) -> Frame:
    """The rows of single tasks behind averages."""
    keys = ["results", "backbone", "num_tasks", "method", "split", "stage", "alpha", *PARAMETERS]
    return curves[curves["task"].notna()].merge(points[keys], on=keys)
