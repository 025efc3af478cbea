"""`raymerge stats`: collect the input moments of a suite's experts, and print their means."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymerge.cli_options import Debug, Device, Json, Quiet, torch_device
from raymerge.cli_suite import (
    Backbones,
    Data,
    NumTasks,
    Profile,
    SuiteName,
    SuiteSeed,
    Tasks,
    Weights,
    check_variant,
    chosen_backbones,
    chosen_tasks,
    prepare,
)
from raymerge.errors import UsageError
from raymerge.streams import errors_told, interruptible, render, tell, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raymerge.moment_collection import Collected
    from raymerge.suites import Suite

SHOWN_KINDS = ("resid", "attention", "mlp")
"""The moments of positions say nothing: all are one over the number of tokens."""


def stats(
    suite: SuiteName,
    profile: Profile = None,
    suite_seed: SuiteSeed = None,
    weights: Weights = None,
    data: Data = None,
    backbones: Backbones = None,
    num_tasks: NumTasks = None,
    tasks: Tasks = None,
    max_images: Annotated[
        int | None, typer.Option("--max-images", min=1, help="Only the first so many images of every task.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per forward pass.  [default: by device]")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where experts run.")] = Device.auto,
    output: Annotated[
        str | None, typer.Option("--output", metavar="DIR", help="Folder of moments.  [default: in the cache]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Collect what is there already once more.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Collect the second moments of the inputs of every expert's matrices."""
    with errors_told(debug):
        from raymerge.suite_file import find_suite
        from raymerge.suites import moments_dir

        if output and "://" in output:
            raise UsageError(f"--output '{output}' is not a folder of this machine; moments go to a local folder.")
        found = find_suite(suite, profile, suite_seed or 0, weights=weights, data=data)
        check_variant(found, profile, suite_seed)
        chosen = dict.fromkeys(chosen_backbones(found, backbones or ()), chosen_tasks(found, num_tasks, tasks))
        folder = Path(output).expanduser() if output else moments_dir(found)
        rows = _collect(found, chosen, folder, device, max_images, batch_size, force, quiet=quiet, debug=debug)
        if as_json:
            about = {"name": found.name, "profile": found.profile, "seed": found.seed}
            write_json({"suite": about, "split": "val", "output": str(folder), "rows": [_row(row) for row in rows]})
        else:
            for backbone in chosen:
                render(_table(backbone, [row for row in rows if row.item.origin.backbone == backbone], folder))
        if not quiet:
            for line in _remarks(rows):
                tell(line)


def _collect(
    suite: "Suite",
    tasks: dict[str, Sequence[str]],
    folder: Path,
    device: Device,
    max_images: int | None,
    batch_size: int | None,
    force: bool,
    *,
    quiet: bool,
    debug: bool,
) -> "list[Collected]":
    from raymerge.progress import StderrConsole, watching

    # whatever a library prints belongs to the logs: stdout is for results
    with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
        view.stage(f"loading suite '{suite.name}'")
        from raymerge.moment_collection import collect, find_items, make_folder  # torch takes seconds to import

        where = torch_device(device)
        make_folder(folder)
        if not suite.is_prepared:
            prepare(suite, view, debug)
        with interruptible():
            view.stage("checking checkpoints, images and moments")
            items = find_items(suite, tasks, folder, max_images=max_images, force=force, report=view.preparing)
            if any(item.why for item in items):
                view.stage(f"collecting input moments on {where.type}")
            return list(collect(suite, items, device=where, batch_size=batch_size, report=view.preparing))


def _remarks(rows: "Sequence[Collected]") -> Iterable[str]:
    kept = sum(row.item.why is None for row in rows)
    if kept:
        yield f"{kept} of {len(rows)} files were there already; --force collects them once more."
    for why, count in Counter(row.item.why for row in rows).items():
        if why not in (None, "not there", "asked for"):
            yield f"{count} of {len(rows)} files were {why}, and were collected again."


def _row(row: "Collected") -> dict[str, Any]:
    return {
        "backbone": row.item.origin.backbone,
        "task": row.item.origin.task,
        "images": row.item.origin.images,
        "file": str(row.item.path),
        "is_new": row.item.why is not None,
        "mean_moments": dict(row.means),
    }


def _table(backbone: str, rows: "Sequence[Collected]", folder: Path) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table()
    grid.add_column("Task", no_wrap=True)
    for title in ("Images", *SHOWN_KINDS):
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("File", overflow="fold")
    for row in rows:
        means = [f"{row.means[kind]:.4g}" for kind in SHOWN_KINDS]
        grid.add_row(row.item.origin.task, f"{row.item.origin.images:,}", *means, row.item.path.name)
    return Group(Text(f"Mean input moments of {backbone}; files are in {folder / backbone}"), grid)
