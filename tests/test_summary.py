import pytest

from raymerge.published import PublishedAverage, _table, published_average
from raymerge.records import Cell, Point, TaskReference, TaskScore, TrialRecord
from raymerge.summary import summarise

CELL = Cell("ViT-X", ("A",), "iso-c")


def trial(trial_id: str, alpha: float, split: str, correct: int, **changes) -> TrialRecord:
    values = {
        "trial_id": trial_id,
        "cell": CELL,
        "point": Point(alpha),
        "stage": "search" if split == "val" else "test",
        "split": split,
        "status": "finished",
        "scores": (TaskScore("A", correct, 10),),
        "references": {"A": TaskReference(0.8, 0.1)},
    }
    return TrialRecord(**{**values, **changes})


def test_validation_chooses_and_test_reports():
    records = [
        trial("v1", 1.0, "val", 6),
        trial("v2", 2.0, "val", 8),
        trial("v3", 3.0, "val", 7, status="pruned"),
        trial("v4", 4.0, "val", 0, status="failed", scores=(), error="boom"),
        trial("t1", 1.0, "test", 10),  # better on test, and yet not reported
        trial("t2", 2.0, "test", 4),
    ]
    (row,) = summarise(records, [CELL], "accuracy")
    assert (row.status, row.error) == ("finished", None)
    assert row.point == Point(2.0)
    assert (row.val_trial_id, row.test_trial_id) == ("v2", "t2")
    assert (row.val_accuracy, row.test_accuracy) == (0.8, 0.4)
    assert (row.val_normalized_accuracy, row.test_normalized_accuracy) == (1.0, 0.5)
    assert (row.num_finished, row.num_pruned, row.num_failed) == (4, 1, 1)
    assert row.published is None


def test_rows_follow_the_cells_and_other_cells_are_left_out():
    other, unknown = Cell("ViT-X", ("A",), "tsv-m"), Cell("ViT-X", ("A",), "ties")
    records = [trial("v1", 1.0, "val", 6), trial("w1", 1.0, "val", 6, cell=unknown)]
    rows = summarise(records, [other, CELL], "accuracy")
    assert [row.cell for row in rows] == [other, CELL]
    assert (rows[0].status, rows[0].error, rows[0].point) == ("missing", "no trial has finished", None)
    assert rows[0].num_finished == 0


def test_a_chosen_point_without_its_test_is_missing():
    failed = trial("v2", 2.0, "val", 0, status="failed", scores=(), error="boom")  # not what is missing
    (row,) = summarise([trial("v1", 1.0, "val", 6), trial("t9", 9.0, "test", 6), failed], [CELL], "accuracy")
    assert (row.status, row.error) == ("missing", "its test trial has not run")
    assert row.point == Point(1.0)
    assert (row.test_accuracy, row.test_trial_id) == (None, None)


def test_failures_are_told_with_the_last_reason():
    failed = {"status": "failed", "scores": ()}
    records = [
        trial("v1", 1.0, "val", 0, error="first", finished_at=1.0, **failed),
        trial("v2", 2.0, "val", 0, error="second", finished_at=2.0, **failed),
    ]
    (row,) = summarise(records, [CELL], "accuracy")
    assert (row.status, row.error, row.num_failed) == ("failed", "second", 2)
    records += [trial("v3", 3.0, "val", 5), trial("t3", 3.0, "test", 0, error="third", finished_at=3.0, **failed)]
    (row,) = summarise(records, [CELL], "accuracy")
    assert (row.status, row.error, row.point) == ("failed", "third", Point(3.0))
    (row,) = summarise([trial("v1", 1.0, "val", 0, **failed)], [CELL], "accuracy")
    assert row.error == "no reason recorded"


def test_a_cell_without_a_choice_needs_no_validation():
    (row,) = summarise([trial("t1", 0.5, "test", 4)], [CELL], "accuracy")
    assert (row.status, row.point, row.test_accuracy, row.val_accuracy) == ("finished", Point(0.5), 0.4, None)


def test_the_test_trial_with_a_normalized_accuracy_is_preferred():
    """The zero-shot model of all tasks is scored twice: once as a reference, before any expert is known."""
    records = [
        trial("r1", 1.0, "test", 4, stage="reference", references={}, finished_at=2.0),
        trial("t1", 1.0, "test", 4, finished_at=1.0),
        trial("v1", 1.0, "val", 4),
    ]
    (row,) = summarise(records, [CELL], "normalized_accuracy")
    assert (row.test_trial_id, row.test_normalized_accuracy) == ("t1", 0.5)


# --- published figures -------------------------------------------------------------------------------------------


def test_every_published_cell_once():
    keys = [(row["method"], row["backbone"], row["num_tasks"]) for row in _table()["table1"]]
    assert len(keys) == len(set(keys)) == 9 * 3 * 3
    assert all(30 < row["accuracy"] < 100 for row in _table()["table1"])
    assert [row["method"] for row in _table()["table1"] if row["normalized_accuracy"] is None] == [
        *["zero-shot"] * 9,
        *["fine-tuned"] * 9,
    ]


@pytest.mark.parametrize(
    ("backbone", "num_tasks", "method", "accuracy", "normalized"),
    [
        ("ViT-B-16", 20, "iso-cts", 0.824, 0.884),
        ("ViT-B-32", 8, "iso-c", 0.863, 0.929),
        ("ViT-L-14", 14, "tsv-m", 0.892, 0.944),
        ("ViT-B-32", 20, "zero-shot", 0.561, None),
    ],
)
def test_published_averages(backbone, num_tasks, method, accuracy, normalized):
    tasks = tuple(_table()["tasks"][:num_tasks])
    assert published_average(Cell(backbone, tasks, method)) == PublishedAverage(accuracy, normalized)
    assert published_average(Cell(backbone, tasks[::-1], method)) is not None, "the same set in another order"


def test_other_tasks_backbones_and_methods_were_not_published():
    tasks = tuple(_table()["tasks"][:8])
    assert published_average(Cell("ViT-B-32", (*tasks[:7], "KMNIST"), "iso-c")) is None
    assert published_average(Cell("ViT-B-32", tasks[:7], "iso-c")) is None
    assert published_average(Cell("RN50", tasks, "iso-c")) is None
    assert published_average(Cell("ViT-B-32", tasks, "my-method")) is None


def test_summary_carries_the_published_figure():
    cell = Cell("ViT-B-32", tuple(_table()["tasks"][:8]), "iso-c")
    (row,) = summarise([], [cell], "accuracy")
    assert row.published == PublishedAverage(0.863, 0.929)
