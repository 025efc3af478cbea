"""Agreement of precisions: a case by hand, and real models of the tiny suite against answers computed apart."""

from typing import Any

import pytest
import tiny_suite
import torch
from tiny_suite import BACKBONE

from raymerge import agreement as agreement_module
from raymerge.agreement import Agreement, measure_agreement, spread
from raymerge.checkpoints import load_head, open_checkpoint
from raymerge.errors import DataError
from raymerge.evaluation import Evaluator
from raymerge.images import open_images, write_images
from raymerge.suites import Suite

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.tiny_suite(tmp_path_factory.mktemp("suite"), num_tasks=2)


class Known(Evaluator):
    """An evaluator whose answers are known."""

    embed_dim = 16  # type: ignore[assignment]
    batch_size = 4  # type: ignore[assignment]

    def __init__(self, answers: list[int]):
        self.answers = torch.tensor(answers)
        self.asked: list[int] = []

    def predict(self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(images))
        return self.answers[: len(images)]


def test_by_hand(suite, monkeypatch):
    """Five images: fp32 has three right, bf16 two, and they differ on the second and the last."""
    root = suite.root.parent / "by-hand"
    labels = torch.tensor([0, 1, 2, 0, 1])
    written = Suite("x", "x", 0, root, suite.backbones, suite.tasks)
    write_images(written.images_path("Task0", "val"), torch.zeros(5, 32, 32, 3, dtype=torch.uint8), labels)
    monkeypatch.setattr(Suite, "head_path", lambda self, backbone, task: suite.root / backbone / f"head_{task}Val.pt")
    evaluators = {"fp32": Known([0, 1, 1, 0, 2]), "bf16": Known([0, 2, 1, 0, 1])}
    evaluators["bf16"].answers[0] = 1
    monkeypatch.setattr(agreement_module, "_evaluator", lambda *args: evaluators[args[3]])
    told: list[tuple[str, float]] = []
    (row,) = measure_agreement(
        written, BACKBONE, ["Task0"], ["bf16"], device=CPU, report=lambda what, share: told.append((what, share))
    )
    assert (row.images, row.same, row.correct, row.reference_correct) == (5, 2, 2, 3)
    assert (row.agreement, row.accuracy, row.reference_accuracy) == (0.4, 0.4, 0.6)
    assert (row.backbone, row.task, row.precision) == (BACKBONE, "Task0", "bf16")
    assert told == [(f"{BACKBONE}/Task0 in fp32", 0.0), (f"{BACKBONE}/Task0 in bf16", 0.5)]
    assert evaluators["bf16"].asked == [4, 5], "one batch warms up, and is not counted"


@pytest.mark.parametrize("experts", [False, True])
def test_answers_are_those_of_the_models(suite, experts):
    rows = measure_agreement(
        suite, BACKBONE, ["Task0", "Task1"], ["bf16", "fp32"], device=CPU, split="test", experts=experts
    )
    assert [(row.task, row.precision) for row in rows] == [
        ("Task0", "bf16"),
        ("Task0", "fp32"),
        ("Task1", "bf16"),
        ("Task1", "fp32"),
    ]
    for row in rows:
        path = suite.expert_path(BACKBONE, row.task) if experts else suite.zero_shot_path(BACKBONE)
        checkpoint = open_checkpoint(path)
        state = {name: checkpoint.tensor(name) for name in checkpoint.names}
        num_classes = len(suite.task(row.task).classes)
        weight, _ = load_head(suite.head_path(BACKBONE, row.task), num_classes=num_classes, embed_dim=16)
        pixels, labels = open_images(suite.images_path(row.task, "test")).read(0, 24)
        exact = tiny_suite.logits(state, weight, pixels).argmax(dim=1)
        assert (row.images, row.reference_correct) == (24, int((exact == labels).sum()))
        assert 0 <= row.agreement <= 1
        assert row.seconds > 0
        if row.precision == "fp32":
            assert (row.same, row.correct) == (24, row.reference_correct), "a model agrees with itself"
        else:
            assert row.same >= 18
            assert abs(row.correct - row.reference_correct) <= 24 - row.same
    if experts:
        assert all(row.reference_accuracy > 0.6 for row in rows), "the experts of this suite are good"


@pytest.mark.parametrize(
    ("count", "expected"), [(None, [0, 1, 2, 3, 4, 5, 6]), (9, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 2, 4]), (1, [0])]
)
@pytest.mark.parametrize("at_once", [2, 100])
def test_images_are_spread_over_the_split(tmp_path, monkeypatch, count, expected, at_once):
    monkeypatch.setattr(agreement_module, "READ_AT_ONCE", at_once)
    pixels = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)
    write_images(tmp_path / "x.arrow", pixels, torch.arange(7) * 10)
    parts = list(spread(open_images(tmp_path / "x.arrow"), count))
    assert all(len(images) <= at_once for images, _ in parts)
    assert torch.cat([images[:, 0, 0, 0] for images, _ in parts]).tolist() == expected
    assert torch.cat([labels for _, labels in parts]).tolist() == [10 * i for i in expected]


def test_missing_images_are_named(suite):
    moved = Suite("x", "x", 0, suite.root.parent / "nowhere", suite.backbones, suite.tasks)
    moved.zero_shot_path(BACKBONE).parent.mkdir(parents=True)
    moved.zero_shot_path(BACKBONE).write_bytes(suite.zero_shot_path(BACKBONE).read_bytes())
    with pytest.raises(DataError, match=r"Task0.val\.arrow: no such image file"):
        measure_agreement(moved, BACKBONE, ["Task0"], ["bf16"], device=CPU)


def row(**changes: Any) -> Agreement:
    values: dict[str, Any] = {
        "backbone": "b",
        "task": "t",
        "precision": "bf16",
        "images": 10,
        "same": 9,
        "correct": 5,
        "reference_correct": 6,
        "seconds": 1.0,
        "reference_seconds": 2.0,
    }
    return Agreement(**{**values, **changes})


def test_shares():
    assert (row().agreement, row().accuracy, row().reference_accuracy) == (0.9, 0.5, 0.6)
