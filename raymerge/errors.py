"""Every error raymerge raises on purpose.

    RaymergeError                 exit 1   something went wrong while running
    ├── UsageError                exit 2   the command line asks for something impossible
    │   └── SweepFileError        exit 2   the sweep file is wrong
    ├── PreflightError            exit 4   found before any work was done
    │   ├── SuiteError            exit 4   a suite is unknown, missing or incomplete
    │   ├── CheckpointError       exit 4   a checkpoint, head or moments are missing, truncated, NaN or mis-shaped
    │   ├── DataError             exit 4   images or labels are missing or inconsistent
    │   ├── OutputError           exit 4   the output directory is locked, foreign or not writable
    │   └── ClusterError          exit 4   no cluster, or one without the resources asked for
    ├── FetchError                exit 1   a download failed, or is not what was to be downloaded
    ├── MergeInputError           exit 1   task matrices no method can merge
    ├── EvaluationError           exit 1   an evaluator died or could not score its images
    └── TrainingError             exit 1   a fine-tuning diverged, or does not fit its device

A message is one sentence: the object, what was found, what was expected, what to do next.
"""

import difflib
from collections.abc import Iterable


class RaymergeError(Exception):
    """Base of all errors with a message meant for the user."""

    exit_code = 1


class UsageError(RaymergeError):
    exit_code = 2


class SweepFileError(UsageError):
    pass


class PreflightError(RaymergeError):
    exit_code = 4


class SuiteError(PreflightError):
    pass


class CheckpointError(PreflightError):
    pass


class DataError(PreflightError):
    pass


class OutputError(PreflightError):
    pass


class ClusterError(PreflightError):
    pass


class FetchError(RaymergeError):
    pass


class MergeInputError(RaymergeError):
    pass


class EvaluationError(RaymergeError):
    pass


class TrainingError(RaymergeError):
    pass


class UpdateNotHereError(Exception):
    """A merged update cannot be had now; whoever wanted it tries again. Its text, if any: why it has no room here."""


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a part of a sentence: its first line, or its name where it says nothing.

    Of an error that a Ray task raised, whose own text is a traceback, it is what the task's error said.
    """
    cause = getattr(error, "cause", None)
    said = cause if isinstance(cause, BaseException) else error
    return (str(said).strip().splitlines() or [type(said).__name__])[0].rstrip(".")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'iso-c'? Known: ...`, the tail of every message about an unknown name."""
    names = sorted(known)
    spelled = {name.lower().replace("_", "-"): name for name in reversed(names)}
    close = difflib.get_close_matches(word.lower().replace("_", "-"), spelled, n=1, cutoff=0.6)
    hint = f"Did you mean '{spelled[close[0]]}'? " if close else ""
    return f"{hint}Known: {', '.join(names)}."
