"""Where rows come from: the drivers that worked on an output folder, versions, revision of the code.

A driver's entry among the runs of a manifest:

    id, host, pid           of the driver
    started_at, ended_at    UTC, ISO 8601; ended_at is null while it runs, and for good when it was killed
    outcome                 finished, interrupted, failed, or null like ended_at
    address                 of the Ray cluster; null: Ray was started for this run
    nodes                   id, host, ip, cpus, gpus, devices and versions of every node
    evaluators              how many there were
    images                  that they have put through an encoder
    busy_s, present_s       time spent on shards, and time they were there, both added up over evaluators

The last four are null while it runs, for good when it was killed, and when no evaluator was started.
"""

import importlib.metadata
import platform
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import raymerge
from raymerge.lease import Holder, now
from raymerge.records import RunOutcome, ServiceStats

RUNS = "runs"
MAX_RUNS = 50
_DISTRIBUTIONS = ("torch", "ray", "optuna", "open_clip_torch", "pyarrow")


def new_run(*, address: str | None, nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry of this process, which begins now."""
    here = Holder.here()
    return {
        "id": uuid.uuid4().hex[:16],
        "host": here.host,
        "pid": here.pid,
        "started_at": here.since,
        "ended_at": None,
        "outcome": None,
        "address": address,
        "nodes": [dict(node) for node in nodes],
        "evaluators": None,
        "images": None,
        "busy_s": None,
        "present_s": None,
    }


def ended(run: Mapping[str, Any], outcome: RunOutcome, stats: ServiceStats | None) -> dict[str, Any]:
    """An entry once its driver has ended."""
    figures = {}
    if stats is not None:
        figures = {
            "evaluators": stats.num_evaluators,
            "images": stats.images,
            "busy_s": round(stats.busy_s, 3),
            "present_s": round(stats.present_s, 3),
        }
    return {**run, "ended_at": now(), "outcome": outcome, **figures}


def occupancy_line(runs: Sequence[Mapping[str, Any]]) -> str | None:
    """How busy the evaluators of all runs were, for people; None where no run has figures."""
    known = [run for run in runs if run.get("busy_s") is not None and run.get("present_s")]
    if not known:
        return None
    busy = min(1.0, sum(run["busy_s"] for run in known) / sum(run["present_s"] for run in known))
    most = max(run.get("evaluators") or 0 for run in known)
    num_runs = f"{len(known)} run{'s' * (len(known) != 1)}"
    evaluators = f"{most} evaluator{'s' * (most != 1)}{' at most' * (len(known) != 1)}"
    return f"evaluators were busy {100 * busy:.1f} % of the time ({num_runs}, {evaluators})"


def versions() -> dict[str, str | None]:
    """Of raymerge, Python and what computes; None for what is not installed."""
    found: dict[str, str | None] = {"raymerge": raymerge.__version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_revision() -> str | None:
    """The commit this code runs from, with "-dirty" after it; None when it is installed rather than checked out."""
    here = Path(__file__).parent
    commands = (
        ["git", "ls-files", "--error-unmatch", Path(__file__).name],
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    result = ""
    for command in commands:
        try:
            done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode != 0:
            return None
        result = done.stdout.strip()
    return result or None
