"""Points of searches: what validation says of each, and the best alpha for every value of something else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

PARAMETERS = ("common_space_fraction", "beta", "rank_fraction")


def searched(curves: "pandas.DataFrame") -> "pandas.DataFrame":
    """Averages over tasks of validation trials, with `score`: the normalized accuracy, or the accuracy without experts.

    A point that several sweeps tried is there once.
    """
    rows = curves[(curves["split"] == "val") & (curves["stage"] == "search") & curves["task"].isna()]
    rows = rows.assign(score=rows["normalized_accuracy"].fillna(rows["accuracy"])).sort_values("alpha", kind="stable")
    return rows.drop_duplicates(["backbone", "num_tasks", "method", "alpha", *PARAMETERS])


def best_alpha(points: "pandas.DataFrame", by: Sequence[str]) -> "pandas.DataFrame":
    """Of every group of searched points the one with the highest score; of equal ones that with the smallest alpha."""
    scored = points[points["score"].notna()].sort_values("alpha", kind="stable").reset_index(drop=True)
    best = scored.loc[scored.groupby(list(by), sort=False, dropna=False)["score"].idxmax()]
    return best.sort_values(list(by), kind="stable").reset_index(drop=True)


def of_tasks(curves: "pandas.DataFrame", points: "pandas.DataFrame") -> "pandas.DataFrame":
    """The rows of single tasks behind averages."""
    keys = ["results", "backbone", "num_tasks", "method", "split", "stage", "alpha", *PARAMETERS]
    return curves[curves["task"].notna()].merge(points[keys], on=keys)
