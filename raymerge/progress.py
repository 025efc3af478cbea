"""What is shown on stderr while a sweep runs: a live view on a terminal, plain lines elsewhere, or nothing.

A view is told of everything by the thread that runs the sweep. It never waits, and an error in it ends the view, not
the sweep.
"""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raymerge.plan import SweepInfo
from raymerge.records import TrialRecord
from raymerge.tally import Tally

LINE_INTERVAL_S = 5.0
"""Between two plain lines about the same thing."""
MAX_LEADERS = 3
MAX_COLUMNS = 12
"""Rows of leading methods that fit a terminal of 24 lines beside the rest."""

logger = logging.getLogger(__name__)


class StderrConsole(Console):
    """stderr, whose reader may go away: rich would end the process then, and close stdout with it."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Silent:
    """A view that shows nothing."""

    def stage(self, what: str) -> None: ...
    def preparing(self, what: str, fraction: float) -> None: ...
    def sweeping(self, sweep: SweepInfo, device: str, num_evaluators: int) -> None: ...
    def trial(self, record: TrialRecord) -> None: ...
    def notice(self, what: str) -> None: ...
    def observed(self, observation: Any, hosts: Any) -> None: ...
    def close(self) -> None: ...


def _guarded(event: Callable[..., None]) -> Callable[..., None]:
    """An event of a view that does nothing once one has failed."""

    @functools.wraps(event)
    def told(self: Any, *args: Any) -> None:
        if self.broken:
            return
        try:
            event(self, *args)
        except Exception:
            self.broken = True
            logger.debug("the view of the sweep failed", exc_info=True)

    return told


class Lines:
    """Plain lines: stages and finished cells at once, anything else every few seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self.broken = False
        self._console = console
        self._clock = clock
        self._stage = ""
        self._started = self._last = clock()
        self._tally: Tally | None = None

    @_guarded
    def stage(self, what: str) -> None:
        self._stage = what
        self._line(what)

    @_guarded
    def preparing(self, what: str, fraction: float) -> None:
        if self._is_due():
            self._line(f"{self._stage}: {what}, {fraction:.0%}")

    @_guarded
    def sweeping(self, sweep: SweepInfo, device: str, num_evaluators: int) -> None:
        self._tally = tally = Tally(sweep, self._clock)
        done = f", {len(tally.finished)} of them done," if tally.finished else ""
        self._line(f"sweeping {len(tally.cells)} cells{done} with {_evaluators(num_evaluators, device)}")

    @_guarded
    def trial(self, record: TrialRecord) -> None:
        if self._tally is None:  # recovered before the trials begin
            return
        for cell in self._tally.add(record):
            is_tested = record.cell == cell and record.split == "test"
            result = f": {100 * record.average_accuracy:.1f}% on test" if is_tested and record.scores else " ended"
            self._console.out(f"{cell}{result}", highlight=False)
        if self._is_due():
            self._line(_progress(self._tally))

    @_guarded
    def notice(self, what: str) -> None:
        self._line(what)

    @_guarded
    def observed(self, observation: Any, hosts: Any) -> None:
        if self._tally is not None:
            self._tally.observe(observation, hosts)

    @_guarded
    def close(self) -> None:
        if self._tally is not None:
            self._line(_closing(self._tally, self._clock() - self._started))

    def _is_due(self) -> bool:
        return self._clock() - self._last >= LINE_INTERVAL_S

    def _line(self, text: str) -> None:
        self._last = self._clock()
        self._console.out(text, highlight=False)


class LiveView:
    """One view that is redrawn in place, by a thread of its own, and fits 80 x 24."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self.broken = False
        self._console = console
        self._clock = clock
        self._lock = threading.RLock()
        self._started = clock()
        self._stage, self._detail, self._fraction = "", "", 0.0
        self._tally: Tally | None = None
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=2, transient=True)
        self._live.start()

    @_guarded
    def stage(self, what: str) -> None:
        with self._lock:
            self._stage, self._detail = what, ""

    @_guarded
    def preparing(self, what: str, fraction: float) -> None:
        with self._lock:
            self._detail, self._fraction = what, fraction

    @_guarded
    def sweeping(self, sweep: SweepInfo, device: str, num_evaluators: int) -> None:
        with self._lock:
            self._stage, self._detail = f"sweeping with {_evaluators(num_evaluators, device)}", ""
            self._tally = Tally(sweep, self._clock)

    @_guarded
    def trial(self, record: TrialRecord) -> None:
        with self._lock:
            if self._tally is not None:
                self._tally.add(record)

    @_guarded
    def notice(self, what: str) -> None:
        self._console.out(what, highlight=False)  # above the view, where it stays

    @_guarded
    def observed(self, observation: Any, hosts: Any) -> None:
        with self._lock:
            if self._tally is not None:
                self._tally.observe(observation, hosts)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._live.stop()
        with contextlib.suppress(Exception):
            if self._tally is not None:
                self._console.out(_closing(self._tally, self._clock() - self._started), highlight=False)

    def _draw(self) -> RenderableType:
        try:
            with self._lock:
                return "" if self.broken else self.render()
        except Exception:
            self.broken = True
            logger.debug("the view of the sweep failed", exc_info=True)
            return ""

    def render(self) -> RenderableType:
        """The view as it is now."""
        lines: list[RenderableType] = [_cut(f"{self._stage}, {duration(self._clock() - self._started)}", "bold")]
        if self._detail:
            lines += [_bar(self._fraction, f"{self._fraction:.0%}"), _cut(self._detail)]
        if self._tally is not None:
            lines += self._sweep_lines(self._tally)
        return Group(*lines)

    def _sweep_lines(self, tally: Tally) -> Iterator[RenderableType]:
        yield _bar(len(tally.finished) / len(tally.cells), _cells(tally))
        yield _cut(_trials(tally))
        yield _cut(_speed(tally))
        leaders = tally.leaders()
        if not leaders:
            return
        yield Text()
        yield _cut("best so far, validation accuracy in %", "bold")
        grid = Table.grid(padding=(0, 2))
        several = len({backbone for backbone, _ in leaders}) > 1
        for (backbone, num_tasks), best in list(leaders.items())[:MAX_COLUMNS]:
            column = f"{backbone}, {num_tasks} tasks" if several else f"{num_tasks} tasks"
            entries = [f"{title} {100 * accuracy:.1f}" for title, accuracy in best[:MAX_LEADERS]]
            grid.add_row(_cut(column), *map(_cut, entries))
        yield grid
        if len(leaders) > MAX_COLUMNS:
            yield _cut(f"and {len(leaders) - MAX_COLUMNS} more", "dim")


@contextlib.contextmanager
def watching(console: Console, *, quiet: bool = False) -> Iterator[Silent | Lines | LiveView]:
    """The view that suits the console, closed at the end."""
    view: Silent | Lines | LiveView = Silent()
    if not quiet:
        is_live = console.is_terminal and not console.is_dumb_terminal
        view = LiveView(console) if is_live else Lines(console)
    try:
        yield view
    finally:
        view.close()


def duration(seconds: float) -> str:
    """In the two units that matter.

    >>> duration(7.4), duration(125), duration(3 * 3600 + 61)
    ('7 s', '2 min 5 s', '3 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _trials(tally: Tally) -> str:
    return (
        f"{tally.trials['finished']} trials finished, {tally.trials['pruned']} pruned, {tally.trials['failed']} failed"
    )


def _speed(tally: Tally) -> str:
    return speed(tally.images_per_s, tally.occupancy, tally.left_s)


def speed(images_per_s: float, occupancy: float | None, left_s: float | None) -> str:
    """
    >>> speed(1234.5, 0.93, 130.0), speed(0.0, None, None)
    ('1,234 images/s, 93% busy, about 2 min left', '0 images/s')
    """
    busy = "" if occupancy is None else f", {occupancy:.0%} busy"
    return f"{images_per_s:,.0f} images/s{busy}" + ("" if left_s is None else f", about {_roughly(left_s)} left")


def _roughly(seconds: float) -> str:
    """Minutes while there are any: an estimate has no seconds."""
    return duration(seconds) if seconds < 60 else duration(60 * round(seconds / 60)).removesuffix(" 0 s")


def _progress(tally: Tally) -> str:
    return f"{_cells(tally)}, {_trials(tally)}, {_speed(tally)}"


def _closing(tally: Tally, seconds: float) -> str:
    return f"{_cells(tally)}, {_trials(tally)}, in {duration(seconds)}"


def _cells(tally: Tally) -> str:
    return f"{len(tally.finished)} of {len(tally.cells)} cells"


def _evaluators(num: int, device: str) -> str:
    return f"{num} evaluator{'s' * (num != 1)} on {device}"


def _cut(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _bar(fraction: float, label: str) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row(ProgressBar(total=1.0, completed=fraction, width=40), _cut(label))
    return grid
