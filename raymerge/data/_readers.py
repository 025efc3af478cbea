"""Parts that readers of raw files are made of."""

import bisect
import io
import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymerge.data._dataset import RawSplit, Samples
from raymerge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""As torchvision's ImageFolder."""


# --- image files -----------------------------------------------------------------------------------------------------


def decode(source: "Path | io.BytesIO", name: str, mode: str = "RGB") -> "Image":
    """An image file in one mode. Orientation tags are ignored, as the published loaders do.

    Raises:
        DataError: it cannot be decoded; names it.
    """
    from PIL import Image

    try:
        with Image.open(source) as image:
            return image.convert(mode)
    except FileNotFoundError:
        raise DataError(f"{name}: no such image file; get the dataset again.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot be decoded ({error}); get this image again.") from None


@dataclass(frozen=True)
class _File:
    paths: Sequence[Path]
    mode: str

    def __call__(self, number: int) -> "Image":
        return decode(self.paths[number], str(self.paths[number]), self.mode)


@dataclass(frozen=True)
class _Path:
    paths: Sequence[Path]

    def __call__(self, number: int) -> str:
        return str(self.paths[number])


def image_files(paths: Sequence[Path], labels: Sequence[int], mode: str = "RGB") -> Samples:
    """Samples that are a file each."""
    return Samples(labels, _File(paths, mode), _Path(paths))


def listed_files(paths: Sequence[Path], labels: Sequence[int], listed_in: Path) -> Samples:
    """Samples that are the files an annotation or list names, in its order.

    Raises:
        DataError: the list is empty, or one of its files is not there.
    """
    if not paths:
        raise DataError(f"{listed_in}: names no image; get the dataset again.")
    there = {entry for folder in {path.parent for path in paths} if folder.is_dir() for entry in folder.iterdir()}
    missing = [path for path in paths if path not in there]
    if missing:
        raise DataError(
            f"{missing[0]}: no such image file, though {listed_in} names it; "
            f"{len(missing)} of {len(paths)} are missing. Unpack the images there."
        )
    return image_files(paths, labels)


def image_folder(folder: Path, classes: Sequence[str] | None = None) -> Samples:
    """A folder per class, in torchvision's order: classes by name, then files by folder and name, nested ones too.

    Args:
        classes: names that the class folders must have, in the order of the labels, which is their sorted order;
            None: whatever is there.
    Raises:
        DataError: no folder, another set of classes, or a class without an image.
    """
    found = class_folders(folder)
    if classes is not None and found != list(classes):
        missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        what = f"lacks class folder '{missing[0]}'" if missing else f"has class folder '{extra[0]}', which is no class"
        raise DataError(f"{folder}: {what}; expected {len(classes)} class folders, found {len(found)}.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(found):
        files = sorted_files(folder / name)
        if not files:
            raise DataError(f"{folder / name}: the class folder holds no image; get the dataset again.")
        paths += files
        labels += [label] * len(files)
    return image_files(paths, labels)


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted.

    Raises:
        DataError: there are none.
    """
    try:
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); get the dataset again.") from None
    if not found:
        raise DataError(f"{folder}: holds no class folder; get the dataset again.")
    return found


def sorted_files(folder: Path) -> list[Path]:
    """Every image below a folder, in the order of torchvision's ImageFolder: folder by folder, then by name."""
    files: list[Path] = []
    for current in sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())], key=str):
        names = sorted(entry.name for entry in current.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
        files += [current / name for name in names if not name.startswith("._")]  # of macOS archives
    return files


# --- arrays ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    rows: Any
    """Indexed by number: uint8, (height, width) for grey images or (height, width, 3)."""

    def __call__(self, number: int) -> "Image":
        from PIL import Image

        return Image.fromarray(np.ascontiguousarray(self.rows[number]))


@dataclass(frozen=True)
class _Index:
    file: str

    def __call__(self, number: int) -> str:
        return f"{self.file}[{number}]"


def array_images(rows: Any, labels: Sequence[int], file: Path) -> Samples:
    """Samples that are rows of one array, grey or RGB."""
    if len(rows) != len(labels):
        raise DataError(f"{file}: {len(rows)} images but {len(labels)} labels; get the dataset again.")
    return Samples([int(label) for label in labels], _Row(rows), _Index(str(file)))


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format of MNIST, mapped.

    Raises:
        DataError: missing, truncated or of another type.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08":
                raise DataError(f"{path}: is no IDX file of bytes; unpack it if it is compressed, or get it again.")
            shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(head[3]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); get the dataset again.") from None
    offset, expected = 4 + 4 * len(shape), int(np.prod(shape))
    if size != offset + expected:
        raise DataError(f"{path}: has {size} bytes, its header says {offset + expected}; get it again.")
    return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=shape)


def read_plain_pickle(path: Path, **options: Any) -> Any:
    """A pickle of lists, dicts, strings, numbers and numpy arrays; nothing else is let in.

    Raises:
        DataError: missing, truncated, or it needs anything else, which could run code.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, **options).load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); get the dataset again.") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle is a random program: it fails with whatever error it likes
        raise DataError(f"{path}: truncated or no pickle ({type(error).__name__}: {error}); get it again.") from None


class _PlainUnpickler(pickle.Unpickler):
    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise DataError(f"refused, because loading it would run code: it needs {module}.{name}.")
        if name == "_reconstruct":
            module = "numpy._core.multiarray"
        return super().find_class(module, name)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def huggingface_folder(repo: str) -> str:
    """Where a dataset repository lies, relative to the data root."""
    return f"huggingface/{repo}"


def parquet_split(
    root: Path,
    repo: str,
    split: str,
    *,
    class_names: Sequence[str],
    image: str = "image",
    label: str = "label",
    mode: str = "RGB",
    config: str = "",
    spellings: Mapping[str, str] | None = None,
) -> Samples:
    """A split of a Hugging Face dataset: Parquet files with encoded images and labels.

    Where the file names its classes, labels are put in the order of `class_names`; class names are compared without
    case, spaces and punctuation. Names that say nothing, such as "0" or a label per index, leave the order as it is.

    Args:
        split: the repository's name of the split, such as "train".
        config: a folder of the repository, where it has several configurations.
        spellings: names that the repository may give to classes, each with the one in `class_names` that it means.
    Raises:
        DataError: files are missing or damaged, or classes have other names.
    """
    import pyarrow.parquet as pq

    folder = root / huggingface_folder(repo) / config
    paths = sorted(path for path in folder.rglob("*.parquet") if _is_of_split(path.relative_to(folder), split))
    if not paths:
        raise DataError(f"{folder}: no Parquet file of split '{split}'; get the dataset again.")
    try:
        files = [pq.ParquetFile(path) for path in paths]
        labels = np.concatenate([file.read(columns=[label]).column(label).to_numpy() for file in files])
    except Exception as error:
        raise DataError(f"{paths[0]}: not a readable Parquet dataset ({error}); get it again.") from None
    order = _label_order(files[0].schema_arrow.metadata or {}, label, class_names, spellings or {}, paths[0])
    numbers = [int(value) if order is None else order[int(value)] for value in labels]
    images = _ParquetImages(tuple(paths), image, mode)
    return Samples(numbers, images, images.name)


def _is_of_split(path: Path, split: str) -> bool:
    return any(re.match(rf"{re.escape(split)}($|[-.])", part) for part in path.parts)


def _label_order(
    metadata: Mapping[bytes, bytes], label: str, class_names: Sequence[str], spellings: Mapping[str, str], path: Path
) -> list[int] | None:
    """For every label of the file, its number in `class_names`; None where the file does not name its classes."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = [str(name) for name in features[label]["names"]]
    except (KeyError, ValueError, TypeError):
        return None
    meant = {_plain(name): _plain(spelled) for name, spelled in spellings.items()}
    wanted, found = ([meant.get(_plain(name), _plain(name)) for name in names_] for names_ in (class_names, names))
    if not set(found) & set(wanted) or found == wanted:
        return None
    if sorted(found) != sorted(wanted):
        unknown = next(name for name, plain in zip(names, found, strict=True) if plain not in wanted)
        raise DataError(f"{path}: class '{unknown}' is none of the {len(wanted)} expected ones; is it another dataset?")
    return [wanted.index(name) for name in found]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True)
class _ParquetImages:
    paths: tuple[Path, ...]
    column: str
    mode: str

    @cached_property
    def _starts(self) -> list[tuple[int, int, int]]:
        """First image, file and row group, of every row group."""
        import pyarrow.parquet as pq

        starts, first = [], 0
        for number, path in enumerate(self.paths):
            metadata = pq.ParquetFile(path).metadata
            for group in range(metadata.num_row_groups):
                starts.append((first, number, group))
                first += metadata.row_group(group).num_rows
        return starts

    def __call__(self, number: int) -> "Image":
        first, file, group = self._place(number)
        value = _row_group(self.paths[file], group, self.column)[number - first].as_py()
        content = value["bytes"] if isinstance(value, dict) else value
        if not content:
            raise DataError(f"{self.name(number)}: holds no encoded image; get the dataset again.")
        return decode(io.BytesIO(content), self.name(number), self.mode)

    def _place(self, number: int) -> tuple[int, int, int]:
        return self._starts[bisect.bisect_right(self._starts, number, key=lambda start: start[0]) - 1]

    def name(self, number: int) -> str:
        file = self._place(number)[1]
        before = next(start[0] for start in self._starts if start[1] == file)
        return f"{self.paths[file]}[{number - before}]"


@lru_cache(maxsize=2)  # images are read in order, so the last row group is almost always the right one
def _row_group(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(group, columns=[column]).column(column)


# --- text ------------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without empty ones.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); get the dataset again.") from None


def read_mat(path: Path, *names: str) -> list[Any]:
    """Variables of a MATLAB file, squeezed.

    Raises:
        DataError: missing, damaged, or without such a variable.
    """
    import scipy.io

    try:
        content = scipy.io.loadmat(path, squeeze_me=True)
        return [content[name] for name in names]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; get the dataset again.") from None
    except Exception as error:
        raise DataError(
            f"{path}: not the MATLAB file expected ({type(error).__name__}: {error}); get it again."
        ) from None


def by_split(split: RawSplit, choices: Mapping[str, Callable[[], Samples]]) -> Samples:
    """Call the reader of one split. A dataset without a folder for "val" is never asked for it."""
    return choices[split]()
