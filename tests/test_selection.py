import itertools
import math

import pytest

from raymerge.records import Cell, Point, TaskReference, TaskScore, TrialRecord
from raymerge.selection import objective_value, select_best

CELL = Cell("ViT-X", ("A", "B"), "iso-cts")


def trial(correct_a: int, correct_b: int, alpha: float = 1.0, params=None, **changes) -> TrialRecord:
    """Of ten images each; the expert of A is right on all, that of B on half."""
    values = {
        "trial_id": f"{alpha}-{params}",
        "cell": CELL,
        "point": Point(alpha, params or {}),
        "stage": "search",
        "split": "val",
        "status": "finished",
        "scores": (TaskScore("A", correct_a, 10), TaskScore("B", correct_b, 10)),
        "references": {"A": TaskReference(1.0, 0.1), "B": TaskReference(0.5, 0.1)},
    }
    return TrialRecord(**{**values, **changes})


def test_objectives_by_hand():
    record = trial(8, 3)
    assert objective_value(record, "accuracy") == 0.55  # (0.8 + 0.3) / 2
    assert objective_value(record, "normalized_accuracy") == 0.7  # (0.8 / 1 + 0.3 / 0.5) / 2


def test_the_objective_decides():
    absolute, normalized = trial(10, 1, 1.0), trial(4, 5, 2.0)  # 0.55 and 0.6; 0.45 and 0.7
    assert select_best([absolute, normalized], "accuracy") is absolute
    assert select_best([absolute, normalized], "normalized_accuracy") is normalized


def test_ties_go_to_the_smallest_alpha_then_parameters_in_any_order():
    records = [
        trial(5, 5, 1.0, {"common_space_fraction": 0.7}),
        trial(5, 5, 1.0, {"common_space_fraction": 0.8}),
        trial(5, 5, 2.0, {"common_space_fraction": 0.1}),
        trial(4, 5, 0.1, {"common_space_fraction": 0.1}),
    ]
    for order in itertools.permutations(records):
        assert select_best(order, "normalized_accuracy") is records[0]


def test_ties_between_lists_and_numbers():
    records = [trial(5, 5, 1.0, {"mask_lambda": (0.3, 0.2)}), trial(5, 5, 1.0, {"mask_lambda": 0.3})]
    assert select_best(records, "accuracy") is records[1]
    records = [trial(5, 5, 1.0, {"mask_lambda": (0.3, 0.2)}), trial(5, 5, 1.0, {"mask_lambda": (0.2, 0.6)})]
    assert select_best(records, "accuracy") is records[1]


@pytest.mark.parametrize(
    "changes",
    [{"split": "test"}, {"status": "pruned"}, {"status": "failed"}, {"stage": "calibration"}],
    ids=lambda changes: next(iter(changes.values())),
)
def test_who_may_not_win(changes):
    worse, better = trial(1, 1, 1.0), trial(9, 5, 2.0, **changes)
    assert select_best([better, worse], "accuracy") is worse
    assert select_best([better], "accuracy") is None


def test_an_unknown_objective_loses_but_does_not_disappear():
    unknown = trial(10, 10, 1.0, references={})
    assert math.isnan(objective_value(unknown, "normalized_accuracy"))
    assert objective_value(unknown, "accuracy") == 1.0
    assert select_best([unknown], "normalized_accuracy") is unknown
    known = trial(0, 0, 2.0)
    assert select_best([unknown, known], "normalized_accuracy") is known


@pytest.mark.parametrize("objective", ["accuracy", "normalized_accuracy"])
def test_no_scores_no_objective(objective):
    assert math.isnan(objective_value(trial(1, 1, scores=()), objective))


def test_an_expert_that_is_never_right_gives_no_normalized_accuracy():
    record = trial(1, 1, references={"A": TaskReference(0.0, 0.0), "B": TaskReference(0.5, 0.1)})
    assert math.isnan(objective_value(record, "normalized_accuracy"))
