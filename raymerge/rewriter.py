"""A file that is kept up to date from a thread of its own, so that whoever changes something never waits for a disk."""

import logging
import math
import threading
import time
from collections.abc import Callable

from raymerge.folder import Folder

CLOSE_S = 30.0
"""How long the last version of a file is waited for."""

logger = logging.getLogger(__name__)


class Rewriter:
    """Writes `content()` to a file some time after it changed.

    What cannot be written is tried again at the next change.

    Args:
        content: called from the thread of the rewriter.
        interval_s: the least time between two versions, urgent ones apart.
        rest_s: the most time between two versions, as a sign of life where nothing changes.
    """

    def __init__(
        self, folder: Folder, path: str, content: Callable[[], bytes], interval_s: float, rest_s: float | None = None
    ):
        self.problem: str | None = None
        """Why the last version could not be written."""
        self._folder = folder
        self._path = path
        self._content = content
        self._interval_s = interval_s
        self._rest_s = rest_s
        self._condition = threading.Condition()
        self._is_changed = self._is_urgent = self._is_closing = False
        self._thread = threading.Thread(target=self._loop, name=f"writes {path}", daemon=True)
        self._thread.start()

    def changed(self, *, urgent: bool = False) -> None:
        """Write the file when it is due, or at once."""
        with self._condition:
            self._is_changed = True
            self._is_urgent |= urgent
            self._condition.notify()

    def close(self) -> None:
        """Write the file a last time."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        self._thread.join(CLOSE_S)

    def _loop(self) -> None:
        last = -math.inf
        is_closing = False
        while not is_closing:
            with self._condition:
                while not (self._is_closing or self._is_urgent):
                    wait_s = self._interval_s if self._is_changed else self._rest_s
                    left = None if wait_s is None else last + wait_s - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    self._condition.wait(left)
                is_closing = self._is_closing
                self._is_changed = self._is_urgent = False
            try:
                self._folder.write(self._path, self._content())
                self.problem = None
            except Exception as error:  # it is there for those who watch: the sweep goes on without it
                self.problem = str(error)
                logger.debug("%s: cannot be written", self._folder.full(self._path), exc_info=True)
            last = time.monotonic()
