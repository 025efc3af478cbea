"""FER2013: our readers against the published loader and torchvision's on the same files, and the meaning of labels."""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image
from raw_images import drawn, png

from raymerge.data import dataset
from raymerge.data.fer2013 import PUBLISHED_CLASSES
from raymerge.data.splits import read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

FER2013 = dataset("FER2013")
FOLDER = "huggingface/Jeneral/fer-2013"
KAGGLE = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("fer2013", tmp_path, {"train": drawn(7, 30), "test": drawn(7, 15, seed=1)})
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_the_published_loader_reads(root: Path, split: str) -> None:
    rows = pickle.loads((root / FOLDER / f"{split}.pt").read_bytes())
    names = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]  # declared by the dataset's script
    assert FER2013.find_layout(root).name == "reference"
    ours = FER2013.find_layout(root).read(root, split)
    assert len(ours) == len(rows) == {"train": 30, "test": 15}[split]
    for i, row in enumerate(rows):
        expected = Image.open(io.BytesIO(row["img_bytes"])).convert("L")
        assert ours.labels[i] == names.index(row["labels"])
        assert (ours.image(i).mode, ours.image(i).size) == ("L", (48, 48))
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(expected))
    assert ours.name(2) == f"{root}/{FOLDER}/{split}.pt[2]"


def test_the_order_is_that_of_the_file(root: Path) -> None:
    path = root / FOLDER / "test.pt"
    rows = pickle.loads(path.read_bytes())
    labels = read_split(FER2013, root, "test").labels
    assert labels == sorted(labels)  # class by class
    path.write_bytes(pickle.dumps(rows[::-1]))
    assert read_split(FER2013, root, "test").labels == labels[::-1]


def test_samples_survive_pickling(root: Path) -> None:
    samples = read_split(FER2013, root, "val")
    again = pickle.loads(pickle.dumps(samples))
    np.testing.assert_array_equal(np.asarray(again.image(1)), np.asarray(samples.image(1)))


def test_classes_match_the_labels_and_those_of_the_published_heads_do_not() -> None:
    for name, folder in zip(FER2013.classes, FER2013.folders, strict=True):
        assert name.startswith(folder)
    assert FER2013.classes[4:] == ("neutral", "sad", "surprised")
    lists = [
        ["angry"],
        ["disgusted"],
        ["fearful"],
        ["happy", "smiling"],
        ["sad", "depressed"],
        ["surprised", "shocked", "spooked"],
        ["neutral", "bored"],
    ]
    for published, names in zip(PUBLISHED_CLASSES, lists, strict=True):
        assert FER2013.templates[0].format(published) == f"a photo of a {names} looking face."
        assert FER2013.templates[5].format(published) == f"look at how {names} they are."


def write_csv(root: Path, file: str, images: Sequence, usages: Sequence[str]) -> None:
    """A row per image, with labels as Kaggle numbers them."""
    path = root / "fer2013" / file
    path.parent.mkdir(exist_ok=True)
    order = [0, 2, 1] if file == "fer2013.csv" else [0, 1, 2]  # of emotion, Usage, pixels
    lines = [["emotion", "Usage", "pixels"] if file == "fer2013.csv" else ["emotion", " Usage", " pixels"]]
    for (image, label), usage in zip(images, usages, strict=True):
        pixels = np.asarray(image.convert("L").resize((48, 48))).ravel()
        lines.append([str(label), usage, " ".join(str(value) for value in pixels)])
    path.write_text("".join(",".join(line[i] for i in order) + "\n" for line in lines))


@pytest.mark.parametrize("file", ["fer2013.csv", "icml_face_data.csv"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_the_csv_files_that_torchvision_reads(
    tmp_path: Path, file: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.fer2013, "check_integrity", lambda path, md5=None: Path(path).exists())
    usages = (["PrivateTest"] * 5) + ["Training"] * 10 + ["PublicTest"] * 6
    write_csv(tmp_path, file, drawn(7, 21), usages)
    assert FER2013.find_layout(tmp_path).name == "torchvision"
    ours = FER2013.find_layout(tmp_path).read(tmp_path, split)
    theirs = torchvision.datasets.FER2013(str(tmp_path), split=split)
    assert len(ours) == len(theirs) == {"train": 10, "test": 11}[split]
    for i in range(len(theirs)):
        image, label = theirs[i]
        assert FER2013.folders[ours.labels[i]] == KAGGLE[label]
        assert ours.image(i).mode == image.mode == "L"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))
    assert ours.name(1) == f"{tmp_path}/fer2013/{file}[1]"


def test_labels_of_the_csv_files_are_renumbered(tmp_path: Path) -> None:
    images = [(drawn(1, 1)[0][0], label) for label in range(7)]
    write_csv(tmp_path, "fer2013.csv", images, ["Training"] * 7)
    assert FER2013.layouts[1].read(tmp_path, "train").labels == [0, 1, 2, 3, 5, 6, 4]


def test_csv_files_without_labels_of_the_test_images(tmp_path: Path) -> None:
    (tmp_path / "fer2013").mkdir()
    (tmp_path / "fer2013/test.csv").write_text("pixels\n")
    with pytest.raises(DataError, match=r"fer2013: neither fer2013\.csv nor icml_face_data\.csv is there"):
        read_split(FER2013, tmp_path, "test")


@pytest.mark.parametrize(
    "text",
    [
        "emotion,pixels\n",
        "emotion,pixels,Usage\n7," + "0 " * 2304 + ",PublicTest\n",
        "emotion,pixels,Usage\n-1," + "0 " * 2304 + ",PublicTest\n",
        "emotion,pixels,Usage\n3," + "256 " * 2304 + ",PublicTest\n",
        "emotion,pixels,Usage\n3," + "0 " * 2303 + ",PublicTest\n",
        "emotion,pixels,Usage\n3,0 0",
    ],
)
def test_a_damaged_csv_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "fer2013").mkdir()
    (tmp_path / "fer2013/fer2013.csv").write_text(text)
    with pytest.raises(DataError, match=r"fer2013\.csv: image \d of test is not as expected"):
        read_split(FER2013, tmp_path, "test")


def test_a_csv_file_without_images_of_the_split(tmp_path: Path) -> None:
    write_csv(tmp_path, "fer2013.csv", drawn(7, 2), ["Training"] * 2)
    with pytest.raises(DataError, match=r"fer2013\.csv: holds no image of usage PublicTest or PrivateTest"):
        read_split(FER2013, tmp_path, "test")


class Bomb:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("the pickle ran code",))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"img_bytes": b"", "labels": "contempt"}], r"test\.pt: label 'contempt' is none of angry, disgust"),
        ([{"image": b""}], r"test\.pt: not a list of .*KeyError: 'img_bytes'"),
        (7, r"test\.pt: not a list of .*TypeError"),
        ([Bomb()], r"test\.pt: refused, because loading it would run code"),
    ],
)
def test_another_pickle_is_named(root: Path, rows: object, message: str) -> None:
    (root / FOLDER / "test.pt").write_bytes(pickle.dumps(rows))
    with pytest.raises(DataError, match=message):
        read_split(FER2013, root, "test")


def test_a_damaged_image_is_named(root: Path) -> None:
    (root / FOLDER / "test.pt").write_bytes(pickle.dumps([{"img_bytes": b"\xff\xd8", "labels": "sad"}]))
    with pytest.raises(DataError, match=r"test\.pt\[0\]: cannot be decoded"):
        read_split(FER2013, root, "test").image(0)


def test_reads_the_parquet_branch_of_another_copy(tmp_path: Path) -> None:
    images = drawn(7, 9)
    path = tmp_path / "huggingface/clip-benchmark/wds_fer2013/default/test/0000.parquet"
    path.parent.mkdir(parents=True)
    rows = [{"bytes": png(image), "path": None} for image, _ in images]
    pq.write_table(pa.table({"jpg": rows, "cls": [label for _, label in images], "__key__": ["s"] * 9}), path)
    found = read_split(FER2013, tmp_path, "test")
    assert FER2013.find_layout(tmp_path).name == "huggingface"
    assert found.labels == [label for _, label in images]
    np.testing.assert_array_equal(np.asarray(found.image(6)), np.asarray(images[6][0].convert("L")))
