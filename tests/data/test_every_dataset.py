"""What every dataset has to keep to, on files in its own raw format."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raymerge.data import ByHand, Dataset, HuggingFace, Layout, Torchvision, dataset, datasets, module_of
from raymerge.data.splits import drawn_indices, index_hash, read_split
from raymerge.errors import DataError
from raymerge.rehearsal.pictures import pictures
from raymerge.rehearsal.raw import write_raw
from raymerge.suites.tall_masks import TASKS

NAMES = [name for name in datasets() if name != "EMNIST-letters"]
PROMPTS = {
    **{"Cars": 8, "DTD": 8, "EuroSAT": 3, "GTSRB": 3, "MNIST": 1, "RESISC45": 18, "SVHN": 1, "SUN397": 2, "STL10": 2},
    **{"OxfordIIITPet": 1, "Flowers102": 1, "CIFAR100": 18, "PCAM": 1, "FER2013": 6, "CIFAR10": 18, "Food101": 1},
    **{"FashionMNIST": 2, "RenderedSST2": 1, "EMNIST": 1, "KMNIST": 1, "DTD-leaky": 8},
}
"""Templates of the datasets in the published code."""
CLASSES = (196, 47, 10, 43, 10, 45, 10, 397, 10, 37, 102, 100, 2, 7, 10, 101, 10, 2, 10, 10)
TRAIN = (8144, 3760, 21600, 26640, 60000, 18900, 73257, 19850, 5000, 3680)
TRAIN += (1020, 50000, 262144, 28709, 50000, 75750, 60000, 6920, 240000, 60000)
VAL = (814, 376, 2700, 2664, 5000, 1890, 5000, 1985, 500, 368, 102, 5000, 5000, 2870, 5000, 5000, 5000, 692, 5000, 5000)
TEST = (8041, 1880, 2700, 12630, 10000, 6300, 26032, 19850, 8000, 3669)
TEST += (6149, 10000, 32768, 7178, 10000, 25250, 10000, 1821, 40000, 10000)


@pytest.fixture(scope="module", params=NAMES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path, dict]:
    """A dataset, the data root its raw files lie under, and the pictures that were written."""
    found, root = dataset(request.param), tmp_path_factory.mktemp("data")
    module, num_classes = module_of(found.name), len(found.classes)
    assert module is not None
    splits = {
        split: pictures(found.name, split, num_classes, 2 * num_classes + 7, side=32, repeats=2)
        for split in ("train", "test", *(["val"] if found.num_own_val else []))
    }
    write_raw(module, root, splits)
    return found, root, splits


def test_all_twenty_are_there_and_two_variants() -> None:
    assert {*TASKS, "DTD-leaky", "EMNIST-letters"} <= set(datasets()), "beside whatever files were added"


@pytest.mark.parametrize(("number", "name"), list(enumerate(TASKS)))
def test_sizes_are_those_of_the_published_table(number: int, name: str) -> None:
    found = dataset(name)
    sizes = (len(found.classes), found.num_train, found.num_val, found.num_test)
    assert sizes == (CLASSES[number], TRAIN[number], VAL[number], TEST[number])
    assert len(set(found.classes)) == len(found.classes)
    assert len(found.folders) in (0, len(found.classes))


@pytest.mark.parametrize("name", NAMES)
def test_validation_indices_have_the_published_hash(name: str) -> None:
    found = dataset(name)
    if found.num_own_val is not None:
        assert name == "EuroSAT"
        assert found.val_sha256 is None
        return
    train, val = drawn_indices(found.num_train)
    assert len(val) == found.num_val
    assert sorted(train + val) == list(range(found.num_train))
    assert index_hash(val) == found.val_sha256


@pytest.mark.parametrize("name", NAMES)
def test_templates(name: str) -> None:
    templates = dataset(name).templates
    assert len(templates) == len(set(templates)) == PROMPTS.get(name, len(templates)) > 0
    assert all(template.count("{}") == 1 for template in templates)


def test_reads_its_raw_format(written: tuple[Dataset, Path, dict]) -> None:
    found, root, splits = written
    assert found.find_layout(root).name == "reference"
    for split in ("test", "val") if found.num_own_val else ("test",):
        samples = read_split(found, root, split)
        assert len(samples) == len(splits[split])
        assert sorted(samples.labels) == sorted(label for _, label in splits[split])
        assert all(type(label) is int for label in samples.labels)
    first, last = samples.image(0), samples.image(len(samples) - 1)
    assert first.mode == last.mode
    assert first.mode in ("RGB", "L")


def test_train_and_val_are_disjoint_parts_of_the_training_files(written: tuple[Dataset, Path, dict]) -> None:
    found, root, _ = written
    train, val = read_split(found, root, "train"), read_split(found, root, "val")
    names = [{part.name(number) for number in range(len(part))} for part in (train, val)]
    assert not names[0] & names[1]
    if found.num_own_val is None:
        total = len(train) + len(val)
        everything = found.find_layout(root).read(root, "train")
        assert len(everything) == total
        assert len(val) == total // 10
        for number, index in enumerate(drawn_indices(total)[1]):
            assert val.name(number) == everything.name(index)
            assert val.labels[number] == everything.labels[index]


def test_every_label_has_the_picture_that_was_written_for_it(written: tuple[Dataset, Path, dict]) -> None:
    """A picture of class c is far nearer to the others of c than to those of other classes."""
    import numpy as np

    found, root, splits = written
    samples = read_split(found, root, "test")

    def small(image) -> np.ndarray:
        if found.name == "EMNIST":  # stored transposed
            image = image.transpose(5)
        return np.asarray(image.convert("L").resize((28, 28)), dtype=float)

    prototypes: dict[int, np.ndarray] = {}
    for image, label in splits["test"]:
        prototypes.setdefault(label, small(image.transpose(5) if found.name == "EMNIST" else image))
    prototypes_of = np.stack([prototypes[label] for label in sorted(prototypes)])
    for number in range(0, len(samples), max(1, len(samples) // 40)):
        distances = ((prototypes_of - small(samples.image(number))) ** 2).mean(axis=(1, 2))
        assert distances.argmin() == samples.labels[number], samples.name(number)


def test_samples_can_be_sent_to_other_processes(written: tuple[Dataset, Path, dict]) -> None:
    found, root, _ = written
    samples = read_split(found, root, "test")
    again = pickle.loads(pickle.dumps(samples))
    assert again.labels == samples.labels
    assert again.name(3) == samples.name(3)
    assert again.image(3).tobytes() == samples.image(3).tobytes()


@pytest.mark.parametrize("name", list(datasets()))
def test_a_missing_dataset_is_one_sentence_with_the_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        dataset(name).find_layout(tmp_path)
    command = f"raymerge data fetch {name} --data {tmp_path}"
    assert re.search(rf"^{name}: not found under .* with: {command}$", str(error.value))


@pytest.mark.parametrize("name", list(datasets()))
def test_sources_say_how_to_get_it(name: str) -> None:
    found = dataset(name)
    assert found.sources
    needs = [need for layout in found.layouts for need in layout.needs]
    for source in found.sources:
        if isinstance(source, HuggingFace) and source.folder is None:
            assert any(source.repo in need for need in needs)
        if isinstance(source, ByHand):
            assert len(source.steps) > 40
        if isinstance(source, Torchvision):
            import torchvision

            assert hasattr(torchvision.datasets, source.class_name)
            assert source.arguments
    for layout in found.layouts:
        assert isinstance(layout, Layout)
        assert not any(Path(need).is_absolute() for need in layout.needs)


def test_declarations_import_nothing_heavy() -> None:
    code = (
        "import sys, json, raymerge.data\nraymerge.data.datasets()\n"
        "heavy = ('torch', 'torchvision', 'scipy', 'h5py', 'PIL', 'pyarrow')\n"
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
