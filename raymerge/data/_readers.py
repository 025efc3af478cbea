"""Parts that readers of raw files are made of."""

import bisect
import io
import json
import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymerge.data._dataset import Samples
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
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            image.load()
            image.info.pop("transparency", None)  # changes no colour, but warns where it is one per palette entry
            return image.convert(mode)
    except FileNotFoundError:
        raise DataError(f"{name}: no such image file; get the dataset again.") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: cannot be decoded (no known image format); get this image again.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot be decoded ({error}); get this image again.") from None


@dataclass(frozen=True)
class _File:
    paths: Sequence[Path]
    mode: str

    def __call__(self, number: int) -> "Image":
        return decode(self.paths[number], str(self.paths[number]), self.mode)

    def take(self, numbers: Sequence[int]) -> "_File":
        return _File([self.paths[number] for number in numbers], self.mode)


@dataclass(frozen=True)
class _Path:
    paths: Sequence[Path]

    def __call__(self, number: int) -> str:
        return str(self.paths[number])

    def take(self, numbers: Sequence[int]) -> "_Path":
        return _Path([self.paths[number] for number in numbers])


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
        with os.scandir(folder) as entries:
            found = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); get the dataset again.") from None
    if not found:
        raise DataError(f"{folder}: holds no class folder; get the dataset again.")
    return found


def sorted_files(folder: Path) -> list[Path]:
    """Every image below a folder, in the order of torchvision's ImageFolder: folder by folder, then by name."""
    files: list[Path] = []
    for current, _, names in sorted(os.walk(folder, followlinks=True)):
        images = sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))
        files += [Path(current, name) for name in images if not name.startswith("._")]  # of macOS archives
    return files


# --- arrays ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    rows: Any
    """Indexed by number: uint8, (height, width) for grey images or (height, width, 3)."""

    def __call__(self, number: int) -> "Image":
        from PIL import Image

        return Image.fromarray(np.ascontiguousarray(self.rows[number]))

    def take(self, numbers: Sequence[int]) -> "_Row | None":
        if isinstance(self.rows, np.memmap) or not len(numbers):
            return None  # is mapped again by whoever receives it
        return _Row(np.stack([self.rows[number] for number in numbers]))

    def __reduce__(self) -> Any:
        rows = whole = self.rows
        if not isinstance(rows, np.memmap) or not rows.filename:
            return _Row, (rows,)
        while isinstance(whole.base, np.memmap):
            whole = whole.base
        offset = whole.offset + rows.ctypes.data - whole.ctypes.data
        return _mapped, (str(rows.filename), offset, rows.shape, rows.strides, rows.dtype.str)


def _mapped(file: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> _Row:
    """A view of a mapped file, which another process maps instead of receiving a copy of its content."""
    return _Row(np.ndarray(shape, dtype, np.memmap(file, dtype=np.uint8, mode="r"), offset, strides))


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


def idx_images(folder: Path, prefix: str, num_classes: int, *, first_label: int = 0) -> Samples:
    """Grey images and labels of two IDX files, named as MNIST's.

    Args:
        prefix: what their names begin with, such as "t10k".
        first_label: of the file, which becomes 0.
    Raises:
        DataError: missing, damaged, or with labels of other classes.
    """
    images, digits = (folder / f"{prefix}-{part}-ubyte" for part in IDX_PARTS)
    labels = read_idx(digits, num_dims=1).astype(int)
    last_label = first_label + num_classes - 1
    outside = labels[(labels < first_label) | (labels > last_label)]
    if outside.size:
        raise DataError(f"{digits}: has a label {outside[0]}, expected {first_label} to {last_label}; get it again.")
    return array_images(read_idx(images, num_dims=3), (labels - first_label).tolist(), images)


IDX_PARTS = ("images-idx3", "labels-idx1")


def idx_files(folder: str, *prefixes: str) -> tuple[str, ...]:
    """What `idx_images` needs, as a layout lists it."""
    return tuple(f"{folder}/{prefix}-{part}-ubyte" for prefix in prefixes for part in IDX_PARTS)


def read_idx(path: Path, num_dims: int) -> np.ndarray:
    """An array of bytes in the IDX format of MNIST, mapped.

    Raises:
        DataError: missing, truncated, or of another type or number of dimensions.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08":
                raise DataError(f"{path}: is no IDX file of bytes; unpack it if it is compressed, or get it again.")
            if head[3] != num_dims:
                raise DataError(f"{path}: has {head[3]} dimensions, expected {num_dims}; is it another of the files?")
            shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(num_dims))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); get the dataset again.") from None
    offset, expected = 4 + 4 * len(shape), math.prod(shape)
    if size != offset + expected:
        raise DataError(f"{path}: has {size} bytes, its header says {offset + expected}; get it again.")
    if not expected:
        raise DataError(f"{path}: holds nothing; get it again.")
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
    labels: list[int] = []
    groups: list[tuple[int, int, int]] = []
    for number, path in enumerate(paths):
        try:
            file = pq.ParquetFile(path)
            first = len(labels)
            for group in range(file.metadata.num_row_groups):
                groups.append((first, number, group))
                first += file.metadata.row_group(group).num_rows
            found = file.read(columns=[label]).column(label).to_pylist()
            columns, metadata = file.schema_arrow.names, file.schema_arrow.metadata or {}
        except Exception as error:  # of several packages, and not all of Arrow's
            raise DataError(
                f"{path}: cannot be read as Parquet with a column '{label}' ({type(error).__name__}: {error}); "
                "get it again."
            ) from None
        if image not in columns:
            raise DataError(f"{path}: has no column '{image}', only {', '.join(columns)}; is it another dataset?")
        order = _label_order(metadata, label, class_names, spellings or {}, path) or range(len(class_names))
        wrong = next((value for value in found if not (isinstance(value, int) and 0 <= value < len(order))), 0)
        if wrong != 0:
            raise DataError(f"{path}: has a label {wrong!r}, expected 0 to {len(order) - 1}; is it another dataset?")
        labels += [order[value] for value in found]
    images = _ParquetImages(tuple(paths), tuple(groups), image, mode)
    return Samples(labels, images, images.name)


def _is_of_split(path: Path, split: str) -> bool:
    return any(re.match(rf"{re.escape(split)}($|[-.])", part) for part in path.parts) and path.name[0] != "."


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
    if found == wanted or (len(found) == len(wanted) and not set(found) & set(wanted)):
        return None
    if sorted(found) != sorted(wanted):
        unknown = next((name for name, plain in zip(names, found, strict=True) if plain not in wanted), None)
        what = f"names {len(names)} classes" if unknown is None else f"has a class '{unknown}'"
        raise DataError(
            f"{path}: {what}, expected {len(wanted)} from '{class_names[0]}' to '{class_names[-1]}'; "
            "is it another dataset?"
        )
    return [wanted.index(name) for name in found]


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


@dataclass(frozen=True)
class _ParquetImages:
    paths: tuple[Path, ...]
    groups: tuple[tuple[int, int, int], ...]
    """Of every row group: its first image, its file and its number in there."""
    column: str
    mode: str

    def __call__(self, number: int) -> "Image":
        first, file, group = self._place(number)
        value = _row_group(self.paths[file], group, self.column)[number - first].as_py()
        content = value["bytes"] if isinstance(value, dict) else value
        if not content:
            raise DataError(f"{self.name(number)}: holds no encoded image; get the dataset again.")
        return decode(io.BytesIO(content), self.name(number), self.mode)

    def _place(self, number: int) -> tuple[int, int, int]:
        return self.groups[bisect.bisect_right(self.groups, number, key=lambda group: group[0]) - 1]

    def name(self, number: int) -> str:
        file = self._place(number)[1]
        before = self.groups[bisect.bisect_left(self.groups, file, key=lambda group: group[1])][0]
        return f"{self.paths[file]}[{number - before}]"


@lru_cache(maxsize=2)  # images are read in order, so the last row group is almost always the right one
def _row_group(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read_row_group(group, columns=[column]).column(column)
    except Exception as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {error}); get it again.") from None


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
        with path.open("rb") as file:  # of a missing file's name, scipy would say that it is no file
            content = scipy.io.loadmat(file, squeeze_me=True)
        return [content[name] for name in names]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; get the dataset again.") from None
    except Exception as error:
        raise DataError(
            f"{path}: not the MATLAB file expected ({type(error).__name__}: {error}); get it again."
        ) from None
