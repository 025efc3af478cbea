"""What has become of a sweep, from what its folder says: `raymerge status`, without the printing."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from raymerge.errors import UsageError
from raymerge.folder import Folder, Location
from raymerge.output import read_manifest
from raymerge.output_lock import holder
from raymerge.results import SUMMARY, load, unfinished_summary
from raymerge.status_file import read_status

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


def report(location: Location) -> Report:
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
        held = holder(folder) is not None
        if not held:  # it may have ended since its status was read
            status = read_status(folder)
        if status is None:
            return _without_status(folder, held)
    except OSError as error:
        raise UsageError(f"{folder.root}: cannot be read ({error.strerror or error}).") from None
    return _judged(status, held)


def _judged(status: dict[str, Any], held: bool) -> Report:
    state, updated = status["state"], status["updated_at"]
    if state in ("preparing", "sweeping"):
        if held:
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
