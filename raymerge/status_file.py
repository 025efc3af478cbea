"""status.json: how far a sweep is, for whoever looks from elsewhere. Written by the process that owns the output."""

import json
import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from raymerge.errors import UsageError
from raymerge.folder import Folder, Location
from raymerge.plan import SweepInfo
from raymerge.records import Cell, TrialRecord
from raymerge.rewriter import Rewriter
from raymerge.sweep_spec import SweepSpec
from raymerge.tally import Tally
from raymerge.whole_file import TEMPORARY_SUFFIX

STATUS = "status.json"
STATUS_VERSION = 1
INTERVAL_S = 2.0
REMOTE_INTERVAL_S = 10.0
"""The same for an object store, where every version costs a request."""
REST_S = 20.0
"""After which it is written though nothing happened, so that whoever looks knows the sweep is alive."""
MAX_NOTICES = 20

State = Literal["preparing", "sweeping", "interrupted", "finished", "failed"]


@dataclass(frozen=True)
class Known:
    """A sweep of which nothing is left to do, as far as a tally needs it."""

    spec: SweepSpec
    suite: Any
    records: Mapping[str, TrialRecord]
    ended: list[Cell] = field(default_factory=list)

    def finished_cells(self) -> list[Cell]:
        return self.ended


class StatusWriter:
    """A listener that keeps status.json. Its events may come from any thread; none of them waits for the file.

    Args:
        check: called before every version; it raises when the folder is another driver's now.
    """

    def __init__(
        self,
        folder: Folder,
        sweep: str,
        check: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self._check = check
        self._now = now
        self._lock = threading.Lock()
        self._tally: Tally | None = None
        self._notices: deque[dict[str, str]] = deque(maxlen=MAX_NOTICES)
        self._about: dict[str, Any] = {
            "version": STATUS_VERSION,
            "sweep": sweep,
            "state": "preparing",
            "stage": "",
            "preparing": None,
            "error": None,
            "host": platform.node(),
            "pid": os.getpid(),
            "device": None,
            "started_at": self._time(),
        }
        _remove_leftovers(folder)
        interval_s = REMOTE_INTERVAL_S if folder.local is None else INTERVAL_S
        self._file = Rewriter(folder, STATUS, self._content, interval_s, REST_S)
        self._file.changed(urgent=True)

    def stage(self, what: str) -> None:
        self._set(urgent=True, stage=what, preparing=None)

    def preparing(self, what: str, fraction: float) -> None:
        self._set(preparing={"what": what, "fraction": fraction})

    def sweeping(self, sweep: SweepInfo, device: str, num_evaluators: int) -> None:
        tally = Tally(sweep)
        with self._lock:
            self._tally = tally
        self._set(urgent=True, state="sweeping", stage="sweeping", preparing=None, device=device)

    def trial(self, record: TrialRecord) -> None:
        with self._lock:
            if self._tally is not None:
                self._tally.add(record)
        self._file.changed()

    def notice(self, what: str) -> None:
        with self._lock:
            self._notices.append({"time": self._time(), "text": what})
        self._file.changed()

    def observed(self, observation: Any, hosts: Any) -> None:
        with self._lock:
            if self._tally is not None:
                self._tally.observe(observation, hosts)
        self._file.changed()

    def end(self, state: State, error: str | None = None, known: SweepInfo | None = None) -> None:
        """Write how the sweep ended.

        Args:
            known: what there is to count where no trial had to run.
        """
        with self._lock:
            if self._tally is None and known is not None:
                self._tally = Tally(known)
            elif self._tally is not None:
                self._tally.working = ()
                self._tally.stats = replace(self._tally.stats, num_busy=0, num_queued=0)
        self._set(urgent=True, state=state, stage="", preparing=None, error=error)
        self._file.close()

    def _set(self, *, urgent: bool = False, **values: Any) -> None:
        with self._lock:
            self._about |= values
        self._file.changed(urgent=urgent)

    def _time(self) -> str:
        return self._now().isoformat(timespec="seconds")

    def _content(self) -> bytes:
        self._check()
        with self._lock:
            status = {
                **self._about,
                "updated_at": self._time(),
                "notices": list(self._notices),
                **(counts(self._tally) if self._tally else {}),
            }
        return (json.dumps(status, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def counts(tally: Tally) -> dict[str, Any]:
    """The figures of a status."""
    working = [worker for worker in tally.working if worker.trial_id is not None]
    running = list(dict.fromkeys(worker.trial_id for worker in working))
    by_status = {status: tally.trials[status] for status in ("finished", "pruned", "failed")}
    left_s = tally.left_s
    return {
        "cells": {"done": len(tally.finished), "total": len(tally.cells)},
        "trials": {**by_status, "running": len(running)},
        "running": running,
        "images": tally.stats.images,
        "images_per_s": round(tally.images_per_s, 1),
        "occupancy": tally.occupancy,
        "queued_shards": tally.stats.num_queued,
        "left_s": None if left_s is None else round(left_s),
        "evaluators": [
            {
                "id": worker.evaluator,
                "host": tally.hosts.get(worker.evaluator),
                "trial_id": worker.trial_id,
                "what": worker.what,
            }
            for worker in tally.working
        ],
        "best": [
            {
                "backbone": backbone,
                "num_tasks": num_tasks,
                "methods": [{"method": title, "val_accuracy": accuracy} for title, accuracy in best],
            }
            for (backbone, num_tasks), best in tally.leaders().items()
        ],
    }


def read_status(location: Location) -> dict[str, Any] | None:
    """The status of a sweep as it was last written; None where there is none, or one that cannot be read.

    Raises:
        UsageError: a newer raymerge wrote it.
    """
    folder = Folder.at(location)
    data = folder.read(STATUS)
    try:
        status = None if data is None else json.loads(data)
        version = None if status is None else int(status["version"])
    except (ValueError, KeyError, TypeError):
        return None
    if version is not None and version > STATUS_VERSION:
        raise UsageError(
            f"{folder.full(STATUS)}: is of version {version}, and this raymerge reads up to {STATUS_VERSION}. "
            "Upgrade raymerge."
        )
    return status


def _remove_leftovers(folder: Folder) -> None:
    """Of processes that were killed while they wrote it."""
    if folder.local is not None:
        for path in folder.local.glob(f".{STATUS}.*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)
