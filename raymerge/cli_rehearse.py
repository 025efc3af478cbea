"""`raymerge rehearse`: every command of a large sweep, on a miniature of its weights and datasets."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymerge.cli_options import Debug, Quiet
from raymerge.errors import OutputError, UsageError
from raymerge.streams import EXIT_CELLS_FAILED, errors_told, interruptible, tell

if TYPE_CHECKING:
    from raymerge.rehearsal.world import Scale
    from raymerge.suites.published import PublishedSuite
    from raymerge.sweep_spec import SweepSpec

INTERRUPTED = "interrupted: what is finished is kept, and the same command continues from there."


def rehearse(
    path: Annotated[
        str, typer.Argument(metavar="SPEC", help="Sweep file, such as sweeps/full_grid.yaml.", show_default=False)
    ],
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny models instead of ones of real width: minutes.")] = False,
    folder: Annotated[
        str | None, typer.Option("--folder", metavar="DIR", help="Where everything goes.  [default: in the cache]")
    ] = None,
    max_images: Annotated[int, typer.Option("--max-images", min=1, help="Images scored per task and split.")] = 4,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a line of the sweep file first; repeatable."),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rehearse a sweep over a published collection: all of its cells and commands, at small scale."""
    with errors_told(debug, interrupted=INTERRUPTED):
        from raymerge.suite_file import find_suite
        from raymerge.suites.published import PublishedSuite
        from raymerge.sweep_file import load_sweep

        spec = load_sweep(path, overrides or ())
        suite = find_suite(spec.suite, spec.profile, spec.suite_seed, weights=spec.weights, data=spec.data)
        if not isinstance(suite, PublishedSuite):
            raise UsageError(
                f"{path}: suite '{spec.suite}' needs no rehearsal, for nothing has to be fetched: "
                f"raymerge sweep {shlex.quote(path)}."
            )
        with interruptible():
            _rehearse(spec, suite, tiny, folder, max_images, quiet=quiet, debug=debug)


def _rehearse(
    spec: "SweepSpec",
    suite: "PublishedSuite",
    tiny: bool,
    folder: str | None,
    max_images: int,
    *,
    quiet: bool,
    debug: bool,
) -> None:
    from raymerge.methods import declared_methods
    from raymerge.suites import cache_dir

    started = time.monotonic()
    name = f"{spec.name}-{'tiny' if tiny else 'small'}"
    root = Path(folder).expanduser().resolve() if folder else cache_dir() / "rehearsals" / name
    suite_path, sweep_path = _write(spec, suite, root, tiny, max_images, quiet)
    results = root / "results"
    commands = [
        ["suite", "verify", "--suite", suite_path],
        ["data", "verify", "--suite", suite_path],
        ["data", "prepare", "--suite", suite_path],
        ["doctor", sweep_path],
    ]
    if any(declared_methods()[method].moments for method in spec.methods):
        commands.append(["stats", "--suite", suite_path, "--max-images", str(max_images)])
    commands += [["sweep", sweep_path, "--output", str(results)], ["report", str(results), "--published"]]
    seconds: dict[str, float] = {}
    for command in commands:
        begun = time.monotonic()
        status = _run([*command, *(["--debug"] if debug else [])], root, quiet=quiet, is_result=command is commands[-1])
        if status:
            raise typer.Exit(status)
        seconds[" ".join(command[: 1 if command[0] in ("doctor", "sweep", "report", "stats") else 2])] = (
            time.monotonic() - begun
        )
    _conclude(results, seconds, time.monotonic() - started, root)


def _write(
    spec: "SweepSpec", suite: "PublishedSuite", root: Path, tiny: bool, max_images: int, quiet: bool
) -> tuple[str, str]:
    """Write the miniature, and the sweep over it. Returns the suite file and the sweep file."""
    from raymerge.progress import StderrConsole, watching

    with watching(StderrConsole(), quiet=quiet) as view:
        view.stage("writing the miniature")
        from ruamel.yaml import YAML

        from raymerge.rehearsal.limited import limited_sweep
        from raymerge.rehearsal.world import SMALL, TINY, used_part, write_world
        from raymerge.whole_file import make_directory, whole_file

        try:
            make_directory(root)
        except OSError as error:
            raise OutputError(f"{root}: cannot be made ({error.strerror}); give another --folder.") from None
        scale: Scale = TINY if tiny else SMALL
        suite_path = write_world(root, used_part(suite, spec), scale, view.preparing)
        sweep_path = root / "sweep.yaml"
        with whole_file(sweep_path) as file:
            YAML().dump(limited_sweep(spec, str(suite_path), max_images), file)
    return str(suite_path), str(sweep_path)


def _run(arguments: list[str], root: Path, *, quiet: bool, is_result: bool) -> int:
    """Run a command of raymerge in a process of its own, its caches in the rehearsal's folder."""
    tell(f"$ raymerge {shlex.join(arguments)}")
    command = [sys.executable, "-m", "raymerge", *arguments]
    if quiet and arguments[0] in ("data", "stats", "sweep", "suite"):
        command.append("--quiet")
    environment = {**os.environ, "RAYMERGE_HOME": str(root / "home")}
    # what the other commands print is not what was asked for, and goes where progress goes
    output = None if is_result else subprocess.DEVNULL if quiet else sys.stderr
    process = subprocess.Popen(command, env=environment, stdout=output)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _conclude(results: Path, seconds: dict[str, float], total: float, root: Path) -> None:
    from raymerge.progress import duration
    from raymerge.results import load

    frame = load(results, "summary")
    finished = [*frame["status"]].count("finished")
    tell(f"{finished} of {len(frame)} cells finished, in {duration(total)}:")
    for name, taken in seconds.items():
        tell(f"  {name}: {duration(taken)}")
    tell(f"Accuracies of made-up models mean nothing. Everything lies in {root}; delete it when you like.")
    if finished < len(frame):
        raise typer.Exit(EXIT_CELLS_FAILED)
