"""`raymerge bench`: what raymerge costs, measured on the machine at hand."""

import contextlib
import enum
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymerge.cli_bench_chaos import bench_chaos
from raymerge.cli_bench_cluster import bench_cluster
from raymerge.cli_bench_evaluate import INTERRUPTED, bench_agreement, bench_evaluate
from raymerge.cli_options import Debug, Device, Json, Quiet, torch_device
from raymerge.cli_suite import known_names
from raymerge.errors import UsageError
from raymerge.streams import errors_told, interruptible, render, write, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from raymerge.bench.memory import Peak
    from raymerge.bench.merge import Timed

bench = typer.Typer(help="Measure what raymerge costs on this machine.", no_args_is_help=True)
bench.command("evaluate")(bench_evaluate)
bench.command("agreement")(bench_agreement)
bench.command("chaos")(bench_chaos)
bench.command("cluster")(bench_cluster)


class Spectrum(enum.StrEnum):
    decaying = "decaying"
    gaussian = "gaussian"


class Precision(enum.StrEnum):
    float32 = "float32"
    float64 = "float64"


@bench.command("merge")
def bench_merge(
    backbones: Annotated[
        list[str] | None, typer.Option("--backbone", metavar="NAME", help="Repeatable.  [default: ViT-B-16]")
    ] = None,
    num_tasks: Annotated[
        list[int] | None, typer.Option("--num-tasks", min=1, max=100, help="Repeatable.  [default: 20]")
    ] = None,
    cases: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Repeatable; see below.  [default: all]")
    ] = None,
    spectrum: Annotated[
        Spectrum,
        typer.Option("--spectrum", help="Of the random task matrices."),
    ] = Spectrum.decaying,
    plain_dtype: Annotated[
        Precision, typer.Option("--plain-dtype", help="Precision of the plain transcription.")
    ] = Precision.float32,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns of each side.")] = 3,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of torch.  [default: torch's own]")] = None,
    device: Annotated[Device, typer.Option("--device", help="Where both sides run.")] = Device.auto,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time the merge of every matrix of a backbone against a plain transcription of the published code.

    Both sides take turns in one process. Cases are the merging methods at their defaults, iso-cts-fractions (0.1 to
    0.9 together) and tsv-m-nested (8, 14 and 20 tasks together, as far as --num-tasks goes).
    """
    with errors_told(debug, interrupted=INTERRUPTED):
        from raymerge.bench.merge import bench_cases, time_backbone
        from raymerge.bench.shapes import TOWERS
        from raymerge.progress import StderrConsole, watching

        known = bench_cases()
        chosen = [known[name] for name in known_names(cases or list(known), known, "--case: there is no")]
        towers = known_names(backbones or ["ViT-B-16"], TOWERS, "--backbone: there is no")
        import torch

        where = torch_device(device)
        if threads:
            torch.set_num_threads(threads)
        tables = []
        with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
            for backbone in towers:
                for count in num_tasks or [20]:
                    for case in chosen:
                        rows = time_backbone(
                            case,
                            backbone,
                            count,
                            spectrum=spectrum.value,
                            repeats=repeats,
                            device=where,
                            plain_dtype=getattr(torch, plain_dtype.value),
                            report=view.stage,
                        )
                        tables.append((backbone, count, rows))
        machine = {
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "spectrum": spectrum.value,
            "plain": plain_dtype.value,
        }
        if as_json:
            rows = [
                {"backbone": backbone, "tasks_wanted": count, **asdict(row), "ratio": row.ratio}
                for backbone, count, timed in tables
                for row in timed
            ]
            write_json({**machine, "rows": rows})
        else:
            for backbone, _, timed in tables:
                render(_table(f"{timed[0].case}, {backbone}, {timed[0].num_tasks} tasks", timed))
            write(", ".join(f"{key}: {value}" for key, value in machine.items()) + "\n")


@bench.command("memory")
def bench_memory(
    backbone: Annotated[str, typer.Option("--backbone", metavar="NAME", help="Whose sizes.")] = "ViT-L-14",
    num_tasks: Annotated[int, typer.Option("--num-tasks", min=1, max=100, help="Number of experts.")] = 20,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", help="Repeatable.  [default: all that need no moments]"),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option("--folder", metavar="DIR", help="Keep the checkpoints here.  [default: a temporary folder]"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure the peak memory of raymerge merge over checkpoints of a published size, made of random numbers."""
    with errors_told(debug, interrupted=INTERRUPTED), interruptible():
        from raymerge.bench.proc import has_proc
        from raymerge.bench.shapes import TOWERS
        from raymerge.methods import declared_methods
        from raymerge.progress import StderrConsole, watching

        if not has_proc():
            raise UsageError("raymerge bench memory reads /proc, which this system lacks; run it on Linux.")
        known = {name: m for name, m in declared_methods().items() if m.merge is not None and not m.moments}
        chosen = known_names(methods or list(known), known, "--method: there is none to measure called")
        (tower,) = (TOWERS[name] for name in known_names([backbone], TOWERS, "--backbone: there is no"))
        kept = contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="raymerge-bench-")
        with kept as where, watching(StderrConsole(), quiet=quiet) as view:
            from raymerge.bench.memory import bytes_missing, make_checkpoints, measure

            home = Path(where, backbone)
            home.mkdir(parents=True, exist_ok=True)
            needed, free = bytes_missing(home, tower, num_tasks), shutil.disk_usage(home).free
            if needed > free:
                raise UsageError(
                    f"{where} has {free / 1e9:.1f} GB free and the models take {needed / 1e9:.1f} GB more: "
                    "give a larger disk with --folder, or fewer tasks with --num-tasks."
                )
            make_checkpoints(home, tower, num_tasks, view.stage)
            peaks = []
            for method in chosen:
                view.stage(f"merging {num_tasks} experts by {method}")
                peaks.append(measure(home, method, num_tasks))
        if as_json:
            write_json({"backbone": backbone, "rows": [asdict(peak) for peak in peaks]})
        else:
            render(_memory_table(backbone, peaks))


def _table(title: str, rows: "Sequence[Timed]") -> "Table":
    from rich.table import Table

    grid = Table(title=title, title_justify="left")
    grid.add_column("Matrix", no_wrap=True)
    for name in ("Count", "Plain, s", "raymerge, s", "Ratio", "Of pairs", "Error, median", "max", "Plain's error, max"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(
            row.shape,
            str(row.count),
            f"{statistics.median(row.plain_s):.3g}",
            f"{statistics.median(row.ours_s):.3g}",
            f"{row.ratio:.2f}",
            f"{min(row.ratios):.2f} to {max(row.ratios):.2f}",
            f"{statistics.median(row.ours_errors):.1e}",
            f"{max(row.ours_errors):.1e}",
            f"{max(row.plain_errors):.1e}",
        )
    return grid


def _memory_table(backbone: str, peaks: "Sequence[Peak]") -> "Table":
    from rich.table import Table

    first = peaks[0]
    title = f"Peak memory of merging {first.num_tasks} x {backbone}, {first.checkpoints / 1e9:.1f} GB of checkpoints"
    grid = Table(title=title, title_justify="left")
    grid.add_column("Method", no_wrap=True)
    for name in ("Beyond mapped files, GB", "With them, GB", "Time, s"):
        grid.add_column(name, justify="right", no_wrap=True)
    for peak in peaks:
        sizes = (f"{peak.private / 1e9:.2f}", f"{peak.resident / 1e9:.2f}", f"{peak.seconds:.0f}")
        grid.add_row(peak.method, *sizes)
    return grid
