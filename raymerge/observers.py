"""All who watch a sweep: the view on the terminal, and the files in the output that say how far it is.

They are told of everything, and an error in one of them ends that one, not the sweep.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raymerge.errors import RaymergeError
from raymerge.event_log import EventLog
from raymerge.folder import Folder
from raymerge.plan import SweepInfo
from raymerge.records import TrialRecord
from raymerge.status_file import Known, State, StatusWriter
from raymerge.suites import Suite
from raymerge.sweep_spec import SweepSpec

logger = logging.getLogger(__name__)


class Observers:
    """A listener that tells several others."""

    def __init__(self, *others: Any):
        self.state: State = "failed"
        """How the sweep ends; until that is said, it fails."""
        self._others = list(others)

    def stage(self, what: str) -> None:
        self._tell("stage", what)

    def preparing(self, what: str, fraction: float) -> None:
        self._tell("preparing", what, fraction)

    def sweeping(self, sweep: SweepInfo, device: str, num_evaluators: int) -> None:
        self._tell("sweeping", sweep, device, num_evaluators)

    def trial(self, record: TrialRecord) -> None:
        self._tell("trial", record)

    def notice(self, what: str) -> None:
        self._tell("notice", what)

    def observed(self, observation: Any, hosts: Mapping[str, str]) -> None:
        self._tell("observed", observation, hosts)

    def _tell(self, event: str, *arguments: Any) -> None:
        for other in list(self._others):
            try:
                getattr(other, event)(*arguments)
            except Exception:
                self._others.remove(other)
                logger.warning("%s failed and is told no more", type(other).__name__, exc_info=True)


@contextlib.contextmanager
def observing(
    view: Any,
    folder: Folder,
    spec: SweepSpec,
    suite: Suite,
    records: Callable[[], Mapping[str, TrialRecord]],
    check: Callable[[], None],
) -> Iterator[Observers]:
    """Tell `view`, and keep status and log of the sweep in its folder while the context lasts.

    Args:
        records: those there are at the end.
        check: raises when the folder is another driver's now.
    """
    status, log = StatusWriter(folder, spec.name, check), EventLog(folder, spec.name)
    observers = Observers(view, status, log)
    error = None
    try:
        yield observers
    except KeyboardInterrupt:
        observers.state = "interrupted"
        raise
    except BaseException as failure:
        observers.state = "failed"
        text = str(failure) if isinstance(failure, RaymergeError) else f"{type(failure).__name__}: {failure}"
        error = " ".join(text.split())
        raise
    finally:
        with contextlib.suppress(Exception):
            log.end(observers.state, error)
        with contextlib.suppress(Exception):
            status.end(observers.state, error, Known(spec, suite, records()))
