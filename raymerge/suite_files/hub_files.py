"""Files on the Hugging Face Hub: which there are, and getting one of them.

Where HF_HUB_OFFLINE is set, the cache below HF_HOME stands in for the hub. huggingface_hub takes half a second to
import and asks an unreachable hub for half a minute, so it is imported late and first asked once, briefly.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymerge.errors import FetchError
from raymerge.suite_files.downloads import bytes_below, in_background, without_secrets

TIMEOUT_S = 15.0
_NO_ACCESS = "there is no such repository or file, or it is private; log in with 'hf auth login' if it is"
_WHY = {401: _NO_ACCESS, 403: _NO_ACCESS, 404: _NO_ACCESS, 429: "too many requests, so wait a few minutes"}
"""By the status of an answer."""


class HubUnreachable(FetchError):
    """There is no network, or it is not to be used, and the cache has nothing."""


@dataclass(frozen=True)
class HubFile:
    """One file of a model repository, at one revision."""

    repo: str
    path: str
    size: int | None = None
    """In bytes."""
    sha256: str | None = None
    """Known of large files only."""
    revision: str | None = None
    cached: Path | None = None
    """Where it is in the cache, if that stands in for the hub."""

    @property
    def name(self) -> str:
        return f"{self.repo}/{self.path}"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def list_files(repo: str) -> list[HubFile]:
    """Every file of a repository.

    Raises:
        HubUnreachable: the hub cannot be reached.
        FetchError: there is no such repository, or the hub refuses.
    """
    from huggingface_hub import HfApi

    if is_offline():
        return _list_cached(repo)
    with _one_sentence(repo):
        info = HfApi().model_info(repo, files_metadata=True, timeout=TIMEOUT_S)
        return [
            HubFile(repo, file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, info.sha)
            for file in info.siblings or []
        ]


def _list_cached(repo: str) -> list[HubFile]:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"  # a documented layout
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        files = sorted(path for path in snapshot.rglob("*") if path.is_file())
    except OSError:
        files = []
    if not files:
        raise HubUnreachable(
            f"{repo}: HF_HUB_OFFLINE is set, and the cache in {constants.HF_HUB_CACHE} has nothing of it; unset "
            "HF_HUB_OFFLINE, or copy the cache of a machine that has it."
        )
    return [HubFile(repo, str(p.relative_to(snapshot)), p.stat().st_size, _blob_sha256(p), cached=p) for p in files]


def _blob_sha256(path: Path) -> str | None:
    """The cache names large files by their SHA-256."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def download(file: HubFile, folder: Path, report: Callable[[int], None] = lambda num_bytes: None) -> Path:
    """Bring a file into a folder, under its path in the repository. What was begun there is continued.

    Args:
        report: told now and then how many bytes are there.
    Raises:
        HubUnreachable, FetchError: as `list_files`.
    """
    from huggingface_hub import hf_hub_download

    target = folder / file.path
    if file.cached is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        in_background(lambda: shutil.copyfile(file.cached or "", target), lambda: report(bytes_below(folder)))
        return target
    with _one_sentence(file.name), _no_progress_bars():
        work: Callable[[], Any] = lambda: hf_hub_download(  # noqa: E731
            file.repo, file.path, revision=file.revision, local_dir=folder
        )
        return Path(in_background(work, lambda: report(bytes_below(folder))))


def cached_file(repo: str, names: tuple[str, ...]) -> Path | None:
    """The first of some files of a repository that is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        found = try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return Path(found)
    return None


@contextlib.contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise HubUnreachable(f"{what}: HF_HUB_OFFLINE is set; unset it to download.") from error
    except errors.LocalEntryNotFoundError as error:  # neither in the cache nor to be asked for
        raise _unreachable(what, error) from error
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{what}: access has to be asked for on huggingface.co; then log in with 'hf auth login'."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise FetchError(f"{what}: {_NO_ACCESS}.") from error
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = _WHY.get(status or 0, "try again later")
        raise FetchError(f"{what}: the hub answered {status or without_secrets(error)}: {why}.") from error
    except Exception as error:  # of requests or httpx, of the disk, or of huggingface_hub itself
        module = type(error).__module__.partition(".")[0]
        if isinstance(error, ConnectionError | TimeoutError) or module.startswith(("httpx", "requests", "urllib3")):
            raise _unreachable(what, error) from error
        if isinstance(error, OSError):
            raise FetchError(f"{what}: cannot be downloaded ({without_secrets(error)}).") from error
        raise


def _unreachable(what: str, error: BaseException) -> HubUnreachable:
    return HubUnreachable(
        f"{what}: the hub cannot be reached ({without_secrets(error)}); is there a network? What is there stays, and "
        "the same command continues."
    )


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
