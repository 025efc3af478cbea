"""`raymerge data`: get the datasets of a suite, check them, and cache their images."""

import contextlib
import enum
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymerge.cli_options import Debug, Json, Quiet
from raymerge.cli_suite import Data, Profile
from raymerge.errors import PreflightError, UsageError, did_you_mean
from raymerge.streams import INTERRUPTED, errors_told, interruptible, render, tell, write, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raymerge.data_files.fetch import Fetched
    from raymerge.data_files.prepare import Prepared
    from raymerge.data_files.verify import SplitFound, Verified
    from raymerge.progress import Lines, LiveView, Silent
    from raymerge.suites.published import PublishedSuite

MAX_PROBLEMS = 20
"""Of a dataset that are printed; --json has all of them."""

data_app = typer.Typer(help="Get, check and cache the images of a suite's datasets.", no_args_is_help=True)

Tasks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TASK", help="Tasks of the suite, or datasets.  [default: all of the suite]", show_default=False
    ),
]
SuiteName = Annotated[str, typer.Option("--suite", metavar="SUITE", help="tall-masks, fusionbench, or a suite file.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes that decode images.  [default: one for every core, up to 16]"),
]


class Hub(enum.StrEnum):
    torchvision = "torchvision"
    huggingface = "huggingface"


@data_app.command()
def fetch(
    tasks: Tasks = None,
    suite: SuiteName = "tall-masks",
    profile: Profile = None,
    data: Data = None,
    hub: Annotated[
        Hub | None, typer.Option("--from", help="Only from there.  [default: the best source that works]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Get what is there already once more.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download datasets that are not there, or say what to do where no download works."""
    with errors_told(debug), interruptible():
        found, chosen = _suite_and_tasks(suite, profile, data, tasks)
        from raymerge.data_files.fetch import fetch_data

        with contextlib.redirect_stdout(sys.stderr), _library_output(quiet):
            stage = (lambda what: None) if quiet else tell  # libraries draw progress bars of their own
            rows = fetch_data(found, chosen, hub=hub.value if hub else None, force=force, stage=stage)
        for row in rows:
            write("\n".join(_fetched_lines(row)) + "\n")
        missing = [row.task for row in rows if row.status == "not fetched"]
        if missing:
            raise PreflightError(
                f"{len(missing)} of {len(rows)} datasets are not under {found.data}: {', '.join(missing)}. Follow the "
                "steps above where there are any; where a download failed, the same command goes on with it."
            )


@data_app.command()
def prepare(
    tasks: Tasks = None,
    suite: SuiteName = "tall-masks",
    profile: Profile = None,
    data: Data = None,
    workers: Workers = None,
    force: Annotated[bool, typer.Option("--force", help="Cache what is there already once more.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Cache the validation and test images of datasets, decoded and resized, so that sweeps read them quickly."""
    interrupted = INTERRUPTED.replace("the same command", "the same command without --force") if force else INTERRUPTED
    with errors_told(debug, interrupted=interrupted):
        found, chosen = _suite_and_tasks(suite, profile, data, tasks)
        with _watched(quiet) as view:
            view.stage("looking at the image cache")
            from raymerge.data_files.prepare import prepare_images

            rows = prepare_images(found, chosen, workers=workers, force=force, stage=view.stage, report=view.preparing)
        render(_prepared_table(found, rows))
        if (num_kept := sum(not row.is_new for row in rows)) and not quiet:
            tell(f"{num_kept} of {len(rows)} datasets were cached already; --force caches them once more.")


@data_app.command()
def verify(
    tasks: Tasks = None,
    suite: SuiteName = "tall-masks",
    profile: Profile = None,
    data: Data = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Decode no image: sizes, classes, validation images and the cache only.")
    ] = False,
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check datasets: sizes, classes, which images are held out for validation, the cache, and every image."""
    with errors_told(debug, interrupted="interrupted: nothing was changed."):
        found, chosen = _suite_and_tasks(suite, profile, data, tasks)
        with _watched(quiet) as view:
            view.stage("looking for datasets")
            from raymerge.data_files.verify import verify_data

            rows = verify_data(found, chosen, quick=quick, workers=workers, stage=view.stage, report=view.preparing)
        wrong = [row.task for row in rows if row.problems]
        if as_json:
            about = {"name": found.name, "profile": found.profile}
            write_json(
                {"suite": about, "data": str(found.data), "decoded": not quick, "rows": [asdict(r) for r in rows]}
            )
        else:
            render(_verified_table(found, rows))
            for row in rows:
                write("".join(f"{line}\n" for line in _problem_lines(row)))
        if wrong:
            raise PreflightError(f"{len(wrong)} of {len(rows)} datasets are not as they should be: {', '.join(wrong)}.")


# --- which suite and tasks -------------------------------------------------------------------------------------------


def _suite_and_tasks(
    name: str, profile: str | None, data: str | None, tasks: Sequence[str] | None
) -> tuple["PublishedSuite", list[str]]:
    """A suite of raw datasets; a dataset that is named, but is none of its, is added as a task.

    Raises:
        UsageError: the suite has no raw datasets, or a name is unknown.
    """
    from raymerge.data import datasets
    from raymerge.suite_file import find_suite
    from raymerge.suites.published import PublishedSuite, task_of

    suite = find_suite(name, profile, data=data)
    if not isinstance(suite, PublishedSuite):
        raise UsageError(f"--suite {name} has no raw datasets: its images are made together with its weights.")
    chosen = []
    by_dataset = {declared.name: task for task, declared in suite.datasets.items()}
    for wanted in tasks or [task.name for task in suite.tasks]:
        if wanted in by_dataset and wanted not in suite.datasets:
            chosen.append(by_dataset[wanted])
            continue
        if wanted not in suite.datasets:
            if wanted not in datasets():
                raise UsageError(
                    f"'{wanted}' is neither a task of suite '{suite.name}' nor a dataset. "
                    f"{did_you_mean(wanted, [*suite.datasets, *datasets()])}"
                )
            declared = datasets()[wanted]
            suite = replace(
                suite, tasks=(*suite.tasks, task_of(declared)), datasets={**suite.datasets, wanted: declared}
            )
        chosen.append(wanted)
    return suite, list(dict.fromkeys(chosen))


# --- progress --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _watched(quiet: bool) -> Iterator["Silent | Lines | LiveView"]:
    """A view that a signal ends. Whatever a library prints belongs to the logs: stdout is for results."""
    from raymerge.progress import StderrConsole, watching

    with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view, interruptible():
        yield view


@contextlib.contextmanager
def _library_output(quiet: bool) -> Iterator[None]:
    """Progress bars of libraries that download, or nothing."""
    if not quiet:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        yield


# --- what is printed -------------------------------------------------------------------------------------------------


def _fetched_lines(row: "Fetched") -> Iterator[str]:
    yield f"{row.task}: {row.status}" + (f", {row.detail}" if row.detail else "")
    yield from (f"  {failure}" for failure in row.failures)
    if row.note:
        yield f"  {row.note}"
    if row.steps:
        yield f"  By hand: {row.steps}"


def _prepared_table(suite: "PublishedSuite", rows: Sequence["Prepared"]) -> "RenderableType":
    from rich.console import Group
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    grid = Table()
    grid.add_column("Task", no_wrap=True)
    grid.add_column("Layout", no_wrap=True)
    for title in ("Val", "Test", "Size"):
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    for row in rows:
        images = [f"{row.record.images[split]:,}" for split in ("val", "test")]
        grid.add_row(row.task, row.record.layout, *images, decimal(row.num_bytes), "new" if row.is_new else "")
    return Group(Text(f"Cached images of {suite.image_size} pixels, in {suite.images_folder}"), grid)


def _verified_table(suite: "PublishedSuite", rows: Sequence["Verified"]) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table()
    grid.add_column("Task", no_wrap=True)
    grid.add_column("Layout", no_wrap=True)
    for title in ("Train", "Val", "Test", "Classes", "Images per class"):
        grid.add_column(title, justify="right", no_wrap=True)
    for title in ("Val images", "Cached", "Problems"):
        grid.add_column(title, no_wrap=True)
    for row in rows:
        grid.add_row(
            row.task,
            row.layout or "not there",
            *(_size(row.splits.get(split)) for split in ("train", "val", "test")),
            str(row.num_classes),
            _per_class(row.splits.get("test")),
            _val_images(row),
            "yes" if row.is_cached else "no",
            str(len(row.problems)) if row.problems else "",
        )
    return Group(Text(f"Datasets under {suite.data}; images per class are those of the test split"), grid)


def _size(found: "SplitFound | None") -> str:
    if found is None:
        return "–"
    return f"{found.size:,}" if found.expected in (None, found.size) else f"{found.size:,} of {found.expected:,}"


def _per_class(found: "SplitFound | None") -> str:
    if found is None or not found.class_counts:
        return "–"
    low, high = min(found.class_counts), max(found.class_counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _val_images(row: "Verified") -> str:
    if "val" not in row.splits:
        return "–"
    if row.val_indices is None:
        return "own files"
    if row.expected_val_indices is None:
        return "drawn"
    return "drawn as published" if row.val_indices == row.expected_val_indices else "drawn otherwise"


def _problem_lines(row: "Verified") -> list[str]:
    lines = list(row.problems[:MAX_PROBLEMS])
    if len(row.problems) > MAX_PROBLEMS:
        lines.append(f"{row.task}: and {len(row.problems) - MAX_PROBLEMS} more, which --json lists.")
    return lines
