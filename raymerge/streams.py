"""Results to stdout, errors to stderr, and an exit code for each kind of end."""

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from raymerge.errors import RaymergeError

if TYPE_CHECKING:
    from rich.console import RenderableType

EXIT_FAILED = 1
EXIT_CELLS_FAILED = 3
EXIT_INTERRUPTED = 130


@contextlib.contextmanager
def errors_told(debug: bool) -> Iterator[None]:
    """Turn an error into a line on stderr and the exit code of its kind, with its traceback if `debug`."""
    if debug:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        tell("interrupted: everything finished so far is saved, and the same command continues from there.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, RaymergeError):
            tell(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        what = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")
        tell(f"error: {what}." + ("" if debug else " Run again with --debug for the traceback."))
        raise typer.Exit(EXIT_FAILED) from None


def tell(text: str) -> None:
    """A line for people, on stderr."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def write(text: str) -> None:
    """A result, on stdout. Where a reader such as `head` has had enough, the rest goes nowhere."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(value: Any) -> None:
    write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def render(renderable: "RenderableType") -> None:
    """A rich renderable on stdout, at the width of the terminal or, where there is none, as wide as it needs."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=1000)
    with console.capture() as captured:
        console.print(renderable)
    write(captured.get())
