"""The sweep as a state machine, driven by an executor that evaluates nothing."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from fake_sweep import METHODS, REPORTED, SUITE, FakeExecutor, run, score, spec_of, start
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.driver import Sweep, Trial, Weights, reference_cells
from raymerge.merge_request import Merge
from raymerge.records import Cell, Point, TaskScore, TrialRecord
from raymerge.search_space import sweep_cells
from raymerge.selection import select_best
from raymerge.tally import Tally

Numbers = dict[str, tuple[Any, ...]]
STORED = {"store_predictions": True}


def numbers(records: Sequence[TrialRecord]) -> Numbers:
    """What must not depend on anything but the sweep."""
    assert len({record.trial_id for record in records}) == len(records), "every record once"
    return {
        r.trial_id: (
            r.cell,
            r.point,
            r.stage,
            r.split,
            r.status,
            r.scores,
            r.references,
            r.generation,
            r.index,
            r.error,
        )
        for r in records
    }


@pytest.fixture(scope="module", params=["tpe", "grid", "paper"])
def whole(request: pytest.FixtureRequest) -> tuple[Any, list[TrialRecord]]:
    """A sweep that nothing disturbs, one trial at a time."""
    spec = spec_of(policy=request.param, prune={"after": 0.25, "margin": 0.05})
    return spec, run(spec)


def of(records: Sequence[TrialRecord], method: str, num_tasks: int = 4, **wanted: Any) -> list[TrialRecord]:
    found = [r for r in records if r.cell.method == method and r.cell.num_tasks == num_tasks]
    return [r for r in found if all(getattr(r, name) == value for name, value in wanted.items())]


# --- what does not matter -------------------------------------------------------------------------------------------


@settings(max_examples=6)
@given(seed=st.integers(0, 2**20), limit=st.integers(1, 9), waits=st.booleans())
def test_order_of_outcomes_and_trials_in_flight_change_nothing(whole, seed, limit, waits):
    spec, records = whole
    assert numbers(run(spec, seed=seed, limit=limit, waits=waits)) == numbers(records)


@settings(max_examples=5)
@given(data=st.data(), seed=st.integers(0, 2**20))
def test_a_sweep_resumes_from_any_of_its_records(whole, data, seed):
    spec, records = whole
    if data.draw(st.booleans(), label="prefix"):
        kept = records[: data.draw(st.integers(0, len(records)), label="kept")]
    else:
        kept = [r for r in records if data.draw(st.booleans())]
    finished = {record.trial_id: record for record in kept}
    sweep, new = start(spec, finished)
    executor = FakeExecutor(sweep, seed=seed, limit=3)
    executor.run()
    assert not {trial.trial_id for trial in executor.asked} & finished.keys(), "what is known is not run again"
    assert not {record.trial_id for record in new} & finished.keys(), "nor recorded again"
    assert numbers([*kept, *new]) == numbers(records)
    known = {(r.trial_id, s.task) for r in kept for s in r.scores}
    assert not known & {(r.trial_id, task) for r in new for task in r.references if r.images}


def test_a_finished_sweep_has_nothing_to_do(whole):
    spec, records = whole
    sweep, new = start(spec, {record.trial_id: record for record in records})
    assert sweep.done
    assert sweep.next_trial() is None
    assert new == []
    assert sweep.wanted_merges() == []
    assert sweep.unneeded_merges(["a", "b"]) == ["a", "b"]
    assert len(sweep.finished_cells()) == 2 * len(METHODS)
    assert sweep.records == {record.trial_id: record for record in records}


@pytest.mark.parametrize("method", ["iso-cts", "consensus-ta"])
def test_a_cell_does_not_depend_on_its_neighbours(method):
    """Its own seed, its own rivals: alone in a sweep it has the same records."""
    alone = [r for r in run(spec_of({method: METHODS[method]}, [4])) if r.cell.method == method]
    assert len(alone) > 5
    among_others = of(run(spec_of(), limit=3), method)
    assert numbers(alone) == numbers(among_others)


def test_seeds_differ_between_cells_and_sweeps():
    def tried(records: Sequence[TrialRecord], num_tasks: int) -> list[Point]:
        return [r.point for r in of(records, "iso-cts", num_tasks, stage="search")]

    first, again, other = (
        run(spec_of({"iso-cts": METHODS["iso-cts"]}, seed=seed, prune=None, trials=14)) for seed in (0, 0, 1)
    )
    assert tried(first, 4) == tried(again, 4) != tried(other, 4)
    assert tried(first, 4)[2:] != tried(first, 2)[2:]


# --- what is recorded -----------------------------------------------------------------------------------------------


def test_every_cell_is_searched_and_its_best_point_tested(whole):
    spec, records = whole
    cells = sweep_cells(spec, SUITE.backbones, [task.name for task in SUITE.tasks])
    assert len(cells) == 12
    for cell in cells:
        own = [record for record in records if record.cell == cell]
        (test,) = (record for record in own if record.split == "test")
        best = select_best(own, spec.search.objective)
        assert best is not None
        assert test.point == best.point
        assert test.stage in ("test", "reference")
        assert test.status == "finished"
        assert {score.task for score in test.scores} == set(cell.tasks)
        for record in own:
            reported = [task for task in REPORTED if task in cell.tasks]
            assert [s.task for s in record.scores] == reported[: len(record.scores)], "most validation images first"
            assert (len(record.scores) < cell.num_tasks) == (record.status == "pruned")
            assert record.references.keys() == {score.task for score in record.scores}
            assert record.device == "fake"
            assert record.seconds >= 0
            assert record.finished_at > 1e9
            assert all(s.total == SUITE.task(s.task).images[record.split] for s in record.scores)


def test_references_are_the_experts_and_the_zero_shot_model_on_the_same_split(whole):
    _, records = whole
    for record in records:
        for task, reference in record.references.items():
            for method, found in (
                ("zero-shot", reference.zero_shot_accuracy),
                ("fine-tuned", reference.expert_accuracy),
            ):
                (source,) = of(records, method, split=record.split)
                (accuracy,) = (s.accuracy for s in source.scores if s.task == task)
                assert found == accuracy
            assert reference.source == "measured"


def test_trials_are_scored_under_the_weights_of_their_point(whole):
    _, records = whole
    for record in records:
        for found in record.scores:
            merge = None
            if record.cell.method == "fine-tuned":
                merge = Merge("vit", (found.task,), "fine-tuned", {}, found.task)
            elif record.cell.method != "zero-shot":
                own = found.task if record.stage == "calibration" else None
                merge = Merge("vit", record.cell.tasks, record.cell.method, record.point.params, own)
            weights = Weights("vit", merge, record.point.alpha if merge else 0.0)
            assert found == score(weights, found.task, record.split)


def test_every_task_calibrates_for_itself(whole):
    _, records = whole
    calibrations = of(records, "consensus-ta", stage="calibration")
    assert {(r.point.alpha, r.generation) for r in calibrations} == {(1.0, 0)}
    assert [r.index for r in sorted(calibrations, key=lambda r: r.point.params["mask_lambda"])] == list(
        range(len(calibrations))
    )
    chosen = []
    for task in ("T0", "T1", "T2", "T3"):
        accuracies = {
            r.point.params["mask_lambda"]: s.accuracy for r in calibrations for s in r.scores if s.task == task
        }
        chosen.append(max(sorted(accuracies), key=accuracies.__getitem__))
    searched = of(records, "consensus-ta", stage="search") + of(records, "consensus-ta", stage="test")
    assert {r.point.params["mask_lambda"] for r in searched} == {tuple(chosen)}
    assert min(r.generation for r in searched) == 1


def test_generations_and_indices_count_the_suggestions(whole):
    spec, records = whole
    size = 1 if spec.search.policy == "paper" else 2
    for method in ("ties", "iso-cts"):
        searched = of(records, method, stage="search")
        found = sorted((r.generation, r.index) for r in searched)
        assert found == [(i // size, i % size) for i in range(len(searched))]
        (test,) = of(records, method, stage="test")
        assert test.generation == found[-1][0] + 1


# --- nothing is evaluated twice -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1])
def test_nothing_is_evaluated_twice(whole, limit):  # with more in flight, references of nested task sets may be
    """Nor at the same time: of two nested task sets, the references of one wait for those of the other."""
    spec, _ = whole
    sweep, _ = start(spec)
    executor = FakeExecutor(sweep, limit=limit)
    executor.run()
    assert max(Counter(executor.evaluated).values()) == 1


def test_images_are_those_that_were_evaluated():
    sweep, records = start(spec_of(prune=None))
    executor = FakeExecutor(sweep)
    executor.run()
    images = [SUITE.task(task).images["val" if split == "val" else "test"] for _, task, split in executor.evaluated]
    assert sum(record.images for record in records) == sum(images)


@pytest.mark.parametrize("sizes", [(4, 2), (2, 4)])
def test_nested_task_sets_share_their_references(sizes):
    """T0 and T1 have 40 + 80 images to validate with and 50 + 20 to test with, T2 and T3 160 and 50."""
    records = run(spec_of(["zero-shot", "fine-tuned"], sizes))
    images = {
        (4, 2): {(4, "val"): 280, (4, "test"): 120, (2, "val"): 0, (2, "test"): 0},
        (2, 4): {(4, "val"): 160, (4, "test"): 50, (2, "val"): 120, (2, "test"): 70},
    }[sizes]
    for split in ("val", "test"):
        for method in ("zero-shot", "fine-tuned"):
            (large,), (small,) = (of(records, method, n, split=split) for n in (4, 2))
            assert (large.images, small.images) == (images[4, split], images[2, split])
            assert set(small.scores) < set(large.scores)
            assert small.references == {task: large.references[task] for task in ("T0", "T1")}


def test_a_sweep_without_reference_methods_measures_them_first():
    records = run(spec_of({"weight-averaging": {}}, [2]))
    assert len(records) == 6
    assert {r.cell.method: r.stage for r in records if r.split == "val"} == {
        "zero-shot": "reference",
        "fine-tuned": "reference",
        "weight-averaging": "search",
    }
    (averaged,) = of(records, "weight-averaging", 2, split="val")
    assert averaged.point == Point(0.5)
    assert averaged.references.keys() == {"T0", "T1"}


def test_reference_cells_cover_the_tasks_of_all_cells_in_the_order_of_the_suite():
    cells = [Cell("vit", ("T2", "T0"), "ties"), Cell("vit", ("T0", "T3"), "ties"), Cell("b", ("T1",), "iso-c")]
    assert reference_cells(SUITE, cells) == [
        Cell("vit", ("T0", "T2", "T3"), "zero-shot"),
        Cell("vit", ("T0", "T2", "T3"), "fine-tuned"),
        Cell("b", ("T1",), "zero-shot"),
        Cell("b", ("T1",), "fine-tuned"),
    ]


def finish(sweep: Sweep, trial: Trial | None) -> None:
    """Score every task of a trial that was handed out."""
    assert trial is not None
    sweep.report(trial.trial_id, [score(w, task, trial.split) for task, w in trial.weights.items()])
    sweep.complete(trial.trial_id)


def described(trial: Trial | None) -> tuple[str, str, float] | None:
    return trial and (trial.cell.method, trial.split, trial.point.alpha)


def test_nothing_runs_before_what_it_is_compared_with():
    sweep, records = start(spec_of({"ties": {"alpha": [1, 2]}}, [2], policy="grid", batch=1))
    zero_shot, experts, ties = (sweep.next_trial() for _ in range(3))
    assert zero_shot
    assert experts
    assert ties
    assert [described(t) for t in (zero_shot, experts, ties)] == [
        ("zero-shot", "val", 0.0),
        ("fine-tuned", "val", 1.0),
        ("ties", "val", 1.0),
    ]
    assert (zero_shot.stage, experts.stage, ties.stage) == ("reference", "reference", "search")
    assert sweep.next_trial() is None
    assert sweep.may_run(zero_shot, lambda merge: False), "theta_0 is no merge"
    assert not sweep.may_run(experts, lambda merge: False)
    assert not sweep.may_run(experts, lambda merge: merge.task == "T0"), "both experts are needed"
    assert sweep.may_run(experts, lambda merge: True)
    finish(sweep, zero_shot)
    assert not sweep.may_run(ties, lambda merge: True), "handed out ahead of time"
    assert records == [], "a zero-shot accuracy is compared with that of the expert"
    finish(sweep, experts)
    assert sweep.may_run(ties, lambda merge: True)
    assert not sweep.may_run(ties, lambda merge: False)
    assert [r.cell.method for r in records] == ["zero-shot", "fine-tuned"]
    assert [described(sweep.next_trial()) for _ in range(3)] == [
        ("zero-shot", "test", 0.0),
        ("fine-tuned", "test", 1.0),
        None,
    ]


def test_references_go_first_then_cells_take_turns():
    methods = {"ties": {"alpha": [1, 2]}, "iso-c": {"alpha": [1, 2]}}
    sweep, _ = start(spec_of(methods, [2], policy="grid", batch=1))
    for expected in (("zero-shot", "val", 0.0), ("fine-tuned", "val", 1.0), ("zero-shot", "test", 0.0)):
        trial = sweep.next_trial()
        assert described(trial) == expected
        finish(sweep, trial)
    experts = sweep.next_trial()
    ties = sweep.next_trial()
    assert (described(experts), described(ties)) == (("fine-tuned", "test", 1.0), ("ties", "val", 1.0))
    finish(sweep, ties)  # its next batch is there, but the other cell is less far
    second = sweep.next_trial()
    assert described(second) == ("iso-c", "val", 1.0)
    finish(sweep, second)
    assert described(sweep.next_trial(lambda merge: merge.method == "iso-c")) == ("iso-c", "val", 2.0), "the ready one"
    assert described(sweep.next_trial(lambda merge: False)) == ("ties", "val", 2.0), "none is ready: the next that will"


# --- pruning --------------------------------------------------------------------------------------------------------


def second_trial(accuracies: Sequence[float], objective: str = "accuracy", **search: Any) -> tuple[Any, Trial, Any]:
    """A sweep in which alpha 1 has some accuracies, in reporting order, and alpha 2 has been handed out."""
    spec = spec_of({"ties": {"alpha": [1, 2]}}, [4], **{"policy": "grid", "batch": 1, "objective": objective, **search})
    sweep, records = start(spec)
    of_method = {"zero-shot": [0.125] * 4, "fine-tuned": [1.0, 0.5, 1.0, 1.0], "ties": accuracies}
    while (trial := sweep.next_trial()) and trial.point.alpha != 2.0:
        values = zip(REPORTED, of_method[trial.cell.method], strict=True)
        sweep.report(trial.trial_id, [TaskScore(task, round(value * 8), 8) for task, value in values])
        sweep.complete(trial.trial_id)
    assert trial is not None
    return sweep, trial, records


def eighths(**correct: int) -> list[TaskScore]:
    return [TaskScore(task, count, 8) for task, count in correct.items()]


def test_a_trial_stops_once_it_is_too_far_behind():
    """Behind by 0.25, then by 0.5 and 0.125: 0.25, 0.375 and 0.2917 on average, of which 0.3 is too much."""
    sweep, trial, records = second_trial([0.75] * 4, prune={"after": 0.25, "margin": 0.3})
    assert sweep.report(trial.trial_id, eighths(T3=4)), "0.25 behind"
    assert not sweep.report(trial.trial_id, eighths(T1=2)), "0.375 behind"
    sweep.complete(trial.trial_id)
    (record,) = (r for r in records if r.trial_id == trial.trial_id)
    assert record.status == "pruned"
    assert record.scores == tuple(eighths(T3=4, T1=2))
    assert record.images == 16


def test_the_margin_itself_is_not_too_much():
    sweep, trial, records = second_trial([0.75] * 4, prune={"after": 0.25, "margin": 0.25})
    assert sweep.report(trial.trial_id, eighths(T3=4)), "exactly 0.25 behind"
    assert sweep.report(trial.trial_id, eighths(T1=4, T2=4))
    assert sweep.report(trial.trial_id, eighths(T0=0)), "the last task stops nothing"
    sweep.complete(trial.trial_id)
    (record,) = (r for r in records if r.trial_id == trial.trial_id)
    assert record.status == "finished"


@pytest.mark.parametrize(("after", "first"), [(0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4), (1, 4)])
def test_no_trial_stops_before_its_share_of_tasks(after, first):
    sweep, trial, _ = second_trial([1.0] * 4, prune={"after": after, "margin": 0.0})
    for count, task in enumerate(REPORTED, start=1):
        stops = not sweep.report(trial.trial_id, eighths(**{task: 0}))
        assert stops == (count >= first and count < 4)
        if stops:
            break


def test_what_comes_out_of_order_decides_nothing_and_leaves_no_trace():
    sweep, trial, records = second_trial([0.75] * 4, prune={"after": 0.25, "margin": 0.3})
    assert sweep.report(trial.trial_id, eighths(T0=0, T2=0)), "T3 and T1 come first"
    assert sweep.missing_tasks(trial.trial_id) == ["T3", "T1"]
    assert not sweep.report(trial.trial_id, eighths(T3=0)), "0.75 behind"
    sweep.complete(trial.trial_id)
    (record,) = (r for r in records if r.trial_id == trial.trial_id)
    assert record.scores == tuple(eighths(T3=0))
    assert record.references.keys() == {"T3"}


def test_catching_up_later_does_not_bring_a_trial_back():
    """0.5 behind after one task and 0.25 ahead in the end: what arrived together is judged one by one."""
    sweep, trial, records = second_trial([0.5] * 4, prune={"after": 0.25, "margin": 0.3})
    assert not sweep.report(trial.trial_id, eighths(T3=0, T1=8, T2=8, T0=8))
    sweep.complete(trial.trial_id)
    (record,) = (r for r in records if r.trial_id == trial.trial_id)
    assert (record.status, len(record.scores)) == ("pruned", 1)


def test_being_behind_is_measured_in_the_objective():
    """T1's expert has 0.5, so that 0.125 behind are 0.25 of it: 0 and 0.25, 0.125 on average, over 0.1."""
    prune = {"after": 0.25, "margin": 0.1}
    for objective, goes_on in (("accuracy", True), ("normalized_accuracy", False)):
        sweep, trial, _ = second_trial([0.5] * 4, objective, prune=prune)
        assert sweep.report(trial.trial_id, eighths(T3=4))
        assert sweep.report(trial.trial_id, eighths(T1=3)) is goes_on


@pytest.mark.parametrize("search", [{"prune": None}, {"policy": "paper", "objective": "normalized_accuracy"}])
def test_nothing_is_pruned_where_the_sweep_says_so(search):
    sweep, trial, _ = second_trial([1.0] * 4, **search)
    assert trial.rival is None
    for task in REPORTED:
        assert sweep.report(trial.trial_id, eighths(**{task: 0}))


def test_the_rival_is_the_best_trial_of_earlier_batches():
    spec = spec_of({"ties": {"alpha": [1, 2, 3, 4]}}, [2], policy="grid", batch=2, objective="accuracy")
    sweep, _ = start(spec)
    rivals = {}
    correct = {1.0: (2, 2), 2.0: (6, 4), 3.0: (8, 8), 4.0: (8, 8)}
    while trial := sweep.next_trial():
        if trial.cell.method == "ties" and trial.split == "val":
            rivals[trial.point.alpha] = trial.rival
        counts = correct.get(trial.point.alpha, (8, 8)) if trial.cell.method == "ties" else (8, 8)
        sweep.report(trial.trial_id, [TaskScore(t, c, 8) for t, c in zip(("T1", "T0"), counts, strict=True)])
        sweep.complete(trial.trial_id)
    assert rivals == {1.0: None, 2.0: None, 3.0: (0.75, 0.5), 4.0: (0.75, 0.5)}


def test_some_trials_are_pruned():
    """Or the property tests above would say nothing about it."""
    for policy in ("tpe", "grid"):
        records = run(spec_of(policy=policy, prune={"after": 0.25, "margin": 0.05}))
        pruned = [r for r in records if r.status == "pruned"]
        assert len(pruned) > 5
        assert {r.stage for r in pruned} == {"search"}
        assert len({len(r.scores) for r in pruned}) > 1


# --- failures -------------------------------------------------------------------------------------------------------


def fails_iso(merge: Merge) -> str | None:
    return "the SVD broke" if merge.method == "iso-cts" and merge.params["common_space_fraction"] == 0.5 else None


@pytest.mark.parametrize("limit", [1, 4])
def test_a_merge_that_fails_costs_its_own_trials(limit):
    spec = spec_of(policy="grid", prune=None)
    records = run(spec, limit=limit, seed=limit, broken_merge=fails_iso)
    failed = [r for r in records if r.status == "failed"]
    assert {(r.cell.method, r.point.params["common_space_fraction"], r.error) for r in failed} == {
        ("iso-cts", 0.5, "the SVD broke")
    }
    assert len(failed) == 2 * 5, "every alpha on both task sets"
    assert all(r.scores == () and r.images == 0 for r in failed)
    assert [r for r in of(records, "iso-cts") if r.stage == "test" and r.status == "finished"]
    numbers(records)


@settings(max_examples=4)
@given(seed=st.integers(0, 2**20), limit=st.integers(1, 6))
def test_failures_are_the_same_in_any_order(seed, limit):
    spec = spec_of(policy="tpe")
    expected = run(spec, broken_merge=fails_iso, broken_trial=fails_some)
    found = run(spec, seed=seed, limit=limit, broken_merge=fails_iso, broken_trial=fails_some)
    assert numbers(found) == numbers(expected)
    assert {r.status for r in found} == {"finished", "pruned", "failed"}


def fails_some(trial: Trial) -> str | None:
    return "out of memory" if trial.cell.method == "ties" and trial.point.alpha > 1.1 else None


def test_failed_trials_are_recorded_and_tried_again():
    spec = spec_of(policy="grid")
    undisturbed = run(spec)
    first = run(spec, broken_trial=fails_some)
    failed = [r for r in first if r.status == "failed"]
    assert {r.error for r in failed} == {"out of memory"}
    assert {(r.cell.method, r.point.alpha > 1.1) for r in failed} == {("ties", True)}
    assert len(failed) == 4
    finished = {record.trial_id: record for record in first}
    sweep, second = start(spec, finished)
    executor = FakeExecutor(sweep)
    executor.run()
    assert {r.trial_id for r in failed} <= {trial.trial_id for trial in executor.asked}
    merged = {**finished, **{record.trial_id: record for record in second}}
    kept = {r.trial_id: r for r in undisturbed if not (r.cell.method == "ties" and r.stage != "reference")}
    assert {key: merged[key].scores for key in kept} == {key: record.scores for key, record in kept.items()}
    assert not [r for r in merged.values() if r.status == "failed"]


def test_what_only_a_failure_led_to_is_no_part_of_the_search():
    spec = spec_of(policy="tpe", prune=None)
    undisturbed = {r.trial_id: r for r in run(spec)}
    first = {r.trial_id: r for r in run(spec, broken_trial=fails_some)}
    sweep, second = start(spec, first)
    assert sweep.strays() == [], "who knows what their cells will ask for"
    FakeExecutor(sweep).run()
    strays = sweep.strays()
    assert {(first[s].cell.method, first[s].status) for s in strays} == {("ties", "finished")}
    merged = {**first, **{record.trial_id: record for record in second}}
    left = [record for trial_id, record in merged.items() if trial_id not in strays]
    assert numbers(left) == numbers(list(undisturbed.values()))
    assert start(spec, undisturbed)[0].strays() == []


def test_trials_of_another_precision_are_other_trials():
    spec = spec_of(policy="tpe", prune=None)
    evaluation = spec.evaluation.model_copy(update={"precision": "bf16"})
    in_bf16 = {r.trial_id: r for r in run(spec.model_copy(update={"evaluation": evaluation}))}
    undisturbed = run(spec)
    assert not in_bf16.keys() & {r.trial_id for r in undisturbed}
    sweep, made = start(spec, in_bf16)
    FakeExecutor(sweep).run()
    assert numbers(made) == numbers(undisturbed)
    assert [r.images for r in made] == [r.images for r in undisturbed], "no score is taken over"
    assert sweep.strays() == []


def test_a_cell_whose_trials_all_fail_ends_without_a_test():
    records = run(spec_of(), broken_trial=lambda trial: "no" if trial.cell.method == "iso-cts" else None)
    assert {r.status for r in of(records, "iso-cts")} == {"failed"}
    assert {r.split for r in of(records, "iso-cts")} == {"val"}
    assert of(records, "ties", stage="test")


def test_a_failed_calibration_ends_its_cell():
    def broken(merge: Merge) -> str | None:
        return "too thin" if merge.method == "consensus-ta" and merge.task == "T1" else None

    records = run(spec_of(), broken_merge=broken)
    assert {(r.stage, r.status, r.error) for r in of(records, "consensus-ta")} == {
        ("calibration", "failed", "too thin")
    }
    assert len(of(records, "consensus-ta")) == 2


@pytest.mark.parametrize("order", [["zero-shot", "fine-tuned", "ties"], ["fine-tuned", "zero-shot", "ties"], ["ties"]])
@pytest.mark.parametrize("broken", ["zero-shot", "fine-tuned"])
@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_without_references_there_is_nothing_to_compare_with(order, broken, split, limit):
    def fails(trial: Trial) -> str | None:
        return "it burnt" if trial.cell.method == broken and trial.split == split else None

    records = run(spec_of(order, [2]), broken_trial=fails, limit=limit, seed=limit)
    (reference,) = of(records, broken, 2, split=split)
    assert (reference.status, reference.error) == ("failed", "it burnt")
    compared = [r for r in records if r.cell.method == "ties" and r.split == split]
    assert compared
    assert {r.status for r in compared} == {"failed"}
    assert {r.error for r in compared} == {"the accuracies it is compared with are missing: it burnt"}


def test_an_expert_that_is_never_right_stops_nothing():
    """Normalized accuracy is unknown then; the sweep still ends, and every cell has a test trial."""

    def accuracy(weights: Weights, task: str, split: str) -> float:
        is_expert = weights.merge is not None and weights.merge.method == "fine-tuned"
        return 0.0 if is_expert and task == "T1" else 0.5

    records = run(spec_of(), accuracy=accuracy)
    assert {r.cell.method for r in records if r.split == "test"} == set(METHODS)


# --- merges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 4])
def test_released_merges_are_never_wanted_again(whole, limit):
    spec, _ = whole
    sweep, _ = start(spec)
    executor = FakeExecutor(sweep, limit=limit, seed=limit)
    executor.run()
    assert executor.wanted_again == []
    assert executor.released, "some are released"
    assert sweep.unneeded_merges(list(executor.merged)) == list(executor.merged), "and in the end all"


@pytest.mark.parametrize("seed", range(3))
def test_the_merge_to_test_is_kept_when_there_are_too_many_to_keep(seed):
    """More structural settings than are merged ahead of time; what the search comes back to may be merged again."""
    fractions = [i / 40 for i in range(4, 37)]
    spec = spec_of({"iso-cts": {"common_space_fraction": fractions, "alpha": [0.5, 1.0]}}, [2], trials=20, seed=seed)
    sweep, records = start(spec)
    executor = FakeExecutor(sweep)
    executor.run()
    assert len(of(records, "iso-cts", 2, stage="search")) == 20
    (test,) = of(records, "iso-cts", 2, stage="test")
    assert executor.released_when_asked[test.trial_id] == []
    assert len(executor.merged) < 10, "others are released"


def test_merges_are_wanted_ahead_of_time():
    sweep, _ = start(spec_of())
    merges = sweep.wanted_merges()
    iso = [m for m in merges if m.method == "iso-cts" and len(m.tasks) == 4]
    assert {m.params["common_space_fraction"] for m in iso} == {0.2, 0.5, 0.8}, "few are all merged ahead"
    assert len([m for m in merges if m.method == "ties"]) == 2
    experts = [m for m in merges if m.method == "fine-tuned"]
    assert {(m.tasks, m.task) for m in experts} == {((f"T{i}",), f"T{i}") for i in range(4)}, "for both task sets"
    calibrations = [m for m in merges if m.method == "consensus-ta"]
    assert {(len(m.tasks), m.task, m.params["mask_lambda"]) for m in calibrations} == {
        (size, f"T{i}", value) for size in (2, 4) for i in range(size) for value in (0.2, 0.4)
    }
    assert len({m.merge_id for m in merges}) == len(merges)


def test_single_task_methods_merge_every_expert_alone_and_share_it_over_task_sets():
    spec = spec_of({"single-task-iso-c": {"alpha": [0.5, 1.5]}}, policy="grid")
    sweep, records = start(spec)
    executor = FakeExecutor(sweep, limit=2)
    executor.run()
    merges = {merge.merge_id: merge for trial in executor.asked for merge in trial.merges}
    own = sorted((m.tasks, m.task) for m in merges.values() if m.method == "single-task-iso-c")
    assert own == [((f"T{i}",), None) for i in range(4)], "for both task sets"
    for trial in executor.asked:
        if trial.cell.method == "single-task-iso-c":
            assert {task: w.merge.tasks for task, w in trial.weights.items()} == {t: (t,) for t in trial.cell.tasks}
            assert {w.alpha for w in trial.weights.values()} == {trial.point.alpha}
    found = of(records, "single-task-iso-c", stage="search")
    assert {r.point.alpha for r in found} == {0.5, 1.5}, "its alpha is searched"
    assert len(of(records, "single-task-iso-c", stage="test")) == 1
    for record in found:
        weights = {t: Weights("vit", Merge("vit", (t,), "single-task-iso-c"), record.point.alpha) for t in REPORTED}
        assert list(record.scores) == [score(weights[t], t, "val") for t in REPORTED]


# --- predictions ----------------------------------------------------------------------------------------------------


def has_predictions(record: TrialRecord) -> bool:
    (found,) = {score.predictions is not None for score in record.scores}
    return found


def test_records_on_test_have_predictions_on_their_way_to_the_results_only():
    sweep, records = start(spec_of(evaluation=STORED))
    FakeExecutor(sweep, limit=3).run()
    assert {has_predictions(r) for r in records if r.split == "test"} == {True}, "references that are shared, too"
    assert {has_predictions(r) for r in records if r.split == "val"} == {False}
    assert not any(has_predictions(record) for record in sweep.records.values()), "the driver keeps counts alone"
    plain = run(spec_of())
    assert numbers([r.without_predictions() for r in records]) == numbers(plain)


def test_references_of_an_earlier_run_are_scored_again_for_their_predictions():
    """Only where a trial that is to be recorded needs them."""
    spec = spec_of({"zero-shot": {}, "fine-tuned": {}, "weight-averaging": {}}, evaluation=STORED)
    records = {r.trial_id: r.without_predictions() for r in run(spec)}
    gone = next(
        r for r in records.values() if r.cell.method == "fine-tuned" and r.split == "test" and r.cell.num_tasks == 2
    )
    again = run(spec, {key: r for key, r in records.items() if key != gone.trial_id})
    assert [r.trial_id for r in again] == [gone.trial_id]
    assert has_predictions(again[0])
    assert again[0].without_predictions().scores == gone.scores
    assert again[0].images == sum(score.total for score in gone.scores)
    (plain,) = run(spec_of(list(spec.methods)), {key: r for key, r in records.items() if key != gone.trial_id})
    assert plain.images == 0, "without predictions what is known is enough"


# --- identity -------------------------------------------------------------------------------------------------------


def test_trial_ids_are_the_content_of_a_trial():
    cell, point = Cell("vit", ("T0", "T1"), "iso-cts"), Point(1.0, {"common_space_fraction": 0.5})
    base = spec_of({"iso-cts": {}}, [2])
    ids = {
        "same": start(base)[0].trial_id(cell, point, "val"),
        "search": start(spec_of({"iso-cts": {}}, [2], seed=5, trials=9))[0].trial_id(cell, point, "val"),
        "batches": start(spec_of({"iso-cts": {}}, [2], {"batch_size": 3, "shard_images": 9}))[0].trial_id(
            cell, point, "val"
        ),
        "predictions": start(spec_of({"iso-cts": {}}, [2], STORED))[0].trial_id(cell, point, "val"),
        "test": start(base)[0].trial_id(cell, point, "test"),
        "alpha": start(base)[0].trial_id(cell, replace(point, alpha=1.1), "val"),
        "params": start(base)[0].trial_id(cell, Point(1.0, {"common_space_fraction": 0.6}), "val"),
        "tasks": start(base)[0].trial_id(replace(cell, tasks=("T1", "T0")), point, "val"),
        "backbone": start(base)[0].trial_id(replace(cell, backbone="b"), point, "val"),
        "method": start(base)[0].trial_id(replace(cell, method="ties"), point, "val"),
        "precision": start(spec_of({"iso-cts": {}}, [2], {"precision": "bf16"}))[0].trial_id(cell, point, "val"),
        "images": start(spec_of({"iso-cts": {}}, [2], {"max_images": 9}))[0].trial_id(cell, point, "val"),
        "suite": start(base, suite=replace(SUITE, name="b"))[0].trial_id(cell, point, "val"),
        "profile": start(base, suite=replace(SUITE, profile="b"))[0].trial_id(cell, point, "val"),
        "seed": start(base, suite=replace(SUITE, seed=1))[0].trial_id(cell, point, "val"),
    }
    assert ids.pop("search") == ids.pop("batches") == ids.pop("predictions") == ids["same"]
    assert len(set(ids.values())) == len(ids)


def test_weights_are_equal_when_theta_is():
    merge = Merge("vit", ("T0",), "iso-c")
    ids = {
        Weights("vit").weights_id,
        Weights("b").weights_id,
        Weights("vit", merge, 1.0).weights_id,
        Weights("vit", merge, 0.5).weights_id,
        Weights("vit", replace(merge, tasks=("T1",)), 1.0).weights_id,
    }
    assert len(ids) == 5
    assert Weights("vit", replace(merge), 1.0).weights_id in ids


# --- long sweeps ----------------------------------------------------------------------------------------------------


class CountedCalls:
    """How many functions of raymerge are called, in Python, while it is asked to count."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        sys.setprofile(self._event)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, argument: object) -> None:
        # the functions that dataclasses are given have no file of their own
        if event == "call" and frame.f_globals.get("__name__", "").startswith("raymerge."):
            self.count += 1


def calls_per_trial(method: str, num_alphas: int, num_cells: int = 1) -> list[float]:
    """Of a grid search by batches of 4, with all that an executor and a view ask for: the mean of every 100 trials."""
    alpha = {"low": 1.0, "high": 2.0, "step": 1 / (num_alphas - 1)}
    backbones = {f"vit{i}": replace(SUITE.backbones["vit"], name=f"vit{i}") for i in range(num_cells)}
    spec = spec_of({method: {"alpha": alpha}}, [4], policy="grid", batch=4, prune=None)
    sweep, records = start(spec, suite=replace(SUITE, backbones=backbones))
    tally = Tally(sweep)
    held: dict[str, Merge] = {}
    counts: list[int] = []

    def is_merged(merge: Merge) -> bool:
        return merge.merge_id in held

    while not sweep.done:
        calls = CountedCalls()
        with calls:
            held |= {merge.merge_id: merge for merge in sweep.wanted_merges()}
            trial = sweep.next_trial(is_merged)
        assert trial is not None
        scores = [TaskScore(task, 1, 2) for task in sweep.missing_tasks(trial.trial_id)]
        with calls:
            for found in scores:
                sweep.report(trial.trial_id, [found])
            sweep.complete(trial.trial_id)
            for record in records[len(counts) :]:
                tally.add(record)
            for merge_id in sweep.unneeded_merges(list(held)):
                del held[merge_id]
        counts += [calls.count] * (len(records) - len(counts))
    assert len(records) == num_cells * (num_alphas + 5), "and a test, and two references on two splits"
    return [sum(counts[i : i + 100]) / 100 for i in range(0, len(counts) - 99, 100)]


def test_a_trial_costs_the_same_however_many_came_before():
    early, late = calls_per_trial("ties", 300)[1:]
    assert late == pytest.approx(early, rel=0.02)


def test_a_trial_costs_the_same_however_many_cells_there_are():
    few, many = (max(calls_per_trial("ties", 300 // num, num)[1:]) for num in (1, 10))
    assert many < 1.1 * few
