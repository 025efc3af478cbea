"""What a sweep will do and what it has done, computed without torch, ray or optuna."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from raymerge.methods import declared_methods
from raymerge.methods._method import Method
from raymerge.records import SPLITS, Cell, Split, TrialRecord
from raymerge.search_space import search_space, sweep_cells
from raymerge.sweep_spec import SweepSpec


@runtime_checkable
class TaskInfo(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def images(self) -> Mapping[Split, int]: ...


@runtime_checkable
class SuiteInfo(Protocol):
    """The part of raymerge.suites.Suite that a plan needs."""

    @property
    def name(self) -> str: ...
    @property
    def backbones(self) -> Mapping[str, Any]: ...
    @property
    def tasks(self) -> Sequence[TaskInfo]: ...
    def zero_shot_path(self, backbone: str) -> Path: ...
    def expert_path(self, backbone: str, task: str) -> Path: ...


@runtime_checkable
class SweepInfo(Protocol):
    """The part of raymerge.driver.Sweep that a view needs; the driver itself takes seconds to import."""

    @property
    def spec(self) -> SweepSpec: ...
    @property
    def suite(self) -> SuiteInfo: ...
    @property
    def records(self) -> Mapping[str, TrialRecord]: ...
    def finished_cells(self) -> list[Cell]:
        """In the order in which they ended."""
        ...


def reference_methods() -> tuple[str, ...]:
    """Scored once per backbone and task; their cells cost nothing beyond that."""
    return tuple(name for name, method in declared_methods().items() if method.is_reference)


@dataclass(frozen=True)
class CellPlan:
    """One cell: at most this much work, and how much of it has been done."""

    cell: Cell
    max_trials: int
    """The most trials the policy can run; pruning and patience end a cell sooner."""
    num_calibrations: int
    """Trials in which every task chooses its own parameter."""
    max_merges: int
    """The most merged updates that these trials need."""
    max_images: int
    """The most images to put through the encoder, val and test."""
    finished: int = 0
    pruned: int = 0
    failed: int = 0
    is_tested: bool = False
    """Whether its best trial has been scored on the test split, which ends a cell."""
    max_images_left: int = 0


@dataclass(frozen=True)
class ReferencePlan:
    """The zero-shot and fine-tuned accuracies of one backbone, which everything else is compared with."""

    backbone: str
    tasks: tuple[str, ...]
    images: int
    images_left: int


@dataclass(frozen=True)
class Plan:
    name: str
    cells: tuple[CellPlan, ...]
    references: tuple[ReferencePlan, ...]
    num_checkpoints: int
    """Zero-shot and expert checkpoints to read."""
    checkpoint_bytes: int | None
    """Their size; None while some are not on disk."""

    @property
    def max_trials(self) -> int:
        return sum(cell.max_trials for cell in self.cells)

    @property
    def max_merges(self) -> int:
        return sum(cell.max_merges for cell in self.cells)

    @property
    def max_images(self) -> int:
        return sum(r.images for r in self.references) + sum(cell.max_images for cell in self.cells)

    @property
    def max_images_left(self) -> int:
        return sum(r.images_left for r in self.references) + sum(cell.max_images_left for cell in self.cells)

    @property
    def num_cells_done(self) -> int:
        return sum(cell.is_tested for cell in self.cells)

    def as_dict(self) -> dict[str, Any]:
        """JSON-like, totals included."""
        totals = ("max_trials", "max_merges", "max_images", "max_images_left", "num_cells_done")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in totals}}


def make_plan(spec: SweepSpec, suite: SuiteInfo, finished: Mapping[str, TrialRecord]) -> Plan:
    """The plan of a sweep whose records so far are `finished`, by trial id.

    Raises:
        SweepFileError: the sweep names a backbone or task that the suite lacks.
    """
    cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
    declared = declared_methods()
    limit = spec.evaluation.max_images
    sizes: dict[Split, dict[str, int]] = {
        split: {t.name: t.images[split] if limit is None else min(limit, t.images[split]) for t in suite.tasks}
        for split in SPLITS
    }
    by_cell: dict[Cell, list[TrialRecord]] = {cell: [] for cell in cells}
    for record in finished.values():
        by_cell.get(record.cell, []).append(record)
    plans = [_plan_cell(cell, declared[cell.method], spec, sizes, by_cell[cell]) for cell in cells]
    references = [
        _plan_references(backbone, cells, suite.tasks, sizes, finished)
        for backbone in dict.fromkeys(cell.backbone for cell in cells)
    ]
    files = [suite.zero_shot_path(r.backbone) for r in references]
    files += [suite.expert_path(r.backbone, task) for r in references for task in r.tasks]
    num_bytes = sum(file.stat().st_size for file in files) if all(file.is_file() for file in files) else None
    return Plan(spec.name, tuple(plans), tuple(references), len(files), num_bytes)


def _plan_cell(
    cell: Cell,
    method: Method,
    spec: SweepSpec,
    sizes: Mapping[Split, Mapping[str, int]],
    records: Sequence[TrialRecord],
) -> CellPlan:
    space = search_space(spec, method, cell.num_tasks)
    limit = spec.search.trials if spec.search.policy == "tpe" else space.num_points
    max_trials = int(min(limit, space.num_points))
    num_calibrations = int(space.per_task.size) if space.per_task else 0
    val_images, test_images = (
        0 if method.is_reference else sum(sizes[split][t] for t in cell.tasks) for split in SPLITS
    )
    updates_per_merge = cell.num_tasks if method.has_update_per_task else 1
    max_merges = int(min(max_trials, space.num_merges)) * updates_per_merge + num_calibrations * cell.num_tasks

    calibrated = sum(r.stage == "calibration" and r.status == "finished" for r in records)
    status = Counter(r.status for r in records if r.split == "val" and r.stage != "calibration")
    is_tested = any(r.split == "test" and r.status == "finished" for r in records)
    trials_left = max(0, max_trials - status["finished"] - status["pruned"])
    calibrations_left = max(0, num_calibrations - calibrated)
    return CellPlan(
        cell=cell,
        max_trials=max_trials,
        num_calibrations=num_calibrations,
        max_merges=0 if method.is_reference else max_merges,
        max_images=(max_trials + num_calibrations) * val_images + test_images,
        finished=status["finished"],
        pruned=status["pruned"],
        failed=status["failed"],
        is_tested=is_tested,
        max_images_left=0 if is_tested else (trials_left + calibrations_left) * val_images + test_images,
    )


def _plan_references(
    backbone: str,
    cells: Sequence[Cell],
    suite_tasks: Sequence[TaskInfo],
    sizes: Mapping[Split, Mapping[str, int]],
    finished: Mapping[str, TrialRecord],
) -> ReferencePlan:
    used = {task for cell in cells if cell.backbone == backbone for task in cell.tasks}
    tasks = tuple(task.name for task in suite_tasks if task.name in used)
    wanted = {(m, split, task): sizes[split][task] for m in reference_methods() for split in SPLITS for task in tasks}
    scored = {
        (record.cell.method, record.split, score.task)
        for record in finished.values()
        if record.cell.backbone == backbone and record.status == "finished"
        for score in record.scores
    }
    left = sum(images for key, images in wanted.items() if key not in scored)
    return ReferencePlan(backbone, tasks, sum(wanted.values()), left)
