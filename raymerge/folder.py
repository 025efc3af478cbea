"""A folder on any pyarrow filesystem, where a file is either absent or whole."""

import contextlib
import re
import urllib.parse
import uuid
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from raymerge.errors import OutputError
from raymerge.interrupts import interrupts_held
from raymerge.whole_file import TEMPORARY_SUFFIX, make_directory, whole_file

OBJECT_STORES = ("s3", "gcs", "abfs")
"""Where a key appears once its upload is complete, and folders are only a part of keys."""
MAX_ATTEMPTS = 5
"""Per request to S3: about 6 s where nobody listens and 20 s where nobody answers, instead of minutes."""
RETRY_LIMIT_S = 20
"""Per request to Google's store, whose own limit is a quarter of an hour."""


@dataclass(frozen=True)
class Folder:
    """Paths given to the methods are relative, with forward slashes."""

    filesystem: fs.FileSystem
    root: str
    scheme: str = ""

    @classmethod
    def at(cls, location: "Location") -> "Folder":
        """A local path or a URI (`s3://bucket/key`, `gs://...`). Nothing is created.

        Raises:
            OutputError: no filesystem can be made of the URI.
        """
        if isinstance(location, Folder):
            return location
        text = str(location)
        if not is_uri(text):
            return cls(fs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
        try:
            filesystem, root = fs.FileSystem.from_uri(_bounded_uri(text))
            filesystem = _bounded(filesystem)
        except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
            why = reason(error).replace(text, without_secrets(text))
            raise OutputError(
                f"{without_secrets(text)}: cannot be used ({why}). Give a folder, or a URI such as s3://bucket/folder; "
                "if that is what it is, check its address, the credentials and the network."
            ) from None
        if not root.strip("/"):
            raise OutputError(f"{without_secrets(text)}: names no folder. Give a URI such as s3://bucket/folder.")
        scheme = "" if isinstance(filesystem, fs.LocalFileSystem) else text.partition("://")[0]
        return cls(filesystem, root.rstrip("/"), scheme)

    @property
    def local(self) -> Path | None:
        return Path(self.root) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    @property
    def name(self) -> str:
        """For people: the path or the URI, without options and credentials."""
        return f"{self.scheme}://{self.root}" if self.scheme else self.root

    @property
    def missing_bucket(self) -> str | None:
        """The bucket of an object store, if it neither exists nor may be created."""
        if not self._is_object_store or self._may_create_bucket:
            return None
        bucket = self.root.partition("/")[0]
        return bucket if self.filesystem.get_file_info(bucket).type == fs.FileType.NotFound else None

    @property
    def _is_object_store(self) -> bool:
        return self.filesystem.type_name in OBJECT_STORES

    @property
    def _may_create_bucket(self) -> bool:
        return self.filesystem.type_name == "s3" and _s3_options(self.filesystem)["allow_bucket_creation"]

    def make(self) -> None:
        """Create the folder where folders have to be created, and the bucket where that was asked for."""
        if not self._is_object_store:
            self.filesystem.create_dir(self.root, recursive=True)
        elif self._may_create_bucket:
            self.filesystem.create_dir(self.root.partition("/")[0])

    def full(self, path: str) -> str:
        """For the filesystem."""
        return f"{self.root}/{path}"

    def named(self, path: str) -> str:
        """For people."""
        return f"{self.name}/{path}"

    def exists(self, path: str = "") -> bool:
        info = self.filesystem.get_file_info(self.full(path) if path else self.root)
        return info.type != fs.FileType.NotFound

    def files(self, path: str) -> list[str]:
        """Every file below `path`, temporary ones included, sorted; none when `path` does not exist."""
        selector = fs.FileSelector(self.full(path), recursive=True, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(i.path[len(self.root) + 1 :] for i in infos if i.type == fs.FileType.File)

    def read(self, path: str) -> bytes | None:
        """The content, or None when there is no such file."""
        try:
            with self.filesystem.open_input_file(self.full(path)) as source:
                return source.read()
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes) -> None:
        """Put `data` at `path` in one step: a reader, or a crash at any point, sees the old file or the new one."""
        if (local := self.local) is not None:
            target = local / path
            make_directory(target.parent)
            with whole_file(target) as sink:
                sink.write(data)
        elif self._is_object_store:
            # an upload that failed leaves no object, but a stream that is closed, or forgotten, before everything was
            # written to it publishes what it has: nothing may come between opening and writing
            with interrupts_held():
                self._put(self.full(path), data)
        else:
            folder, _, name = self.full(path).rpartition("/")
            self.filesystem.create_dir(folder, recursive=True)
            temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}"
            try:
                self._put(temporary, data)
                self.filesystem.move(temporary, self.full(path))
            except BaseException:
                with contextlib.suppress(OSError):
                    self.filesystem.delete_file(temporary)
                raise

    def _put(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(path) as sink:
            sink.write(data)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.full(path))

    def move(self, source: str, target: str) -> None:
        """Move a file, replacing `target`. A source that is gone already is no error."""
        try:
            if self._is_object_store:
                self.filesystem.copy_file(self.full(source), self.full(target))
                self.filesystem.delete_file(self.full(source))
            else:
                self.filesystem.create_dir(self.full(target).rpartition("/")[0], recursive=True)
                self.filesystem.move(self.full(source), self.full(target))
        except OSError:  # of a kind of its own where a store has no such key
            if self.exists(source):
                raise


Location = str | Path | Folder


def is_uri(location: str) -> bool:
    return "://" in location


def without_secrets(location: str) -> str:
    """A path or URI as it may be printed: without the secret key that a URI can hold."""
    return re.sub(r"(?<=://)([^/@?]*?):[^@?]*@", r"\1:***@", location) if is_uri(location) else location


def reason(error: BaseException) -> str:
    """What the error of a filesystem says, short enough for a part of a sentence."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    if found := re.search(r"AWS Error (\w+)(?: \((.*?)\))? during (\w+) operation: ([^;(]*)", text):
        code, status, operation, said = found.groups()
        said = "" if said.startswith("No response body") else said
        text = f"{operation}: {', '.join(part for part in (code, status, said) if part)}"
    text = text.rstrip(" .:,") or type(error).__name__
    return text if len(text) <= 240 else f"{text[:240]}..."


def _bounded_uri(uri: str) -> str:
    """The URI with a limit on retries, where its filesystem takes it from there."""
    scheme, _, rest = uri.partition("://")
    if scheme not in ("gs", "gcs") or "retry_limit_seconds" in dict(urllib.parse.parse_qsl(rest.partition("?")[2])):
        return uri
    return f"{uri}{'&' if '?' in rest else '?'}retry_limit_seconds={RETRY_LIMIT_S}"


def _bounded(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same filesystem with a limit on retries, where there is none in its URI."""
    if filesystem.type_name != "s3":
        return filesystem
    options = _s3_options(filesystem)
    if "allow_delayed_open" in options:
        options["allow_delayed_open"] = True  # a small object is one request then, not three
    return fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS))


def _s3_options(filesystem: fs.FileSystem) -> dict:
    """What the constructor has to be given for such a filesystem; pickling tells it, and nothing else does."""
    _, (options,) = filesystem.__reduce__()  # type: ignore[misc]
    return dict(options)
