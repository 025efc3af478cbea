"""EMNIST: its traps. What it shares with MNIST's other successors is in test_mnist_likes.py."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_images import drawn

from raymerge.data import dataset
from raymerge.data.splits import read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import emnist

EMNIST, LETTERS = dataset("EMNIST"), dataset("EMNIST-letters")


@pytest.mark.parametrize("name", ["EMNIST", "EMNIST-letters"])
def test_emnist_stays_transposed(name: str, tmp_path: Path) -> None:
    """A stroke along the top of the paper is one along the left side of the file, and of what the models see."""
    pixels = np.zeros((28, 28, 3), dtype=np.uint8)
    pixels[2, 3:9] = 255
    upright = [(Image.fromarray(pixels), 0)]
    splits = {"train": upright, "test": upright}
    emnist.write_letters(tmp_path, splits) if name == "EMNIST-letters" else emnist.write(tmp_path, splits)
    seen = np.asarray(read_split(dataset(name), tmp_path, "test").image(0))
    np.testing.assert_array_equal(seen, pixels[:, :, 0].T)
    assert seen[3:9, 2].all()
    assert not seen[2, 4:9].any()


def test_emnist_is_the_split_of_digits(tmp_path: Path) -> None:
    digits = {"train": drawn(10, 60), "test": drawn(10, 27, seed=1)}
    emnist.write(tmp_path, digits)
    raw = tmp_path / "EMNIST/EMNIST/raw"
    for kind in ("mnist", "letters", "balanced"):  # as in the archive, which holds six splits
        for path in raw.glob("emnist-digits-*"):
            (raw / path.name.replace("digits", kind)).write_bytes(b"damaged")
    assert len(read_split(EMNIST, tmp_path, "test")) == 27
    shutil.rmtree(raw)
    emnist.write_letters(tmp_path, digits)
    with pytest.raises(DataError, match=r"EMNIST: not found .* lacks EMNIST/EMNIST/raw/emnist-digits-train-images"):
        EMNIST.find_layout(tmp_path)


def test_letters_count_from_1_in_the_files(tmp_path: Path) -> None:
    image = drawn(1, 1)[0][0]
    emnist.write_letters(tmp_path, {"test": [(image, 0), (image, 25)]})
    path = tmp_path / "EMNIST/EMNIST/raw/emnist-letters-test-labels-idx1-ubyte"
    assert path.read_bytes()[8:] == bytes([1, 26])
    assert list(LETTERS.layouts[0].read(tmp_path, "test").labels) == [0, 25]
    path.write_bytes(path.read_bytes()[:8] + bytes([0, 26]))
    with pytest.raises(DataError, match=rf"{path}: has a label 0, expected 1 to 26"):
        LETTERS.layouts[0].read(tmp_path, "test")
