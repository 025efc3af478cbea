"""The image cache: what was written is what is read, whatever the range."""

import itertools
from pathlib import Path

import jaxtyping
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raymerge import images
from raymerge.errors import DataError
from raymerge.images import ImageSplit, image_writer, open_images, write_images

COUNT, HEIGHT, WIDTH = 23, 2, 3
"""Of images in batches of five, the last of which is not full."""


def some_images(count: int = COUNT) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(0, 10, (count,), generator=generator)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSplit, Tensor, Tensor]:
    path = tmp_path_factory.mktemp("images") / "a" / "val.arrow"
    pixels, labels = some_images()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "ROWS_PER_BATCH", 5)
        write_images(path, pixels, labels)
    assert [file.name for file in path.parent.iterdir()] == ["val.arrow"], "no temporary file is left"
    return open_images(path), pixels, labels


def test_round_trip(written):
    split, pixels, labels = written
    assert len(split) == COUNT
    assert split.size == (HEIGHT, WIDTH)
    assert torch.equal(split.labels(), labels)
    read_pixels, read_labels = split.read(0, COUNT)
    assert torch.equal(read_pixels, pixels)
    assert torch.equal(read_labels, labels)
    assert read_pixels.dtype == torch.uint8
    assert read_labels.dtype == torch.int64


@given(bounds=st.tuples(st.integers(0, COUNT), st.integers(0, COUNT)).filter(lambda pair: pair[0] != pair[1]))
def test_any_range(written, bounds):
    split, pixels, labels = written
    start, stop = sorted(bounds)
    read_pixels, read_labels = split.read(start, stop)
    assert torch.equal(read_pixels, pixels[start:stop])
    assert torch.equal(read_labels, labels[start:stop])


def test_what_is_read_may_be_written_to(written):
    split, pixels, labels = written
    read_pixels, read_labels = split.read(3, 4)  # within one batch, where a view would do
    read_pixels.zero_()
    read_labels.zero_()
    split.labels().zero_()
    assert torch.equal(split.read(3, 4)[0], pixels[3:4])
    assert torch.equal(split.labels(), labels)


@given(bounds=st.tuples(st.integers(0, COUNT), st.integers(0, COUNT)).filter(lambda pair: pair[0] != pair[1]))
def test_a_view_is_what_is_read(written, bounds):
    split, pixels, labels = written
    start, stop = sorted(bounds)
    seen_pixels, seen_labels = split.view(start, stop)
    assert torch.equal(seen_pixels, pixels[start:stop])
    assert torch.equal(seen_labels, labels[start:stop])


def test_a_view_copies_nothing_that_lies_together(written):
    split, _, _ = written
    pixel_bytes = HEIGHT * WIDTH * 3
    first, second = split.view(0, 5)[0], split.view(2, 4)[0]
    assert second.data_ptr() == first.data_ptr() + 2 * pixel_bytes
    assert split.view(4, 6)[0].data_ptr() != first.data_ptr() + 4 * pixel_bytes, "from two parts of the file"


@given(count=st.integers(1, 12), rows=st.integers(1, 13))
def test_any_size_of_batches(tmp_path_factory, count, rows):
    path = tmp_path_factory.getbasetemp() / "sized.arrow"
    pixels, labels = some_images(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "ROWS_PER_BATCH", rows)
        write_images(path, pixels, labels)
    split = open_images(path)
    assert len(split) == count
    assert torch.equal(split.read(0, count)[0], pixels)


def test_a_view_is_written_as_it_looks(tmp_path):
    pixels, labels = some_images()
    flipped = pixels.permute(0, 2, 1, 3)[::2]
    write_images(tmp_path / "x.arrow", flipped, labels[::2])
    split = open_images(tmp_path / "x.arrow")
    assert split.size == (WIDTH, HEIGHT)
    assert torch.equal(split.read(0, len(split))[0], flipped)
    assert torch.equal(split.labels(), labels[::2])


@given(cuts=st.lists(st.integers(0, COUNT), max_size=4))
def test_written_piece_by_piece(tmp_path_factory, cuts):
    path, part = (tmp_path_factory.getbasetemp() / name for name in ("pieces.arrow", "part.arrow"))
    pixels, labels = some_images()
    bounds = [0, *sorted(cuts), COUNT]
    with image_writer(path, (HEIGHT, WIDTH)) as writer:
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            if number % 2 and start < stop:
                write_images(part, pixels[start:stop], labels[start:stop])
                writer.append_split(open_images(part))
            else:
                writer.append(pixels[start:stop], labels[start:stop])
    split = open_images(path)
    assert torch.equal(split.read(0, COUNT)[0], pixels)
    assert torch.equal(split.labels(), labels)


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    pixels, labels = some_images()
    write_images(tmp_path / "x.arrow", pixels, labels)

    def fail() -> None:
        with image_writer(tmp_path / "x.arrow", (HEIGHT, WIDTH)) as writer:
            writer.append(pixels[:3], labels[:3])
            raise DataError("an image cannot be decoded")

    with pytest.raises(DataError, match="an image cannot be decoded"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]
    assert len(open_images(tmp_path / "x.arrow")) == COUNT


def test_labels_and_images_of_different_number(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which would find it first, in tests only
    pixels, labels = some_images()
    with pytest.raises(DataError, match="23 images but 22 labels"):
        write_images(tmp_path / "x.arrow", pixels, labels[1:])
    assert list(tmp_path.iterdir()) == []


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_images(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "prepare" in str(caught.value), "says what to do"
    return str(caught.value)


def test_missing_file_and_folder(tmp_path):
    assert "no such image file" in refused(tmp_path / "val.arrow")
    assert "not a readable image file" in refused(tmp_path)


def test_truncated_file(tmp_path):
    path = tmp_path / "val.arrow"
    write_images(path, *some_images())
    content = path.read_bytes()
    for length in [0, 1, *range(2, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        assert "not a readable image file" in refused(path)


def test_no_image(tmp_path):
    pixels, labels = some_images()
    write_images(tmp_path / "x.arrow", pixels[:0], labels[:0])
    assert "holds no image" in refused(tmp_path / "x.arrow")


def write_table(path: Path, columns: dict[str, pa.Array], metadata: dict[str, str] | None) -> Path:
    batch = pa.record_batch(columns, metadata=metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return path


PIXELS = pa.FixedSizeListArray.from_arrays(pa.array([0] * 12, pa.uint8()), 12)
SIZE = {"height": "2", "width": "2"}


def test_the_format_by_hand(tmp_path):
    path = write_table(tmp_path / "x.arrow", {"image": PIXELS, "label": pa.array([7])}, SIZE)
    pixels, labels = open_images(path).read(0, 1)
    assert pixels.tolist() == [[[[0] * 3] * 2] * 2]
    assert labels.tolist() == [7]


@pytest.mark.parametrize(
    ("columns", "metadata"),
    [
        ({"image": PIXELS, "label": pa.array([7])}, None),
        ({"image": PIXELS, "label": pa.array([7])}, {"height": "2"}),
        ({"image": PIXELS, "label": pa.array([7])}, {"height": "2", "width": "wide"}),
        ({"image": PIXELS, "label": pa.array([7])}, {"height": "2", "width": "3"}),
        ({"image": PIXELS}, SIZE),
        ({"label": pa.array([7])}, SIZE),
        ({"image": PIXELS, "label": pa.array([7.0])}, SIZE),
        ({"image": pa.array([[0] * 12]), "label": pa.array([7])}, SIZE),
    ],
)
def test_other_formats(tmp_path, columns, metadata):
    path = write_table(tmp_path / "x.arrow", columns, metadata)
    assert "not a readable image file" in refused(path)


def test_other_files(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"ARROW1" + b"\0" * 100)
    refused(tmp_path / "x.arrow")
    (tmp_path / "x.arrow").write_text("label\n1\n")
    refused(tmp_path / "x.arrow")
