"""A folder on any pyarrow filesystem, where a file is either absent or whole."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from raymerge.whole_file import make_directory, whole_file


@dataclass(frozen=True)
class Folder:
    """Paths given to the methods are relative, with forward slashes."""

    filesystem: fs.FileSystem
    root: str

    @classmethod
    def at(cls, location: "Location") -> "Folder":
        """A local path or a URI (`s3://bucket/key`, `gs://...`). Nothing is created."""
        if isinstance(location, Folder):
            return location
        text = str(location)
        if "://" in text:
            return cls(*fs.FileSystem.from_uri(text))
        return cls(fs.LocalFileSystem(), str(Path(text).expanduser().absolute()))

    @property
    def local(self) -> Path | None:
        return Path(self.root) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def full(self, path: str) -> str:
        return f"{self.root}/{path}"

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
        if (local := self.local) is None:
            # an object store shows a key only once its upload is complete
            self.filesystem.create_dir(self.full(path).rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(self.full(path)) as sink:
                sink.write(data)
            return
        target = local / path
        make_directory(target.parent)
        with whole_file(target) as sink:
            sink.write(data)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.full(path))

    def move(self, source: str, target: str) -> None:
        """Move a file, replacing `target`. A source that is gone already is no error."""
        self.filesystem.create_dir(self.full(target).rpartition("/")[0], recursive=True)
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.move(self.full(source), self.full(target))


Location = str | Path | Folder
