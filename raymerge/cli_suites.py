"""`raymerge suite`: the checkpoints and heads of a suite, fetched, converted, checked, and built where missing."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from raymerge.cli_options import Debug, Json, Quiet
from raymerge.cli_suite import (
    Backbones,
    Data,
    NumTasks,
    Profile,
    SuiteSeed,
    Tasks,
    Weights,
    check_variant,
    chosen_backbones,
    chosen_tasks,
)
from raymerge.errors import PreflightError, SuiteError, UsageError
from raymerge.streams import errors_told, interruptible, render, tell, write_json

if TYPE_CHECKING:
    from raymerge.progress import Lines, LiveView, Silent
    from raymerge.suite_files.convert import Conversion
    from raymerge.suite_files.fetch import Fetched
    from raymerge.suite_files.verify import Finding
    from raymerge.suites import Suite

suite_app = typer.Typer(help="Fetch, convert and check the checkpoints and heads of a suite.", no_args_is_help=True)

SuiteName = Annotated[
    str,
    typer.Option(
        "--suite", metavar="SUITE", help="tall-masks, fusionbench, or a suite file such as my.yaml.", show_default=False
    ),
]
MAX_PROBLEMS = 20
"""Printed below a table; JSON has all of them."""

Done = TypeVar("Done")


@suite_app.command()
def fetch(
    name: SuiteName,
    profile: Profile = None,
    weights: Weights = None,
    data: Data = None,
    backbones: Backbones = None,
    num_tasks: NumTasks = None,
    tasks: Tasks = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="Fetch the published TALL masks, too; raymerge computes its own.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch what is missing of a published collection.

    What was begun is continued, and a file gets its name once it is whole.
    """
    with errors_told(debug):
        found, chosen = _chosen(name, profile, (weights, data), backbones, num_tasks, tasks)

        def run(view: "Silent | Lines | LiveView") -> "list[Fetched]":
            from raymerge.suite_files.fetch import fetch_suite

            view.stage(f"fetching into {found.root}")
            return fetch_suite(found, chosen, masks=masks, report=view.preparing)

        done = _watched(run, found, quiet)
        from raymerge.suite_files import views as suite_views  # which knows of everything, torch too

        if as_json:
            write_json({"suite": _about(found), "files": [suite_views.fetched_row(entry) for entry in done]})
            return
        render(suite_views.fetched_table(found, done))
        if not quiet:
            for line in suite_views.after_fetching(found, done, chosen):
                tell(line)


@suite_app.command()
def convert(
    name: SuiteName,
    profile: Profile = None,
    weights: Weights = None,
    data: Data = None,
    backbones: Backbones = None,
    num_tasks: NumTasks = None,
    tasks: Tasks = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="DIR", help="Where to write.  [default: where the suite looks]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Convert what is up to date once more.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write safetensors files in the published layout.

    Sources are published files, open_clip's, or those of transformers; their names tell which.
    """
    with errors_told(debug):
        if output and "://" in output:
            raise UsageError(f"--output '{output}' is not a folder of this machine; give a local folder.")
        found, chosen = _chosen(name, profile, (weights, data), backbones, num_tasks, tasks)
        folder = Path(output).expanduser() if output else None

        def run(view: "Silent | Lines | LiveView") -> "list[Conversion]":
            from raymerge.suite_files.convert import convert_suite

            view.stage(f"converting {found.root}")
            return convert_suite(found, chosen, folder=folder, force=force, report=view.preparing)

        done = _watched(run, found, quiet)
        from raymerge.suite_files import views as suite_views  # which knows of everything, torch too

        notes = suite_views.notes_on(found, chosen)
        if as_json:
            rows = [suite_views.conversion_row(entry) for entry in done]
            about = {"suite": _about(found), "output": str(folder or found.converted)}
            write_json({**about, "files": rows, "notes": notes})
        else:
            render(suite_views.conversion_table(done, folder or found.converted))
            _tell_problems([entry.problem for entry in done if entry.problem])
            for note in notes if not quiet else ():
                tell(f"note: {note}.")
        if any(entry.problem for entry in done):
            raise typer.Exit(PreflightError.exit_code)


@suite_app.command()
def verify(
    name: Annotated[
        str,
        typer.Option(
            "--suite",
            metavar="SUITE",
            help="demo, tall-masks, fusionbench, a suite file or folder.",
            show_default=False,
        ),
    ],
    profile: Profile = None,
    suite_seed: SuiteSeed = None,
    weights: Weights = None,
    data: Data = None,
    backbones: Backbones = None,
    num_tasks: NumTasks = None,
    tasks: Tasks = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Names, shapes, dtypes and sizes only, not values and hashes.")
    ] = False,
    hashes: Annotated[
        str | None, typer.Option("--hashes", metavar="FILE", help="Compare with the hashes in a file.")
    ] = None,
    write_hashes: Annotated[
        str | None, typer.Option("--write-hashes", metavar="FILE", help="Write the hashes, to compare machines.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check every checkpoint and head of a suite.

    Exit code 4 says that one is missing or broken.
    """
    with errors_told(debug):
        if quick and write_hashes:
            raise UsageError("--quick reads no hashes that --write-hashes could write; leave one of them out.")
        found, chosen = _chosen(
            name, profile, (weights, data), backbones, num_tasks, tasks, seed=suite_seed, any_suite=True
        )

        def run(view: "Silent | Lines | LiveView") -> "tuple[list[Finding], list[Path]]":
            from raymerge.suite_files.hash_list import hashes_for
            from raymerge.suite_files.verify import extra_files, verify_suite
            from raymerge.suites.published import PublishedSuite

            view.stage(f"checking {found.root}")
            known = hashes_for(found, Path(hashes).expanduser() if hashes else None)
            findings = verify_suite(found, chosen, quick=quick, known=known, report=view.preparing)
            extra = extra_files(found, list(chosen)) if isinstance(found, PublishedSuite) else []
            return findings, extra

        findings, extra = _watched(run, found, quiet)
        from raymerge.suite_files import views as suite_views  # which knows of everything, torch too

        if write_hashes:
            _write_list(write_hashes, found, findings)
        problems = [finding.problem for finding in findings if finding.problem]
        if as_json:
            rows = [suite_views.finding_row(finding) for finding in findings]
            files = {"files": rows, "extra": [str(path) for path in extra], "is_whole": not problems}
            write_json({"suite": _about(found), "is_quick": quick, **files})
        else:
            for backbone in chosen:
                render(suite_views.findings_table(backbone, [f for f in findings if f.backbone == backbone]))
            _tell_problems(problems)
            for line in suite_views.remarks(findings, extra, quick) if not quiet else ():
                tell(line)
        if problems:
            raise typer.Exit(PreflightError.exit_code)


@suite_app.command()
def heads(
    name: SuiteName,
    profile: Profile = None,
    weights: Weights = None,
    data: Data = None,
    backbones: Backbones = None,
    num_tasks: NumTasks = None,
    tasks: Tasks = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Build missing heads from class names and prompts."""
    with errors_told(debug):
        found, chosen = _chosen(name, profile, (weights, data), backbones, num_tasks, tasks)

        def run(view: "Silent | Lines | LiveView") -> dict[str, list[Path]]:
            from raymerge.heads import build_heads

            view.stage("building heads")
            return {backbone: build_heads(found, backbone, names, view.preparing) for backbone, names in chosen.items()}

        built = _watched(run, found, quiet)
        from raymerge.suite_files import views as suite_views  # which knows of everything, torch too

        paths = [(backbone, task, found.head_path(backbone, task)) for backbone in chosen for task in chosen[backbone]]
        rows = [
            {"backbone": backbone, "task": task, "file": str(path), "is_new": path in built[backbone]}
            for backbone, task, path in paths
        ]
        if as_json:
            write_json({"suite": _about(found), "heads": rows})
            return
        for backbone in chosen:
            own = [row for row in rows if row["backbone"] == backbone]
            cells = [suite_views.head_cells(row) for row in own]
            render(suite_views.table(f"Heads of {backbone}", ("Task", "", "File"), cells))


# --- what is chosen, and how it is watched ---------------------------------------------------------------------------


def _chosen(
    name: str,
    profile: str | None,
    folders: tuple[str | None, str | None],
    backbones: Sequence[str] | None,
    num_tasks: int | None,
    tasks: str | None,
    *,
    seed: int | None = None,
    any_suite: bool = False,
) -> tuple[Any, dict[str, Sequence[str]]]:
    """The suite, and the tasks by backbone."""
    from raymerge.suite_file import find_suite
    from raymerge.suites.published import PublishedSuite

    found = find_suite(name, profile, seed or 0, weights=folders[0], data=folders[1])
    check_variant(found, profile, seed)
    if not any_suite and not isinstance(found, PublishedSuite):
        raise SuiteError(
            f"suite '{found.name}' has all its files in its own folder, which raymerge writes; "
            "'raymerge suite verify' checks them."
        )
    return found, dict.fromkeys(chosen_backbones(found, backbones or ()), chosen_tasks(found, num_tasks, tasks))


def _watched(run: "Callable[[Silent | Lines | LiveView], Done]", found: "Suite", quiet: bool) -> Done:
    from raymerge.progress import StderrConsole, watching

    # whatever a library prints belongs to the logs: stdout is for results
    with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
        view.stage(f"loading suite '{found.name}'")  # torch takes seconds to import
        with interruptible():
            return run(view)


def _about(found: "Suite") -> dict[str, Any]:
    return {"name": found.name, "profile": found.profile, "weights": str(found.root)}


def _tell_problems(problems: Sequence[str]) -> None:
    for problem in problems[:MAX_PROBLEMS]:
        tell(f"problem: {problem}")
    if len(problems) > MAX_PROBLEMS:
        tell(f"and {len(problems) - MAX_PROBLEMS} more; --json prints all of them.")


def _write_list(path: str, found: "Suite", findings: "Sequence[Finding]") -> None:
    from raymerge.suite_files.hash_list import HashList, write_hashes

    files = {finding.key: finding.fetched for finding in findings if finding.fetched is not None}
    write_hashes(Path(path).expanduser(), HashList(found.name, found.profile, files))
    tell(f"{len(files)} hashes written; elsewhere: raymerge suite verify --hashes {shlex.quote(path)}")
