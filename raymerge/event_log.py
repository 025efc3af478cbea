"""log.jsonl: what happened in a sweep, one JSON object a line. Written by the process that owns the output.

A local folder has one file, to which every run of the sweep appends. An object store cannot append: there every run has
a file of its own in log/.
"""

import contextlib
import json
import logging
import math
import os
import platform
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from raymerge.folder import Folder
from raymerge.records import TrialRecord
from raymerge.rewriter import Rewriter
from raymerge.selection import objective_value

LOG = "log.jsonl"
REMOTE_INTERVAL_S = 30.0


class EventLog:
    """A listener that writes down what happens. A log that cannot be written is given up; the sweep goes on."""

    def __init__(self, folder: Folder, sweep: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._now = now
        self._lock = threading.Lock()
        self._lines: list[str] = []
        """Those of an object store."""
        self._file: Any = None
        self._rewriter: Rewriter | None = None
        self._is_open = True
        if folder.local is None:
            run = f"{now():%Y%m%dT%H%M%SZ}-{os.getpid()}"
            self._rewriter = Rewriter(folder, f"log/{run}.jsonl", self._content, REMOTE_INTERVAL_S)
        else:
            try:
                self._file = (folder.local / LOG).open("a", encoding="utf-8")
            except OSError:
                self._is_open = False
        self._handler = _Handler(self)
        logging.getLogger("raymerge").addHandler(self._handler)
        self.write("run", sweep=sweep, host=platform.node(), pid=os.getpid())

    def stage(self, what: str) -> None:
        self.write("stage", text=what)

    def preparing(self, what: str, fraction: float) -> None: ...

    def sweeping(self, sweep: Any, device: str, num_evaluators: int) -> None:
        self.write("sweeping", device=device, evaluators=num_evaluators, trials=len(sweep.records))

    def trial(self, record: TrialRecord) -> None:
        self.write(
            "trial",
            "info" if record.status != "failed" else "error",
            trial_id=record.trial_id,
            cell=str(record.cell),
            stage=record.stage,
            split=record.split,
            status=record.status,
            alpha=record.point.alpha,
            params=dict(record.point.params),
            accuracy=_number(record.average_accuracy),
            normalized_accuracy=_number(objective_value(record, "normalized_accuracy")),
            seconds=round(record.seconds, 3),
            images=record.images,
            occupancy=record.occupancy,
            error=record.error,
        )

    def notice(self, what: str) -> None:
        self.write("notice", text=what)

    def observed(self, observation: Any, hosts: Any) -> None: ...

    def end(self, state: str, error: str | None = None) -> None:
        """Write how the run ended, and nothing after it."""
        logging.getLogger("raymerge").removeHandler(self._handler)
        self.write("end", "info" if error is None else "error", state=state, error=error)
        with self._lock:
            self._is_open = False
        if self._rewriter is not None:
            self._rewriter.close()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def write(self, event: str, level: str = "info", **values: Any) -> None:
        about = {"time": self._now().isoformat(timespec="milliseconds"), "level": level, "event": event}
        try:
            line = json.dumps(about | values, ensure_ascii=False, allow_nan=False, default=str) + "\n"
        except ValueError:  # a number that JSON does not know
            line = json.dumps(about | {"text": repr(values)}, ensure_ascii=False) + "\n"
        with self._lock:
            if not self._is_open:
                return
            if self._rewriter is not None:
                self._lines.append(line)
                self._rewriter.changed()
                return
            try:
                self._file.write(line)
                self._file.flush()
            except OSError:
                self._is_open = False

    def _content(self) -> bytes:
        with self._lock:
            return "".join(self._lines).encode()


class _Handler(logging.Handler):
    """Records of the loggers of raymerge."""

    def __init__(self, log: EventLog):
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        about = {} if error is None else {"error": f"{type(error).__name__}: {error}"}
        self._log.write("log", record.levelname.lower(), logger=record.name, text=record.getMessage(), **about)
        # with a handler here Python shows warnings on stderr no more, unless somebody else has set one up
        shown, last = logging.getLogger().handlers, logging.lastResort
        if not shown and last is not None and record.levelno >= last.level:
            last.handle(record)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
