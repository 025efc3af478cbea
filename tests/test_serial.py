"""A whole sweep in one process, against merging and evaluation written a second time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_models
import tiny_suite
import torch
from torch import Tensor

from raymerge import merge_request, serial
from raymerge.checkpoints import load_head, open_checkpoint, save_state_dict
from raymerge.driver import Sweep
from raymerge.errors import MergeInputError
from raymerge.images import open_images
from raymerge.methods import METHODS
from raymerge.records import TrialRecord
from raymerge.search_space import sweep_cells
from raymerge.serial import SerialExecutor
from raymerge.suites import Suite, moments_path
from raymerge.summary import SummaryRow, summarise
from raymerge.sweep_spec import SweepSpec
from raymerge.worker import WorkerSetup

BACKBONE = tiny_suite.BACKBONE
ALPHAS = {"alpha": {"low": 0.1, "high": 0.5, "step": 0.1}}
SETTINGS: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "fine-tuned": {},
    "weight-averaging": {},
    "task-arithmetic": ALPHAS,
    "ties": ALPHAS,
    "consensus-ta": {**ALPHAS, "mask_lambda": [0.2, 0.4, 0.6]},
    "scale-svd": {**ALPHAS, "sparsity": 0.5, "num_iters": 3},
    "tsv-m": ALPHAS,
    "iso-c": ALPHAS,
    "iso-cts": {**ALPHAS, "common_space_fraction": [0.4, 0.8]},
    "iso-iasad": {**ALPHAS, "rank_ratio": [0.4, 0.8]},
    "single-task-iso-c": ALPHAS,
    "spectrum-interpolation": {**ALPHAS, "beta": [0.0, 0.5]},
    "truncated-iso-c": {**ALPHAS, "rank_fraction": [0.3, 0.6]},
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    suite = tiny_suite.tiny_suite(tmp_path_factory.mktemp("suite"), num_tasks=3)
    tiny_suite.tiny_moments(suite, suite.root / "moments")
    return suite


def spec_of(methods: Mapping[str, Any] = SETTINGS, **changes: Any) -> SweepSpec:
    search = {"policy": "grid", "batch": 3, "prune": None, **changes.pop("search", {})}
    values = {"name": "x", "suite": "tiny", "num_tasks": [2, 3], "methods": methods, "search": search, **changes}
    return SweepSpec.model_validate(values)


def run(suite: Suite, spec: SweepSpec) -> tuple[list[TrialRecord], list[SummaryRow]]:
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    records: list[TrialRecord] = []
    sweep = Sweep(spec, suite, cells, finished={}, on_record=records.append, device="cpu")
    SerialExecutor(WorkerSetup(suite, spec.evaluation), suite.root / "moments").run(sweep)
    assert sweep.done
    return records, summarise(records, cells, spec.search.objective)


@pytest.fixture(scope="module")
def swept(suite: Suite) -> tuple[list[TrialRecord], list[SummaryRow]]:
    return run(suite, spec_of())


class Recomputed:
    """Models merged in memory, and images counted in one go."""

    def __init__(self, suite: Suite):
        self.suite = suite
        self.zero_shot = self._state(suite.zero_shot_path(BACKBONE))
        self.updates: dict[Any, dict[str, Tensor]] = {}
        self.experts = {task.name: self._state(suite.expert_path(BACKBONE, task.name)) for task in suite.tasks}

    @staticmethod
    def _state(path: Path) -> dict[str, Tensor]:
        checkpoint = open_checkpoint(path)
        return {name: checkpoint.tensor(name) for name in checkpoint.names}

    def model(self, record: TrialRecord, task: str) -> dict[str, Tensor]:
        """theta_0 + alpha * update, as a state dict in float64."""
        method, tasks, params = record.cell.method, record.cell.tasks, record.point.params
        if method == "zero-shot":
            return {name: value.double() for name, value in self.zero_shot.items()}
        if method == "fine-tuned":
            return {name: value.double() for name, value in self.experts[task].items()}
        own = tasks.index(task) if record.stage == "calibration" else None
        if method == "single-task-iso-c":
            method, tasks = "iso-c", (task,)
        key = (method, tasks, str(params), own)
        if key not in self.updates:
            deltas = reference_models.task_vectors(self.zero_shot, [self.experts[name] for name in tasks])
            if own is not None:
                self.updates[key] = reference_models.tall_mask_update(deltas, own, params["mask_lambda"])
            else:
                moments = [self._state(moments_path(self.suite.root / "moments", BACKBONE, name)) for name in tasks]
                self.updates[key] = reference_models.merged_update(method, deltas, params, moments)
        update = self.updates[key]
        return {name: value.double() + record.point.alpha * update[name] for name, value in self.zero_shot.items()}

    def bounds(self, record: TrialRecord, task: str) -> tuple[int, int]:
        """Fewest and most correct answers, where the two best classes are equal but for rounding."""
        declared = self.suite.task(task)
        weight, _ = load_head(
            self.suite.head_path(BACKBONE, task), num_classes=len(declared.classes), embed_dim=tiny_suite.EMBED_DIM
        )
        images = open_images(self.suite.images_path(task, record.split))
        pixels, labels = images.read(0, len(images))
        found = tiny_suite.logits(self.model(record, task), weight.double(), pixels)
        best = found.topk(2, dim=1)
        doubtful = best.values[:, 0] - best.values[:, 1] < 1e-3  # of logits up to 20
        correct = best.indices[:, 0] == labels
        assert doubtful.sum() <= 1, "nearly all images are clear cases"
        return int((correct & ~doubtful).sum()), int((correct | doubtful).sum())


@pytest.mark.parametrize("method", SETTINGS)
def test_every_trial_is_what_a_second_implementation_finds(suite, swept, method):
    """On the larger task set every trial, so that alpha, parameters, weights, heads, images and splits all matter."""
    records, _ = swept
    assert list(SETTINGS) == [name for name in METHODS if name in SETTINGS]
    recomputed = Recomputed(suite)
    own = [r for r in records if r.cell.method == method and r.cell.num_tasks == 3]
    expected = {"zero-shot": 2, "fine-tuned": 2, "weight-averaging": 2, "consensus-ta": 3 + 5 + 1}
    with_parameter = ("iso-cts", "iso-iasad", "spectrum-interpolation", "truncated-iso-c")
    expected |= dict.fromkeys(with_parameter, 10 + 1)
    assert len(own) == expected.get(method, 5 + 1)
    for record in own:
        assert [found.task for found in record.scores] == ["Task2", "Task1", "Task0"]
        for found in record.scores:
            low, high = recomputed.bounds(record, found.task)
            assert low <= found.correct <= high
            assert found.total == suite.task(found.task).images[record.split]


def test_the_summary_is_the_best_trial_by_validation(suite, swept):
    records, rows = swept
    assert [(row.cell.method, row.cell.num_tasks) for row in rows] == [(m, n) for n in (2, 3) for m in SETTINGS]
    accuracies = {
        (r.cell, r.split, str(r.point)): {s.task: s.correct / s.total for s in r.scores}
        for r in records
        if r.stage != "calibration"
    }
    for row in rows:
        experts = {
            split: next(
                v for (c, s, _), v in accuracies.items() if c.method == "fine-tuned" and s == split and len(v) == 3
            )
            for split in ("val", "test")
        }

        def normalized(found: Mapping[str, float], split: str) -> float:
            return math.fsum(value / experts[split][task] for task, value in found.items()) / len(found)  # noqa: B023

        tried = {point: normalized(v, "val") for (c, s, point), v in accuracies.items() if c == row.cell and s == "val"}
        assert row.status == "finished"
        assert row.val_normalized_accuracy == pytest.approx(max(tried.values()))
        assert tried[str(row.point)] == max(tried.values())
        test = accuracies[row.cell, "test", str(row.point)]
        assert row.test_accuracy == pytest.approx(sum(test.values()) / len(test))
        assert row.test_normalized_accuracy == pytest.approx(normalized(test, "test"))
        assert row.num_failed == row.num_pruned == 0


def test_methods_differ_on_this_suite(swept):
    """Or equal numbers would prove nothing."""
    _, rows = swept
    found = {row.cell.method: row.val_accuracy for row in rows if row.cell.num_tasks == 2}
    assert len(set(found.values())) >= 7
    assert found["zero-shot"] < found["iso-c"] < found["fine-tuned"]


def test_merges_are_shared_and_released(suite, monkeypatch):
    """Alphas share one merge, settings and nested task sets one request, and nothing is left in the end."""
    requests = []
    original = serial.read_statistics

    def counting(request: Any) -> Any:
        requests.append((request.method, len(request.experts), len(request.outputs)))
        return original(request)

    monkeypatch.setattr(serial, "read_statistics", counting)
    spec = spec_of({"iso-cts": SETTINGS["iso-cts"], "ties": ALPHAS})
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    sweep = Sweep(spec, suite, cells, finished={}, on_record=lambda record: None)
    executor = SerialExecutor(WorkerSetup(suite, spec.evaluation))
    executor.run(sweep)
    assert sorted(requests) == [
        *[("fine-tuned", 1, 1)] * 3,
        ("iso-cts", 3, 4),
        ("ties", 3, 2),
    ]
    assert executor._updates == {}


@pytest.mark.parametrize("shard_images", [1, 10, 1000])
def test_shards_and_batches_change_no_count(suite, swept, shard_images):
    methods = {"iso-c": ALPHAS}
    evaluation = {"shard_images": shard_images, "batch_size": 7, "store_predictions": True}
    records, _ = run(suite, spec_of(methods, evaluation=evaluation, num_tasks=[3]))
    expected = {
        r.trial_id: [(s.task, s.correct, s.total) for s in r.scores] for r in swept[0] if r.cell.method == "iso-c"
    }
    found = {r.trial_id: [(s.task, s.correct, s.total) for s in r.scores] for r in records if r.cell.method == "iso-c"}
    assert found.keys() < expected.keys()
    assert len(found) == 6
    assert all(expected[trial_id] == scores for trial_id, scores in found.items())
    (test,) = (r for r in records if r.cell.method == "iso-c" and r.split == "test")
    for one in test.scores:
        assert one.predictions is not None
        predicted, labels = (np.frombuffer(b, "<i4") for b in (one.predictions.predicted, one.predictions.labels))
        assert labels.tolist() == open_images(suite.images_path(one.task, "test")).labels().tolist()
        assert (predicted == labels).sum() == one.correct


def test_at_most_max_images_are_scored(suite):
    records, _ = run(suite, spec_of({"iso-c": ALPHAS}, evaluation={"max_images": 9}, num_tasks=[2]))
    assert {s.total for r in records for s in r.scores} == {9}
    assert max(r.images for r in records) == 18


def test_hopeless_trials_stop_early(suite):
    """Alpha 0.1 is tried first and good; 3.0 is much worse."""
    methods = {"task-arithmetic": {"alpha": [0.1, 3.0]}}
    prune = {"after": 0.01, "margin": 0.0}
    records, _ = run(suite, spec_of(methods, num_tasks=[3], search={"batch": 1, "prune": prune}))
    pruned = [r for r in records if r.status == "pruned"]
    assert [r.point.alpha for r in pruned] == [3.0]
    assert pruned[0].images == sum(s.total for s in pruned[0].scores) < 26 + 25 + 24


def test_what_cannot_be_merged_fails_its_trials_and_the_sweep_goes_on(suite, monkeypatch):
    monkeypatch.setattr(merge_request, "MAX_OUTPUT_BYTES", 1)  # every merge by itself
    spec = spec_of({"ties": {"alpha": [0.1, 0.2], "keep": [0.2, 0.5]}, "iso-c": {"alpha": 0.3}}, num_tasks=[2])
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    records: list[TrialRecord] = []
    sweep = Sweep(spec, suite, cells, finished={}, on_record=records.append)
    executor = SerialExecutor(WorkerSetup(suite, spec.evaluation))
    computed = []
    original = executor._compute

    def refuse(group: Any) -> Any:
        (merge,) = group.merges
        computed.append((merge.method, merge.tasks, dict(merge.params)))
        if merge.params.get("keep") == 0.2:
            raise MergeInputError("these cannot be merged")
        return original(group)

    monkeypatch.setattr(executor, "_compute", refuse)
    executor.run(sweep)
    found = {(r.cell.method, r.point.params.get("keep"), r.status, r.error) for r in records if r.stage == "search"}
    assert found == {
        ("ties", 0.2, "failed", "these cannot be merged"),
        ("ties", 0.5, "finished", None),
        ("iso-c", None, "finished", None),
    }
    assert [row.status for row in summarise(records, cells, "normalized_accuracy")] == ["finished", "finished"]
    assert len(computed) == len({str(merge) for merge in computed}) == 5, "what failed is not tried again"


def test_what_cannot_be_evaluated_fails_its_trials_and_the_sweep_goes_on(tmp_path):
    """The images of a task are missing: everything that is scored on it fails, and says why."""
    suite = tiny_suite.tiny_suite(tmp_path, num_tasks=2, images=5)
    suite.images_path("Task1", "test").unlink()
    records, rows = run(suite, spec_of({"iso-c": ALPHAS, "ties": ALPHAS}, num_tasks=[2]))
    failed = [r for r in records if r.status == "failed"]
    assert {r.split for r in failed} == {"test"}
    assert {r.cell.method for r in failed} == {"zero-shot", "fine-tuned", "iso-c", "ties"}
    assert all("Task1/test.arrow: no such image file" in (r.error or "") for r in failed)
    assert {row.status for row in rows} == {"failed"}


def test_a_broken_expert_fails_what_it_is_part_of(tmp_path):
    """A preflight would find it; without, the task sets that hold it fail and the others do not."""
    suite = tiny_suite.tiny_suite(tmp_path, num_tasks=3, images=5)
    state = Recomputed(suite).experts["Task2"]
    state["model.visual.proj"] = state["model.visual.proj"].clone()
    state["model.visual.proj"][0, 0] = torch.nan
    save_state_dict(suite.expert_path(BACKBONE, "Task2"), state)
    records, rows = run(suite, spec_of({"iso-c": ALPHAS}, num_tasks=[2, 3]))
    assert {row.status for row in rows} == {"failed"}, "the references cover all tasks of the backbone"
    assert any(
        "'model.visual.proj', merged by fine-tuned: task tensor 0 of 1 has nan" in (r.error or "") for r in records
    )


def test_a_serial_sweep_repeats_to_the_bit(suite, swept):
    again, _ = run(suite, spec_of())
    first = {r.trial_id: [(s.task, s.correct) for s in r.scores] for r in swept[0]}
    assert {r.trial_id: [(s.task, s.correct) for s in r.scores] for r in again} == first
