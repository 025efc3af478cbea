"""Trials shown in TensorBoard, Weights & Biases or MLflow, through the integrations that Ray Tune brings.

Those take a Tune trial and a result of flat numbers. What Tune has is less: an id, and counts of images. So they are
given a stand-in for the trial, with all that is known of it, and a result with accuracies in it.
"""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune import Callback

from raymerge.driver import Trial
from raymerge.errors import SweepFileError, first_line
from raymerge.records import TaskReference, TaskScore
from raymerge.sweep_spec import SweepSpec, TrackerSettings

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
"""What each of them imports."""
INSTALL = {"tensorboard": "ray[tune]", "wandb": "raymerge[wandb]", "mlflow": "raymerge[mlflow]"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """A running trial: the scores so far, and what they are compared with as far as that is known."""

    trial: Trial
    scores: Mapping[str, TaskScore] = field(default_factory=dict)
    references: Mapping[str, TaskReference] = field(default_factory=dict)


Look = Callable[[str], State | None]
"""The state of a trial by Tune's id; None when it is over."""


def check_packages(trackers: TrackerSettings) -> None:
    """
    Raises:
        SweepFileError: a tracker is wanted whose package is not installed.
    """
    for name in trackers.names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise SweepFileError(
                f"'trackers.{name}' needs the package {PACKAGES[name]}, which is not installed where the driver runs: "
                f"pip install '{INSTALL[name]}', or remove the tracker."
            )


def open_trackers(spec: SweepSpec) -> list["Tracker"]:
    """Those that the sweep asks for, set up and ready.

    Raises:
        SweepFileError: a package is missing, or one does not let us in.
    """
    settings = spec.trackers
    check_packages(settings)
    opened = []
    for name in settings.names:
        try:
            opened.append(_OPEN[name](getattr(settings, name), spec.name))
        except Exception as error:  # whatever its package raises where a key or a server is missing
            why = first_line(error)
            raise SweepFileError(f"'trackers.{name}' cannot be used ({why}); set it up or remove it.") from error
    return opened


@dataclass
class Tracker:
    """One integration of Ray Tune."""

    name: str
    callback: Callback
    folder: Callable[[str], Path]
    """Where it may write files of a trial."""


def _tensorboard(settings: Any, sweep: str) -> Tracker:
    from ray.tune.logger import TBXLoggerCallback

    root = Path(settings.folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    return Tracker("tensorboard", TBXLoggerCallback(), lambda name: root / name)


def _wandb(settings: Any, sweep: str) -> Tracker:
    from ray.air.integrations.wandb import WandbLoggerCallback

    root = Path(settings.folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    callback = WandbLoggerCallback(
        project=settings.project or os.environ.get("WANDB_PROJECT") or sweep,
        group=settings.group or sweep,
        **({"entity": settings.entity} if settings.entity else {}),
        mode=settings.mode,
        dir=str(root),
    )
    with _wandb_mode(settings.mode):
        callback.setup()
    return Tracker("wandb", callback, lambda name: root)


@contextlib.contextmanager
def _wandb_mode(mode: str) -> Iterator[None]:
    """Ray looks for the mode in the environment alone when it asks for a key."""
    before = os.environ.get("WANDB_MODE")
    if mode != "online":
        os.environ["WANDB_MODE"] = mode
    try:
        yield
    finally:
        if mode != "online":
            os.environ.pop("WANDB_MODE")
            if before is not None:
                os.environ["WANDB_MODE"] = before


def _mlflow(settings: Any, sweep: str) -> Tracker:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    callback = MLflowLoggerCallback(
        tracking_uri=settings.tracking_uri, experiment_name=settings.experiment_name or sweep
    )
    callback.setup()
    return Tracker("mlflow", callback, lambda name: Path.cwd())


_OPEN: Mapping[str, Callable[[Any, str], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


@dataclass(eq=False)
class StandIn:
    """What the integrations ask of a Tune trial."""

    trial_id: str
    name: str
    config: dict[str, Any]
    local_path: str
    experiment_dir_name: str

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.name


class TrackerCallback(Callback):
    """Tells trackers of the trials of a sweep. One that raises is told no more; the sweep goes on."""

    def __init__(self, trackers: Sequence[Tracker], sweep: str, look: Look):
        self._trackers = list(trackers)
        self._sweep = sweep
        self._look = look
        self._stand_ins: dict[tuple[str, str], StandIn] = {}
        """By tracker and Tune's id."""
        self._failed: set[str] = set()
        """Tune's ids of trials that failed without their process dying."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its configuration for a `Tuner.restore` that nobody calls

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        state = self._look(trial.trial_id)
        if state is None:
            return
        name = f"{name_of(state.trial)}-{trial.trial_id}"
        for tracker in list(self._trackers):
            with self._guarded(tracker):
                stand_in = StandIn(trial.trial_id, name, config_of(state.trial), str(tracker.folder(name)), self._sweep)
                stand_in.init_local_path()
                self._stand_ins[tracker.name, trial.trial_id] = stand_in
            self._tell(tracker, "on_trial_start", trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        state = self._look(trial.trial_id)
        if state is None:
            return
        if result.get("trial_error"):
            self._failed.add(trial.trial_id)
            return
        shown = shown_result(state, result)
        for tracker in list(self._trackers):
            self._tell(tracker, "on_trial_result", trial.trial_id, result=dict(shown))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial.trial_id, "on_trial_error" if trial.trial_id in self._failed else "on_trial_complete")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial.trial_id, "on_trial_error")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for tracker in list(self._trackers):
            with self._guarded(tracker):
                tracker.callback.on_experiment_end(trials=[])

    def _end(self, tune_id: str, event: str) -> None:
        self._failed.discard(tune_id)
        for tracker in list(self._trackers):
            self._tell(tracker, event, tune_id)
            self._stand_ins.pop((tracker.name, tune_id), None)

    def _tell(self, tracker: Tracker, event: str, tune_id: str, **more: Any) -> None:
        stand_in: Any = self._stand_ins.get((tracker.name, tune_id))
        if stand_in is None:
            return
        with self._guarded(tracker):
            getattr(tracker.callback, event)(iteration=0, trials=[], trial=stand_in, **more)

    @contextlib.contextmanager
    def _guarded(self, tracker: Tracker) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._trackers.remove(tracker)
            logger.warning("tracker %s failed and is told no more: %s: %s", tracker.name, type(error).__name__, error)


def name_of(trial: Trial) -> str:
    """What a trial is called where people read it; also the name of a folder."""
    point = trial.point.as_dict()
    shown = "_".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()
    )
    text = f"{trial.cell.backbone}_{trial.cell.num_tasks}_{trial.cell.method}_{trial.split}_{shown}"
    return "".join(c if c.isalnum() or c in "._=-" else "-" for c in text)[:120]


def config_of(trial: Trial) -> dict[str, Any]:
    """What determines a trial, flat, as trackers show it."""
    point = trial.point.as_dict()
    return {
        "trial_id": trial.trial_id,
        "backbone": trial.cell.backbone,
        "num_tasks": trial.cell.num_tasks,
        "method": trial.cell.method,
        "stage": trial.stage,
        "split": trial.split,
        # a list has no axis in any of them
        **{key: str(value) if isinstance(value, list) else value for key, value in point.items()},
    }


def shown_result(state: State, result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of Tune with accuracies in it: of every task scored so far, and their averages."""
    shown = {key: result[key] for key in ("done", "time_total_s") if key in result}
    scores = {**state.scores, **{score["task"]: TaskScore(**score) for score in result.get("scores", ())}}
    accuracies = {task: scores[task].accuracy for task in state.trial.weights if task in scores}
    experts = {
        task: state.references[task].expert_accuracy
        for task in accuracies
        if task in state.references and state.references[task].expert_accuracy > 0
    }
    normalized = {task: accuracies[task] / expert for task, expert in experts.items()}
    if accuracies:
        shown |= {"accuracy": sum(accuracies.values()) / len(accuracies), "task_accuracy": accuracies}
    if normalized and len(normalized) == len(accuracies):
        shown |= {
            "normalized_accuracy": sum(normalized.values()) / len(normalized),
            "task_normalized_accuracy": normalized,
        }
    if result.get("occupancy") is not None:
        shown["occupancy"] = result["occupancy"]
    # Tune counts the reports of a trial; what a curve is drawn over here is the number of tasks
    return shown | {"num_scored": len(accuracies), "training_iteration": len(accuracies)}
