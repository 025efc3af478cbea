"""The command line: parse, call, print. Results go to stdout; progress, logs and errors to stderr.

Everything heavy is imported by the command that needs it, so that help and plans are quick.
"""

import contextlib
import dataclasses
import enum
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import raymerge
from raymerge.cli_analyze import analyze
from raymerge.cli_bench import bench
from raymerge.cli_compare import compare
from raymerge.cli_data import data_app
from raymerge.cli_doctor import doctor
from raymerge.cli_evaluate import evaluate
from raymerge.cli_figure import figure
from raymerge.cli_finetune import finetune
from raymerge.cli_merge import merge
from raymerge.cli_options import Debug, Json, Quiet
from raymerge.cli_query import query
from raymerge.cli_rehearse import rehearse
from raymerge.cli_stats import stats
from raymerge.cli_status import status
from raymerge.cli_suites import suite_app
from raymerge.errors import RaymergeError, UsageError
from raymerge.streams import EXIT_CELLS_FAILED, errors_told, render, tell, write, write_json

if TYPE_CHECKING:
    from raymerge.suites import Suite
    from raymerge.sweep_spec import SweepSpec

app = typer.Typer(
    help="Sweeps over model-merging methods on Ray: from fine-tuned experts to a table of results.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Format(enum.StrEnum):
    terminal = "terminal"
    svg = "svg"
    md = "md"
    latex = "latex"
    csv = "csv"
    json = "json"


Spec = Annotated[str, typer.Argument(metavar="SPEC", help="Sweep file, such as sweeps/demo.yaml.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a line of the file, such as search.trials=8; repeatable."),
]
Output = Annotated[
    str | None,
    typer.Option("--output", metavar="DIR", help="Folder of results, or URI (s3://..).  [default: results/<name>]"),
]


def run() -> None:
    """Entry point of the console script."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this; the place must not become that of a file
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="raymerge")


def _print_version(wanted: bool) -> bool:
    if wanted:
        write(f"raymerge {raymerge.__version__}\n")
        raise typer.Exit
    return wanted


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def sweep(
    spec: Spec,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDR", help="Ray cluster, such as auto; without it Ray starts here."),
    ] = None,
    output: Output = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a sweep, or continue one, and print its table."""
    with errors_told(debug):
        if dry_run:
            _print_plan(spec, overrides, output, as_json)
        else:
            _sweep(spec, overrides, address, output, as_json, quiet, debug)


@app.command()
def plan(
    spec: Spec, overrides: Overrides = None, output: Output = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Show what a sweep will do and what is already done."""
    with errors_told(debug):
        _print_plan(spec, overrides, output, as_json)


@app.command()
def report(
    output: Annotated[str, typer.Argument(metavar="DIR", help="Folder of results, or its URI.", show_default=False)],
    format: Annotated[
        Format | None, typer.Option("--format", help="How to print the table.  [default: terminal]")
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Add the published accuracies.")] = False,
    html: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Write a page instead, with charts and all there is to know."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the table of a sweep, finished or not, or write it as a page."""
    with errors_told(debug):
        if html is not None:
            _write_page(output, html, format)
            return
        from raymerge import renderers
        from raymerge.report import Table1

        table = Table1.from_output(output)
        match format:
            case Format.terminal | None:
                render(renderers.terminal(table, published=published))
            case Format.svg:
                write(renderers.svg(table, published=published))
            case Format.md:
                write(renderers.markdown(table, published=published))
            case Format.latex:
                write(renderers.latex(table, published=published))
            case Format.csv | Format.json:  # published accuracies have their own column here
                write(renderers.RENDERERS[format](table))


@app.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of sweep files."""
    with errors_told(debug):
        from raymerge.sweep_spec import json_schema

        write_json(json_schema())


app.command()(status)
app.command()(compare)
app.command()(query)
app.command()(analyze)
app.command()(figure)
app.command()(merge)
app.command()(stats)
app.command()(evaluate)
app.command()(finetune)
app.command()(doctor)
app.command()(rehearse)
app.add_typer(bench, name="bench")
app.add_typer(suite_app, name="suite")
app.add_typer(data_app, name="data")


# --- what the commands do --------------------------------------------------------------------------------------------


def _sweep(
    path: str,
    overrides: Sequence[str] | None,
    address: str | None,
    output: str | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    from raymerge.folder import is_uri, without_secrets
    from raymerge.progress import StderrConsole, watching

    spec, _, folder, _ = _checked(path, overrides, output)
    # whatever a library prints belongs to the logs: stdout is for results
    with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
        view.stage(f"loading sweep '{spec.name}'")
        from raymerge.run import run_sweep  # ray takes seconds to import

        def abandon(error: RaymergeError) -> None:
            view.close()
            tell(f"error: {error}")
            os._exit(error.exit_code)

        location = folder if is_uri(folder) else Path(folder)
        outcome = run_sweep(spec, location, view, address=address, debug=debug, abandon=abandon)
    shown = without_secrets(folder)
    if as_json:
        write_json({"output": shown, "interrupted": outcome.interrupted, "rows": [_row(r) for r in outcome.rows]})
    elif not outcome.interrupted:
        from raymerge import renderers
        from raymerge.report import Table1

        render(renderers.terminal(Table1.from_output(folder)))
        write(f"\nresults: {shown}\n")
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.num_failed:
        tell(f"{outcome.num_failed} of {len(outcome.rows)} cells failed; the same command tries them again:")
        for row in outcome.rows:
            if row.status == "failed":
                tell(f"  {row.cell}: {row.error}")
    if not quiet:
        tell(f"read them again with: raymerge report {shlex.quote(shown)}")
    if outcome.num_failed:
        raise typer.Exit(EXIT_CELLS_FAILED)


def _write_page(output: str, path: str, format: Format | None) -> None:
    if format is not None:
        raise UsageError(f"--html writes a page and --format {format} prints a table; give one of them.")
    from raymerge.html_report import save_page

    save_page(output, path)
    write(f"page: {path}\n")


def _print_plan(path: str, overrides: Sequence[str] | None, output: str | None, as_json: bool) -> None:
    from raymerge.folder import without_secrets
    from raymerge.plan import make_plan

    spec, suite, folder, has_results = _checked(path, overrides, output)
    finished = {}
    if has_results:
        from raymerge.results import lacking_predictions, read_records

        finished = read_records(folder)
        if spec.evaluation.store_predictions:
            for trial_id in lacking_predictions(folder):
                finished.pop(trial_id, None)
    plan = make_plan(spec, suite, finished)
    if as_json:
        about = {"name": suite.name, "profile": suite.profile, "seed": suite.seed, "is_prepared": suite.is_prepared}
        write_json({**plan.as_dict(), "suite": about, "output": without_secrets(folder)})
    else:
        from raymerge.plan_view import plan_view

        render(plan_view(plan, suite, without_secrets(folder)))


def _checked(path: str, overrides: Sequence[str] | None, output: str | None) -> tuple["SweepSpec", "Suite", str, bool]:
    """The sweep, its suite, its folder and whether it was begun there: whatever can be wrong before Ray is imported."""
    from raymerge.output import check_output
    from raymerge.search_space import sweep_cells
    from raymerge.suite_file import find_suite
    from raymerge.sweep_file import load_sweep
    from raymerge.sweep_spec import spec_hash

    spec = load_sweep(path, overrides or ())
    suite = find_suite(spec.suite, spec.profile, spec.suite_seed, weights=spec.weights, data=spec.data)
    sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    folder = output or f"results/{spec.name}"
    return spec, suite, folder, check_output(folder, spec_hash=spec_hash(spec)) is not None


def _row(row: Any) -> dict[str, Any]:
    """A summary row, flat."""
    value = dataclasses.asdict(row)
    cell, point = value.pop("cell"), value.pop("point") or {"alpha": None, "params": {}}
    return {"backbone": cell["backbone"], "num_tasks": row.cell.num_tasks, **cell, **point, **value}
