"""`raymerge analyze`: spectra, similarities and subspace alignments of a suite, beside what sweeps over it found."""

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymerge.cli_options import Debug, Device, Json, Quiet, torch_device
from raymerge.cli_suite import (
    SUITE_HELP,
    Backbones,
    Profile,
    SuiteSeed,
    Weights,
    check_variant,
    chosen_backbones,
    prepare,
)
from raymerge.errors import UsageError
from raymerge.streams import errors_told, interruptible, render, write, write_json

if TYPE_CHECKING:
    import pyarrow
    from rich.console import RenderableType

    from raymerge.suites import Suite

PAPER_SIZES = (8, 14, 20)
SHOWN_RULE = "released_code"
"""What the published alignments follow."""


def analyze(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help=SUITE_HELP, show_default=False)],
    results: Annotated[
        list[str] | None,
        typer.Option("--results", metavar="DIR", help="Results of a sweep over the suite, or their URI; repeatable."),
    ] = None,
    backbones: Backbones = None,
    num_tasks: Annotated[
        list[int] | None,
        typer.Option("--num-tasks", min=1, help="Merge the first so many tasks; repeatable.  [default: 8, 14, 20]"),
    ] = None,
    epsilon: Annotated[
        float, typer.Option("--epsilon", help="Residual that an effective rank leaves, between 0 and 1.")
    ] = 0.05,
    profile: Profile = None,
    suite_seed: SuiteSeed = None,
    weights: Weights = None,
    device: Annotated[Device, typer.Option("--device", help="Where to factorise.")] = Device.auto,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="DIR", help="Folder of the tables.  [default: results/<suite>_analysis]"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write spectra, cosine similarities, subspace alignments and curves as Parquet, for `raymerge figure`."""
    with errors_told(debug):
        from raymerge import analysis_tables
        from raymerge.suite_file import find_suite

        if not 0 < epsilon < 1:
            raise UsageError(f"--epsilon is {epsilon:g}, expected a number between 0 and 1.")
        if output and "://" in output:
            raise UsageError(f"--output '{output}' is not a folder of this machine; tables go to a local folder.")
        found = find_suite(suite, profile, suite_seed or 0, weights=weights)
        check_variant(found, profile, suite_seed)
        chosen = list(chosen_backbones(found, backbones or ()))
        sizes = _sizes(found, num_tasks)
        folder = Path(output).expanduser() if output else Path("results") / f"{found.name}_analysis"
        analysis_tables.check_folder(folder)
        tables = _analysed(found, chosen, sizes, results or [], epsilon, device, quiet=quiet, debug=debug)
        analysis_tables.save(folder, tables, _origin(found, chosen, sizes, results or [], epsilon))
        if as_json:
            about = {"name": found.name, "profile": found.profile, "seed": found.seed}
            write_json(
                {
                    "suite": about,
                    "output": str(folder),
                    "num_rows": {name: len(table) for name, table in tables.items()},
                    "sar": _averages(tables),
                    "correlations": tables["correlations"].to_pylist(),
                }
            )
        else:
            write("Subspace alignment ratio of task and merged matrix, averaged over tasks and layers\n")
            render(_view(tables))
            write(f"\ntables: {folder}\n")


def _sizes(suite: "Suite", asked: list[int] | None) -> list[int]:
    known = len(suite.tasks)
    if asked is None:
        return [n for n in PAPER_SIZES if n <= known] or [known]
    for size in asked:
        if size > known:
            raise UsageError(f"suite '{suite.name}' has {known} tasks, --num-tasks asks for {size}.")
    return sorted(set(asked))


def _analysed(
    suite: "Suite",
    backbones: list[str],
    sizes: list[int],
    results: list[str],
    epsilon: float,
    device: Device,
    *,
    quiet: bool,
    debug: bool,
) -> "dict[str, pyarrow.Table]":
    from raymerge.progress import StderrConsole, watching

    # whatever a library prints belongs to the logs: stdout is for results
    with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
        view.stage(f"loading suite '{suite.name}'")
        from raymerge.sweep_curves import read_curves

        curves = read_curves(suite, results)  # what is wrong with it is told before a suite is prepared
        from raymerge.analysis import analyse  # torch takes seconds to import

        where = torch_device(device)
        if not suite.is_prepared:
            prepare(suite, view, debug)
        with interruptible():
            view.stage(f"analysing on {where.type}")
            return analyse(suite, backbones, sizes, curves, epsilon=epsilon, device=where, report=view.preparing)


def _origin(
    suite: "Suite", backbones: list[str], sizes: list[int], results: list[str], epsilon: float
) -> dict[str, Any]:
    from raymerge.folder import without_secrets
    from raymerge.provenance import git_revision, versions

    return {
        "suite": suite.name,
        "profile": suite.profile,
        "suite_seed": suite.seed,
        "backbones": backbones,
        "num_tasks": sizes,
        "epsilon": epsilon,
        "results": [without_secrets(folder) for folder in results],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _averages(tables: "dict[str, pyarrow.Table]") -> list[dict[str, Any]]:
    """SAR of task and merged matrix, averaged over layers and tasks."""
    frame: Any = tables["alignments"].to_pandas()
    merged = frame[(frame["kind"] == "task-merged") & frame["layer"].isna() & frame["beta"].isna()]
    keys = ["backbone", "num_tasks", "target", "common_space_fraction", "rank_rule"]
    means = merged.groupby(keys, dropna=False, sort=False)["sar"].mean().reset_index()
    means = means.astype(object).where(means.notna(), None)
    return means.rename(columns={"target": "method"}).to_dict("records")


def _chosen(tables: "dict[str, pyarrow.Table]") -> list[dict[str, Any]]:
    return [row for row in tables["curves"].to_pylist() if row["is_chosen"] and row["stage"] == "test"]


def _view(tables: "dict[str, pyarrow.Table]") -> "RenderableType":
    from rich.table import Table

    from raymerge.methods import declared_methods

    pearson = {
        (row["backbone"], row["num_tasks"], row["method"]): row
        for row in tables["correlations"].to_pylist()
        if row["rank_rule"] == SHOWN_RULE
    }
    grid = Table()
    for title in ("Backbone", "Tasks", "Method", "SAR", "SAR, Eq. 6", "r of NAI and SAR"):
        grid.add_column(title, justify="left" if title in ("Backbone", "Method") else "right", no_wrap=True)
    # the correlation is that of the point a sweep chose
    tested = {(r["backbone"], r["num_tasks"], r["method"], r["common_space_fraction"]) for r in _chosen(tables)}
    found: dict[tuple, dict[str, float]] = {}
    for row in _averages(tables):
        key = (row["backbone"], row["num_tasks"], row["method"], row["common_space_fraction"])
        found.setdefault(key, {})[row["rank_rule"]] = row["sar"]
    for key, sar in found.items():
        backbone, num_tasks, method, fraction = key
        name = declared_methods()[method].title + (f", fraction {fraction:g}" if fraction is not None else "")
        r = pearson.get((backbone, num_tasks, method), {}).get("pearson") if key in tested else None
        cells = [f"{sar[rule]:.3f}" for rule in (SHOWN_RULE, "paper")]
        grid.add_row(backbone, str(num_tasks), name, *cells, "–" if r is None else f"{r:.2f}")
    return grid
