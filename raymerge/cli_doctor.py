"""`raymerge doctor`: what would keep a sweep from running, and the command that fixes it."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymerge.cli_options import Debug, Json, Quiet
from raymerge.errors import PreflightError
from raymerge.streams import errors_told, interruptible, write, write_json

if TYPE_CHECKING:
    from raymerge.node_check import Finding, NodeReport


def doctor(
    path: Annotated[
        str, typer.Argument(metavar="SPEC", help="Sweep file, such as sweeps/full_grid.yaml.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a line of the file; repeatable."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDR", help="Look at every node of this Ray cluster, such as auto."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Read every value of every checkpoint.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find what would keep a sweep from running, before it runs."""
    with errors_told(debug, interrupted="interrupted: nothing was changed."):
        from raymerge.search_space import sweep_cells
        from raymerge.suite_file import find_suite
        from raymerge.sweep_file import load_sweep

        spec = load_sweep(path, overrides or ())
        suite = find_suite(spec.suite, spec.profile, spec.suite_seed, weights=spec.weights, data=spec.data)
        cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
        from raymerge.progress import StderrConsole, watching

        with (
            contextlib.redirect_stdout(sys.stderr),
            watching(StderrConsole(), quiet=quiet) as view,
            interruptible(),
        ):
            view.stage(f"looking at what sweep '{spec.name}' needs")
            from raymerge import doctor as examination  # torch takes seconds to import

            tasks, moments = examination.needed_tasks(suite, cells), examination.moments_folder(spec, suite)
            reports = examination.nodes(suite, tasks, moments, address, full, debug)
            findings = examination.diagnose(spec, suite, cells, reports)
        if as_json:
            write_json(_as_dict(reports, findings))
        else:
            write(_text(spec.name, suite.is_prepared, reports, findings))
        if any(finding.level == "problem" for finding in findings):
            raise typer.Exit(PreflightError.exit_code)


def _as_dict(reports: "Sequence[NodeReport]", findings: "Sequence[Finding]") -> dict[str, Any]:
    nodes = [{k: v for k, v in dataclasses.asdict(report).items() if k != "findings"} for report in reports]
    return {"findings": [dataclasses.asdict(finding) for finding in findings], "nodes": nodes}


def _text(name: str, is_prepared: bool, reports: "Sequence[NodeReport]", findings: "Sequence[Finding]") -> str:
    lines = []
    for report in reports:
        gpus = ", ".join(f"{gpu} ({memory / 1e9:.0f} GB)" for gpu, memory in report.gpus) or "no GPU"
        shm = "" if report.shm_size is None else f", /dev/shm {report.shm_size / 1e9:.1f} GB"
        versions = ", ".join(f"{package} {report.versions[package]}" for package in ("python", "ray", "torch"))
        lines.append(f"{report.host}: {gpus}, cache {report.cache_free / 1e9:.0f} GB free{shm}; {versions}")
    for number, finding in enumerate(findings, start=1):
        lines.append(f"\n{number}. {finding.level}: {finding.what}.")
        if finding.fix:
            lines.append(f"   {finding.fix}")
    problems = sum(finding.level == "problem" for finding in findings)
    if problems:
        lines.append(f"\n{problems} problem{'s' * (problems != 1)}: sweep '{name}' cannot run yet.")
    else:
        first = "" if is_prepared else " It makes its suite first."
        lines.append(f"\nNothing keeps sweep '{name}' from running.{first}")
    return "\n".join(lines) + "\n"
