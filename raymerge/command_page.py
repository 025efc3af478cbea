"""The page of all commands, made of the program: `python -m raymerge.command_page > docs/commands.md`."""

import re
from collections.abc import Iterator
from typing import Any

import typer.main

from raymerge.cli import app
from raymerge.streams import write

HEADER = """\
# Commands

Every command, every option. Made of the program itself by `python -m raymerge.command_page > docs/commands.md`.

Results go to stdout, progress and errors to stderr. Options stand before or after the argument. With `--json` a program
may read the results; `--debug` shows tracebacks and what libraries log. Colours are left out where the output is no
terminal or `NO_COLOR` is set.

| Exit code | |
|---|---|
| 0 | done |
| 1 | it failed |
| 2 | a mistake in the command or in a file it reads |
| 3 | finished, but some cells, or experts, failed |
| 4 | files, images, the output or the cluster are not as they should be; nothing was begun |
| 130 | interrupted; what was finished is saved, and the same command continues |
"""


def walk(command: Any, path: tuple[str, ...] = ("raymerge",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a command of typer or click, groups too, with the words that call it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


def command_page() -> str:
    """The page, in Markdown."""
    return "\n".join([HEADER, *(line for path, command in walk(program()) for line in _section(path, command))])


def program() -> Any:
    """`raymerge` as typer's group of commands."""
    return typer.main.get_command(app)


def _section(path: tuple[str, ...], command: Any) -> Iterator[str]:
    context = typer.Context(command)
    arguments = [parameter.metavar for parameter in command.params if parameter.param_type_name == "argument"]
    yield f"{'#' * max(2, len(path))} {' '.join([*path, *arguments])}"
    yield ""
    yield _plain(command.help or "")
    yield ""
    for parameter in command.params:
        if record := parameter.get_help_record(context):
            yield f"- `{_called(parameter, record[0])}`: {_plain(record[1])}"
    if command.params:
        yield ""


def _called(parameter: Any, shown: str) -> str:
    """A parameter and what it takes, whatever words the installed version of typer has for numbers and choices."""
    name, _, taken = shown.partition(" ")
    if parameter.metavar or not taken:
        return f"{name} {parameter.metavar}" if taken and name != parameter.metavar else name
    if "|" in taken:
        return f"{name} {taken.strip('<[]>')}"
    return f"{name} {'N' if taken.strip('<').lower().startswith('int') else 'NUMBER'}"


def _plain(text: str) -> str:
    """One line of text that Markdown shows as it is."""
    return re.sub(r"([<*])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    write(command_page())
