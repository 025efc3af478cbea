"""What has become of a sweep, from what its folder says: `raymerge status`, without the printing."""

import fcntl
import os
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from raymerge.errors import UsageError
from raymerge.folder import Folder, Location
from raymerge.output import LOCK, read_manifest
from raymerge.results import SUMMARY, load, unfinished_summary
from raymerge.status_file import read_status

SILENT_S = 60.0
"""After which a sweep whose folder has no lock counts as dead; it writes its status much more often."""

Verdict = Literal["running", "dead", "interrupted", "failed", "finished", "stopped"]
"""stopped: nobody wrote down how it ended, as in folders of older versions."""


@dataclass(frozen=True)
class Report:
    verdict: Verdict
    explanation: str
    """A sentence on the verdict."""
    status: dict[str, Any]
    """As in status.json; of an older folder, what can be counted in its tables."""

    def as_dict(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "explanation": self.explanation, **self.status}


def report(location: Location, now: datetime | None = None) -> Report:
    """Whether a sweep runs and how far it is. Changes nothing.

    Raises:
        UsageError: the folder is not there, or no sweep has ever written to it.
    """
    folder = Folder.at(location)
    try:
        status = read_status(folder)
        if status is None and read_manifest(folder) is None and not folder.exists("trials"):
            found = "no results here" if folder.exists() else "no such folder"
            raise UsageError(f"{folder.root}: {found}. Give the --output of a sweep.")
        held = is_held(folder)
        if status is None:
            return _without_status(folder, bool(held))
    except OSError as error:
        raise UsageError(f"{folder.root}: cannot be read ({error.strerror or error}).") from None
    return _judged(status, held, now or datetime.now(UTC))


def _judged(status: dict[str, Any], held: bool | None, now: datetime) -> Report:
    state, updated = status["state"], status["updated_at"]
    if state in ("preparing", "sweeping"):
        age_s = (now - datetime.fromisoformat(updated)).total_seconds()
        if held or (held is None and age_s < SILENT_S):
            return Report("running", f"{state} on {status['host']}, process {status['pid']}", status)
        sentence = f"its driver ended without saying so at {updated} or later; the same command continues"
        return Report("dead", sentence, {**status, "running": [], "evaluators": []})
    if state == "finished":
        return Report("finished", f"finished at {updated}", status)
    if state == "interrupted":
        return Report("interrupted", f"interrupted at {updated}; the same command continues", status)
    return Report("failed", f"failed at {updated}: {status['error']}", status)


def _without_status(folder: Folder, held: bool) -> Report:
    """What the tables of a folder say to which no status was written."""
    finished_summary = folder.exists(SUMMARY) and not held
    rows = load(folder, "summary") if finished_summary else unfinished_summary(folder)
    done = rows["status"].tolist().count("finished")
    trials = Counter(load(folder, "trials")["status"].tolist()) if folder.exists("trials") else Counter()
    manifest = read_manifest(folder) or {}
    status = {
        "sweep": manifest.get("sweep"),
        # without a summary, only cells that have been started are known
        "cells": {"done": done, "total": len(rows) if finished_summary else None},
        "trials": {**{name: trials[name] for name in ("finished", "pruned", "failed")}, "running": None},
    }
    if held:
        return Report("running", "a sweep that writes no status runs there", status)
    if finished_summary and done == len(rows):
        return Report("finished", "finished", status)
    return Report("stopped", "no sweep runs there; the same command continues", status)


# to be replaced by raymerge.output.holder(location), which says who holds the lock
def is_held(folder: Folder) -> bool | None:
    """Whether a sweep holds the lock of a folder; None where there are no locks. Creates nothing."""
    if folder.local is None:
        return None
    try:
        descriptor = os.open(folder.local / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        # shared, and given back at once: those who look do not keep out each other
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
