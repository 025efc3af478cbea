"""Search policies, driven by accuracies that are functions of the point."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.records import Cell, Point, TaskReference, TaskScore, TrialRecord
from raymerge.search import CellSearch, Suggestion, choose_per_task, search_cell, tpe_search
from raymerge.search_space import Dimension, SearchSpace
from raymerge.selection import select_best
from raymerge.sweep_spec import SearchSettings

CELL = Cell("vit", ("A", "B"), "iso-cts")
TOTAL = 10_000
ALPHAS = tuple(i / 10 for i in range(1, 31))
ALPHA = Dimension("alpha", 0.1, 3.0, 0.1)
FRACTION = Dimension("fraction", 0.1, 0.9, 0.1)
REFERENCES = {"A": TaskReference(1.0, 0.1), "B": TaskReference(0.5, 0.1)}

Accuracy = Callable[[Point], float | tuple[float, float]]
"""Of both tasks, or of each."""


def settings(policy: str = "tpe", **changes: Any) -> SearchSettings:
    return SearchSettings.model_validate({"policy": policy, **changes})


def record_of(suggestion: Suggestion, accuracy: float | tuple[float, float], status: str = "finished") -> TrialRecord:
    pair = accuracy if isinstance(accuracy, tuple) else (accuracy, accuracy)
    scores = tuple(TaskScore(task, round(a * TOTAL), TOTAL) for task, a in zip("AB", pair, strict=True))
    scores = {"finished": scores, "pruned": scores[:1], "failed": ()}[status]
    point = suggestion.point
    return TrialRecord(str(point), CELL, point, suggestion.stage, "val", status, scores, REFERENCES)  # type: ignore[arg-type]


def drive(
    space: SearchSpace,
    settings: SearchSettings,
    accuracy: Accuracy,
    *,
    seed: int = 0,
    status: Callable[[Point], str] = lambda point: "finished",
) -> list[list[Suggestion]]:
    """The batches of a search."""
    search = search_cell(space, settings, seed=seed)
    batches, answer = [], None
    while True:
        try:
            batch = search.send(answer) if answer is not None else next(search)
        except StopIteration:
            return batches
        batches.append(batch)
        answer = [record_of(s, accuracy(s.point), status(s.point)) for s in batch]


def points(batches: Sequence[Sequence[Suggestion]]) -> list[Point]:
    return [suggestion.point for batch in batches for suggestion in batch]


def keys(batches: Sequence[Sequence[Suggestion]]) -> list[tuple[float, ...]]:
    return [(point.alpha, *point.params.values()) for point in points(batches)]


def alphas(batches: Sequence[Sequence[Suggestion]]) -> list[float]:
    return [point.alpha for point in points(batches)]


ALPHA_ONLY = SearchSpace(ALPHA, {}, {"threshold": 2.0})
TWO = SearchSpace(ALPHA, {"fraction": FRACTION}, {})


# --- the published search -------------------------------------------------------------------------------------------


def paper_tried(curve: Sequence[float], patience: int = 3, failed: Sequence[int] = ()) -> int:
    """How many alphas are tried of a curve of average accuracies that goes on as it ends."""

    def position(point: Point) -> int:
        return min(ALPHAS.index(point.alpha), len(curve) - 1)

    found = drive(
        ALPHA_ONLY,
        settings("paper", patience=patience),
        lambda point: curve[position(point)],
        status=lambda point: "failed" if ALPHAS.index(point.alpha) in failed else "finished",
    )
    assert all(len(batch) == 1 for batch in found), "the next alpha is not tried before this one is known"
    assert alphas(found) == list(ALPHAS[: len(found)])
    return len(found)


@pytest.mark.parametrize(
    ("curve", "tried"),
    [
        ((0.1, 0.2, 0.3, 0.2), 6),  # three below the peak
        ((0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.7, 0.1), 10),  # each strict improvement starts the counter anew
        ((0.5, 0.4, 0.4, 0.4, 0.9), 4),  # what comes later is never seen
        ((0.5,), 4),  # a tie is no improvement
        ((0.5, 0.4, 0.5, 0.5), 4),
        ((0.5, 0.1, 0.2, 0.3), 4),  # rising, but not above the best
        ((0.0,), 3),  # the best so far starts at zero
        ((0.0, 0.0, 0.1, 0.0), 6),
        ((0.0, 0.0, 0.0, 0.9), 3),
        (tuple(i / 30 for i in range(30)), 30),
    ],
)
def test_paper_policy_on_curves_by_hand(curve, tried):
    assert paper_tried(curve) == tried


def test_patience():
    assert [paper_tried((0.2, 0.5, 0.4), patience=p) for p in (1, 2, 5, 100)] == [3, 4, 7, 30]


def test_a_failed_alpha_is_no_improvement():
    assert paper_tried((0.1, 0.2, 0.3, 0.4, 0.5, 0.5), failed=(1, 2)) == 8
    assert paper_tried((0.9,), failed=(0, 1, 2)) == 3


@given(curve=st.lists(st.integers(0, 5), min_size=30, max_size=30), patience=st.integers(1, 6))
def test_paper_policy_against_the_published_loop(curve, patience):
    """The rule once more, as facts/protocol.md words it: over whole lists, without state."""
    stops = [n for n in range(patience, 31) if n >= patience and _without_rise(curve[:n]) >= patience]
    assert paper_tried([value / 10 for value in curve], patience) == (stops[0] if stops else 30)


def _without_rise(tried: Sequence[int]) -> int:
    """How many values there are since the last one that was above all before it and above zero."""
    rises = [i for i, value in enumerate(tried) if value > max([0, *tried[:i]])]
    return len(tried) - 1 - rises[-1] if rises else len(tried)


def test_paper_policy_stops_by_accuracy_not_by_normalized_accuracy():
    """Absolute falls from the start while normalized rises: B counts double where its expert has 0.5."""
    tried = drive(ALPHA_ONLY, settings("paper"), lambda p: (0.5 - 0.02 * p.alpha, 0.1 + 0.015 * p.alpha))
    assert len(tried) == 4


# --- grid -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 7, 1000])
def test_grid_tries_every_point_once_in_batches(batch):
    space = SearchSpace(Dimension("alpha", 0.1, 0.5, 0.1), {"fraction": FRACTION}, {"threshold": 2.0})
    found = drive(space, settings("grid", batch=batch), lambda point: 0.5)
    expected = [
        Point(alpha, {"threshold": 2.0, "fraction": fraction})
        for fraction in FRACTION.grid()
        for alpha in (0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    assert points(found) == expected, "alpha is the fastest: points in a row share their merged update"
    assert [len(b) for b in found[:-1]] == [batch] * (
        len(expected) // batch if len(expected) % batch else len(found) - 1
    )
    assert all(suggestion.stage == "search" for b in found for suggestion in b)


@pytest.mark.parametrize("policy", ["grid", "paper", "tpe"])
def test_fixed_alpha_is_a_single_trial(policy):
    fixed = SearchSpace(Dimension("alpha", 0.125, 0.125, values=(0.125,)), {}, {})
    found = drive(fixed, settings(policy), lambda point: 0.0)
    assert points(found) == [Point(0.125, {})]


# --- TPE ------------------------------------------------------------------------------------------------------------


def peak(alpha: float = 1.3, fraction: float = 0.7) -> Accuracy:
    """Unimodal, as curves of alpha are; the highest value of the grid is at these values."""

    def accuracy(point: Point) -> float:
        distance = (point.alpha - alpha) ** 2 / 2 + (point.params.get("fraction", fraction) - fraction) ** 2
        return 0.9 * math.exp(-distance)

    return accuracy


def test_tpe_is_a_function_of_seed_and_accuracies():
    runs = [keys(drive(TWO, settings(trials=24), peak(), seed=seed)) for seed in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert keys(drive(TWO, settings(trials=24), peak(0.5), seed=5)) != runs[0]


def test_a_search_is_replayed_from_its_records():
    """What a resumed sweep does: the same records once more, from another process."""
    found = drive(TWO, settings(trials=16), peak())
    known = {key: peak()(point) for key, point in zip(keys(found), points(found), strict=True)}
    replayed = drive(TWO, settings(trials=16), lambda p: known[p.alpha, p.params["fraction"]])
    assert replayed == found


@pytest.mark.parametrize(("trials", "batch"), [(16, 4), (10, 4), (3, 8), (12, 1), (29, 4)])
def test_tpe_tries_different_points_in_batches(trials, batch):
    for space in (ALPHA_ONLY, TWO):
        found = drive(space, settings(trials=trials, batch=batch), peak())
        tried = keys(found)
        assert len(set(tried)) == len(tried) <= trials
        assert all(0 < len(b) <= batch for b in found)
        assert len(found[0]) == min(batch, trials)
        assert all(key[0] in ALPHAS for key in tried)
        assert all(point.params.get("threshold") == (2.0 if space is ALPHA_ONLY else None) for point in points(found))
        if space is TWO:
            assert len(tried) == trials
            assert all(point.params["fraction"] in FRACTION.grid() for point in points(found))


def test_a_small_space_is_searched_whole():
    found = drive(ALPHA_ONLY, settings(trials=30, batch=4), peak())
    assert alphas(found) == list(ALPHAS)
    assert [len(b) for b in found] == [4] * 7 + [2]


def test_the_first_batch_covers_the_space_evenly():
    """Alpha at the middles of four equal parts of 30 values; fractions at 1/2, 1/4, 3/4, 1/8 of nine."""
    first = drive(TWO, settings(trials=16, batch=4), peak())[0]
    assert [s.point.alpha for s in first] == [ALPHAS[i] for i in (3, 11, 18, 26)]
    assert [s.point.params["fraction"] for s in first] == [FRACTION.grid()[i] for i in (4, 2, 6, 1)]
    first = drive(ALPHA_ONLY, settings(trials=5, batch=3), peak())[0]
    assert [s.point.alpha for s in first] == [ALPHAS[i] for i in (5, 15, 25)]
    three = SearchSpace(ALPHA, {name: replace(FRACTION, name=name) for name in "ab"}, {})
    first = drive(three, settings(trials=4, batch=4), peak())[0]
    assert [s.point.params["b"] for s in first] == [FRACTION.grid()[i] for i in (3, 6, 1, 4)]  # 1/3, 2/3, 1/9, 4/9


def test_tpe_finds_the_peak():
    """On average over seeds and peaks, within 1 % of the best of 270 points with 24 trials."""
    losses = []
    for seed in range(6):
        for accuracy, best in ((peak(0.6, 0.3), 0.9), (peak(2.2, 0.8), 0.9)):
            tried = points(drive(TWO, settings(trials=24, batch=4), accuracy, seed=seed))
            losses.append(1 - max(accuracy(point) for point in tried) / best)  # type: ignore[type-var,operator]
    assert sum(losses) / len(losses) < 0.01
    assert max(losses) < 0.05


def test_tpe_follows_the_objective():
    """A alone has its peak at 0.5, B at 2.5; normalized, B counts twice."""

    def accuracy(point: Point) -> tuple[float, float]:
        return 0.7 * math.exp(-((point.alpha - 0.5) ** 2)), 0.5 * math.exp(-((point.alpha - 2.5) ** 2))

    centres = {}
    for objective in ("accuracy", "normalized_accuracy"):
        late = [
            alpha
            for seed in range(4)
            for alpha in alphas(drive(ALPHA_ONLY, settings(trials=20, objective=objective), accuracy, seed=seed))[12:]
        ]
        centres[objective] = sum(late) / len(late)
    assert centres["accuracy"] < 1.2 < 1.8 < centres["normalized_accuracy"]


def test_a_sampler_that_only_repeats_itself_ends_the_search(monkeypatch):
    from raymerge import search

    asked, told = [], []

    class Stuck:
        def __init__(self, dimensions: Any, num_start: int, seed: int, objective: str):
            assert num_start == 4

        def ask(self) -> tuple[str, dict[str, float]]:
            asked.append(len(asked))
            return str(len(asked)), {"alpha": ALPHAS[len(asked) % 3]}

        def tell(self, ask_id: str, record: TrialRecord) -> None:
            told.append((ask_id, record.point.alpha))

    monkeypatch.setattr(search, "_Study", Stuck)
    found = drive(ALPHA_ONLY, settings(trials=10, batch=4), peak())
    assert sorted(alphas(found)) == sorted(ALPHAS[:3])
    assert len(found) == 1
    assert len(asked) == 2 * search.MAX_ASKS * 4
    assert told == [(str(i), ALPHAS[i % 3]) for i in range(1, 65)], "every ask is told, in the order of asking"


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Everything that OptunaSearch is told."""
    from ray.tune.search.optuna import OptunaSearch

    told: list[tuple[Any, ...]] = []
    for name in ("on_trial_result", "on_trial_complete"):
        original = getattr(OptunaSearch, name)

        def recording(self: Any, *args: Any, _original: Any = original, _name: str = name, **kwargs: Any) -> Any:
            told.append((_name, *args, *kwargs.values()))
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(OptunaSearch, name, recording)
    return told


def test_every_outcome_is_told_in_the_order_of_asking(monkeypatch):
    told = spy(monkeypatch)
    status = {ALPHAS[3]: "pruned", ALPHAS[11]: "failed"}
    space = SearchSpace(ALPHA, {}, {})
    batches = drive(
        space,
        settings(trials=8, batch=4, objective="accuracy"),
        lambda point: (point.alpha / 4, 0.0),
        status=lambda point: status.get(point.alpha, "finished"),
    )
    assert alphas(batches[:1]) == [ALPHAS[i] for i in (3, 11, 18, 26)]
    assert told[:5] == [
        ("on_trial_result", "0", {"objective": 0.1, "training_iteration": 1}),  # of task A, which was scored
        ("on_trial_complete", "0", None),
        ("on_trial_complete", "1", None, True),
        ("on_trial_complete", "2", {"objective": pytest.approx(1.9 / 8, abs=1e-4)}),
        ("on_trial_complete", "3", {"objective": pytest.approx(2.7 / 8, abs=1e-4)}),
    ]
    completed = [int(entry[1]) for entry in told if entry[0] == "on_trial_complete"]
    assert sorted(completed) == list(range(len(completed)))


def test_an_unknown_objective_is_no_obstacle(monkeypatch):
    """Normalized accuracy where an expert is never right."""
    monkeypatch.setitem(REFERENCES, "B", TaskReference(0.0, 0.1))
    told = spy(monkeypatch)
    found = drive(TWO, settings(trials=12), peak())
    assert len(set(keys(found))) == 12
    assert {(name, *rest) for name, _, *rest in told} == {("on_trial_complete", None, True)}


@pytest.mark.parametrize("status", ["pruned", "failed"])
def test_trials_that_do_not_finish_are_no_obstacle(status):
    some = drive(TWO, settings(trials=24), peak(), status=lambda p: status if p.alpha > 1 else "finished")
    assert len(set(keys(some))) == 24
    assert len(set(keys(drive(TWO, settings(trials=24), peak(), status=lambda point: status)))) == 24


def test_continuous_dimensions():
    space = SearchSpace(Dimension("alpha", 0.0, 2.0), {"fraction": Dimension("fraction", 0.2, 0.6)}, {})
    found = drive(space, settings(trials=20), peak(0.77, 0.31))
    tried = points(found)
    assert len({(p.alpha, p.params["fraction"]) for p in tried}) == 20
    assert all(0 <= p.alpha <= 2 and 0.2 <= p.params["fraction"] <= 0.6 for p in tried)
    assert [p.alpha for p in tried[:4]] == [0.25, 0.75, 1.25, 1.75]
    assert [p.params["fraction"] for p in tried[:4]] == pytest.approx([0.4, 0.3, 0.5, 0.25])
    assert max(peak(0.77, 0.31)(p) for p in tried) > 0.87  # type: ignore[type-var]
    assert keys(drive(space, settings(trials=20), peak(0.77, 0.31))) == keys(found)


@given(trials=st.integers(1, 12), batch=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_any_number_of_trials(trials, batch, seed):
    found = drive(TWO, settings(trials=trials, batch=batch), peak(), seed=seed)
    assert len(set(keys(found))) == len(keys(found)) == trials


# --- parameters that every task chooses for itself ------------------------------------------------------------------

LAMBDAS = Dimension("mask_lambda", 0.2, 0.6, values=(0.2, 0.3, 0.4, 0.5, 0.6))
PER_TASK = SearchSpace(Dimension("alpha", 0.1, 0.3, 0.1), {}, {"min_tasks": 2.0}, per_task=LAMBDAS)


def calibrated(a: Sequence[float], b: Sequence[float], policy: str = "grid") -> list[list[Suggestion]]:
    def accuracy(point: Point) -> float | tuple[float, float]:
        if isinstance(point.params["mask_lambda"], tuple):
            return 0.5
        i = LAMBDAS.grid().index(point.params["mask_lambda"])
        return a[i], b[i]

    return drive(PER_TASK, settings(policy), accuracy)


@pytest.mark.parametrize("policy", ["grid", "paper", "tpe"])
def test_every_task_chooses_its_first_maximum(policy):
    found = calibrated((0.1, 0.3, 0.2, 0.3, 0.1), (0.5, 0.5, 0.5, 0.4, 0.5), policy)
    assert found[0] == [
        Suggestion(Point(1.0, {"min_tasks": 2.0, "mask_lambda": value}), "calibration") for value in LAMBDAS.grid()
    ]
    chosen = {"min_tasks": 2.0, "mask_lambda": (0.3, 0.2)}
    assert points(found[1:]) == [Point(alpha, chosen) for alpha in (0.1, 0.2, 0.3)]
    assert {suggestion.stage for batch in found[1:] for suggestion in batch} == {"search"}


@given(accuracies=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=5, max_size=5))
def test_choices_against_a_sort(accuracies):
    stage: Any = "calibration"
    records = [record_of(Suggestion(Point(1.0), stage), (a / 10, b / 10)) for a, b in accuracies]
    expected = tuple(
        sorted(zip((-pair[task] for pair in accuracies), LAMBDAS.grid(), strict=True))[0][1] for task in (0, 1)
    )
    assert choose_per_task(records, LAMBDAS.grid()) == expected
    reported_last_first = [replace(record, scores=record.scores[::-1]) for record in records]
    assert choose_per_task(reported_last_first, LAMBDAS.grid()) == expected, "in the order of the cell's tasks"


def test_a_failed_choice_ends_the_search():
    found = drive(
        PER_TASK,
        settings("grid"),
        lambda p: 0.5,
        status=lambda p: "failed" if p.params["mask_lambda"] == 0.6 else "finished",
    )
    assert len(found) == 1


def test_a_searched_point_wins_over_its_rivals():
    """From the policy through the records to the selection."""
    found = points(drive(TWO, settings("grid", batch=50), peak(1.3, 0.7)))
    records = [record_of(Suggestion(point, "search"), peak(1.3, 0.7)(point)) for point in found]
    best = select_best(records, "normalized_accuracy")
    assert best
    assert best.point == Point(1.3, {"fraction": 0.7})


def test_policies_do_not_look_ahead():
    """A generator that was never answered has asked for nothing but its first batch."""
    search: Iterator[Any] = tpe_search(CellSearch(TWO, settings(trials=16, batch=4), 0, {}))
    assert len(next(search)) == 4
