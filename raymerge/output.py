"""The output folder of a sweep: who may write to it, and the manifest that says what its rows are.

<output>/manifest.json              what the rows are and where they come from, see below
         .lock                      held while a sweep writes; who holds it
         .lease.json                the same, where files cannot be locked (lease.py)
         evaluations/ trials/ summary/ predictions/
         status.json                how far the sweep is (status_file.py)
         log.jsonl                  what happened (event_log.py)
         quarantine/                parts that could not be read
         superseded/                trials that are no part of their search any more

The manifest:

    results_version     of the tables and of this file
    sweep, spec         the name of the sweep; its file with every default filled in
    spec_hash           of everything that decides about the rows: whoever continues the sweep must have the same
    suite_fingerprint   of weights, heads and images: the same; null until they were read
    evaluation_choice   what `auto` stands for in this sweep; absent while nothing is decided
    created_at          when the first driver began
    opened_at           when the last one did
    hosts               of all drivers, sorted by name
    versions            of raymerge, Python and the libraries, in the last driver
    git_revision        of the last driver's code, with "-dirty" after it; null where it is not a checkout
    runs                one entry per driver, the oldest first, the last 50 (provenance.py)

Times are UTC, ISO 8601. A manifest of an older version may lack `runs` and `evaluation_choice`.
"""

import contextlib
import errno
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import raymerge
from raymerge.errors import OutputError
from raymerge.folder import Folder, Location, reason
from raymerge.lease import now
from raymerge.output_lock import OutputLock, lock_output
from raymerge.provenance import MAX_RUNS, RUNS, ended, git_revision, new_run, versions
from raymerge.records import RunOutcome, ServiceStats
from raymerge.result_schema import RESULTS_VERSION

MANIFEST = "manifest.json"
CHOICE = "evaluation_choice"
"""Key of the manifest for what `auto` stands for in this sweep, once that is decided."""


@dataclass
class Output:
    """An output folder that this process alone writes to, until `close`."""

    folder: Folder
    manifest: dict[str, Any]
    _lock: OutputLock
    _run: int | None = None
    """Position of this driver among the runs of the manifest, while it runs."""

    @property
    def location(self) -> str:
        return self.folder.name

    def check(self, *, look: bool = False) -> None:
        """Return if this process still is the one that writes there.

        Args:
            look: ask the filesystem now; without it, what was known at the last heartbeat, which costs nothing.

        Raises:
            OutputError: another driver has taken the folder.
        """
        self._lock.check(look=look)

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

    def start_run(self, *, address: str | None = None, nodes: Sequence[Mapping[str, Any]] = ()) -> None:
        """Enter this driver in the manifest.

        Args:
            address: of the Ray cluster; None: Ray was started for this run.
            nodes: what it runs on, as plain values: id, host, ip, cpus, gpus, devices, versions of each.
        """
        runs = [*self.manifest.get(RUNS, []), new_run(address=address, nodes=nodes)][-MAX_RUNS:]
        self.manifest[RUNS] = runs
        self._run = len(runs) - 1
        self._write()

    def end_run(self, outcome: RunOutcome, stats: ServiceStats | None = None) -> None:
        """Write down how this driver's work ended and what its evaluators have done. Ending twice changes nothing.

        Args:
            stats: None where no evaluator was started.
        """
        if self._run is None:
            return
        runs = list(self.manifest[RUNS])
        runs[self._run] = ended(runs[self._run], outcome, stats)
        self.manifest[RUNS] = runs
        self._run = None
        self._write()

    def _write(self) -> None:
        self.check(look=True)
        try:
            write_manifest(self.folder, self.manifest)
        except OSError as error:
            raise _not_writable(self.folder, error) from None

    def close(self) -> None:
        """Let others write. Closing twice is no error."""
        self._lock.release()

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None:
                with contextlib.suppress(OutputError):  # what went wrong first is to be told
                    self.end_run("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")
        finally:
            self.close()


def open_output(output_dir: Location, *, sweep: str, spec: Mapping[str, Any], spec_hash: str) -> Output:
    """Create or reopen the folder and lock it. Writes nothing yet: see `Output.begin`.

    The death of a sweep frees it: at once where files can be locked, in a minute and a half elsewhere (lease.py).

    Raises:
        OutputError: the folder is not writable, another sweep is writing to it, or it holds other results.
    """
    folder = Folder.at(output_dir)
    check_output(folder, spec_hash=spec_hash)
    try:
        lock = lock_output(folder)
    except OSError as error:
        raise _not_writable(folder, error) from None
    try:
        known = check_output(folder, spec_hash=spec_hash) or {}  # once more, now that nobody else can write it
    except BaseException:
        lock.release()
        raise
    opened_at = now()
    manifest = {
        "results_version": RESULTS_VERSION,
        "sweep": sweep,
        "spec_hash": spec_hash,
        "suite_fingerprint": known.get("suite_fingerprint"),
        "created_at": known.get("created_at", opened_at),
        "opened_at": opened_at,
        "hosts": sorted({*known.get("hosts", []), platform.node()}),
        "versions": versions(),
        "git_revision": git_revision(),
        RUNS: known.get(RUNS, []),
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
        manifest = _read_manifest(folder)
        foreign = manifest is None and any(folder.files(table) for table in ("evaluations", "trials"))
        missing_bucket = None if manifest else folder.missing_bucket
    except OSError as error:
        raise _not_writable(folder, error) from None
    if missing_bucket:
        raise OutputError(
            f"{folder.name}: there is no bucket '{missing_bucket}', or these credentials do not show it. Create it, or "
            "choose another --output."
        )
    if foreign:
        raise OutputError(f"{folder.name}: holds results but no {MANIFEST}, so nobody knows of what. {_ADVICE}")
    if manifest is None:
        return None
    if manifest.get("spec_hash") != spec_hash:
        raise OutputError(
            f"{folder.name}: holds the results of sweep '{manifest.get('sweep')}' with spec "
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
            f"{folder.name}: its rows come from a suite with fingerprint {known}, but the suite is now "
            f"{suite_fingerprint}: weights, heads or images have changed. {_ADVICE}"
        )


def write_manifest(output_dir: Location, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    Folder.at(output_dir).write(MANIFEST, text.encode())


def read_manifest(output_dir: Location) -> dict[str, Any] | None:
    """The manifest, or None when the folder has none.

    Raises:
        OutputError: it cannot be read, is not a manifest, or a newer raymerge wrote it.
    """
    folder = Folder.at(output_dir)
    try:
        return _read_manifest(folder)
    except OSError as error:
        raise not_readable(folder, error) from None


def _read_manifest(folder: Folder) -> dict[str, Any] | None:
    data = folder.read(MANIFEST)
    if data is None:
        return None
    try:
        manifest = json.loads(data)
        version = manifest["results_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder.named(MANIFEST)}: is not a manifest ({type(error).__name__}: {error}). "
            "Restore it, or delete the folder."
        ) from None
    if version > RESULTS_VERSION:
        raise OutputError(
            f"{folder.name}: holds results of version {version}, and raymerge {raymerge.__version__} reads up to "
            f"{RESULTS_VERSION}. Upgrade raymerge."
        )
    return manifest


def not_readable(folder: Folder, error: OSError) -> OutputError:
    check = "the address, the credentials and the network" if folder.scheme else "the path and its permissions"
    return OutputError(f"{folder.name}: cannot be read ({reason(error)}). Check {check}.")


def _not_writable(folder: Folder, error: OSError) -> OutputError:
    if folder.scheme:
        advice = "Check the address, the credentials and the network, or choose another --output."
        return OutputError(f"{folder.name}: cannot be reached, or not be written to ({reason(error)}). {advice}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{folder.name}: is full ({reason(error)}). Make room there and start the same sweep again.")
    return OutputError(f"{folder.name}: is not a folder one can write to ({reason(error)}). Choose another --output.")
