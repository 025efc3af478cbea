"""The parts that readers of raw files are made of."""

import builtins
import io
import math
import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image
from raw_images import drawn, parquet, png

from raymerge.data import ByHand, Dataset, Layout
from raymerge.data._dataset import Samples
from raymerge.data._readers import (
    array_images,
    class_folders,
    decode,
    idx_files,
    idx_images,
    image_files,
    image_folder,
    listed_files,
    parquet_split,
    read_idx,
    read_lines,
    read_mat,
    read_plain_pickle,
)
from raymerge.errors import DataError

IMAGES = [image for image, _ in drawn(1, 12, size=(9, 7))]


def save(path: Path, number: int = 0, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    IMAGES[number].save(path, kind)


def same(left: Image.Image, right: Image.Image) -> bool:
    return left.mode == right.mode and left.tobytes() == right.tobytes()


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders with everything that may confuse an order."""
    names = [
        "cat/10.png",
        "cat/9.png",
        "cat/B.PNG",
        "cat/a.JPG",
        "cat/a.b/1.png",
        "cat/a/2.png",
        "cat/a/b/3.png",
        "cat/a-b/4.png",
        "cat/upper.JpEg",
        "cat/.hidden.png",
        "cat/.png",
        "dog/x.ppm",
        "dog/y.bmp",
        "dog/z.webp",
        "dog/.folder/1.png",
        "Zebra/1.tif",
        "Zebra/1.TIFF",
        "a_b/1.png",
        "ab/1.png",
        "äpfel/1.png",
    ]
    for number, name in enumerate(names):
        kind = {"ppm": "PPM", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF", "jpg": "JPEG", "peg": "JPEG"}
        save(tmp_path / name, number % len(IMAGES), kind.get(name.lower()[-3:], "PNG"))
    for name in ("cat/readme.txt", "cat/png", "cat/image.png.part", "dog/Thumbs.db", "list.txt", "1.png"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "cat" / "empty.png").mkdir()
    return tmp_path


def test_a_folder_is_read_as_torchvision_reads_it(folder: Path) -> None:
    ours, theirs = image_folder(folder), torchvision.datasets.ImageFolder(str(folder))
    assert [ours.name(i) for i in range(len(ours))] == [path for path, _ in theirs.samples]
    assert list(ours.labels) == theirs.targets
    assert class_folders(folder) == theirs.classes == ["Zebra", "a_b", "ab", "cat", "dog", "äpfel"]
    for i, (image, _) in enumerate(theirs):
        assert same(ours.image(i), image)


def test_folders_and_images_may_be_links(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    linked = tmp_path_factory.mktemp("linked")
    (linked / "cat").symlink_to(folder / "cat")
    (linked / "dog").mkdir()
    (linked / "dog" / "1.png").symlink_to(folder / "cat" / "9.png")
    (linked / "dog" / "more").symlink_to(folder / "ab")
    ours, theirs = image_folder(linked), torchvision.datasets.ImageFolder(str(linked))
    assert [ours.name(i) for i in range(len(ours))] == [path for path, _ in theirs.samples]


def test_what_archives_and_file_managers_leave_behind_is_no_class_and_no_image(folder: Path) -> None:
    expected = image_folder(folder)
    save(folder / ".ipynb_checkpoints" / "1.png")
    (folder / "cat" / "._9.png").write_bytes(b"\0\5\x16\7")
    (folder / "._dog").write_bytes(b"\0\5\x16\7")
    found = image_folder(folder)
    assert list(found.labels) == list(expected.labels)
    assert [found.name(i) for i in range(len(found))] == [expected.name(i) for i in range(len(expected))]


def test_a_class_without_images_is_named(folder: Path) -> None:
    (folder / "bird").mkdir()
    (folder / "bird" / "notes.txt").write_text("")
    with pytest.raises(DataError, match=rf"{folder}/bird: the class folder holds no image"):
        image_folder(folder)


def test_class_folders_have_to_be_the_expected_ones(folder: Path) -> None:
    classes = ["Zebra", "a_b", "ab", "cat", "dog", "äpfel"]
    assert len(image_folder(folder, classes)) == len(image_folder(folder))
    with pytest.raises(DataError, match=r"lacks class folder 'bird'; expected 7 class folders, found 6"):
        image_folder(folder, [*classes, "bird"])
    with pytest.raises(DataError, match=r"has class folder 'dog', which is no class; expected 5 class folders, found"):
        image_folder(folder, [name for name in classes if name != "dog"])


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/no: cannot be listed \(No such file or directory\)"):
        image_folder(tmp_path / "no")
    with pytest.raises(DataError, match=rf"{tmp_path}: holds no class folder"):
        image_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot be listed \(Not a directory\)"):
        image_folder(tmp_path / "file")


def test_listed_files_keep_the_order_of_the_list(tmp_path: Path) -> None:
    paths = [tmp_path / "b/2.png", tmp_path / "a/1.png", tmp_path / "b/1.png"]
    for number, path in enumerate(paths):
        save(path, number)
    samples = listed_files(paths, [4, 2, 0], tmp_path / "list.txt")
    assert list(samples.labels) == [4, 2, 0]
    assert all(same(samples.image(i), IMAGES[i]) for i in range(3))
    paths[1].unlink()
    with pytest.raises(DataError, match=rf"{paths[1]}: no such image file, though .*list.txt names it; 1 of 3"):
        listed_files(paths, [4, 2, 0], tmp_path / "list.txt")
    with pytest.raises(DataError, match=r"list.txt: names no image"):
        listed_files([], [], tmp_path / "list.txt")


# --- image files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("empty.jpg", b"", "no known image format"),
        (
            "page.jpg",
            b"<!DOCTYPE html><html><title>Quota exceeded</title></html>",
            "no known image format",
        ),
        ("text.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "no known image format"),
        ("signature.png", png(IMAGES[0])[:20], "[Tt]runcated"),
        ("half.png", png(IMAGES[0])[:-90], ""),
        ("flipped.png", png(IMAGES[0])[:70] + b"\xff" + png(IMAGES[0])[71:], ""),
    ],
)
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    samples = image_files([path], [0])
    with pytest.raises(DataError, match=rf"^{path}: cannot be decoded \(.*{found}.*\); get this image again\.$"):
        samples.image(0)


def test_a_truncated_photograph_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    drawn(1, 1, size=(200, 200))[0][0].save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"{path}: cannot be decoded \(.*truncated"):
        image_files([path], [0]).image(0)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/1.jpg: no such image file"):
        image_files([tmp_path / "1.jpg"], [0]).image(0)


def test_decoding_to_grey(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    assert same(image_files([tmp_path / "1.png"], [0], mode="L").image(0), IMAGES[0].convert("L"))
    assert same(decode(io.BytesIO(png(IMAGES[1])), "memory"), IMAGES[1])


# --- arrays ----------------------------------------------------------------------------------------------------------


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def test_idx_files_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 300, 2), dtype=np.uint8)
    (tmp_path / "idx").write_bytes(idx(values))
    np.testing.assert_array_equal(read_idx(tmp_path / "idx", 3), values)


GOOD = idx(np.zeros((3, 4, 5), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no IDX file of bytes; unpack it if it is compressed"),
        (b"\x1f\x8b\x08\x08" + GOOD, "is no IDX file of bytes; unpack it if it is compressed"),
        (b"<html>", "is no IDX file of bytes"),
        (idx(np.zeros((3, 4, 5), np.float32), kind=13), "is no IDX file of bytes"),
        (GOOD[:10], "has 10 bytes, its header says "),
        (GOOD[:-1], "has 75 bytes, its header says 76"),
        (GOOD + b"\0", "has 77 bytes, its header says 76"),
        (idx(np.zeros(60, np.uint8)), "has 1 dimensions, expected 3"),
        (idx(np.zeros((0, 4, 5), np.uint8)), "holds nothing"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(60), f"has 76 bytes, its header says {16 + (2**32 - 1) ** 3}"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "idx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        read_idx(path, 3)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/idx: cannot be read \(No such file or directory\)"):
        read_idx(tmp_path / "idx", 1)


def test_a_pair_of_idx_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    images, labels = (tmp_path / name for name in idx_files("raw", "t10k"))
    assert (images.name, labels.name) == ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    images.parent.mkdir()
    images.write_bytes(idx(pixels))
    labels.write_bytes(idx(np.array([5, 7, 6], np.uint8)))
    samples = idx_images(tmp_path / "raw", "t10k", 3, first_label=5)
    assert samples.labels == [0, 2, 1]
    assert same(samples.image(1), Image.fromarray(pixels[1]))
    assert samples.name(2) == f"{images}[2]"
    with pytest.raises(DataError, match=rf"{labels}: has a label 7, expected 5 to 6"):
        idx_images(tmp_path / "raw", "t10k", 2, first_label=5)


def test_as_many_labels_as_images() -> None:
    with pytest.raises(DataError, match=r"data/file: 3 images but 2 labels"):
        array_images(np.zeros((3, 4, 4), np.uint8), [0, 1], Path("data/file"))


@pytest.mark.parametrize("view", ["whole", "transposed", "part", "reversed", "reshaped", "copied"])
def test_rows_of_a_mapped_file_are_mapped_again_by_other_processes(tmp_path: Path, view: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 7 + 50 * 600, dtype=np.uint8).tobytes())
    rows = np.memmap(path, np.uint8, "r", offset=7, shape=(50, 20, 10, 3))
    rows = {
        "whole": rows,
        "transposed": rows.transpose(0, 2, 1, 3),
        "part": rows[5::2, ..., 1],
        "reversed": rows[::-1, :, ::-1],
        "reshaped": rows.reshape(50, 30, 20),
        "copied": np.array(rows)[..., 0],
    }[view]
    samples = array_images(rows, list(range(len(rows))), path)
    content = pickle.dumps(samples)
    assert (len(content) < 2000) == (view != "copied")
    again = pickle.loads(content)
    assert all(same(again.image(i), samples.image(i)) for i in range(len(rows)))
    chosen = pickle.loads(pickle.dumps(samples.subset([3, 1])))
    assert all(same(chosen.image(i), samples.image(n)) for i, n in enumerate((3, 1)))


# --- pickles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL))
def test_plain_pickles_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "pickle"
    content = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "names": ("a", b"\xff", 0.5, None)}
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_plain_pickle(path)
    np.testing.assert_array_equal(found.pop("data"), content.pop("data"))
    assert found == content


def test_the_name_of_numpys_module_before_its_version_2_is_known(tmp_path: Path) -> None:
    path = tmp_path / "pickle"
    old = pickle.dumps(np.arange(3), 2).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"numpy.core.multiarray" in old
    path.write_bytes(old)
    np.testing.assert_array_equal(read_plain_pickle(path), np.arange(3))


class Calls:
    """A pickle of it calls a function with arguments as soon as it is loaded."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("inside", [lambda harm: harm, lambda harm: {"data": np.zeros(2), "labels": [1, harm]}])
@pytest.mark.parametrize("function", [os.mkdir, builtins.exec, builtins.open, np.save, Path])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, protocol: int, inside, function
) -> None:
    path, harm = tmp_path / "pickle", tmp_path / "harm"
    arguments = {
        os.mkdir: (str(harm),),
        builtins.exec: (f"import os; os.mkdir({str(harm)!r})",),
        builtins.open: (str(harm), "w"),
        np.save: (str(harm), 1),
        Path: (str(harm),),
    }[function]
    path.write_bytes(pickle.dumps(inside(Calls(function, *arguments)), protocol))
    with pytest.raises(DataError, match=rf"^{path}: refused, because loading it would run code: it needs [\w.]+\.$"):
        read_plain_pickle(path)
    assert list(tmp_path.iterdir()) == [path]


def test_even_harmless_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pickle"
    path.write_bytes(pickle.dumps(OrderedDict(a=1)))
    with pytest.raises(DataError, match=r"it needs collections\.OrderedDict\.$"):
        read_plain_pickle(path)


def test_names_reached_through_an_allowed_one_are_refused(tmp_path: Path) -> None:
    """Protocol 4 looks up dotted names, such as `ndarray.__reduce__`, inside what it imports."""
    path = tmp_path / "pickle"
    for module, name in [("numpy", "ndarray.tofile"), ("numpy", "dtype.mro"), ("_codecs", "encode.__call__")]:
        encoded = [pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in (module, name)]
        path.write_bytes(b"\x80\4" + b"".join(encoded) + pickle.STACK_GLOBAL + pickle.STOP)
        with pytest.raises(DataError, match=rf"it needs {module}\.{name}"):
            read_plain_pickle(path)


def test_damaged_pickles_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pickle"
    with pytest.raises(DataError, match=rf"{path}: cannot be read \(No such file or directory\)"):
        read_plain_pickle(path)
    content = pickle.dumps({"data": np.arange(5), "labels": ["a", "b"]}, 2)
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(DataError, match=rf"^{path}: (truncated or no pickle|refused)"):
            read_plain_pickle(path)
    places = [place for _, _, place in pickletools.genops(content) if place]
    for place in places:  # an unknown instruction
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        with pytest.raises(DataError, match=rf"^{path}: "):
            read_plain_pickle(path)


# --- Hugging Face ----------------------------------------------------------------------------------------------------

CLASSES = ("Ankle boot", "T-shirt/top", "crème_brûlée", "dog")
REPO = "owner/things"


def shard(root: Path, name: str, labels: list[int], names=CLASSES, first: int = 0, **options) -> Path:
    path = root / "huggingface" / REPO / name
    images = [(IMAGES[(first + i) % len(IMAGES)], label) for i, label in enumerate(labels)]
    parquet(path, images, names=names, **options)
    return path


def read(root: Path, split: str = "train", **options) -> Samples:
    return parquet_split(root, REPO, split, **{"class_names": CLASSES, **options})


def test_labels_are_put_in_the_order_of_our_classes(tmp_path: Path) -> None:
    names = ["dog", "t - shirt / TOP", "ankle_boot", "Crème Brûlée"]
    shard(tmp_path, "data/train-00000-of-00001.parquet", [0, 1, 2, 3, 3], names)
    assert read(tmp_path).labels == [3, 1, 0, 2, 2]


@pytest.mark.parametrize("names", [CLASSES, None, ["0", "1", "2", "3"], ["a", "b", "c", "d"]])
def test_labels_stay_where_names_are_the_same_missing_or_say_nothing(tmp_path: Path, names) -> None:
    shard(tmp_path, "data/train-00000-of-00001.parquet", [3, 0, 2, 1], names)
    assert read(tmp_path).labels == [3, 0, 2, 1]


def test_other_spellings(tmp_path: Path) -> None:
    shard(tmp_path, "data/train-00000-of-00001.parquet", [0, 3, 1], ["犬", "T-shirt/top", "boot", "Brandcreme"])
    spellings = {"犬": "dog", "boot": "Ankle boot", "Brandcreme": "crème_brûlée"}
    assert read(tmp_path, spellings=spellings).labels == [3, 2, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog", "T-shirt/top", "crème_brûlée", "cat"], r"has a class 'cat', expected 4 from 'Ankle boot' to 'dog'"),
        (["dog", "T-shirt/top", "dog", "Ankle boot"], r"names 4 classes, expected 4 from 'Ankle boot' to 'dog'"),
        (["dog", "T-shirt/top", "crème_brûlée"], r"names 3 classes, expected 4 from 'Ankle boot' to 'dog'"),
        (["a", "b", "c", "d", "e"], r"has a class 'a', expected 4 from 'Ankle boot' to 'dog'"),
    ],
)
def test_other_classes_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    path = shard(tmp_path, "data/train-00000-of-00001.parquet", [0, 1], names)
    with pytest.raises(DataError, match=f"^{path}: {message}; is it another dataset"):
        read(tmp_path)


@pytest.mark.parametrize("row_group_size", [1, 2, 3, 5, 100])
def test_files_and_row_groups_follow_each_other(tmp_path: Path, row_group_size: int) -> None:
    sizes = [5, 1, 4]
    for number, size in enumerate(sizes):
        first = sum(sizes[:number])
        labels = [(first + i) % 4 for i in range(size)]
        name = f"data/train-{number:05}-of-00003.parquet"
        shard(tmp_path, name, labels, first=first, row_group_size=row_group_size)
    samples = read(tmp_path)
    assert samples.labels == [i % 4 for i in range(10)]
    for number in [*range(10), *reversed(range(10)), 0, 9, 4, 5]:  # every boundary, from both sides
        assert same(samples.image(number), IMAGES[number])
    folder = tmp_path / "huggingface" / REPO / "data"
    assert [samples.name(i) for i in (0, 4, 5, 6, 9)] == [
        f"{folder}/train-{place}"
        for place in (
            "00000-of-00003.parquet[0]",
            "00000-of-00003.parquet[4]",
            "00001-of-00003.parquet[0]",
            "00002-of-00003.parquet[0]",
            "00002-of-00003.parquet[3]",
        )
    ]


def test_files_without_rows_are_passed_over(tmp_path: Path) -> None:
    first = shard(tmp_path, "data/train-00000-of-00003.parquet", [1])
    pq.write_table(pq.read_table(first).slice(0, 0), first.with_name("train-00001-of-00003.parquet"))
    shard(tmp_path, "data/train-00002-of-00003.parquet", [2], first=1)
    samples = read(tmp_path)
    assert samples.labels == [1, 2]
    assert same(samples.image(1), IMAGES[1])
    assert samples.name(1).endswith("train-00002-of-00003.parquet[0]")


def test_a_split_is_told_by_file_or_folder(tmp_path: Path) -> None:
    shard(tmp_path, "config/train-00000-of-00001.parquet", [0])
    shard(tmp_path, "config/train_extra-00000-of-00001.parquet", [1])
    shard(tmp_path, "config/pretrain-00000-of-00001.parquet", [1])
    shard(tmp_path, "other/test/0000.parquet", [2, 2])
    shard(tmp_path, "other/test/.0000.parquet", [1])
    shard(tmp_path, "other/validation.parquet", [3])
    assert read(tmp_path).labels == [0]
    assert read(tmp_path, "test").labels == [2, 2]
    assert read(tmp_path, "validation").labels == [3]
    assert read(tmp_path, "test", config="other").labels == [2, 2]
    with pytest.raises(DataError, match=rf"{tmp_path}/huggingface/{REPO}/config: no Parquet file of split 'test'"):
        read(tmp_path, "test", config="config")
    with pytest.raises(DataError, match=rf"{tmp_path}/huggingface/{REPO}: no Parquet file of split 'valid'"):
        read(tmp_path, "valid")


def test_names_of_columns(tmp_path: Path) -> None:
    path = shard(tmp_path, "data/train-00000-of-00001.parquet", [3, 1], image="img", label="fine_label")
    samples = read(tmp_path, image="img", label="fine_label", mode="L")
    assert samples.labels == [3, 1]
    assert same(samples.image(1), IMAGES[1].convert("L"))
    with pytest.raises(DataError, match=rf"^{path}: cannot be read as Parquet with a column 'label'"):
        read(tmp_path)
    with pytest.raises(DataError, match=rf"^{path}: has no column 'image', only img, fine_label"):
        read(tmp_path, label="fine_label")


def test_images_may_be_bytes_and_labels_booleans(tmp_path: Path) -> None:
    path = tmp_path / "huggingface" / REPO / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table({"jpg": [png(IMAGES[0]), png(IMAGES[1]), b"", None], "label": [True, False, True, True]})
    pq.write_table(table, path)
    samples = read(tmp_path, image="jpg", class_names=("normal", "tumour"))
    assert samples.labels == [1, 0, 1, 1]
    assert same(samples.image(1), IMAGES[1])
    for number in (2, 3):
        with pytest.raises(DataError, match=rf"{path}\[{number}\]: holds no encoded image"):
            samples.image(number)


@pytest.mark.parametrize("labels", [[0, 1, 4], [0, -1, 1], [2, None, 1], ["a", "b", "c"], [0.5, 1.0, 2.0]])
def test_labels_of_no_class_are_refused(tmp_path: Path, labels: list) -> None:
    path = shard(tmp_path, "data/train-00000-of-00001.parquet", labels)
    wrong = next(x for x in labels if x not in (0, 1, 2) or isinstance(x, float))
    with pytest.raises(DataError, match=rf"^{path}: has a label {wrong!r}, expected 0 to 3"):
        read(tmp_path)


def test_damaged_parquet_files_are_named(tmp_path: Path) -> None:
    shard(tmp_path, "data/train-00000-of-00002.parquet", [0, 1])
    path = shard(tmp_path, "data/train-00001-of-00002.parquet", [0, 1])
    content = path.read_bytes()
    for damaged in (b"", b"version https://git-lfs.github.com/spec/v1\n", content[:-30], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"^{path}: cannot be read as Parquet"):
            read(tmp_path)


def test_damaged_images_in_parquet_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "huggingface" / REPO / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"image": [png(IMAGES[0])[:-90], b"<html>"], "label": [0, 1]}), path)
    for number in (0, 1):
        with pytest.raises(DataError, match=rf"^{path}\[{number}\]: cannot be decoded"):
            read(tmp_path).image(number)


def test_a_parquet_file_that_is_gone_later_is_named(tmp_path: Path) -> None:
    path = shard(tmp_path, "data/train-00000-of-00001.parquet", [0, 1])
    samples = read(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=rf"^{path}: cannot be read"):
        samples.image(0)


# --- samples and layouts ---------------------------------------------------------------------------------------------


def test_a_subset_keeps_the_order_of_the_indices(tmp_path: Path) -> None:
    shard(tmp_path, "data/train-00000-of-00001.parquet", [0, 1, 2, 3, 0, 1])
    samples = read(tmp_path)
    chosen = samples.subset([5, 0, 3, 3])
    assert (len(chosen), chosen.labels) == (4, [1, 0, 3, 3])
    assert [chosen.name(i) for i in range(4)] == [samples.name(i) for i in (5, 0, 3, 3)]
    assert all(same(chosen.image(i), IMAGES[n]) for i, n in enumerate((5, 0, 3, 3)))
    again = chosen.subset([2, 0])
    assert (again.labels, again.name(1)) == ([3, 1], samples.name(5))
    assert same(again.image(1), IMAGES[5])
    assert len(samples.subset([])) == 0


def test_samples_survive_pickling(tmp_path: Path) -> None:
    shard(tmp_path, "data/train-00000-of-00001.parquet", [0, 1, 2, 3])
    save(tmp_path / "folder/a/1.png", 1)
    save(tmp_path / "folder/b/1.png", 2)
    arrays = array_images(np.stack([np.asarray(image) for image in IMAGES]), list(range(12)), Path("array"))
    for samples in (read(tmp_path), image_folder(tmp_path / "folder"), arrays):
        for before in (samples, samples.subset([1, 0]), samples.subset([1, 0]).subset([1])):
            before.image(0)  # caches of this process must not be in the way
            after = pickle.loads(pickle.dumps(before))
            assert list(after.labels) == list(before.labels)
            assert [after.name(i) for i in range(len(after))] == [before.name(i) for i in range(len(before))]
            assert all(same(after.image(i), before.image(i)) for i in range(len(after)))
        assert len(pickle.loads(pickle.dumps(samples.subset([])))) == 0


def nothing(root: Path, split: str) -> Samples:
    raise AssertionError


def test_what_a_layout_lacks(tmp_path: Path) -> None:
    for name in ("a/b.txt", "c/1.parquet", "c/d/x-1/e.txt", "c/f/x-2/g.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    there = ("a", "a/b.txt", "a/*.txt", "*/b.txt", "c/*.parquet", "c/*/x-*/g.txt", "c/*/*-1")
    lacking = ("b", "a/B.txt", "a/*.TXT", "*/no.txt", "a/b.txt/*", "no/*", "c/*/x-3/g.txt", "c/*/x-*/*.parquet")
    assert Layout("reference", (*lacking, *there), nothing).missing(tmp_path) == list(lacking)
    assert Layout("reference", there, nothing).missing(tmp_path / "no") == list(there)


def test_the_first_layout_that_is_there_is_found(tmp_path: Path) -> None:
    layouts = (
        Layout("reference", ("things/train", "things/test"), nothing),
        Layout("torchvision", ("things.bin", "more.bin"), nothing),
        Layout("huggingface", ("huggingface/owner/things",), nothing),
    )
    things = Dataset("Things", ("a", "b"), ("a {}.",), 20, 5, layouts, (ByHand("Make them."),))
    (tmp_path / "things/train").mkdir(parents=True)
    (tmp_path / "more.bin").touch()
    with pytest.raises(DataError) as caught:
        things.find_layout(tmp_path)
    assert str(caught.value).startswith(
        f"Things: not found under {tmp_path}: the reference layout lacks things/test; the torchvision layout lacks "
        "things.bin; the huggingface layout lacks huggingface/owner/things. "
    )
    assert f"raymerge data fetch Things --data {tmp_path}" in str(caught.value)
    (tmp_path / "huggingface/owner/things").mkdir(parents=True)
    assert things.find_layout(tmp_path) is layouts[2]
    (tmp_path / "things.bin").touch()
    assert things.find_layout(tmp_path) is layouts[1]
    (tmp_path / "things/test").mkdir()
    assert things.find_layout(tmp_path) is layouts[0]


@pytest.mark.parametrize(("num_train", "own", "expected"), [(19, None, 1), (60_000, None, 5000), (60_000, 27, 27)])
def test_the_size_of_the_validation_split(num_train: int, own: int | None, expected: int) -> None:
    things = Dataset("Things", ("a",), ("{}",), num_train, 5, (), (), num_own_val=own)
    assert things.num_val == expected == (own or min(math.floor(num_train / 10), 5000))


# --- text and MATLAB files -------------------------------------------------------------------------------------------


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("a b\r\n\r\n  crème \n\n".encode())
    assert read_lines(path) == ["a b", "crème"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=rf"^{path}: cannot be read"):
        read_lines(path)
    with pytest.raises(DataError, match=r"no.txt: cannot be read"):
        read_lines(tmp_path / "no.txt")


def test_variables_of_a_matlab_file(tmp_path: Path) -> None:
    import scipy.io

    path = tmp_path / "labels.mat"
    with pytest.raises(DataError, match=rf"^{path}: no such file"):
        read_mat(path, "y")
    scipy.io.savemat(path, {"y": np.array([[1], [2]]), "x": np.eye(2)})
    y, x = read_mat(path, "y", "x")
    assert (y.tolist(), x.tolist()) == ([1, 2], [[1, 0], [0, 1]])
    with pytest.raises(DataError, match=rf"^{path}: not the MATLAB file expected \(KeyError: 'z'\)"):
        read_mat(path, "z")
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DataError, match=rf"^{path}: not the MATLAB file expected"):
        read_mat(path, "x")
