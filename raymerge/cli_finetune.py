"""`raymerge finetune`: experts of a suite from its raw datasets, by the published recipe."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymerge.cli_evaluate import Precision
from raymerge.cli_options import Debug, Device, Json, Quiet
from raymerge.cli_suite import (
    Backbones,
    Data,
    NumTasks,
    Profile,
    SuiteName,
    Tasks,
    Weights,
    chosen_backbones,
    chosen_tasks,
)
from raymerge.errors import UsageError
from raymerge.streams import EXIT_CELLS_FAILED, errors_told, interruptible, render, stoppable, tell, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raymerge.errors import RaymergeError
    from raymerge.finetuning.expert import Finetuned, Job
    from raymerge.finetuning.files import Output
    from raymerge.finetuning.jobs import Resources
    from raymerge.finetuning.recipe import FinetuneRecipe
    from raymerge.progress import Lines, LiveView, Silent

Key = tuple[str, str]
"""Backbone and task."""

INTERRUPTED = (
    "interrupted: finished experts and what was done of others are saved; the same command continues from there."
)


def finetune(
    suite: SuiteName,
    profile: Profile = None,
    weights: Weights = None,
    data: Data = None,
    backbones: Backbones = None,
    num_tasks: NumTasks = None,
    tasks: Tasks = None,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="DIR", help="Folder of the experts.  [default: weights of the suite file]"),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="[default: as published for the task]")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images per forward pass.  [default: 128; 64 for ViT-L-14]"),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option("--accumulate", min=1, help="Forward passes per step.  [default: 1; 2 for ViT-L-14]"),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", min=0.0, help="Peak of the schedule.  [default: 1e-5]")
    ] = None,
    warmup: Annotated[int | None, typer.Option("--warmup", min=0, help="Steps.  [default: 500]")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="End after so many steps.")] = None,
    precision: Annotated[Precision, typer.Option("--precision", help="Arithmetic of the encoder.")] = Precision.fp32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the order of the images and their crops.")] = 0,
    device: Annotated[Device, typer.Option("--device", help="Where experts are trained.")] = Device.auto,
    gpus: Annotated[
        float, typer.Option("--gpus-per-task", min=0.01, help="Share of a GPU that one expert gets; 0.5: two share it.")
    ] = 1.0,
    cpus: Annotated[
        int | None, typer.Option("--cpus-per-task", min=1, help="Cores of one expert.  [default: by device]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads that decode images.  [default: by device]")
    ] = None,
    save_minutes: Annotated[
        float, typer.Option("--save-minutes", min=0.0, help="Between two states that a training can continue from.")
    ] = 5.0,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDR", help="Ray cluster, such as auto.  [default: this machine]"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Make finished experts again; start over where other options were used.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fine-tune experts on the raw datasets of a suite."""
    with errors_told(debug, interrupted=INTERRUPTED):
        from raymerge.finetuning.files import find_output
        from raymerge.finetuning.jobs import Resources
        from raymerge.finetuning.recipe import published_recipe
        from raymerge.suite_file import find_suite
        from raymerge.suites.published import PublishedSuite

        found = find_suite(suite, profile, weights=weights, data=data)
        if not isinstance(found, PublishedSuite):
            raise UsageError(
                f"suite '{suite}' has no raw training images; give a suite file that names datasets, tall-masks or "
                "fusionbench."
            )
        into = find_output(found, output)
        changes = {
            "epochs": epochs,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "learning_rate": learning_rate,
            "warmup": warmup,
            "max_steps": max_steps,
            "precision": precision.value,
            "seed": seed,
        }
        names, chosen = chosen_backbones(found, backbones or ()), chosen_tasks(found, num_tasks, tasks)
        recipes = {
            (backbone, task): published_recipe(found.backbones[backbone], found.datasets[task].name, task, changes)
            for backbone in names
            for task in chosen
        }
        resources = Resources(device.value, gpus, cpus, workers, 60 * save_minutes)
        made = _finetune(into, recipes, resources, address, force, quiet=quiet, debug=debug)
        if len(made) == len(recipes) == 1 and isinstance(error := next(iter(made.values())), Exception):
            raise error
        rows = [_row(into, *key, recipe, made.get(key)) for key, recipe in recipes.items()]
        if as_json:
            write_json({"suite": found.name, "profile": found.profile, "output": str(into.root), "rows": rows})
        else:
            render(_table(into, rows))
        if not quiet:
            for line in _remarks(rows):
                tell(line)
        failed = [row for row in rows if row["status"] == "failed"]
        if failed:
            tell(f"{len(failed)} of {len(rows)} experts failed; the same command tries them again:")
            for row in failed:
                tell(f"  {row['error']}")
            raise typer.Exit(EXIT_CELLS_FAILED)


def _finetune(
    output: "Output",
    recipes: "Mapping[Key, FinetuneRecipe]",
    resources: "Resources",
    address: str | None,
    force: bool,
    *,
    quiet: bool,
    debug: bool,
) -> "dict[Key, Finetuned | RaymergeError]":
    """What came of every expert that had to be made."""
    from raymerge.progress import StderrConsole, watching

    # whatever a library prints belongs to the logs: stdout is for results
    with contextlib.redirect_stdout(sys.stderr), watching(StderrConsole(), quiet=quiet) as view:
        view.stage("loading torch")
        with interruptible():
            jobs = _jobs(output, recipes, force, view)
        from raymerge.finetuning.jobs import run_jobs

        with stoppable() as should_stop:
            outcomes = run_jobs(
                jobs,
                resources,
                num_chosen=len(recipes),
                address=address,
                debug=debug,
                stage=view.stage,
                report=view.preparing,
                should_stop=should_stop,
            )
            return {(job.backbone, job.task): outcome for job, outcome in outcomes}


def _jobs(
    output: "Output", recipes: "Mapping[Key, FinetuneRecipe]", force: bool, view: "Silent | Lines | LiveView"
) -> "list[Job]":
    """What is to be done, once everything it starts from is in the output."""
    from raymerge.finetuning.expert import Job
    from raymerge.finetuning.start import prepare_backbone  # torch takes seconds to import

    view.stage("checking datasets, weights and heads")
    suite = output.suite
    todo = {key: output.of_expert(*key) for key in recipes}
    todo = {key: files for key, files in todo.items() if files.status(force) == "to do"}
    for _, task in todo:
        suite.datasets[task].find_layout(suite.data)
    jobs: list[Job] = []
    for backbone in dict.fromkeys(backbone for backbone, _ in todo):
        files = {task: files for (name, task), files in todo.items() if name == backbone}
        zero_shot = prepare_backbone(output, backbone, list(files), view.preparing)
        jobs += [
            Job(suite, backbone, task, recipes[backbone, task], files[task], zero_shot, force=force) for task in files
        ]
    return jobs


def _row(
    output: "Output", backbone: str, task: str, recipe: "FinetuneRecipe", outcome: "Finetuned | RaymergeError | None"
) -> dict[str, Any]:
    from raymerge.finetuning.files import difference, read_record

    files = output.of_expert(backbone, task)
    row: dict[str, Any] = {"backbone": backbone, "task": task, "file": str(files.expert), "warmup": recipe.warmup}
    if isinstance(outcome, Exception):
        return {**row, "status": "failed", "error": str(outcome)}
    record = read_record(files.record)
    row |= {key: record.get(key) for key in ("steps", "seconds")}
    row["loss"] = next(iter(record.get("loss", {}).get("by_epoch", ())[-1:]), None)
    if outcome is not None:
        return {**row, "status": "made"}
    if not record:
        return {**row, "status": "another's"}
    return {**row, "status": "kept", "differs": difference(record.get("recipe", {}), recipe.as_dict())}


def _remarks(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    kept = sum(row["status"] == "kept" for row in rows)
    if kept:
        yield f"{kept} of {len(rows)} experts were finished already; --force makes them again."
    for row in rows:
        if row["status"] == "made" and row["steps"] <= row["warmup"]:
            yield (
                f"{row['backbone']}/{row['task']}: the warm-up of {row['warmup']} steps is no shorter than the "
                f"training of {row['steps']}, so that the learning rate only rose; --warmup sets it."
            )
        if row.get("differs"):
            yield f"{row['backbone']}/{row['task']}: was made with {row['differs']}."
        if row["status"] == "another's":
            yield f"{row['file']}: was there already, though not from this command; it is left as it is."


def _table(output: "Output", rows: Sequence[dict[str, Any]]) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from raymerge.progress import duration

    grid = Table()
    for title in ("Backbone", "Task"):
        grid.add_column(title, no_wrap=True)
    for title in ("Steps", "Loss", "Time"):
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("Expert", no_wrap=True)
    for row in rows:
        figures = ["", "", ""]
        if row.get("steps") is not None:
            figures = [f"{row['steps']:,}", f"{row['loss']:.4f}", duration(row["seconds"])]
        grid.add_row(row["backbone"], row["task"], *figures, row["status"])
    return Group(Text(f"Experts of {output.suite.name} in {output.root}; the loss is the mean of the last epoch"), grid)
