"""`raymerge bench evaluate` and `agreement`: the speed of evaluation, and what half precision changes."""

import contextlib
import enum
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
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
    known_names,
    prepare,
)
from raymerge.errors import UsageError
from raymerge.streams import errors_told, interruptible, render, write, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from raymerge.agreement import Agreement
    from raymerge.bench.evaluate import Timed

INTERRUPTED = "interrupted: a benchmark keeps nothing that it has measured."
HALF = ("bf16", "fp16")


class EncoderPrecision(enum.StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class SplitName(enum.StrEnum):
    val = "val"
    test = "test"


def bench_evaluate(
    backbones: Annotated[
        list[str] | None, typer.Option("--backbone", metavar="NAME", help="Repeatable.  [default: ViT-B-32]")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Evaluated in every turn.")] = 32,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Of evaluator and bare loop.  [default: as sweeps choose it]"),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns of each side.")] = 9,
    precisions: Annotated[
        list[EncoderPrecision] | None,
        typer.Option("--precision", help="Of evaluator and bare loop; repeatable.  [default: fp32]"),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of torch, on every side.")] = 1,
    loader_workers: Annotated[
        int, typer.Option("--loader-workers", min=0, help="Processes that decode photos for the published way.")
    ] = 0,
    device: Annotated[Device, typer.Option("--device", help="Where all sides run.")] = Device.auto,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time an evaluator of a sweep against a bare loop of its encoder, and against the published way.

    All three have the same random weights and made-up photos and take turns: the evaluator is a Ray actor that reads
    cached images, the bare loop has tensors in memory, the published way decodes every photo in a DataLoader.
    """
    with errors_told(debug, interrupted=INTERRUPTED), interruptible():
        from raymerge.bench.shapes import TOWERS
        from raymerge.progress import StderrConsole, watching

        names = known_names(backbones or ["ViT-B-32"], TOWERS, "--backbone: there is no")
        if device == Device.cpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the process of the evaluator, too
        rows: list[Timed] = []
        with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
            view.stage("starting Ray")
            import torch

            from raymerge import cluster
            from raymerge.bench.evaluate import time_backbone

            where = torch_device(device)
            torch.set_num_threads(threads)
            with cluster.connected(None, debug=debug):
                for name in names:
                    rows += time_backbone(
                        name,
                        images=images,
                        repeats=repeats,
                        precisions=[precision.value for precision in precisions or (EncoderPrecision.fp32,)],
                        batch_size=batch_size,
                        threads=threads,
                        loader_workers=loader_workers,
                        device=where,
                        report=view.stage,
                    )
        machine = {
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
            "threads": threads,
            "loader_workers": loader_workers,
            "torch": torch.__version__,
        }
        if as_json:
            write_json({**machine, "rows": [_timed_row(row) for row in rows]})
        else:
            render(_timed_table(rows, where.type == "cpu"))
            write(", ".join(f"{key}: {value}" for key, value in machine.items()) + "\n")


def bench_agreement(
    suite: SuiteName,
    profile: Profile = None,
    suite_seed: SuiteSeed = None,
    weights: Weights = None,
    data: Data = None,
    backbones: Backbones = None,
    num_tasks: NumTasks = None,
    tasks: Tasks = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="A,B", help="Compared with fp32: bf16, fp16 or both.")
    ] = ",".join(HALF),
    experts: Annotated[
        bool, typer.Option("--experts", help="The expert of every task instead of the zero-shot model.")
    ] = False,
    split: Annotated[SplitName, typer.Option("--split", help="Images to classify.")] = SplitName.val,
    max_images: Annotated[
        int | None, typer.Option("--max-images", min=1, help="So many of every task, spread over the split.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per forward pass.  [default: as sweeps choose it]")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where the encoders run.")] = Device.auto,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare the answers of a suite's models in half precision with those in single precision, task by task."""
    with errors_told(debug, interrupted=INTERRUPTED):
        from raymerge.progress import StderrConsole, watching
        from raymerge.suite_file import find_suite

        asked = [name.strip() for name in precision.split(",") if name.strip()]
        if not asked:
            raise UsageError("--precision names no precision; give bf16, fp16, or both separated by a comma.")
        precisions = known_names(asked, HALF, "--precision: there is no half precision")
        found = find_suite(suite, profile, suite_seed or 0, weights=weights, data=data)
        check_variant(found, profile, suite_seed)
        names, chosen = chosen_backbones(found, backbones or ()), chosen_tasks(found, num_tasks, tasks)
        rows: list[Agreement] = []
        with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
            view.stage(f"loading suite '{found.name}'")
            from raymerge.agreement import measure_agreement

            where = torch_device(device)
            if not found.is_prepared:
                prepare(found, view, debug)
            with interruptible():
                view.stage(f"comparing precisions on {where.type}")
                for name in names:
                    rows += measure_agreement(
                        found,
                        name,
                        chosen,
                        precisions,
                        device=where,
                        split=split.value,
                        experts=experts,
                        batch_size=batch_size,
                        max_images=max_images,
                        report=view.preparing,
                    )
        if as_json:
            shared = {"suite": found.name, "profile": found.profile, "split": split.value, "experts": experts}
            write_json({**shared, "rows": [_agreement_row(row) for row in rows]})
        else:
            for name in names:
                render(_agreement_table(name, experts, [row for row in rows if row.backbone == name], precisions))


def _timed_row(row: "Timed") -> dict[str, Any]:
    names = ("shares", "cpu_shares", "gains", "cpu_gains", "images_per_s", "switch_in_batches")
    return {**asdict(row), **{name: getattr(row, name) for name in names}}


def _timed_table(rows: "Sequence[Timed]", on_cpu: bool) -> "Table":
    from rich.table import Table

    title = "Speed of an evaluator: share of a bare loop of its encoder, and times that of the published way"
    grid = Table(title=title, title_justify="left")
    grid.add_column("Backbone", no_wrap=True)
    columns = ["Precision", "Batch", "Images", "Images/s", "Share", "Of turns"]
    columns += ["CPU time's share", "Of turns"] if on_cpu else []
    columns += ["Times published", "Of turns", "Same class", "Switch of alpha, ms", "In batches"]
    for name in columns:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(
            row.backbone,
            row.precision,
            str(row.batch_size),
            str(row.images),
            f"{row.images_per_s:,.1f}",
            *_median_and_range(row.shares, 100, 1),
            *(_median_and_range(row.cpu_shares, 100, 1) if on_cpu else ()),
            *_median_and_range(row.gains, 1, 2),
            f"{row.agreed} of {row.images}",
            f"{1000 * statistics.median(row.switch_s):.1f}",
            f"{row.switch_in_batches:.2f}",
        )
    return grid


def _median_and_range(values: Sequence[float], scale: int, digits: int) -> tuple[str, str]:
    median, low, high = (f"{scale * v:.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return median, f"{low} to {high}"


def _agreement_row(row: "Agreement") -> dict[str, Any]:
    return {
        **asdict(row),
        "agreement": row.agreement,
        "accuracy": row.accuracy,
        "reference_accuracy": row.reference_accuracy,
    }


def _agreement_table(backbone: str, experts: bool, rows: "Sequence[Agreement]", precisions: Sequence[str]) -> "Table":
    from rich.table import Table

    model = "the experts" if experts else "the zero-shot model"
    grid = Table(title=f"{backbone}, {model}: percent of images", title_justify="left")
    grid.add_column("Task", no_wrap=True)
    for name in ("Images", "Accuracy, fp32", *(f"{word}, {p}" for p in precisions for word in ("Accuracy", "Same"))):
        grid.add_column(name, justify="right", no_wrap=True)
    by_task: dict[str, list[Agreement]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    for task, of_task in by_task.items():
        cells = [
            text for row in of_task for text in (_percent(row.correct, row.images), _percent(row.same, row.images))
        ]
        grid.add_row(task, f"{of_task[0].images:,}", _percent(of_task[0].reference_correct, of_task[0].images), *cells)
    grid.add_section()
    pooled = [[row for row in rows if row.precision == precision] for precision in precisions]
    total = sum(row.images for row in pooled[0])
    cells = [
        _percent(sum(counts), total)
        for of_precision in pooled
        for counts in ([row.correct for row in of_precision], [row.same for row in of_precision])
    ]
    grid.add_row("All", f"{total:,}", _percent(sum(row.reference_correct for row in pooled[0]), total), *cells)
    return grid


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.2f}"
