"""`raymerge figure`: one figure of the paper as a file, from the tables of `raymerge analyze`."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymerge.cli_options import Debug
from raymerge.errors import UsageError, did_you_mean
from raymerge.streams import errors_told, render, write

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLE = "raymerge figure spectra results/demo_analysis -o spectra.svg"


class RankRule(enum.StrEnum):
    released_code = "released_code"
    paper = "paper"


def figure(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="What to draw; without it, what there is.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of raymerge analyze.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Ends in .svg, .pdf, .png, .html or .json."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List all figures.")] = False,
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="NAME", help="[default: ViT-B-16, or the first]")
    ] = None,
    num_tasks: Annotated[
        int | None, typer.Option("--num-tasks", min=1, help="[default: 8, or the fewest; where lines or panels: all]")
    ] = None,
    rank_rule: Annotated[
        RankRule | None,
        typer.Option(
            "--rank-rule", help="How ranks are counted for SAR.  [default: released_code]", show_default=False
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="NAME", help="A part of its name.  [default: attn.out_proj of block 4]"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw a figure of the paper, from the tables of raymerge analyze."""
    with errors_told(debug, "interrupted: no figure was written."):
        from raymerge.charts import check_chart_path, save_chart
        from raymerge.figures import FIGURES, Choice, Tables

        if listed or name is None:
            render(_list())
            return
        if name not in FIGURES:
            raise UsageError(f"unknown figure '{name}'. {did_you_mean(name, FIGURES)}")
        if folder is None or output is None:
            missing = "DIR, a folder of raymerge analyze" if folder is None else "-o FILE, where to write it"
            raise UsageError(f"figure '{name}' needs {missing}; for example: {EXAMPLE}")
        check_chart_path(output)
        chosen = FIGURES[name]
        choice = Choice(backbone, num_tasks, rank_rule and rank_rule.value, layer)
        for option, value in vars(choice).items():
            if value is not None and option not in chosen.options:
                takes = ", ".join(_flag(known) for known in chosen.options)
                raise UsageError(f"{_flag(option)}: figure '{name}' does not take it, only {takes}.")
        save_chart(chosen.draw(Tables(folder), choice), output, chosen.title)
        write(f"{output}\n")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _list() -> "Table":
    from rich.table import Table

    from raymerge.figures import FIGURES

    table = Table(box=None, pad_edge=False, title=None)
    for heading in ("figure", "paper", "shows", "options"):
        table.add_column(heading)
    for figure in FIGURES.values():
        table.add_row(figure.name, figure.paper, figure.description, " ".join(map(_flag, figure.options)))
    return table
