"""`raymerge evaluate`: accuracies of single models, task by task: the experts of a suite, or one checkpoint."""

import contextlib
import enum
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymerge.cli_options import Debug, Device, Json, Quiet, SplitName, torch_device
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
from raymerge.records import SPLITS, Split
from raymerge.streams import EXIT_CELLS_FAILED, errors_told, interruptible, render, tell, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raymerge.suites import Suite


class Precision(enum.StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def evaluate(
    suite: SuiteName,
    experts: Annotated[
        bool, typer.Option("--experts", help="Every expert on its own task, and the zero-shot model on all.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="FILE", help="One checkpoint, such as a merged model, on all tasks."),
    ] = None,
    profile: Profile = None,
    suite_seed: SuiteSeed = None,
    weights: Weights = None,
    data: Data = None,
    backbones: Backbones = None,
    num_tasks: NumTasks = None,
    tasks: Tasks = None,
    split: Annotated[SplitName, typer.Option("--split", help="With --model: images to score.")] = SplitName.test,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="With --model: decode the raw images instead of reading the cache.")
    ] = False,
    max_images: Annotated[
        int | None, typer.Option("--max-images", min=1, help="Only the first so many images of every split.")
    ] = None,
    precision: Annotated[Precision, typer.Option("--precision", help="Arithmetic of the encoder.")] = Precision.fp32,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per forward pass.  [default: by device]")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="With --model: where it runs.")] = Device.auto,
    gpus: Annotated[
        float, typer.Option("--gpus-per-evaluator", min=0, help="With --experts: GPUs of each evaluator.")
    ] = 0.0,
    address: Annotated[
        str | None, typer.Option("--address", metavar="ADDR", help="With --experts: Ray cluster, such as auto.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="DIR", help="With --experts: results.  [default: results/experts-<suite>]"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure accuracies of single models: all experts of a suite, or one checkpoint."""
    with errors_told(debug):
        if experts == (model is not None):
            raise UsageError("give either --experts or --model FILE.")
        from raymerge.suite_file import find_suite

        found = find_suite(suite, profile, suite_seed or 0, weights=weights, data=data)
        check_variant(found, profile, suite_seed)
        names, chosen = chosen_backbones(found, backbones or ()), chosen_tasks(found, num_tasks, tasks)
        if model is not None:
            settings = (precision.value, batch_size, max_images)
            rows = _evaluate_model(found, model, names, chosen, split.value, no_cache, device, settings, quiet, debug)
            if as_json:
                write_json({"model": model, "backbone": names[0], "split": split.value, "rows": rows})
            else:
                render(_model_table(names[0], split.value, rows))
            return
        evaluation = {"precision": precision.value, "batch_size": batch_size or "auto", "max_images": max_images}
        spec: dict[str, Any] = {
            "name": f"experts-{found.name}-{found.profile}",
            "suite": suite,
            "suite_seed": found.seed,
            "weights": weights,
            "data": data,
            "backbones": list(names),
            "tasks": list(chosen),
            "methods": ["zero-shot", "fine-tuned"],
            "evaluation": evaluation,
            "resources": {"gpus_per_evaluator": gpus},
        }
        if not suite.endswith((".yaml", ".yml")) and suite != str(found.root):
            spec["profile"] = found.profile
        folder = Path(output or f"results/{spec['name']}").expanduser()
        num_failed = _evaluate_experts(spec, folder, address, quiet, debug)
        rows = accuracy_rows(folder, found)
        if as_json:
            write_json({"output": str(folder), "rows": rows})
        else:
            for backbone in names:
                render(_experts_table(backbone, [row for row in rows if row["backbone"] == backbone]))
            tell(f"results: {shlex.quote(str(folder))}")
        if num_failed:
            raise typer.Exit(EXIT_CELLS_FAILED)


# --- experts ---------------------------------------------------------------------------------------------------------


def _evaluate_experts(spec: Mapping[str, Any], folder: Path, address: str | None, quiet: bool, debug: bool) -> int:
    """Run the reference cells as a sweep, whose finished evaluations are kept. Returns how many cells failed."""
    from raymerge.progress import StderrConsole, watching
    from raymerge.sweep_spec import SweepSpec

    checked = SweepSpec.model_validate(spec)
    with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
        view.stage(f"loading suite '{checked.suite}'")
        from raymerge.run import run_sweep  # ray takes seconds to import

        outcome = run_sweep(checked, folder, view, address=address, debug=debug)
    if outcome.interrupted:
        raise KeyboardInterrupt
    for row in outcome.rows:
        if row.status == "failed":
            tell(f"{row.cell}: {row.error}")
    return outcome.num_failed


def accuracy_rows(folder: Path, suite: "Suite") -> list[dict[str, Any]]:
    """Measured accuracies of the experts and of the zero-shot model, and the published ones, by backbone and task."""
    from raymerge.published import expert_accuracies, zero_shot_accuracies
    from raymerge.results import load

    frame = load(folder, "evaluations")
    measured = {
        (row["method"], row["backbone"], row["task"], row["split"]): (int(row["correct"]), int(row["total"]))
        for row in frame.to_dict("records")
        if row["method"] in ("zero-shot", "fine-tuned")
    }
    published = {
        "fine-tuned": expert_accuracies(suite.name, suite.profile),
        "zero-shot": zero_shot_accuracies(suite.name),
    }
    rows = []
    order = {task.name: number for number, task in enumerate(suite.tasks)}
    keys = {(backbone, task, split) for _, backbone, task, split in measured}
    for backbone, task, split in sorted(keys, key=lambda key: (key[0], SPLITS.index(key[2]), order[key[1]])):
        row: dict[str, Any] = {"backbone": backbone, "task": task, "split": split}
        for method, prefix in (("zero-shot", "zero_shot"), ("fine-tuned", "expert")):
            counts = measured.get((method, backbone, task, split))
            row[f"{prefix}_accuracy"] = counts and counts[0] / counts[1]
            row[f"published_{prefix}_accuracy"] = published[method].get((backbone, task, split))
            row["total"] = counts[1] if counts else row.get("total")
        rows.append(row)
    return rows


def _experts_table(backbone: str, rows: Sequence[Mapping[str, Any]]) -> "RenderableType":
    from rich.table import Table

    table = Table(title=f"{backbone}: accuracy in percent", title_justify="left")
    table.add_column("Task", no_wrap=True)
    has_published = any(row["published_expert_accuracy"] is not None for row in rows)
    for split in SPLITS:
        for who in ("zero-shot", "expert"):
            table.add_column(f"{who}\n{split}", justify="right", no_wrap=True)
            if has_published:
                table.add_column(f"{who}\n{split}\n- published", justify="right", no_wrap=True)
        table.add_column(f"images\n{split}", justify="right")
    by_key = {(row["task"], row["split"]): row for row in rows}
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for task in tasks:
        cells = [task]
        for split in SPLITS:
            row = by_key.get((task, split), {})
            for who in ("zero_shot", "expert"):
                value, known = row.get(f"{who}_accuracy"), row.get(f"published_{who}_accuracy")
                cells.append(_percent(value))
                if has_published:
                    cells.append("" if value is None or known is None else f"{100 * (value - known):+.1f}")
            cells.append(f"{row['total']}" if row.get("total") else "")
        table.add_row(*cells)
    averages = ["average"]
    for split in SPLITS:
        for who in ("zero_shot", "expert"):
            averages.append(_average([by_key.get((task, split), {}).get(f"{who}_accuracy") for task in tasks]))
            averages += [""] if has_published else []
        averages.append("")
    table.add_section()
    table.add_row(*averages)
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _average(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _percent(sum(known) / len(known)) if known and len(known) == len(values) else "–"


# --- one checkpoint --------------------------------------------------------------------------------------------------


def _evaluate_model(
    suite: "Suite",
    model: str,
    backbones: Sequence[str],
    tasks: Sequence[str],
    split: Split,
    no_cache: bool,
    device: Device,
    settings: tuple[str, int | None, int | None],
    quiet: bool,
    debug: bool,
) -> list[dict[str, Any]]:
    from raymerge.progress import StderrConsole, watching

    if len(backbones) != 1:
        raise UsageError(f"the suite has the backbones {', '.join(backbones)}; say which one with --backbone.")
    with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
        view.stage(f"loading suite '{suite.name}'")
        from raymerge.single_model import evaluate_model  # torch takes seconds to import

        if not suite.is_prepared:
            prepare(suite, view, debug)
        with interruptible():
            view.stage(f"evaluating {model}")
            precision, batch_size, max_images = settings
            scores = evaluate_model(
                suite,
                Path(model).expanduser(),
                backbones[0],
                tasks,
                split,
                device=torch_device(device),
                precision=precision,
                batch_size=batch_size,
                max_images=max_images,
                from_raw=no_cache,
                report=view.preparing,
            )
    return [
        {"task": score.task, "correct": score.correct, "total": score.total, "accuracy": score.accuracy}
        for score in scores
    ]


def _model_table(backbone: str, split: str, rows: Sequence[Mapping[str, Any]]) -> "RenderableType":
    from rich.table import Table

    table = Table(title=f"{backbone}, {split} split", title_justify="left")
    table.add_column("Task", no_wrap=True)
    for name in ("correct", "images", "accuracy, %"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["task"], str(row["correct"]), str(row["total"]), _percent(row["accuracy"]))
    table.add_section()
    table.add_row("average", "", "", _average([row["accuracy"] for row in rows]))
    return table
