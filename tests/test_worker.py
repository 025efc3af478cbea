"""The worker on a tiny suite: shards add up, weights and updates stay resident, errors come back as outcomes."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_suite
import torch
from torch import Tensor

from raymerge import worker as worker_module
from raymerge.checkpoints import load_head, open_checkpoint
from raymerge.driver import Trial, Weights
from raymerge.errors import CheckpointError, MergeInputError, UpdateNotHereError
from raymerge.evaluation import Evaluator
from raymerge.images import open_images
from raymerge.merge_request import Merge
from raymerge.records import Cell, EvalJob, Failed, NotYet, Point, Scored
from raymerge.shards import jobs_of
from raymerge.suites import Suite, suite_from_json
from raymerge.sweep_spec import EvaluationSettings
from raymerge.worker import RESIDENT_UPDATES, EvalWorker, WorkerSetup

BACKBONE = tiny_suite.BACKBONE


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.tiny_suite(tmp_path_factory.mktemp("suite"), num_tasks=2)


def settings(**changes: Any) -> EvaluationSettings:
    return EvaluationSettings.model_validate(changes)


class Updates:
    """What `fetch` answers from; counts."""

    def __init__(self, suite: Suite):
        zero_shot = open_checkpoint(suite.zero_shot_path(BACKBONE))
        self.zero_shot = {name: zero_shot.tensor(name) for name in zero_shot.names}
        self.shards: dict[str, list[dict[str, np.ndarray]]] = {}
        self.fetched: list[str] = []

    def add(self, update_id: str, seed: int) -> dict[str, Tensor]:
        """A random update in two shards."""
        generator = torch.Generator().manual_seed(seed)
        names = [name for name in self.zero_shot if name.startswith("model.visual.")]
        update = {n: 0.1 * torch.randn(self.zero_shot[n].shape, generator=generator) for n in names}
        self.shards[update_id] = [{n: update[n].numpy() for n in part} for part in (names[:4], names[4:])]
        return update

    def __call__(self, update_id: Any) -> list[dict[str, np.ndarray]]:
        self.fetched.append(update_id)
        if update_id == "broken":
            raise MergeInputError("this update is broken")
        if update_id == "late":
            raise UpdateNotHereError
        if update_id == "too large":
            raise UpdateNotHereError("the store is full")
        return self.shards[update_id]


@pytest.fixture
def updates(suite: Suite) -> Updates:
    return Updates(suite)


def make_worker(suite: Suite, updates: Updates, **changes: Any) -> EvalWorker:
    return EvalWorker(WorkerSetup(suite, settings(**changes)), fetch=updates)


def job(**changes: Any) -> EvalJob:
    values = {
        "backbone": BACKBONE,
        "task": "Task1",
        "split": "val",
        "start": 0,
        "stop": 25,
        "weights_id": "zero",
        "alpha": 0.0,
        "update_id": None,
    }
    return EvalJob(**{**values, **changes})


def update_job(update_id: str, alpha: float = 1.0, **changes: Any) -> EvalJob:
    weights_id = f"{update_id} {alpha}"
    return job(update_id=update_id, update=update_id, alpha=alpha, weights_id=weights_id, **changes)


def correct_of(outcome: Scored | Failed) -> int:
    assert isinstance(outcome, Scored)
    return outcome.correct


def count(suite: Suite, state: dict[str, Tensor], job: EvalJob) -> int:
    """Correct answers, with no code of the worker."""
    task = suite.task(job.task)
    weight, _ = load_head(suite.head_path(BACKBONE, job.task), num_classes=len(task.classes), embed_dim=16)
    pixels, labels = open_images(suite.images_path(job.task, job.split)).read(job.start, job.stop)
    return int((tiny_suite.logits(state, weight, pixels).argmax(dim=1) == labels).sum())


@pytest.mark.parametrize("task", ["Task0", "Task1"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_counts_are_those_of_the_whole_model(suite, updates, task, split):
    update = updates.add("u", seed=1)
    worker = make_worker(suite, updates)
    whole = {"task": task, "split": split, "stop": suite.task(task).images[split]}
    for alpha in (0.0, 0.5, 1.0):
        state = {n: v + alpha * update[n] if n in update else v for n, v in updates.zero_shot.items()}
        outcome = worker.run(update_job("u", alpha, **whole))
        assert correct_of(outcome) == count(suite, state, job(**whole))
        assert outcome.total == whole["stop"]
    zero = worker.run(job(**whole))
    assert correct_of(zero) == count(suite, updates.zero_shot, job(**whole))
    expert = open_checkpoint(suite.expert_path(BACKBONE, task))
    delta = {n: (expert.tensor(n) - v).numpy() for n, v in updates.zero_shot.items()}
    updates.shards["expert"] = [delta]
    found = correct_of(worker.run(update_job("expert", **whole)))
    assert found == count(suite, {n: expert.tensor(n) for n in expert.names}, job(**whole))
    assert found > correct_of(zero), "the experts of this suite are good"


def test_predictions_are_the_classes_with_the_largest_logits(suite, updates):
    update = updates.add("u", seed=1)
    worker = make_worker(suite, updates)
    asked = update_job("u", 0.5, split="test", start=3, stop=20, with_predictions=True)
    outcome = worker.run(asked)
    assert isinstance(outcome, Scored)
    assert outcome.predictions is not None
    weight, _ = load_head(suite.head_path(BACKBONE, "Task1"), num_classes=4, embed_dim=16)
    pixels, labels = open_images(suite.images_path("Task1", "test")).read(3, 20)
    state = {n: v + 0.5 * update[n] if n in update else v for n, v in updates.zero_shot.items()}
    expected = tiny_suite.logits(state, weight, pixels).argmax(dim=1)
    assert np.frombuffer(outcome.predictions.predicted, "<i4").tolist() == expected.tolist()
    assert np.frombuffer(outcome.predictions.labels, "<i4").tolist() == labels.tolist()
    assert outcome.correct == int((expected == labels).sum())
    plain = worker.run(replace(asked, with_predictions=False))
    assert isinstance(plain, Scored)
    assert (plain.correct, plain.predictions) == (outcome.correct, None)


@pytest.mark.parametrize("shard_images", [1, 7, 25, 100])
def test_shards_add_up_to_the_split(suite, updates, shard_images):
    updates.add("u", seed=1)
    worker = make_worker(suite, updates)
    outcomes = [
        worker.run(update_job("u", start=start, stop=min(start + shard_images, 25)))
        for start in range(0, 25, shard_images)
    ]
    assert sum(correct_of(outcome) for outcome in outcomes) == correct_of(worker.run(update_job("u")))
    assert sum(o.total for o in outcomes if isinstance(o, Scored)) == 25
    assert all(o.seconds > 0 for o in outcomes if isinstance(o, Scored))


def test_equal_weights_are_set_once(suite, updates, monkeypatch):
    updates.add("u", seed=1)
    calls = []
    original = Evaluator.set_weights
    worker = make_worker(suite, updates)
    worker.ready([BACKBONE])
    monkeypatch.setattr(
        Evaluator, "set_weights", lambda self, u, alpha: (calls.append(alpha), original(self, u, alpha))
    )
    jobs = [job(), job(task="Task0"), update_job("u", 0.5), update_job("u", 0.5, split="test", stop=9)]
    jobs += [update_job("u", 1.0), update_job("u", 0.5), job()]
    counts = [correct_of(worker.run(j)) for j in jobs]
    assert calls == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert counts == [correct_of(make_worker(suite, updates).run(j)) for j in jobs], "as from fresh workers"


def test_the_last_updates_stay_resident(suite, updates):
    assert RESIDENT_UPDATES == 2
    for i, name in enumerate("abc"):
        updates.add(name, seed=i)
    worker = make_worker(suite, updates)
    for name, alpha in (("a", 0.1), ("a", 0.2), ("b", 0.1), ("a", 0.3), ("b", 0.2)):
        worker.run(update_job(name, alpha))
    assert updates.fetched == ["a", "b"]
    worker.run(update_job("c", 0.1))  # a, the first, makes place
    worker.run(update_job("b", 0.3))
    assert updates.fetched == ["a", "b", "c"]
    worker.run(update_job("a", 0.4))
    assert updates.fetched == ["a", "b", "c", "a"]


def test_read_only_updates_are_taken_and_left_alone(suite, updates):
    updates.add("u", seed=1)
    for shard in updates.shards["u"]:
        for array in shard.values():
            array.flags.writeable = False  # as Ray hands them out
    before = {name: array.copy() for shard in updates.shards["u"] for name, array in shard.items()}
    assert correct_of(make_worker(suite, updates).run(update_job("u"))) >= 0
    after = {name: array for shard in updates.shards["u"] for name, array in shard.items()}
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_failed_update_fails_the_job_and_leaves_no_weights_behind(suite, updates):
    worker = make_worker(suite, updates)
    updates.add("u", seed=3)
    expected = correct_of(worker.run(update_job("u")))
    outcome = worker.run(update_job("broken", split="test"))
    assert outcome == Failed(f"{BACKBONE}/Task1 (test): this update is broken")
    assert correct_of(worker.run(update_job("u"))) == expected
    assert correct_of(worker.run(job())) == correct_of(make_worker(suite, updates).run(job()))


def test_a_worker_that_waits_for_an_update_lets_go_of_the_others(suite, updates):
    """They lie in the store that the missing one may need room in."""
    worker = make_worker(suite, updates)
    updates.add("u", seed=3)
    expected = correct_of(worker.run(update_job("u")))
    assert worker.run(update_job("late")) == NotYet()
    assert worker.run(update_job("too large")) == NotYet("the store is full")
    assert correct_of(worker.run(update_job("u", 0.5))) >= 0
    assert updates.fetched == ["u", "late", "too large", "u"], "it was fetched again"
    assert correct_of(worker.run(update_job("u"))) == expected


def test_weights_that_were_set_by_half_are_set_again(suite, updates, monkeypatch):
    """A failure in the middle of set_weights must not leave a mixture under the old name."""
    updates.add("u", seed=3)
    worker = make_worker(suite, updates)
    expected = correct_of(worker.run(job()))
    original = Evaluator.set_weights

    def half(self: Evaluator, update: Any, alpha: float) -> None:
        original(self, update, alpha)
        raise torch.OutOfMemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "set_weights", half)
        assert worker.run(update_job("u", 9.0)) == Failed(f"{BACKBONE}/Task1 (val): no memory left")
    assert correct_of(worker.run(job())) == expected


def test_missing_files_fail_the_job(suite, updates, tmp_path):
    broken = Suite(suite.name, suite.profile, 0, tmp_path / "copy", suite.backbones, suite.tasks)
    shutil.copytree(suite.root, broken.root)
    broken.images_path("Task0", "val").unlink()
    broken.head_path(BACKBONE, "Task1").write_bytes(b"")
    worker = make_worker(broken, updates)
    images = worker.run(job(task="Task0"))
    assert isinstance(images, Failed)
    assert images.error.startswith(f"{BACKBONE}/Task0 (val): {broken.images_path('Task0', 'val')}: no such image file")
    head = worker.run(job())
    assert isinstance(head, Failed)
    assert "head_Task1Val.pt" in head.error
    assert correct_of(worker.run(job(task="Task0", split="test", stop=5))) >= 0, "the worker goes on"
    broken.zero_shot_path(BACKBONE).unlink()
    fresh = make_worker(broken, updates)
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        fresh.ready([BACKBONE])
    outcome = fresh.run(job())
    assert isinstance(outcome, Failed)
    assert "nonlinear_zeroshot.pt" in outcome.error


def test_bugs_are_not_outcomes(suite, updates):
    with pytest.raises(KeyError):
        make_worker(suite, updates).run(update_job("never published"))


def test_ready_names_the_device(suite, updates):
    worker = make_worker(suite, updates)
    expected = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    assert worker.ready([]) == worker.ready([BACKBONE]) == expected


@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_are_set(suite, updates, num_threads):
    torch.set_num_threads(3)
    EvalWorker(WorkerSetup(suite, settings(), num_threads), fetch=updates)
    assert torch.get_num_threads() == num_threads
    assert WorkerSetup(suite, settings()).num_threads == 1


@pytest.mark.parametrize(
    ("given", "measured", "expected"),
    [
        ("auto", {}, None),
        (7, {}, 7),
        ("auto", {BACKBONE: 32}, 32),
        (7, {BACKBONE: 32}, 7),
        ("auto", {"other": 32}, None),
    ],
)
def test_settings_reach_the_evaluator(suite, updates, monkeypatch, given, measured, expected):
    seen: dict[str, Any] = {}

    class Recording(Evaluator):
        def __init__(self, *args: Any, **kwargs: Any):
            seen.update(kwargs)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(worker_module, "Evaluator", Recording)
    setup = WorkerSetup(suite, settings(batch_size=given, precision="bf16"), batch_sizes=measured)
    EvalWorker(setup, fetch=updates).ready([BACKBONE])
    assert seen["batch_size"] == expected
    assert seen["precision"] == "bf16"
    assert (seen["mean"], seen["std"]) == (tiny_suite.MEAN, tiny_suite.STD)


def test_images_are_not_copied(suite, updates, monkeypatch):
    seen: list[Tensor] = []
    original = Evaluator.encode
    monkeypatch.setattr(Evaluator, "encode", lambda self, images: (seen.append(images), original(self, images))[1])
    worker = make_worker(suite, updates)
    whole, part = correct_of(worker.run(job())), correct_of(worker.run(job(start=5, stop=25)))
    assert part <= whole
    assert seen[1].data_ptr() == seen[0].data_ptr() + 5 * seen[0][0].numel(), "both are the mapped file"


def test_a_worker_that_runs_out_of_memory_goes_on_with_half_the_batch(suite, updates, monkeypatch):
    expected = correct_of(make_worker(suite, updates).run(job()))
    sizes: list[int] = []
    original = Evaluator._features

    def features(self: Evaluator, images: Tensor) -> Tensor:
        sizes.append(len(images))
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, images)

    monkeypatch.setattr(Evaluator, "_features", features)
    worker, room = make_worker(suite, updates, batch_size=16), 5
    outcomes = [worker.run(job()), worker.run(job(split="test", stop=9))]
    assert correct_of(outcomes[0]) == expected
    assert isinstance(outcomes[1], Scored)
    assert (outcomes[0].total, outcomes[1].total) == (25, 9)
    assert sizes == [16, 8, 4, 4, 4, 4, 4, 4, 1, 4, 4, 1]
    room = 0
    failed = worker.run(job())
    assert failed == Failed(
        f"{BACKBONE}/Task1 (val): cpu: no memory for one image at a time (CUDA out of memory); free some, or let "
        "fewer evaluators share it."
    )


# --- shards of trials -----------------------------------------------------------------------------------------------


def trial(split: Any = "val") -> Trial:
    merge = Merge(BACKBONE, ("Task0", "Task1"), "iso-c")
    weights = {"Task1": Weights(BACKBONE, merge, 0.7), "Task0": Weights(BACKBONE)}
    cell = Cell(BACKBONE, ("Task0", "Task1"), "iso-c")
    return Trial("id", cell, Point(0.7), "search", split, 0, 0, weights)


def test_shards_of_a_trial(suite):
    """Of 24 and 25 images."""
    jobs = list(jobs_of(trial(), ["Task1", "Task0"], suite, settings(shard_images=10)))
    assert [(j.task, j.start, j.stop) for j in jobs] == [
        *(("Task1", 0, 10), ("Task1", 10, 20), ("Task1", 20, 25)),
        *(("Task0", 0, 10), ("Task0", 10, 20), ("Task0", 20, 24)),
    ]
    weights = trial().weights
    merge = weights["Task1"].merge
    assert merge
    assert {(j.task, j.backbone, j.split, j.weights_id, j.alpha, j.update_id, j.update) for j in jobs} == {
        ("Task1", BACKBONE, "val", weights["Task1"].weights_id, 0.7, merge.merge_id, None),
        ("Task0", BACKBONE, "val", weights["Task0"].weights_id, 0.0, None, None),
    }


@pytest.mark.parametrize(("limit", "expected"), [(None, [(0, 12), (12, 24)]), (5, [(0, 5)]), (24, [(0, 12), (12, 24)])])
def test_at_most_max_images(suite, limit, expected):
    jobs = jobs_of(trial("test"), ["Task1"], suite, settings(shard_images=12, max_images=limit))
    assert [(j.start, j.stop) for j in jobs] == expected
    assert [j.stop for j in jobs_of(trial(), ["Task1"], suite, settings(max_images=1000))] == [25]


def test_the_tiny_suite_is_reproducible(suite, tmp_path):
    again = tiny_suite.tiny_suite(tmp_path, num_tasks=2)
    files = sorted(path.relative_to(suite.root) for path in suite.root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    states = [open_checkpoint(s.expert_path(BACKBONE, "Task1")) for s in (suite, again)]
    assert all(torch.equal(states[0].tensor(name), states[1].tensor(name)) for name in states[0].names)
    assert suite_from_json(tiny_suite.description(2, 24, 0), tmp_path) == again
    assert again.is_prepared
