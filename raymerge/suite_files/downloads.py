"""What every download is held to, wherever it comes from: checked before it gets its name, and told of meanwhile."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymerge.checkpoints import file_sha256
from raymerge.errors import FetchError
from raymerge.not_data import not_data
from raymerge.whole_file import make_directory, sync_directory

POLL_S = 1.0
"""Between two looks at a download that runs."""


def check_download(path: Path, *, name: str, size: int | None = None, sha256: str | None = None) -> None:
    """Compare a file that was just downloaded with what is known of it.

    Args:
        name: of the file where it comes from, for messages.
        size: in bytes, None where it is not known; likewise `sha256`, in hex.
    Raises:
        FetchError: it is empty, a web page, of another size or of another content.
    """
    found = path.stat().st_size
    if what := not_data(path):
        raise FetchError(f"{name}: what came is {what}; is there a quota, or is a login needed? Try again later.")
    if size is not None and found != size:
        raise FetchError(f"{name}: {found:,} bytes came, expected {size:,}. The same command tries again.")
    if sha256 is not None and (hashed := file_sha256(path)) != sha256:
        raise FetchError(
            f"{name}: what came has SHA-256 {hashed[:12]}..., expected {sha256[:12]}.... The same command tries again."
        )


def give_name(downloaded: Path, target: Path) -> None:
    """Move a checked file, from the same file system, to where it is looked for."""
    make_directory(target.parent)
    downloaded.replace(target)
    sync_directory(target.parent)


def in_background(work: Callable[[], Any], while_waiting: Callable[[], None]) -> Any:
    """The result of `work`, done by another thread, so that the wait can be told of and interrupted."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)  # what is left of it does not keep the process alive
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        while_waiting()
    if failure:
        raise failure[0]
    return outcome[0]


def bytes_below(folder: Path) -> int:
    """Of all files, finished or not."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # renamed in this moment
            continue
    return total


def without_secrets(error: BaseException) -> str:
    """The first line of an error's message, without what may let somebody in: tokens, and signed parts of addresses."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"\?\S+", "", lines[0] if lines else type(error).__name__)
    return re.sub(r"\bhf_\w+", "hf_...", text).rstrip(". ")[:200]
