"""Results to stdout, errors to stderr, and an exit code for each kind of end."""

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from raymerge.errors import RaymergeError
from raymerge.interrupts import INTERRUPTS, answering, in_main_thread

if TYPE_CHECKING:
    from rich.console import RenderableType

EXIT_FAILED = 1
EXIT_CELLS_FAILED = 3
EXIT_INTERRUPTED = 130


INTERRUPTED = "interrupted: everything finished so far is saved, and the same command continues from there."


@contextlib.contextmanager
def errors_told(debug: bool, interrupted: str = INTERRUPTED) -> Iterator[None]:
    """Turn an error into a line on stderr and the exit code of its kind, with its traceback if `debug`."""
    if debug:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        tell(interrupted)
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


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Turn the first SIGINT or SIGTERM into a KeyboardInterrupt, and ignore others, so that there is time to tidy up.

    Some of torch turns a KeyboardInterrupt into an error of its own; here it is one again.

    Yields what is called when it is too late to stop: from then on the block runs to its end.
    """
    received = False

    def ignore_signals() -> None:
        if in_main_thread():
            for number in INTERRUPTS:
                signal.signal(number, signal.SIG_IGN)

    def interrupt(signum: int, frame: Any) -> None:
        nonlocal received
        received = True
        ignore_signals()
        raise KeyboardInterrupt

    def proceed() -> None:
        ignore_signals()
        if received:
            raise KeyboardInterrupt

    with answering(interrupt):
        try:
            yield proceed
        except Exception:
            if received:
                raise KeyboardInterrupt from None
            raise
        if received:  # a callback that the interpreter runs, `__del__` for one, may have swallowed it
            raise KeyboardInterrupt


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Take note of the first SIGINT or SIGTERM, for work that is asked to end by itself; another one interrupts it.

    Yields what says whether there was one.
    """
    received = False

    def note(signum: int, frame: Any) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True

    with answering(note):
        yield lambda: received


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
