"""The output folder of a sweep: who may write to it, and the manifest that says what its rows are.

<output>/manifest.json     the resolved spec, its hash, versions, hosts
         .lock             held while a sweep writes
         evaluations/ trials/ summary/
         quarantine/       parts that could not be read
         status.json       how far the sweep is: see status_file.py
         log.jsonl         what happened: see event_log.py
"""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

import raymerge
from raymerge.errors import OutputError
from raymerge.folder import Folder, Location
from raymerge.records import ServiceStats
from raymerge.result_schema import RESULTS_VERSION

MANIFEST = "manifest.json"
LOCK = ".lock"
CHOICE = "evaluation_choice"
"""Key of the manifest for what `auto` stands for in this sweep, once that is decided."""
_DISTRIBUTIONS = ("torch", "ray", "optuna", "open_clip_torch", "pyarrow")


@dataclass
class Output:
    """An output folder that this process alone writes to, until `close`."""

    folder: Folder
    manifest: dict[str, Any]
    _lock: filelock.BaseFileLock | None

    @property
    def location(self) -> str:
        return self.folder.root

    def begin(self, suite_fingerprint: str) -> None:
        """Write the manifest: from here on the folder belongs to this sweep over these weights and images.

        Raises:
            OutputError: its rows come from other weights or images.
        """
        _check_fingerprint(self.folder, self.manifest, suite_fingerprint)
        self.manifest["suite_fingerprint"] = suite_fingerprint
        self._write()

    @property
    def choice(self) -> Mapping[str, Any] | None:
        """What `auto` stands for, as an earlier run decided; None while nothing is decided."""
        return self.manifest.get(CHOICE)

    def keep_choice(self, choice: Mapping[str, Any]) -> None:
        """Write down what `auto` stands for, so that whoever continues the sweep evaluates alike."""
        self.manifest[CHOICE] = choice
        self._write()

    def start_run(self, *, address: str | None, nodes: Sequence[Mapping[str, Any]]) -> None:
        pass

    def end_run(self, outcome: str, stats: ServiceStats) -> None:
        pass

    def _write(self) -> None:
        try:
            write_manifest(self.folder, self.manifest)
        except OSError as error:
            raise _not_writable(self.folder, error) from None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_output(output_dir: Location, *, sweep: str, spec: Mapping[str, Any], spec_hash: str) -> Output:
    """Create or reopen the folder and lock it. Writes nothing yet: see `Output.begin`.

    The lock belongs to the process, so the death of a sweep frees it. Object stores have no locks: there, two sweeps
    with one output folder overwrite each other's parts with equal rows.

    Raises:
        OutputError: the folder is not writable, another sweep is writing to it, or it holds other results.
    """
    folder = Folder.at(output_dir)
    check_output(folder, spec_hash=spec_hash)
    lock = _lock(folder)
    try:
        known = check_output(folder, spec_hash=spec_hash) or {}  # once more, now that nobody else can write it
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    now = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {
        "results_version": RESULTS_VERSION,
        "sweep": sweep,
        "spec_hash": spec_hash,
        "suite_fingerprint": known.get("suite_fingerprint"),
        "created_at": known.get("created_at", now),
        "opened_at": now,
        "hosts": sorted({*known.get("hosts", []), platform.node()}),
        "versions": _versions(),
        "git_revision": _git_revision(),
        "spec": spec,
    }
    if CHOICE in known:
        manifest[CHOICE] = known[CHOICE]
    return Output(folder, manifest, lock)


def check_output(
    output_dir: Location, *, spec_hash: str, suite_fingerprint: str | None = None
) -> dict[str, Any] | None:
    """The manifest of a folder this sweep may continue, None for a new one. Writes nothing.

    Raises:
        OutputError: it belongs to another sweep, to other weights or images, or to a newer raymerge.
    """
    folder = Folder.at(output_dir)
    try:
        manifest = read_manifest(folder)
        foreign = manifest is None and any(folder.files(table) for table in ("evaluations", "trials"))
    except OSError as error:
        raise _not_writable(folder, error) from None
    if foreign:
        raise OutputError(f"{folder.root}: holds results but no {MANIFEST}, so nobody knows of what. {_ADVICE}")
    if manifest is None:
        return None
    if manifest.get("spec_hash") != spec_hash:
        raise OutputError(
            f"{folder.root}: holds the results of sweep '{manifest.get('sweep')}' with spec "
            f"{manifest.get('spec_hash')}, but this sweep's spec is {spec_hash}. {_ADVICE}"
        )
    if suite_fingerprint is not None:
        _check_fingerprint(folder, manifest, suite_fingerprint)
    return manifest


_ADVICE = "Choose another --output, or delete the folder to start afresh."


def _check_fingerprint(folder: Folder, manifest: Mapping[str, Any], suite_fingerprint: str) -> None:
    known = manifest.get("suite_fingerprint")
    if known not in (None, suite_fingerprint):
        raise OutputError(
            f"{folder.root}: its rows come from a suite with fingerprint {known}, but the suite is now "
            f"{suite_fingerprint}: weights, heads or images have changed. {_ADVICE}"
        )


def write_manifest(output_dir: Location, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    Folder.at(output_dir).write(MANIFEST, text.encode())


def read_manifest(output_dir: Location) -> dict[str, Any] | None:
    """The manifest, or None when the folder has none.

    Raises:
        OutputError: it is not a manifest, or a newer raymerge wrote it.
    """
    folder = Folder.at(output_dir)
    data = folder.read(MANIFEST)
    if data is None:
        return None
    try:
        manifest = json.loads(data)
        version = manifest["results_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder.full(MANIFEST)}: is not a manifest ({type(error).__name__}: {error}). "
            "Restore it, or delete the folder."
        ) from None
    if version > RESULTS_VERSION:
        raise OutputError(
            f"{folder.root}: holds results of version {version}, and raymerge {raymerge.__version__} reads up to "
            f"{RESULTS_VERSION}. Upgrade raymerge."
        )
    return manifest


def _lock(folder: Folder) -> filelock.BaseFileLock | None:
    if (local := folder.local) is None:
        return None
    try:
        local.mkdir(parents=True, exist_ok=True)
        # not thread-local: whoever closes the output need not be the thread that opened it
        lock = filelock.FileLock(local / LOCK, timeout=0, thread_local=False)
        lock.acquire()
    except filelock.Timeout:
        raise OutputError(
            f"{local}: another sweep is writing there. Wait for it, stop it, or choose another --output."
        ) from None
    except OSError as error:
        raise _not_writable(folder, error) from None
    return lock


def _not_writable(folder: Folder, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"{folder.root}: is not a folder one can write to ({reason}). Choose another --output.")


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"raymerge": raymerge.__version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _git_revision() -> str | None:
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
