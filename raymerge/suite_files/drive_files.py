"""Files in a public folder of Google Drive, by the optional package gdown: which there are, and getting one of them."""

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymerge.errors import FetchError
from raymerge.suite_files.downloads import bytes_below, in_background, without_secrets

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class DriveFile:
    """One file of a folder."""

    id: str
    path: str
    """Below the folder."""
    folder: str
    """Name of the folder, for messages."""
    size: int | None = None
    sha256: str | None = None
    """Drive tells neither."""

    @property
    def name(self) -> str:
        return f"Google Drive, {self.folder}/{self.path}"


def list_files(folder_id: str, folder: str) -> list[DriveFile]:
    """Every file in a folder and the folders in it.

    Raises:
        FetchError: gdown is not installed, there is no network, or Drive refuses.
    """
    gdown = _gdown()
    with _one_sentence(f"Google Drive, {folder}"):
        found = _call(gdown.download_folder, id=folder_id, quiet=True, use_cookies=False, skip_download=True)
    return [DriveFile(file.id, str(file.path), folder) for file in found or []]


def download(file: DriveFile, folder: Path, report: Callable[[int], None] = lambda num_bytes: None) -> Path:
    """Bring a file into a folder, under its id and name. What was begun there is continued.

    Raises:
        FetchError: as `list_files`.
    """
    gdown, target = _gdown(), folder / file.id / Path(file.path).name  # many files of a folder have one name
    target.parent.mkdir(parents=True, exist_ok=True)
    with _one_sentence(file.name):
        work: Callable[[], Any] = lambda: _call(  # noqa: E731
            gdown.download, id=file.id, output=str(target), quiet=True, use_cookies=False, resume=True
        )
        in_background(work, lambda: report(bytes_below(folder)))
    if not target.is_file():  # older versions return None instead of raising
        raise FetchError(f"{file.name}: nothing came; Drive has quotas, so try again tomorrow.")
    return target


def _gdown() -> Any:
    try:
        import gdown  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FetchError(
            "files on Google Drive are fetched by gdown, which is not installed; "
            "'pip install \"raymerge[drive]\"' installs it."
        ) from None
    return gdown


def _call(function: Callable[..., Any], **arguments: Any) -> Any:
    if "timeout" in inspect.signature(function).parameters:  # newer versions; without one, gdown waits for ever
        arguments["timeout"] = TIMEOUT_S
    with contextlib.redirect_stdout(io.StringIO()):  # parts of it print even so
        return function(**arguments)


@contextlib.contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    try:
        yield
    except FetchError:
        raise
    except Exception as error:  # of gdown, requests or the disk
        # requests tells of a missing network at length
        text = type(error).__name__ if isinstance(error, OSError) else without_secrets(error)
        refused = any(word in str(error).lower() for word in ("quota", "permission", "too many", "many accesses"))
        hint = "Drive has quotas, so try again tomorrow." if refused else "is there a network?"
        raise FetchError(f"{what}: cannot be fetched ({text}); {hint}") from error
