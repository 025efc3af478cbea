"""Cars: our reader against torchvision's on the same files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
from raw_images import drawn, parquet

from raymerge.data import dataset
from raymerge.data.splits import drawn_indices, index_hash, read_split
from raymerge.errors import DataError
from raymerge.rehearsal.raw import write_raw

CARS = dataset("Cars")
SPLITS = {"train": drawn(196, 40), "test": [*drawn(196, 10, seed=1), (drawn(1, 1)[0][0], 195)]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_raw("cars", tmp_path, SPLITS)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_torchvision_reads(root: Path, split: str) -> None:
    theirs = torchvision.datasets.StanfordCars(root, split=split)
    ours = pickle.loads(pickle.dumps(CARS.find_layout(root).read(root, split)))
    assert CARS.find_layout(root).name == "reference"
    assert list(CARS.classes) == theirs.classes
    assert len(ours) == len(theirs) == len(SPLITS[split])
    for i, (image, label) in enumerate(theirs):
        assert ours.labels[i] == label
        assert ours.image(i).mode == image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours.image(i)), np.asarray(image))


def test_classes_count_from_one_in_the_file(root: Path) -> None:
    found = read_split(CARS, root, "test")
    assert list(found.labels) == [label for _, label in SPLITS["test"]]
    assert found.labels[-1] == 195
    assert CARS.classes[195] == "smart fortwo Convertible 2012"


def test_names_are_in_the_order_of_the_annotations() -> None:
    assert CARS.classes != tuple(sorted(CARS.classes))  # a folder per class would be sorted: other labels
    assert (CARS.classes[1], CARS.classes[5]) == ("Acura RL Sedan 2012", "Acura Integra Type R 2001")
    assert len(set(CARS.classes)) == 196


def test_images_are_in_the_order_of_the_annotations(root: Path) -> None:
    path = root / "stanford_cars/cars_test_annos_withlabels.mat"
    scipy.io.savemat(path, {"annotations": scipy.io.loadmat(path)["annotations"][:, ::-1]})
    found = read_split(CARS, root, "test")
    assert [Path(found.name(i)).name for i in range(3)] == ["00011.jpg", "00010.jpg", "00009.jpg"]
    assert list(found.labels) == [label for _, label in reversed(SPLITS["test"])]


def test_validation_images_are_the_published_ones() -> None:
    assert index_hash(drawn_indices(CARS.num_train)[1]) == CARS.val_sha256
    assert CARS.num_val == 814


def test_annotations_without_classes_are_refused(root: Path) -> None:
    path = root / "stanford_cars/cars_test_annos_withlabels.mat"
    annotations = np.empty((1, 2), dtype=[("bbox_x1", object), ("fname", object)])  # as devkit/cars_test_annos.mat
    annotations[:] = [(1, "00001.jpg")]
    scipy.io.savemat(path, {"annotations": annotations})
    with pytest.raises(DataError, match=r"withlabels.mat: annotations have fields \['bbox_x1', 'fname'\], expected"):
        read_split(CARS, root, "test")


def test_damage_is_named(root: Path) -> None:
    image = root / "stanford_cars/cars_test/00002.jpg"
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(DataError, match=r"cars_test/00002.jpg: cannot be decoded"):
        read_split(CARS, root, "test").image(1)
    image.unlink()
    with pytest.raises(DataError, match=r"cars_test/00002.jpg: no such image file, .* 1 of 11 are missing"):
        read_split(CARS, root, "test")
    annotations = root / "stanford_cars/devkit/cars_train_annos.mat"
    annotations.write_bytes(annotations.read_bytes()[:300])
    with pytest.raises(DataError, match=r"cars_train_annos.mat: not the MATLAB file expected"):
        read_split(CARS, root, "train")
    annotations.unlink()
    with pytest.raises(DataError, match=r"reference layout lacks stanford_cars/devkit/cars_train_annos.mat"):
        read_split(CARS, root, "train")


def test_reads_the_hugging_face_layout_in_another_label_order(tmp_path: Path) -> None:
    names = sorted(CARS.classes)
    images = [(image, names.index(CARS.classes[label])) for image, label in SPLITS["test"]]
    folder = tmp_path / "huggingface/tanganke/stanford_cars/data"
    parquet(folder / "test-00000-of-00001.parquet", images, names=names)
    parquet(folder / "contrast-00000-of-00001.parquet", images[:3], names=names)
    found = read_split(CARS, tmp_path, "test")
    assert list(found.labels) == [label for _, label in SPLITS["test"]]
    np.testing.assert_array_equal(np.asarray(found.image(9)), np.asarray(images[9][0]))
