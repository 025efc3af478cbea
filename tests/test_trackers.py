"""What trackers are told: of trials as they run, by an executor of Tune's callbacks played by hand."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fake_sweep import REPORTED, score, spec_of, start
from ray.tune import Callback
from tensorboardX.proto.event_pb2 import Event

from raymerge.driver import Sweep, Trial
from raymerge.errors import SweepFileError
from raymerge.folder import Folder
from raymerge.run import with_tracker_folders
from raymerge.sweep_spec import SweepSpec, TrackerSettings, spec_hash
from raymerge.trackers import State, Tracker, TrackerCallback, check_packages, config_of, name_of, open_trackers


def tracked(spec: SweepSpec, **trackers: Any) -> SweepSpec:
    return spec.model_copy(update={"trackers": TrackerSettings.model_validate(trackers)})


class Played:
    """A sweep, the callback of its trackers, and Tune, which is played by hand."""

    def __init__(self, *trackers: Tracker):
        self.sweep: Sweep = start(spec_of(num_tasks=[4], methods=["zero-shot", "weight-averaging"]))[0]
        self.by_tune_id: dict[str, Trial] = {}
        self.callback = TrackerCallback(list(trackers), "x", self.look)

    def look(self, tune_id: str) -> State | None:
        trial = self.by_tune_id.get(tune_id)
        state = self.sweep.running_state(trial.trial_id) if trial else None
        return state and State(*state)

    def start(self, tune_id: str) -> Trial:
        trial = self.sweep.next_trial()
        assert trial is not None
        self.by_tune_id[tune_id] = trial
        self.callback.on_trial_start(0, [], SimpleNamespace(trial_id=tune_id))
        return trial

    def until(self, method: str) -> None:
        """Run the trials before those of a method."""
        while self.sweep._open[0].cell.method != method:
            played = f"before-{len(self.by_tune_id)}"
            self.start(played)
            self.result(played, REPORTED, done=True)

    def result(self, tune_id: str, tasks: tuple[str, ...], *, done: bool, error: str | None = None) -> None:
        """As Tune does it: the scheduler is not told the last one, the callbacks are."""
        trial = self.by_tune_id[tune_id]
        scores = [score(trial.weights[task], task, trial.split) for task in tasks]
        if not done:
            self.sweep.report(trial.trial_id, scores)
        result = {
            "scores": [vars(s) for s in scores],
            "trial_error": error,
            "occupancy": 0.5 if done else None,
            "done": done,
            "training_iteration": 1,
            "config": {},
        }
        self.callback.on_trial_result(0, [], SimpleNamespace(trial_id=tune_id), result)
        if not done:
            return
        if error is None:
            self.sweep.report(trial.trial_id, scores)
            self.sweep.complete(trial.trial_id)
        else:
            self.sweep.fail(trial.trial_id, error)
        self.callback.on_trial_complete(0, [], SimpleNamespace(trial_id=tune_id))


class Recorder(Callback):
    """Writes down what it is told."""

    def __init__(self, broken: str = ""):
        self.told: list[tuple[str, Any, Any]] = []
        self.broken = broken

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.tell("start", trial)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        self.tell("result", trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.tell("complete", trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.tell("error", trial)

    def tell(self, event: str, trial: Any, result: Any = None) -> None:
        if event == self.broken:
            raise ConnectionError("no server")
        self.told.append((event, str(trial), result))


def recorder(folder: Path, name: str = "recorder", broken: str = "") -> tuple[Tracker, Recorder]:
    callback = Recorder(broken)
    return Tracker(name, callback, lambda trial: folder / trial), callback


def test_a_trial_is_told_with_its_accuracies(tmp_path: Path) -> None:
    tracker, told = recorder(tmp_path)
    played = Played(tracker)
    played.until("weight-averaging")
    trial = played.start("a1")
    assert trial.cell.method == "weight-averaging"
    played.result("a1", REPORTED[:1], done=False)
    played.result("a1", REPORTED[1:], done=True)
    of_trial = [(event, result) for event, name, result in told.told if name.endswith("-a1")]
    assert [event for event, _ in of_trial] == [
        "start",
        "result",
        "result",
        "complete",
    ]
    record = played.sweep.records[trial.trial_id]
    accuracies = {s.task: s.accuracy for s in record.scores}
    first, last = of_trial[1][1], of_trial[2][1]
    assert first["accuracy"] == accuracies["T3"]
    assert first["task_accuracy"] == {"T3": accuracies["T3"]}
    assert first["training_iteration"] == first["num_scored"] == 1
    assert last["task_accuracy"] == accuracies
    assert last["accuracy"] == pytest.approx(record.average_accuracy, abs=1e-12)
    assert last["normalized_accuracy"] == pytest.approx(record.average_normalized_accuracy, abs=1e-12)
    expert = record.references["T0"].expert_accuracy
    assert last["task_normalized_accuracy"]["T0"] == accuracies["T0"] / expert
    assert (last["num_scored"], last["occupancy"], last["done"]) == (4, 0.5, True)
    assert "scores" not in last


def test_what_determines_a_trial_is_its_config() -> None:
    sweep, _ = start(spec_of(num_tasks=[2], methods={"iso-cts": {"alpha": [0.5], "common_space_fraction": [0.2]}}))
    trials = []
    while (trial := sweep.next_trial()) is not None:
        trials.append(trial)
    trial = trials[-1]
    assert config_of(trial) == {
        "trial_id": trial.trial_id,
        "backbone": "vit",
        "num_tasks": 2,
        "method": "iso-cts",
        "stage": "search",
        "split": "val",
        "alpha": 0.5,
        "common_space_fraction": 0.2,
    }
    assert name_of(trial) == "vit_2_iso-cts_val_alpha=0.5_common_space_fraction=0.2"


def test_a_failed_trial_ends_as_an_error(tmp_path: Path) -> None:
    tracker, told = recorder(tmp_path)
    played = Played(tracker)
    played.start("f1")
    played.result("f1", (), done=True, error="boom")
    assert [event for event, _, _ in told.told] == ["start", "error"]


def test_a_tracker_that_fails_is_told_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, told_before = recorder(tmp_path, "broken", broken="result")
    good, told = recorder(tmp_path, "good")
    played = Played(broken, good)
    with caplog.at_level(logging.WARNING, "raymerge.trackers"):
        for tune_id in ("r1", "r2"):
            played.start(tune_id)
            played.result(tune_id, REPORTED, done=True)
    assert [event for event, _, _ in told_before.told] == ["start"]
    assert [event for event, _, _ in told.told] == ["start", "result", "complete"] * 2
    assert caplog.messages == ["tracker broken failed and is told no more: ConnectionError: no server"]


def test_a_tracker_whose_folder_cannot_be_made_is_told_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, _ = recorder(tmp_path / "broken")
    (tmp_path / "broken").write_text("a file where a folder should be")
    good, told = recorder(tmp_path / "good", "good")
    played = Played(broken, good)
    with caplog.at_level(logging.WARNING, "raymerge.trackers"):
        played.start("r1")
        played.result("r1", REPORTED, done=True)
    assert [event for event, _, _ in told.told] == ["start", "result", "complete"]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"tracker {broken.name} failed and is told no more"
    ]


def test_the_callback_can_be_pickled(tmp_path: Path) -> None:
    assert Played(recorder(tmp_path)[0]).callback.__getstate__() == {}


# --- TensorBoard -------------------------------------------------------------------------------------------------


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in an event file: a length of 8 bytes, 4 bytes of checksum, the event, 4 bytes of checksum."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, position = path.read_bytes(), 0
    found: dict[str, list[tuple[int, float]]] = {}
    while position < len(data):
        length = int.from_bytes(data[position : position + 8], "little")
        event: Any = Event.FromString(data[position + 12 : position + 12 + length])
        position += 16 + length
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_files(tmp_path: Path) -> None:
    spec = tracked(spec_of(), tensorboard={})
    spec = with_tracker_folders(spec, Folder.at(tmp_path), is_elsewhere=False)
    played = Played(*open_trackers(spec))
    trial = played.start("t1")
    played.result("t1", REPORTED[:2], done=False)
    played.result("t1", REPORTED[2:], done=True)
    scores = {s.task: s.accuracy for s in (score(trial.weights[t], t, trial.split) for t in REPORTED)}
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == f"{name_of(trial)}-t1"
    scalars = scalars_of(folder)
    assert scalars["ray/tune/accuracy"] == [
        (2, pytest.approx((scores["T3"] + scores["T1"]) / 2, abs=1e-6)),
        (4, pytest.approx(sum(scores.values()) / 4, abs=1e-6)),
    ]
    assert scalars["ray/tune/task_accuracy/T0"] == [(4, pytest.approx(scores["T0"], abs=1e-6))]


# --- what a sweep file asks for ----------------------------------------------------------------------------------


def test_no_trackers_are_the_default_and_the_hash_ignores_them() -> None:
    assert spec_of().trackers.names == ()
    assert open_trackers(spec_of()) == []
    assert spec_hash(tracked(spec_of(), tensorboard={}, mlflow={"tracking_uri": "x"})) == spec_hash(spec_of())


def test_files_go_to_the_results_or_where_the_sweep_says(tmp_path: Path) -> None:
    spec = tracked(spec_of(), tensorboard={}, wandb={"mode": "offline"})
    placed = with_tracker_folders(spec, Folder.at(tmp_path), is_elsewhere=False).trackers
    assert placed.tensorboard is not None
    assert placed.wandb is not None
    assert (placed.tensorboard.folder, placed.wandb.folder) == (str(tmp_path / "tensorboard"), str(tmp_path))
    with pytest.raises(SweepFileError, match=r"'trackers.tensorboard' writes files where the driver runs.*\.folder'"):
        with_tracker_folders(spec, Folder.at(tmp_path), is_elsewhere=True)
    named = tracked(spec_of(), tensorboard={"folder": "/here"})
    elsewhere = with_tracker_folders(named, Folder.at(tmp_path), is_elsewhere=True).trackers
    assert elsewhere.tensorboard is not None
    assert elsewhere.tensorboard.folder == "/here"


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SweepFileError) as raised:
        check_packages(tracked(spec_of(), wandb={}).trackers)
    assert str(raised.value) == (
        "'trackers.wandb' needs the package wandb, which is not installed where the driver runs: "
        "pip install 'raymerge[wandb]', or remove the tracker."
    )
    with pytest.raises(SweepFileError, match=r"raymerge\[mlflow\]"):
        check_packages(tracked(spec_of(), mlflow={}).trackers)
    check_packages(spec_of().trackers)


class FakeIntegration(Recorder):
    """One of Ray's, whose package is not installed here."""

    made: ClassVar[list["FakeIntegration"]] = []

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = settings
        self.environment: dict[str, str] = {}
        self.made.append(self)

    def setup(self, **info: Any) -> None:
        self.environment = dict(os.environ)


def test_settings_reach_the_integrations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray.air.integrations.mlflow as mlflow
    import ray.air.integrations.wandb as wandb

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(mlflow, "MLflowLoggerCallback", FakeIntegration)
    monkeypatch.setattr(wandb, "WandbLoggerCallback", FakeIntegration)
    monkeypatch.setattr(FakeIntegration, "made", [])
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = str(tmp_path / "w")
    spec = tracked(spec_of(), mlflow={"tracking_uri": "http://x"}, wandb={"mode": "offline", "folder": folder})
    opened = open_trackers(spec)
    assert [tracker.name for tracker in opened] == ["wandb", "mlflow"]
    of_wandb, of_mlflow = FakeIntegration.made
    assert of_wandb.settings == {"project": "x", "group": "x", "mode": "offline", "dir": folder}
    assert of_wandb.environment["WANDB_MODE"] == "offline", "Ray asks for a key otherwise"
    assert "WANDB_MODE" not in os.environ
    assert of_mlflow.settings == {"tracking_uri": "http://x", "experiment_name": "x"}
    played = Played(*opened)
    played.start("m1")
    played.result("m1", REPORTED, done=True)
    assert [event for event, *_ in of_mlflow.told] == ["start", "result", "complete"]


@pytest.mark.filterwarnings("ignore")  # its own
def test_mlflow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="what mlflow keeps a local file with is not installed")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/runs.db"
    played = Played(*open_trackers(tracked(spec_of(), mlflow={"tracking_uri": uri, "experiment_name": "merging"})))
    trial = played.start("m1")
    played.result("m1", REPORTED, done=True)
    client = mlflow.tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("merging")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["method"] == trial.cell.method
    accuracies = [score(trial.weights[task], task, trial.split).accuracy for task in REPORTED]
    assert run.data.metrics["accuracy"] == pytest.approx(sum(accuracies) / 4, abs=1e-12)
    assert run.info.status == "FINISHED"


class BrokenWandb(Callback):
    def __init__(self, **settings: Any):
        self.settings = settings

    def setup(self, **info: Any) -> None:
        raise ValueError(f"No WandB API key found for {self.settings['project']}. Log in.\nSecond line")


def test_a_tracker_that_does_not_let_us_in_is_an_error_before_the_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray.air.integrations.wandb as integration

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(integration, "WandbLoggerCallback", BrokenWandb)
    with pytest.raises(SweepFileError) as raised:
        open_trackers(tracked(spec_of(), wandb={"folder": str(tmp_path), "project": "merging"}))
    assert str(raised.value) == (
        "'trackers.wandb' cannot be used (No WandB API key found for merging. Log in); set it up or remove it."
    )
