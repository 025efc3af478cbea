"""What a sweep will do, against hand-counted trials, merges and images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raymerge.methods._method import Alpha, AlphaGrid, FixedAlpha, Interval, Method, Parameter
from raymerge.plan import Plan, make_plan
from raymerge.records import Cell, Point, Stage, Status, TaskScore, TrialRecord
from raymerge.sweep_spec import SweepSpec

ALPHA = Alpha(search=Interval(0.5, 2.0, 0.5), paper=AlphaGrid(3.0, 30))
METHODS = {
    method.name: method
    for method in (
        Method(name="zero-shot", title="", source="", alpha=FixedAlpha(0.0), kind="zero-shot"),
        Method(name="fine-tuned", title="", source="", alpha=FixedAlpha(1.0), kind="experts"),
        Method(name="average", title="", source="", alpha=FixedAlpha("1/T")),
        Method(name="plain", title="", source="", alpha=ALPHA),
        Method(
            name="shaped",
            title="",
            source="",
            alpha=ALPHA,
            parameters=(Parameter("fraction", default=0.8, search=Interval(0.2, 0.8, 0.3)),),
        ),
        Method(
            name="choosy",
            title="",
            source="",
            alpha=ALPHA,
            parameters=(Parameter("own", default=0.4, per_task=(0.2, 0.4, 0.6)),),
        ),
    )
}


@dataclass
class FakeTask:
    name: str
    images: dict[Any, int]


@dataclass
class FakeSuite:
    """Three tasks; val images 10, 20, 30, test images 100, 200, 300."""

    root: Path
    name: str = "demo"
    backbones: dict[str, Any] = field(default_factory=lambda: {"A": None, "B": None})
    tasks: list[FakeTask] = field(
        default_factory=lambda: [FakeTask(f"t{i}", {"val": 10 * i, "test": 100 * i}) for i in (1, 2, 3)]
    )

    def zero_shot_path(self, backbone: str) -> Path:
        return self.root / f"{backbone}-zero_shot.pt"

    def expert_path(self, backbone: str, task: str) -> Path:
        return self.root / f"{backbone}-{task}.pt"


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch):
    for module in ("method_settings", "sweep_spec", "plan"):
        monkeypatch.setattr(f"raymerge.{module}.declared_methods", lambda: METHODS)


@pytest.fixture
def suite(tmp_path: Path) -> FakeSuite:
    return FakeSuite(tmp_path)


def plan_of(suite: FakeSuite, *records: TrialRecord, **fields: Any) -> Plan:
    value = {"name": "x", "suite": "demo", "backbones": ["A"], "num_tasks": [2], "methods": ["plain"], **fields}
    return make_plan(SweepSpec.model_validate(value), suite, {record.trial_id: record for record in records})


def record(cell: Cell, alpha: float, split: Any = "val", status: Status = "finished", stage: Stage = "search"):
    scores = tuple(TaskScore(task, 1, 2) for task in cell.tasks)
    return TrialRecord(f"{cell}{alpha}{split}{stage}", cell, Point(alpha), stage, split, status, scores)


@pytest.mark.parametrize(
    ("method", "search", "max_trials", "max_merges"),
    [
        ("plain", {"policy": "tpe", "trials": 3}, 3, 1),
        ("plain", {"policy": "tpe", "trials": 16}, 4, 1),  # the grid of alpha has 4 points
        ("plain", {"policy": "grid", "trials": 3}, 4, 1),
        ("plain", {"policy": "paper"}, 30, 1),
        ("shaped", {"policy": "tpe", "trials": 10}, 10, 3),
        ("shaped", {"policy": "tpe", "trials": 2}, 2, 2),
        ("shaped", {"policy": "grid"}, 12, 3),
        ("shaped", {"policy": "paper"}, 30, 1),
        ("average", {"policy": "paper"}, 1, 1),
        ("choosy", {"policy": "grid"}, 4, 1 + 3 * 2),  # and one update per value and task to choose from
    ],
)
def test_trials_and_merges_of_a_cell(suite, method, search, max_trials, max_merges):
    (cell,) = plan_of(suite, methods=[method], search=search).cells
    assert (cell.max_trials, cell.max_merges) == (max_trials, max_merges)
    assert cell.max_images == (max_trials + cell.num_calibrations) * (10 + 20) + (100 + 200)
    assert cell.max_images_left == cell.max_images


def test_calibration_is_counted_and_goes_when_the_parameter_is_given(suite):
    assert plan_of(suite, methods=["choosy"]).cells[0].num_calibrations == 3
    assert plan_of(suite, methods={"choosy": {"own": 0.3}}).cells[0].num_calibrations == 0


def test_references_are_scored_once_per_backbone_and_their_cells_are_free(suite):
    plan = plan_of(suite, backbones=None, num_tasks=[1, 3], methods=["zero-shot", "fine-tuned"])
    assert [(r.backbone, r.tasks) for r in plan.references] == [("A", ("t1", "t2", "t3")), ("B", ("t1", "t2", "t3"))]
    assert [r.images for r in plan.references] == [2 * (60 + 600)] * 2
    assert [cell.max_images for cell in plan.cells] == [0] * 8
    assert plan.max_images == plan.max_images_left == 4 * 660
    assert plan.max_merges == 0


def test_max_images_limits_every_split(suite):
    plan = plan_of(suite, search={"policy": "tpe", "trials": 1}, evaluation={"max_images": 15})
    assert plan.cells[0].max_images == (10 + 15) + (15 + 15)
    assert plan.references[0].images == 2 * ((10 + 15) + (15 + 15))


def test_work_done_is_subtracted(suite):
    cell, other = Cell("A", ("t1", "t2"), "plain"), Cell("A", ("t1",), "plain")
    records = [
        record(cell, 0.5),
        record(cell, 1.0, status="pruned"),
        record(cell, 1.5, status="failed"),
        record(other, 2.0),
        record(Cell("A", ("t1", "t2"), "zero-shot"), 0.0, stage="reference"),
    ]
    plan = plan_of(suite, *records)
    (planned,) = plan.cells
    assert (planned.finished, planned.pruned, planned.failed, planned.is_tested) == (1, 1, 1, False)
    assert planned.max_images_left == 2 * 30 + 300  # a failed trial is run again
    assert plan.references[0].images - plan.references[0].images_left == 30

    (planned,) = plan_of(suite, *records, record(cell, 0.5, "test", stage="test")).cells
    assert (planned.is_tested, planned.max_images_left) == (True, 0)
    (planned,) = plan_of(suite, *records, record(cell, 0.5, "test", "failed", stage="test")).cells
    assert not planned.is_tested


def test_calibrations_done_are_not_trials(suite):
    cell = Cell("A", ("t1", "t2"), "choosy")
    (planned,) = plan_of(suite, record(cell, 1.0, stage="calibration"), methods=["choosy"]).cells
    assert planned.finished == 0
    assert planned.max_images_left == planned.max_images - 30


def test_bytes_of_checkpoints(suite):
    assert plan_of(suite).checkpoint_bytes is None
    for file, size in ((suite.zero_shot_path("A"), 5), (suite.expert_path("A", "t1"), 7)):
        file.write_bytes(b"x" * size)
    assert plan_of(suite).checkpoint_bytes is None
    suite.expert_path("A", "t2").write_bytes(b"x" * 11)
    plan = plan_of(suite, num_tasks=[1, 2])
    assert (plan.num_checkpoints, plan.checkpoint_bytes) == (3, 23)


def test_plan_as_dict_has_its_totals(suite):
    value = plan_of(suite, num_tasks=[1, 2]).as_dict()
    assert value["max_trials"] == 8
    assert value["num_cells_done"] == 0
    assert value["cells"][0]["cell"] == {"backbone": "A", "tasks": ("t1",), "method": "plain"}
