"""What sweeps found, as tables of `analysis_tables`: accuracy over every searched number, and NAI beside alignment."""

from collections.abc import Sequence

from raymerge import metrics, results
from raymerge.analysis_tables import CELL, PARAMETERS, Frame
from raymerge.errors import UsageError
from raymerge.folder import Folder
from raymerge.suites import Suite

_POINT = ("method", "alpha", *PARAMETERS)
_SCORES = ("accuracy", "normalized_accuracy", "nai")
_REFERENCES = ("zero_shot_accuracy", "expert_accuracy")
_SHARED = ("trial_id", "backbone", "num_tasks", *_POINT, "split", "stage", "is_chosen")
"""What all rows of a trial have in common."""
_DETAILS = ("task", *_SCORES, *_REFERENCES)


def read_curves(suite: Suite, folders: Sequence[str]) -> Frame:
    """Table `curves`: every finished trial, averaged over its tasks and for each of them.

    Args:
        folders: of results, or URIs. Where several have a row of the same trial, the first one counts.
    Raises:
        UsageError: a folder has no results, or those of another suite.
    """
    import pandas

    found = [_curves_of(suite, folder) for folder in folders]
    if not found:
        return pandas.DataFrame(columns=["results", *_SHARED, *_DETAILS])
    curves = pandas.concat(found, ignore_index=True)
    same = [*CELL, "split", "task", "alpha", *PARAMETERS]
    first = curves.groupby(same, dropna=False, sort=False)["results"].transform("first")
    return curves[curves["results"] == first].reset_index(drop=True)


def chosen_fractions(curves: Frame, method: str) -> dict[tuple[str, int], list[float]]:
    """Common-space fractions that sweeps chose for a method, by backbone and number of tasks."""
    found: dict[tuple[str, int], list[float]] = {}
    if curves.empty:
        return found
    chosen = curves[curves["is_chosen"] & (curves["method"] == method) & curves["common_space_fraction"].notna()]
    for row in chosen[["backbone", "num_tasks", "common_space_fraction"]].drop_duplicates().itertuples(index=False):
        found.setdefault((row.backbone, int(row.num_tasks)), []).append(float(row.common_space_fraction))
    return found


def nai_beside_alignment(curves: Frame, alignments: Frame, cosines: Frame) -> Frame:
    """Table `nai`: of every chosen point on the test split, task by task, whose merged matrices were analysed.

    A cell that several folders have searched is that of the first.

    Args:
        alignments, cosines: tables of that name.
    """
    rows = curves[(curves["stage"] == "test") & curves["task"].notna()]
    first = rows.groupby(list(CELL), sort=False)["results"].transform("first")
    rows = rows[rows["results"] == first]
    keys = ["backbone", "num_tasks", "method", "task", "common_space_fraction"]
    merged = alignments[(alignments["kind"] == "task-merged") & alignments["layer"].isna() & alignments["beta"].isna()]
    whole = cosines[(cosines["kind"] == "task-merged") & cosines["layer"].isna()]
    found = rows[[*keys, "accuracy", *_REFERENCES, "nai"]]
    if found.empty:
        return found.assign(rank_rule=None, sar=None, cosine=None)
    for table, columns in ((merged, ["rank_rule", "sar"]), (whole, ["cosine"])):
        names = {"source": "task", "target": "method"}
        # pandas joins null with null, as it has to be here
        found = found.merge(table.rename(columns=names)[[*keys, *columns]], on=keys, how="inner")
    return found


def correlations(nai: Frame) -> Frame:
    """Table `correlations`: Pearson's r over tasks of NAI with the alignment, and with the cosine similarity."""
    import pandas

    rows = []
    for (backbone, num_tasks, method), cell in nai.groupby(list(CELL), sort=False):
        by_rule = [("sar", rule, group) for rule, group in cell.groupby("rank_rule", sort=False)]
        for quantity, rule, group in [*by_rule, ("cosine", None, cell.drop_duplicates("task"))]:
            known = group.dropna(subset=["nai", quantity])
            rows.append(
                {
                    "backbone": backbone,
                    "num_tasks": num_tasks,
                    "method": method,
                    "quantity": quantity,
                    "rank_rule": rule,
                    "num_points": len(known),
                    "pearson": metrics.pearson(known["nai"].tolist(), known[quantity].tolist()),
                }
            )
    return pandas.DataFrame(rows, columns=[*CELL, "quantity", "rank_rule", "num_points", "pearson"])


def _curves_of(suite: Suite, location: str) -> Frame:
    import pandas

    folder = Folder.at(location)
    tables = results.read_tables(folder, predictions=False)
    rows: Frame = tables["evaluations"].to_pandas()
    _check_suite(suite, folder, rows)
    summary: Frame = tables["summary"].to_pandas()
    chosen = {*summary["val_trial_id"].dropna(), *summary["test_trial_id"].dropna()}
    rows = rows[(rows["status"] == "finished") & (rows["stage"] != "calibration")].copy()
    rows["stage"] = rows["split"].map({"val": "search", "test": "test"})
    rows["is_chosen"] = rows["trial_id"].isin(chosen)
    rows["method"], rows["backbone"] = rows["method"].astype(str), rows["backbone"].astype(str)
    averages = rows.groupby(list(_SHARED), dropna=False, sort=False)[list(_SCORES)].mean().reset_index()
    return pandas.concat([averages, rows[[*_SHARED, *_DETAILS]]], ignore_index=True).assign(
        results=folder.name.rpartition("/")[2]
    )


def _check_suite(suite: Suite, folder: Folder, rows: Frame) -> None:
    asked = (suite.name, suite.profile, suite.seed)
    for found in rows[["suite", "profile", "suite_seed"]].drop_duplicates().itertuples(index=False):
        if tuple(found) != asked:
            raise UsageError(
                f"{folder.name}: its results are of suite {_told(*found)}, expected {_told(*asked)}; leave it out, or "
                "analyse that suite."
            )


def _told(name: str, profile: str, seed: int) -> str:
    return f"'{name}', profile {profile}, seed {seed}"
