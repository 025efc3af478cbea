"""`raymerge bench chaos`: does a sweep that loses its processes lose anything else?"""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from raymerge.cli_options import Debug, Json, Quiet
from raymerge.errors import UsageError
from raymerge.streams import errors_told, interruptible, write, write_json


def bench_chaos(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Sweep file, such as sweeps/demo.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a line of the file; repeatable.")
    ] = None,
    kills: Annotated[int, typer.Option("--kills", min=1, help="Processes to kill.")] = 50,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Mean seconds between two kills.")] = 5.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of victims and times.")] = 0,
    nodes: Annotated[
        int, typer.Option("--nodes", min=0, max=16, help="Nodes of a cluster made for it, which die too; 0: none.")
    ] = 0,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="For results and logs; emptied first.")
    ] = Path("results/chaos"),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Kill processes of a sweep at random, start it again when it ends, and compare it with one left alone."""
    with errors_told(debug, interrupted="interrupted: the sweep under kills has ended too."), interruptible():
        from raymerge.bench.chaos import run_chaos
        from raymerge.progress import StderrConsole, watching
        from raymerge.sweep_file import load_sweep

        load_sweep(spec, overrides or ())
        if not Path("/proc").is_dir():
            raise UsageError("bench chaos finds its victims in /proc, which this system does not have.")
        if folder.exists() and any(folder.iterdir()) and not (folder / "quiet.log").is_file():
            raise UsageError(f"--folder {folder}: holds other files, which would be deleted. Choose another one.")
        command = [sys.executable, "-m", "raymerge", "sweep", spec]
        for override in overrides or ():
            command += ["--set", override]
        with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
            chaos = run_chaos(
                command,
                folder.absolute(),
                kills=kills,
                interval_s=interval,
                seed=seed,
                num_nodes=nodes,
                report=view.stage,
            )
        if as_json:
            write_json({"seed": seed, "nodes": nodes, **vars(chaos), "is_fine": chaos.is_fine})
        else:
            killed = ", ".join(f"{count} {kind}" for kind, count in chaos.kills.most_common())
            write(
                f"killed: {killed} (seed {seed})\n"
                f"the sweep was started {chaos.starts} times and came to its end {chaos.sweeps} times\n"
                f"rows: {chaos.rows}, lost {chaos.lost}, doubled {chaos.doubled}; trials that differ: {chaos.changed}; "
                f"summaries that differ: {chaos.summaries_differ}\n"
            )
        if not chaos.is_fine:
            raise typer.Exit(1)
