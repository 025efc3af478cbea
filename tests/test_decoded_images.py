"""Images without the cache: the same pixels, and the same predictions, as with it."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_suite import BIRDS_TASK, SIDE, damage, raw_suite, write_birds, write_mnist
from tiny_suite import tiny_suite
from torch import Tensor

from raymerge.backbones import build_clip, build_image_encoder
from raymerge.checkpoints import open_checkpoint, save_head, save_state_dict
from raymerge.data import dataset
from raymerge.data._readers import array_images
from raymerge.data.splits import read_split
from raymerge.data_files.prepare import prepare_images
from raymerge.errors import DataError
from raymerge.evaluation import Evaluator
from raymerge.images import DecodedSplit, cached_split, decoded_split
from raymerge.records import SPLITS
from raymerge.single_model import evaluate_model
from raymerge.suites.demo.clip import published_state
from raymerge.suites.published import PublishedSuite

TASKS = ("MNIST", "Birds")


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedSuite:
    """Raw images, their cache, a random encoder and random heads."""
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "home"))
    write_mnist(tmp_path, num_train=120, num_test=50)
    write_birds(tmp_path, per_class=8)
    suite = raw_suite(tmp_path, ["MNIST", BIRDS_TASK])
    prepare_images(suite, TASKS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = published_state(build_clip(suite.backbones["tiny"]))
        state = {name: value + 0.1 * torch.randn(value.shape) for name, value in state.items()}
        for task in suite.tasks:
            save_head(suite.root / "tiny" / f"head_{task.name}Val.pt", torch.randn(len(task.classes), 16))
    save_state_dict(suite.root / "tiny" / "MNISTVal" / "nonlinear_zeroshot.pt", state)
    return suite


def features(suite: PublishedSuite, images: Tensor) -> Tensor:
    zero_shot = open_checkpoint(suite.zero_shot_path("tiny"))
    encoder = build_image_encoder(suite.backbones["tiny"], zero_shot.shapes)
    backbone = suite.backbones["tiny"]
    evaluator = Evaluator(encoder, zero_shot, mean=backbone.mean, std=backbone.std, device=torch.device("cpu"))
    return torch.cat(list(evaluator.encode(images)))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_pixels_labels_and_features_are_equal_bit_by_bit(suite, task, split):
    cached, decoded = cached_split(suite, task, split), decoded_split(suite, task, split)
    assert len(decoded) == len(cached) > 1
    assert decoded.size == cached.size == (SIDE, SIDE)
    assert torch.equal(decoded.labels(), cached.labels())
    for start, stop in ((0, len(cached)), (1, 2), (0, 1)):
        (pixels, labels), (expected, expected_labels) = decoded.read(start, stop), cached.read(start, stop)
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels, expected)
        assert torch.equal(labels, expected_labels)
    assert torch.equal(
        features(suite, decoded.read(0, len(cached))[0]), features(suite, cached.read(0, len(cached))[0])
    )


@pytest.mark.parametrize("split", SPLITS)
def test_a_model_scores_the_same(suite, split):
    def scores(from_raw: bool) -> list[tuple[str, int, int]]:
        found = evaluate_model(
            suite, suite.zero_shot_path("tiny"), "tiny", TASKS, split, device=torch.device("cpu"), from_raw=from_raw
        )
        return [(score.task, score.correct, score.total) for score in found]

    assert scores(from_raw=True) == scores(from_raw=False)
    assert 0 < sum(correct for _, correct, _ in scores(from_raw=True)) < sum(total for _, _, total in scores(True))


def test_a_corrupt_image_is_named(suite):
    path = suite.data / "birds" / "test" / "owl" / "3.png"
    damage(path)
    images = decoded_split(suite, "Birds", "test")
    assert len(images.read(0, 11)[0]) == 11
    with pytest.raises(DataError) as caught:
        images.read(0, 12)
    assert str(caught.value).startswith(f"{path}: cannot be decoded (")


def test_sizes_are_checked(suite):
    strict = replace(suite, any_size=False)
    with pytest.raises(DataError, match="MNIST: its test split has 50 images, expected 10000"):
        decoded_split(strict, "MNIST", "test")
    with pytest.raises(DataError, match="MNIST: its validation split has 12 images, expected 5000"):
        decoded_split(strict, "MNIST", "val")


def test_a_dataset_that_is_not_there(suite):
    gone = replace(suite, data=suite.data / "nowhere")
    with pytest.raises(DataError, match=f"raymerge data fetch MNIST --suite {suite.option} --data {gone.data}$"):
        decoded_split(gone, "MNIST", "test")


def test_a_suite_without_raw_images(tmp_path):
    suite = tiny_suite(tmp_path, num_tasks=1, images=2)
    with pytest.raises(DataError, match="suite 'tiny' has no raw images, only cached ones; read those"):
        decoded_split(suite, "Task0", "val")


# --- what other processes receive ------------------------------------------------------------------------------------


def test_a_part_of_a_split_is_small_when_it_is_sent(tmp_path):
    rows = np.arange(1000 * 8 * 8 * 3, dtype=np.uint8).reshape(1000, 8, 8, 3)
    samples = array_images(rows, [0] * 1000, tmp_path / "x.mat")
    part = samples.subset(range(100, 900)).subset([7, 3])
    content = pickle.dumps(part)
    assert len(content) < 2000
    sent = pickle.loads(content)
    for number, original in enumerate((107, 103)):
        np.testing.assert_array_equal(np.asarray(sent.image(number)), rows[original])
        assert sent.name(number) == part.name(number) == f"{tmp_path}/x.mat[{original}]"


def test_files_and_mapped_arrays_are_sent_by_name(tmp_path):
    write_mnist(tmp_path, num_train=500)
    paths = write_birds(tmp_path, per_class=30)
    folder = tmp_path / "data"
    mnist = read_split(dataset("MNIST"), folder, "val")
    assert len(pickle.dumps(mnist)) < 2500
    birds = read_split(raw_suite(tmp_path, [BIRDS_TASK]).datasets["Birds"], folder, "test").subset([70, 2])
    assert len(pickle.dumps(birds)) < 1000
    assert [pickle.loads(pickle.dumps(birds)).name(i) for i in (0, 1)] == [
        str(sorted(path for path in paths if "/test/" in str(path))[i]) for i in (70, 2)
    ]
    for samples in (mnist, birds):
        sent = DecodedSplit(pickle.loads(pickle.dumps(samples)), (SIDE, SIDE))
        assert torch.equal(sent.read(0, 2)[0], DecodedSplit(samples, (SIDE, SIDE)).read(0, 2)[0])


def test_order_of_a_subset_of_a_subset():
    samples = array_images(np.zeros((9, 2, 2), np.uint8), list(range(9)), Path("x"))
    part = samples.subset([8, 6, 4, 2]).subset([3, 0])
    assert part.labels == [2, 8]
    assert [part.name(0), part.name(1)] == ["x[2]", "x[8]"]
