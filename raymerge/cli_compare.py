"""`raymerge compare`: two sweeps over one suite, or two methods of a sweep, and whether they differ by chance."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from raymerge.cli_options import Debug, Json, SplitName
from raymerge.errors import UsageError
from raymerge.streams import errors_told, render, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raymerge.compare import CellDifference, Comparison, TaskDifference

SIGNIFICANT = 0.05


def compare(
    first: Annotated[str, typer.Argument(metavar="DIR1", help="Folder of results, or its URI.", show_default=False)],
    second: Annotated[
        str | None, typer.Argument(metavar="DIR2", help="Another one; not needed with --methods.", show_default=False)
    ] = None,
    methods: Annotated[
        tuple[str, str] | None,
        typer.Option("--methods", metavar="A B", help="Method A of the first with B of the second, or of the same."),
    ] = None,
    split: Annotated[SplitName, typer.Option("--split", help="Images to compare on.")] = SplitName.test,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two sweeps, or two methods, and test whether they differ by chance."""
    with errors_told(debug, interrupted="interrupted."):
        if second is None and methods is None:
            raise UsageError("give a second folder, or two methods of this one with --methods A B.")
        from raymerge import compare as comparing  # scipy takes half a second to import

        one = comparing.read_side(first, split.value)
        other = one if second is None else comparing.read_side(second, split.value)
        found = comparing.compare(one, other, split=split.value, methods=methods)
        if as_json:
            write_json(found.as_dict())
        else:
            render(view(found))


def view(found: "Comparison") -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    has_methods = found.methods is None
    has_p = any(cell.kind == "paired" for cell in found.cells)
    table = Table()
    for name in ("Backbone", "Tasks", *(["Method"] if has_methods else [])):
        table.add_column(name, no_wrap=True)
    for name in ("A", "B", "B - A", "95 % interval", *(["p", "tasks\n+, -"] if has_p else [])):
        table.add_column(name, justify="right", overflow="fold", min_width=7)  # a digit is never cut off
    for cell in found.cells:
        is_paired = cell.kind == "paired"
        row = [cell.backbone, f"{cell.num_tasks}", *([cell.first_method] if has_methods else [])]
        row += [
            _accuracy(cell.first_accuracy, cell.first_normalized_accuracy),
            _accuracy(cell.second_accuracy, cell.second_normalized_accuracy),
            _points(cell.difference),
            f"{_points(cell.low)} to {_points(cell.high)}" + ("" if is_paired else "*"),
        ]
        if has_p:
            row.append("" if cell.p is None else _p(cell.p))
            row.append(", ".join(str(len(tasks)) for tasks in _significant(cell)) if is_paired else "")
        table.add_row(*row)
    return Group(*(Text(line) for line in _head(found)), table, *(Text(line) for line in _notes(found)))


def _head(found: "Comparison") -> Iterator[str]:
    split = found.split.capitalize()
    yield f"{split} accuracy in percent, averaged over tasks, and in parentheses relative to the experts."
    for letter, name, method in zip("AB", (found.first, found.second), found.methods or ("", ""), strict=True):
        yield f"{letter}: {method + ', ' if method else ''}{name}"


def _notes(found: "Comparison") -> Iterator[str]:
    from raymerge.significance import DRAWS, SEED

    kinds = {cell.kind for cell in found.cells}
    if "paired" in kinds:
        yield f"Differences in points. Interval and p: paired by image, {DRAWS:,} bootstrap draws, seed {SEED}."
        yield f"Tasks on which B is better (+) and worse (-): exact McNemar test, Holm's correction, p < {SIGNIFICANT}."
        for cell in found.cells:
            for word, tasks in zip(("better", "worse"), _significant(cell), strict=True):
                if tasks:
                    shown = ", ".join(f"{t.task} {_points(t.second_accuracy - t.first_accuracy)}" for t in tasks)
                    method = "" if found.methods else f", {cell.first_method}"
                    yield f"{cell.backbone}, {cell.num_tasks} tasks{method}: B is {word} on {shown}"
    if "unpaired" in kinds:
        yield "* Unpaired, from counts alone: as if tested on different images, so wider than need be."
    yield from found.remarks
    for (side, reason), cells in _grouped(found).items():
        yield f"Not compared, for {side} has no result ({reason}): {'; '.join(cells)}"


def _grouped(found: "Comparison") -> dict[tuple[str, str], list[str]]:
    """What is left out, by side and reason: methods by backbone and number of tasks."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cell in found.left_out:
        columns = groups.setdefault((cell.side, cell.reason), {})
        columns.setdefault(f"{cell.backbone}, {cell.num_tasks} tasks", []).append(cell.method)
    return {
        key: [f"{column}: {', '.join(names)}" for column, names in columns.items()] for key, columns in groups.items()
    }


def _significant(cell: "CellDifference") -> tuple[list["TaskDifference"], list["TaskDifference"]]:
    """The tasks on which the second is better, and worse; the largest difference first."""
    clear = [task for task in cell.tasks if task.holm_p is not None and task.holm_p < SIGNIFICANT]
    clear.sort(key=lambda task: -abs(task.second_accuracy - task.first_accuracy))
    better = [task for task in clear if task.second_accuracy > task.first_accuracy]
    return better, [task for task in clear if task not in better]


def _accuracy(accuracy: float, normalized: float | None) -> str:
    return f"{100 * accuracy:.1f}" + ("" if normalized is None else f" ({100 * normalized:.1f})")


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
