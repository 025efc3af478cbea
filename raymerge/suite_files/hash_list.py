"""A list of the files of a suite with their hashes, to compare one machine with another, or a download with its hub.

    {"format": 1, "suite": "tall-masks", "profile": "corrected",
     "files": {"ViT-B-32/zero-shot": {"bytes": 453847910, "sha256": "..."}, "ViT-B-32/DTD/expert": {...}, ...}}

Files are called by what they are, because folders differ between machines. They are those that were fetched, not what
was converted from them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raymerge.errors import SuiteError
from raymerge.suites import Suite
from raymerge.whole_file import whole_file

FORMAT = 1
FETCHED_NAME = ".raymerge-hashes.json"
"""In the folder of the weights: what `raymerge suite fetch` has fetched and checked."""


@dataclass(frozen=True)
class FileHash:
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class HashList(Mapping[str, FileHash]):
    """Hashes by the key of a file."""

    suite: str
    profile: str
    files: Mapping[str, FileHash] = field(default_factory=dict)
    label: str = ""
    """What messages call it."""

    def __getitem__(self, key: str) -> FileHash:
        return self.files[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def file_key(kind: str, backbone: str, task: str | None) -> str:
    return f"{backbone}/{kind}" if task is None else f"{backbone}/{task}/{kind}"


def read_hashes(path: Path) -> HashList:
    """The list in a file.

    Raises:
        SuiteError: it cannot be read, or is none.
    """
    try:
        value = json.loads(path.read_text())
        if value["format"] != FORMAT:
            raise ValueError(f"format is {value['format']!r}, expected {FORMAT}")
        files = {key: FileHash(int(entry["bytes"]), str(entry["sha256"])) for key, entry in value["files"].items()}
        return HashList(str(value["suite"]), str(value["profile"]), files, str(path))
    except OSError as error:
        raise SuiteError(
            f"{path}: cannot be read ({error.strerror}); 'raymerge suite verify --write-hashes' writes one."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SuiteError(
            f"{path}: is no list of hashes ({type(error).__name__}: {error}); write it again with "
            "'raymerge suite verify --write-hashes'."
        ) from None


def write_hashes(path: Path, hashes: HashList) -> None:
    """Write a list; equal lists are equal bytes."""
    entries = {key: {"bytes": known.num_bytes, "sha256": known.sha256} for key, known in sorted(hashes.files.items())}
    value = {"format": FORMAT, "suite": hashes.suite, "profile": hashes.profile, "files": entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


def hashes_for(suite: Suite, path: Path | None) -> HashList | None:
    """The list in a file, or, without one, that of what was fetched into the suite's folder, if there is one.

    Raises:
        SuiteError: it cannot be read, or is of another suite.
    """
    if path is None:
        path = suite.root / FETCHED_NAME
        if not path.is_file():
            return None
    known = read_hashes(path)
    if (known.suite, known.profile) != (suite.name, suite.profile):
        raise SuiteError(
            f"{path}: lists files of {known.suite} ({known.profile}), the suite is {suite.name} ({suite.profile})."
        )
    return known
