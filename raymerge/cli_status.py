"""`raymerge status`: whether a sweep runs, and how far it is, from another terminal."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymerge.cli_options import Debug, Json
from raymerge.streams import errors_told, write, write_json

if TYPE_CHECKING:
    from raymerge.status import Report

INTERVAL_S = 2.0
MAX_EVALUATORS = 8
MAX_COLUMNS = 12
MAX_LEADERS = 3
MAX_NOTICES = 3


def status(
    output: Annotated[str, typer.Argument(metavar="DIR", help="Folder of results.", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", help="Show it every 2 s until the sweep ends.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Tell whether a sweep runs, and how far it is."""
    with errors_told(debug):
        from raymerge.status import report

        def show(found: "Report") -> None:
            if not as_json:
                write(text(found))
            elif watch:  # one object a line
                write(json.dumps(found.as_dict(), ensure_ascii=False, allow_nan=False) + "\n")
            else:
                write_json(found.as_dict())

        show(found := report(output))
        if not watch:
            return
        try:
            while found.verdict == "running":
                time.sleep(INTERVAL_S)
                found = report(output)
                if not as_json:
                    write("\x1b[H\x1b[2J" if sys.stdout.isatty() else "\n")
                show(found)
        except KeyboardInterrupt:
            return


def text(found: "Report") -> str:
    """What people read, within 80 columns where names allow it."""
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: "Report") -> Iterator[str]:
    from raymerge.progress import speed

    now = found.status
    yield f"sweep '{now['sweep']}': {found.explanation}"
    running = found.verdict == "running"
    if running and now.get("stage"):
        yield f"{now['stage']}, {_since(now['started_at'])} after it was started"
    if preparing := now.get("preparing"):
        yield f"{preparing['what']}, {preparing['fraction']:.0%}"
    if cells := now.get("cells"):
        total = "" if cells["total"] is None else f" of {cells['total']}"
        yield f"{cells['done']}{total} cells finished"
        trials = now["trials"]
        more = f", {trials['running']} running" if running and trials["running"] is not None else ""
        yield f"{trials['finished']} trials finished, {trials['pruned']} pruned, {trials['failed']} failed{more}"
    if running and "images_per_s" in now:
        yield speed(now["images_per_s"], now["occupancy"], now["left_s"])
        yield f"{now['images']:,} images in this run, {now['queued_shards']} shards queued"
        yield from _evaluators(now["evaluators"])
    if best := now.get("best"):
        yield ""
        yield "best so far, validation accuracy in %"
        yield from _best(best)
    if notices := now.get("notices"):
        yield ""
        for notice in notices[-MAX_NOTICES:]:
            yield f"{datetime.fromisoformat(notice['time']).astimezone():%H:%M:%S} {notice['text']}"


def _evaluators(evaluators: list[dict[str, Any]]) -> Iterator[str]:
    if evaluators:
        yield ""
        yield "evaluators"
    width = max((len(e["id"]) for e in evaluators), default=0)
    for evaluator in evaluators[:MAX_EVALUATORS]:
        yield f"  {evaluator['id']:{width}}  {evaluator['what'] or 'waits for work'}"
    if (left := len(evaluators) - MAX_EVALUATORS) > 0:
        yield f"  and {left} more"


def _best(best: list[dict[str, Any]]) -> Iterator[str]:
    several = len({column["backbone"] for column in best}) > 1
    for column in best[:MAX_COLUMNS]:
        name = f"{column['num_tasks']} tasks"
        leaders = [f"{m['method']} {100 * m['val_accuracy']:.1f}" for m in column["methods"][:MAX_LEADERS]]
        yield f"  {column['backbone'] + ', ' if several else ''}{name}: {', '.join(leaders)}"
    if len(best) > MAX_COLUMNS:
        yield f"  and {len(best) - MAX_COLUMNS} more"


def _since(start: str) -> str:
    from raymerge.progress import duration

    return duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(start)).total_seconds()))
