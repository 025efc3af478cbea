"""`raymerge bench cluster`: sweeps on simulated evaluators, and how long a sweep takes on N GPUs."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymerge.cli_bench_evaluate import INTERRUPTED
from raymerge.cli_options import Debug, Json, Quiet
from raymerge.cli_suite import known_names
from raymerge.errors import UsageError
from raymerge.streams import errors_told, interruptible, render, write, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from raymerge.bench.cluster import Simulated
    from raymerge.bench.grid_time import GridTime

MODEL = "With --model"


def bench_cluster(
    trials: Annotated[
        int, typer.Option("--trials", min=4, help="Suggestions of Optuna; references and tests come on top.")
    ] = 5000,
    evaluators: Annotated[
        str, typer.Option("--evaluators", metavar="N,N", help="A sweep for each of these numbers.")
    ] = "1,8,64",
    shard_seconds: Annotated[
        str,
        typer.Option(
            "--shard-seconds",
            metavar="S,S",
            help="A sweep for each of these times of a shard; one in four evaluators takes twice as long.",
        ),
    ] = "0",
    per_process: Annotated[
        int, typer.Option("--per-process", min=1, help="Evaluators that share a process, each with a shard of its own.")
    ] = 8,
    noop: Annotated[
        int,
        typer.Option(
            "--noop",
            min=4,
            help="No-op trials of Tune before each sweep and after it; a quarter as many report task by task.",
        ),
    ] = 200,
    model: Annotated[
        bool, typer.Option("--model", help="Work out the time of a sweep on 1 to N GPUs instead.")
    ] = False,
    sweep: Annotated[
        str, typer.Option("--sweep", metavar="SPEC", help=f"{MODEL}: the sweep file.")
    ] = "sweeps/full_grid.yaml",
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=10000, help=f"{MODEL}: the most GPUs.")] = 64,
    images_per_s: Annotated[
        list[str] | None,
        typer.Option("--images-per-s", metavar="BACKBONE=R", help=f"{MODEL}: of one GPU; repeatable."),
    ] = None,
    merge_s: Annotated[
        list[str] | None,
        typer.Option(
            "--merge-seconds", metavar="METHOD=S", help=f"{MODEL}: of a cell with 20 tasks on ViT-L-14; repeatable."
        ),
    ] = None,
    switch_s: Annotated[
        float | None, typer.Option("--switch-seconds", min=0, help=f"{MODEL}: of other weights on one evaluator.")
    ] = None,
    driver_s: Annotated[
        float | None, typer.Option("--driver-seconds", min=0, help=f"{MODEL}: of the driver, per trial.")
    ] = None,
    merges_at_once: Annotated[int, typer.Option("--merges-at-once", min=1, help=f"{MODEL}: merges side by side.")] = 4,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run sweeps on evaluators that sleep, beside trials of Ray Tune that do nothing.

    Everything but encoders and merges is that of a sweep: driver, OptunaSearch, Tune, dispatcher, pool of evaluators,
    Parquet. A trial has 20 tasks of one shard each. Evaluators share processes, so that many fit on a small machine.
    """
    with errors_told(debug, interrupted=INTERRUPTED), interruptible():
        if model:
            costs: dict[str, Any] = {"switch_s": switch_s, "trial_s": driver_s, "merges_at_once": merges_at_once}
            given = {name: value for name, value in costs.items() if value is not None}
            _print_model(
                sweep,
                gpus,
                _numbers("--images-per-s", images_per_s),
                _numbers("--merge-seconds", merge_s),
                given,
                as_json,
            )
            return
        counts = [int(count) for count in _list("--evaluators", evaluators, whole=True)]
        times = _list("--shard-seconds", shard_seconds, whole=False)
        from raymerge.bench.proc import has_proc

        if not has_proc():
            raise UsageError("raymerge bench cluster reads /proc, which this system lacks; run it on Linux.")
        from raymerge.progress import StderrConsole, watching

        rows: list[Simulated] = []
        with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
            view.stage("starting Ray")
            from raymerge import cluster
            from raymerge.bench.cluster import simulate

            for shard_s in times:
                for count in counts:
                    # a cluster of its own, lest one sweep inherit what another left in its GCS
                    with cluster.connected(None, debug=debug):
                        rows.append(
                            simulate(
                                trials,
                                count,
                                shard_s=shard_s,
                                per_process=per_process,
                                noop=noop,
                                report=view.stage,
                            )
                        )
        if as_json:
            write_json({"rows": [row.as_dict() for row in rows]})
        else:
            render(_time_table(rows))
            render(_memory_table(rows))
            write(
                f"Evaluators slept; {per_process} of them shared a process where there were so many. Merges took no "
                "time. Ratios say something where shards take no time.\n"
            )


def _list(option: str, text: str, *, whole: bool) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all((1 <= v <= 1000 and v == int(v)) if whole else 0 <= v <= 3600 for v in values):
        expected = "whole numbers from 1 to 1000" if whole else "numbers from 0 to 3600"
        raise UsageError(f"{option}: '{text}' found, {expected} expected, separated by commas, such as 1,8.")
    return list(dict.fromkeys(values))


def _numbers(option: str, pairs: Sequence[str] | None) -> dict[str, float]:
    found = {}
    for pair in pairs or ():
        name, _, number = pair.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < float("inf"):
            raise UsageError(f"{option}: '{pair}' found, NAME=NUMBER with a positive number expected.")
    return found


def _print_model(
    sweep: str,
    gpus: int,
    images_per_s: Mapping[str, float],
    merge_s: Mapping[str, float],
    costs: Mapping[str, Any],
    as_json: bool,
) -> None:
    from raymerge.bench.grid_time import IMAGES_PER_S, MERGE_S, Costs, grid_time, stops_at, work_of
    from raymerge.suite_file import find_suite
    from raymerge.sweep_file import load_sweep

    known_names(list(merge_s), MERGE_S, "--merge-seconds: there is no method")
    spec = load_sweep(sweep)
    suite = find_suite(spec.suite, spec.profile, spec.suite_seed, weights=spec.weights, data=spec.data)
    known_names(list(images_per_s), suite.backbones, "--images-per-s: there is no backbone")
    rates = {**IMAGES_PER_S, **images_per_s}
    work = work_of(spec, suite, {**MERGE_S, **merge_s})
    for one in work:
        if one.backbone not in rates:
            raise UsageError(f"nobody knows the speed of {one.backbone}: say --images-per-s {one.backbone}=NUMBER.")
    assumed = Costs(**{"images_per_s": {one.backbone: rates[one.backbone] for one in work}, **costs})
    sizes = sorted({gpus, *(2**k for k in range(gpus.bit_length()))})
    times = [grid_time(work, assumed, size) for size in sizes]
    end = stops_at(work, assumed, gpus)
    if as_json:
        value = {"work": [dataclasses.asdict(one) for one in work], "costs": dataclasses.asdict(assumed)}
        rows = [{**dataclasses.asdict(time), "seconds": time.seconds, "bound": time.bound} for time in times]
        write_json({**value, "rows": rows, "stops_at": end})
        return
    render(_model_table(f"{spec.name}: at most {sum(w.images for w in work) / 1e6:.1f} million images", times))
    speeds = ", ".join(f"{name} {rate:g}" for name, rate in assumed.images_per_s.items())
    write(
        f"Images per second of one GPU: {speeds}. Other weights: {assumed.switch_s:g} s. Driver: {assumed.trial_s:g} s "
        f"per trial, {sum(w.trials for w in work):,} trials. Merges: {sum(w.merge_s for w in work):,.0f} s, "
        f"{assumed.merges_at_once} at once.\n"
    )
    if end < gpus:
        write(f"From {end} GPUs on it is no faster: {times[-1].bound} decides.\n")
    else:
        write(f"It is faster with every GPU up to {gpus}.\n")


def _model_table(title: str, times: "Sequence[GridTime]") -> "Table":
    from rich.table import Table

    from raymerge.progress import duration

    grid = Table(title=title, title_justify="left")
    for name in ("GPUs", "Sweep", "Evaluating", "Driver", "Merging"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("Decides", no_wrap=True)
    for time in times:
        parts = (time.seconds, time.evaluating_s, time.driver_s, time.merging_s)
        grid.add_row(str(time.gpus), *(duration(part) for part in parts), time.bound)
    return grid


def _time_table(rows: "Sequence[Simulated]") -> "Table":
    from rich.table import Table

    grid = Table(title="Trials", title_justify="left")
    names = (
        "Evaluators",
        "Processes",
        "Shard, s",
        "Trials",
        "At once",
        "s/trial",
        "Beyond evaluation",
        "CPU of driver",
    )
    for name in (*names, "No-op Tune, s/trial", "Its CPU", "Ratio", "of CPU", "20 reports, s/trial", "Ratio"):
        grid.add_column(name, justify="right", no_wrap=True)
    for name in ("Occupancy", "after warm-up", "Rows/s"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(
            str(row.evaluators),
            str(row.processes),
            f"{row.shard_s:g}",
            f"{row.trials:,}",
            str(row.concurrent),
            f"{row.trial_s:.3f}",
            f"{row.overhead_s:.3f}",
            f"{row.trial_cpu_s:.3f}",
            ", ".join(f"{seconds:.3f}" for seconds in row.noop_s),
            ", ".join(f"{seconds:.3f}" for seconds in row.noop_cpu_s),
            f"{row.ratio:.2f}",
            f"{row.cpu_ratio:.2f}",
            ", ".join(f"{seconds:.3f}" for seconds in row.reporting_s),
            f"{row.reporting_ratio:.2f}",
            "" if row.occupancy is None else f"{row.occupancy:.1%}",
            "" if row.steady_occupancy is None else f"{row.steady_occupancy:.1%}",
            f"{row.rows_per_s:.0f}",
        )
    return grid


def _memory_table(rows: "Sequence[Simulated]") -> "Table":
    from rich.table import Table

    grid = Table(title="Resident memory, MB: before the sweep, after its warm-up, at its end", title_justify="left")
    names = ("Evaluators", "Shard, s", "Trials", "Driver", "Grew by", "KB/trial after warm-up", "GCS")
    for name in (*names, "s/trial by quarter", "CPU of driver by quarter"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(
            str(row.evaluators),
            f"{row.shard_s:g}",
            f"{row.trials:,}",
            ", ".join(f"{memory.driver / 1e6:.0f}" for memory in row.memory),
            f"{row.driver_growth / 1e6:.0f}",
            f"{row.driver_growth_per_trial / 1e3:.0f}",
            ", ".join(f"{memory.gcs / 1e6:.0f}" for memory in row.memory),
            ", ".join(f"{seconds:.3f}" for seconds in row.quarter_s),
            ", ".join(f"{seconds:.3f}" for seconds in row.quarter_cpu_s),
        )
    return grid
