"""The views of a running sweep against a driver played by hand, with a clock that is moved by hand."""

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raymerge.dispatcher import Observation, Working
from raymerge.progress import Lines, LiveView, Silent, StderrConsole, duration, watching
from raymerge.records import Cell, Point, ServiceStats, Split, Stage, Status, TaskReference, TaskScore, TrialRecord
from raymerge.sweep_spec import SweepSpec
from raymerge.tally import MIN_RATE_RECORDS, RATE_WINDOW_S, Tally

T2, T3 = ("t1", "t2"), ("t1", "t2", "t3")


@dataclass
class FakeTask:
    name: str
    images: Mapping[Split, int]


@dataclass
class FakeSuite:
    """Three tasks; val images 10, 20, 30, test images 100, 200, 300."""

    name: str = "fake"
    backbones: Mapping[str, Any] = field(default_factory=lambda: {"A": None})
    tasks: list[FakeTask] = field(
        default_factory=lambda: [FakeTask(f"t{i}", {"val": 10 * i, "test": 100 * i}) for i in (1, 2, 3)]
    )

    def zero_shot_path(self, backbone: str) -> Path:
        return Path("missing")

    def expert_path(self, backbone: str, task: str) -> Path:
        return Path("missing")


@dataclass
class FakeSweep:
    spec: SweepSpec
    suite: FakeSuite = field(default_factory=FakeSuite)
    records: dict[str, TrialRecord] = field(default_factory=dict)
    ended: list[Cell] = field(default_factory=list)

    def finished_cells(self) -> list[Cell]:
        return self.ended


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def spec(**changes: Any) -> SweepSpec:
    value = {
        "name": "x",
        "suite": "demo",
        "num_tasks": [2],
        "methods": ["zero-shot", "task-arithmetic", "iso-c"],
        "search": {"trials": 4},
    }
    return SweepSpec.model_validate(value | changes)


def record(
    method: str = "iso-c",
    tasks: tuple[str, ...] = T2,
    *,
    alpha: float = 1.0,
    correct: int = 5,
    split: Split = "val",
    status: Status = "finished",
    stage: Stage = "search",
    backbone: str = "A",
    images: int = 30,
) -> TrialRecord:
    scores = () if status == "failed" else tuple(TaskScore(task, correct, 10) for task in tasks)
    return TrialRecord(
        trial_id=f"{backbone}{tasks}{method}{alpha}{split}{stage}",
        cell=Cell(backbone, tasks, method),
        point=Point(alpha),
        stage="test" if split == "test" and stage == "search" else stage,
        split=split,
        status=status,
        scores=scores,
        references={score.task: TaskReference(0.8, 0.1) for score in scores},
        images=images,
        error="boom" if status == "failed" else None,
    )


# --- tally -------------------------------------------------------------------------------------------------------


def test_images_left_by_hand():
    tally = Tally(FakeSweep(spec()), Clock())
    # two merging cells: 4 trials on 10 + 20 images and one test on 100 + 200; references: twice 30 + 300
    assert tally.images_left == 2 * (4 * 30 + 300) + 660
    tally.add(record(images=0))  # known scores cost nothing, and yet one trial fewer is left
    assert tally.images_left == 1500 - 30
    tally.add(record(alpha=2.0, status="pruned", images=10))
    assert tally.images_left == 1500 - 60
    tally.add(record(alpha=3.0, status="failed", images=0))
    assert tally.images_left == 1500 - 60
    tally.add(record("zero-shot", T3, stage="reference", images=60))
    assert tally.images_left == 1500 - 120
    tally.add(record(split="test", images=300))  # its two other trials will never run
    assert tally.images_left == 1500 - 60 - 420
    assert tally.trials == {"finished": 3, "pruned": 1, "failed": 1}


def test_max_images_counts():
    tally = Tally(FakeSweep(spec(evaluation={"max_images": 15})), Clock())
    before = tally.images_left
    tally.add(record())
    assert before - tally.images_left == 10 + 15


def test_a_cell_is_finished_by_its_test_or_by_the_driver():
    sweep = FakeSweep(spec())
    tally = Tally(sweep, Clock())
    assert tally.add(record()) == []
    assert tally.add(record(split="test")) == [Cell("A", T2, "iso-c")]
    sweep.ended = [Cell("A", T2, "iso-c"), Cell("A", T2, "task-arithmetic")]  # the second without any test
    assert tally.add(record("zero-shot")) == [Cell("A", T2, "task-arithmetic")]
    assert tally.add(record("zero-shot", T3, split="test", stage="reference")) == []  # not a cell of the sweep
    assert tally.add(record("zero-shot", split="test")) == [Cell("A", T2, "zero-shot")]
    assert len(tally.finished) == len(tally.cells) == 3


def test_what_earlier_runs_did_is_counted_but_not_as_speed():
    earlier = [record(), record(split="test", images=300), record("task-arithmetic", correct=7)]
    sweep = FakeSweep(spec(), records={r.trial_id: r for r in earlier})
    clock = Clock()
    tally = Tally(sweep, clock)
    assert tally.finished == {Cell("A", T2, "iso-c")}
    assert tally.trials["finished"] == 3
    assert tally.images_left == (3 * 30 + 300) + 660
    clock.now += 10
    assert tally.images_per_s == 0
    assert tally.left_s is None
    assert tally.leaders() == {("A", 2): [("Task Arithmetic", 0.7), ("Iso-C", 0.5)]}


def test_speed_is_that_of_the_last_seconds():
    clock = Clock()
    tally = Tally(FakeSweep(spec()), clock)
    assert tally.images_per_s == 0
    for _ in range(MIN_RATE_RECORDS):
        clock.now += 1
        tally.add(record(images=100))
    assert tally.images_per_s == 100
    clock.now += 8
    assert tally.images_per_s == 50  # nothing has come since
    clock.now += 100
    for _ in range(40):
        clock.now += 1
        tally.add(record(images=7))
    assert tally.images_per_s == 7


def test_speed_of_trials_that_take_longer_than_the_window():
    clock = Clock()
    tally = Tally(FakeSweep(spec()), clock)
    for _ in range(3 * MIN_RATE_RECORDS):
        clock.now += 60
        tally.add(record(images=600))
    assert tally.images_per_s == 10


def test_time_left_goes_on_at_the_pace_so_far():
    clock = Clock()
    tally = Tally(FakeSweep(spec()), clock)
    tally.add(record(images=300))
    assert tally.left_s is None  # too early to tell
    clock.now += 15
    assert tally.left_s == 15 * (1500 - 30) / 30
    tally.add(record(split="test"))
    assert tally.left_s == 15 * (1500 - 420) / 420


def observation(busy_s: float, present_s: float) -> Observation:
    return Observation(ServiceStats(2, 1, 5, images=30, busy_s=busy_s, present_s=present_s), (Working("a-1"),))


def test_occupancy_is_that_of_the_last_seconds():
    clock = Clock()
    tally = Tally(FakeSweep(spec()), clock)
    assert tally.occupancy is None
    tally.observe(Observation(ServiceStats()), {})
    assert tally.occupancy is None
    for second in range(100):  # all busy at first, half of the time later
        clock.now += 1
        busy = 2 * min(second, 50) + max(0, second - 50)
        tally.observe(observation(float(busy), 2.0 * second), {"a-1": "a"})
    assert tally.occupancy == 0.5
    assert (tally.stats.num_queued, tally.working[0].evaluator, tally.hosts) == (5, "a-1", {"a-1": "a"})
    assert len(tally._observed) <= RATE_WINDOW_S + 1


def test_leaders_are_the_best_finished_merging_methods_by_column():
    tally = Tally(FakeSweep(spec(num_tasks=[3, 2], methods=["fine-tuned", "iso-c", "ties", "tsv-m"])), Clock())
    for r in [
        record("iso-c", correct=5),
        record("iso-c", alpha=2.0, correct=4),
        record("ties", correct=6),
        record("tsv-m", correct=9, status="pruned"),
        record("tsv-m", correct=9, stage="calibration"),
        record("tsv-m", correct=9, split="test"),
        record("fine-tuned", correct=10),
        record("tsv-m", T3, correct=3),
    ]:
        tally.add(r)
    assert tally.leaders() == {("A", 3): [("TSV-M", 0.3)], ("A", 2): [("TIES", 0.6), ("Iso-C", 0.5)]}
    assert list(tally.leaders()) == [("A", 3), ("A", 2)], "in the order of the sweep file"


def test_leaders_are_ranked_by_the_objective():
    def with_expert(method: str, correct: int, expert: float) -> TrialRecord:
        scores = (TaskScore("t1", correct, 10),)
        found = record(method, ("t1",))
        return TrialRecord(**{**vars(found), "scores": scores, "references": {"t1": TaskReference(expert, 0.1)}})

    for objective, first in (("normalized_accuracy", "Iso-C"), ("accuracy", "TIES")):
        sweep = FakeSweep(spec(num_tasks=[1], methods=["iso-c", "ties"], search={"objective": objective}))
        tally = Tally(sweep, Clock())
        tally.add(with_expert("iso-c", 5, 0.5))
        tally.add(with_expert("ties", 6, 1.0))
        assert tally.leaders()["A", 1][0][0] == first


# --- plain lines -------------------------------------------------------------------------------------------------


def lines_of(console: Console) -> list[str]:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_plain_lines():
    clock, console = Clock(), Console(file=io.StringIO(), width=40)
    sweep = FakeSweep(spec())
    lines = Lines(console, clock)
    lines.stage("starting Ray")
    lines.stage("preparing the suite")
    lines.preparing("pre-training", 0.1)  # too soon
    clock.now += 5
    lines.preparing("fine-tuning, 3 of 20 experts", 0.25)
    lines.preparing("fine-tuning, 4 of 20 experts", 0.3)
    lines.trial(record(alpha=9.0))  # one that is closed while the driver starts
    lines.sweeping(sweep, "cpu", 2)
    for second in range(1, 8):
        clock.now += 1
        lines.trial(record(alpha=float(second)))
    lines.trial(record(split="test", correct=6))
    sweep.ended = [Cell("A", T2, "task-arithmetic")]
    lines.trial(record("task-arithmetic", status="failed"))
    clock.now += 60
    lines.close()
    assert lines_of(console) == [
        "starting Ray",
        "preparing the suite",
        "preparing the suite: fine-tuning, 3 of 20 experts, 25%",
        "sweeping 3 cells with 2 evaluators on cpu",
        "0 of 3 cells, 5 trials finished, 0 pruned, 0 failed, 30 images/s, about 45 s left",
        "A/2 tasks/iso-c: 60.0% on test",
        "A/2 tasks/task-arithmetic ended",
        "2 of 3 cells, 8 trials finished, 0 pruned, 1 failed, in 1 min 12 s",
    ]


def test_lines_of_a_sweep_that_is_continued():
    console = Console(file=io.StringIO())
    tested = record(split="test")
    Lines(console).sweeping(FakeSweep(spec(), records={tested.trial_id: tested}), "cpu", 1)
    assert lines_of(console) == ["sweeping 3 cells, 1 of them done, with 1 evaluator on cpu"]


# --- the live view -----------------------------------------------------------------------------------------------


def drawn(view: LiveView, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(view.render())
    return [line.rstrip() for line in lines_of(console)]


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=24)


def test_live_view(terminal):
    clock, sweep = Clock(), FakeSweep(spec())
    view = LiveView(terminal, clock)
    try:
        view.stage("preparing the suite")
        clock.now += 65
        view.preparing("fine-tuning, 3 of 20 experts", 0.25)
        stage, bar, detail = drawn(view)
        assert stage == "preparing the suite, 1 min 5 s"
        assert bar == "━" * 10 + " " * 32 + "25%"
        assert detail == "fine-tuning, 3 of 20 experts"
        view.trial(record(alpha=9.0))  # one that is closed while the driver starts
        view.sweeping(sweep, "cpu", 2)
        assert drawn(view)[1].endswith("0 of 3 cells")
        assert len(drawn(view)) == 4
        clock.now += 10
        view.trial(record(correct=6, images=300))
        view.trial(record("task-arithmetic", correct=7, images=0))
        view.trial(record(split="test", correct=6, images=0))
        stage, bar, trials, speed, gap, title, leaders = drawn(view)
        assert stage == "sweeping with 2 evaluators on cpu, 1 min 15 s"
        assert bar.endswith("1 of 3 cells")
        assert trials == "3 trials finished, 0 pruned, 0 failed"
        assert speed == "30 images/s, about 23 s left"  # 10 s for 450 of 1500
        view.observed(observation(0.93, 1.0), {"a-1": "a"})
        assert drawn(view)[3] == "30 images/s, 93% busy, about 23 s left"
        assert (gap, title) == ("", "best so far, validation accuracy in %")
        assert leaders.split("  ") == ["2 tasks", "Task Arithmetic 70.0", "Iso-C 60.0"]
    finally:
        view.close()
    assert terminal.file.getvalue().endswith("1 of 3 cells, 3 trials finished, 0 pruned, 0 failed, in 1 min 15 s\n")


def test_live_view_fits_a_small_terminal(terminal):
    suite = FakeSuite(backbones={f"a-long-backbone-name-{i}": None for i in range(7)})
    sizes = [1, 2, 3]
    methods = ["iso-c", "ties", "consensus-ta", "task-arithmetic"]
    sweep = FakeSweep(spec(num_tasks=sizes, methods=methods), suite)
    for backbone in suite.backbones:
        for size in sizes:
            for method in methods:
                r = record(method, T3[:size], backbone=backbone)
                sweep.records[r.trial_id] = r
    view = LiveView(terminal)
    try:
        view.sweeping(sweep, "NVIDIA H200 " * 20, 16)
        view.observed(observation(1.0, 1.0), {})
        lines = drawn(view)
    finally:
        view.close()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith("…")
    assert lines[-1] == "and 9 more"
    assert "a-long-backbone-name-0, 1 tasks  " in lines[6]
    assert lines[6].count("50.0") == 3


# --- a view never disturbs the sweep -----------------------------------------------------------------------------


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError("no such terminal")


def test_a_view_that_fails_is_silent_from_then_on():
    sweep = FakeSweep(spec())
    lines = Lines(Console(file=Broken()))
    lines.stage("starting Ray")
    assert lines.broken
    lines.sweeping(sweep, "cpu", 1)
    lines.trial(record())
    lines.close()


@pytest.mark.parametrize("make", [Lines, LiveView])
def test_a_record_that_no_view_understands_does_not_stop_the_sweep(make, terminal):
    view = make(terminal)
    view.sweeping(FakeSweep(spec()), "cpu", 1)
    view.trial(record("a method nobody declared"))
    assert view.broken
    view.trial(record())
    view.close()


def test_drawing_errors_do_not_leave_the_drawing_thread(terminal, monkeypatch):
    failures = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    view = LiveView(terminal)
    monkeypatch.setattr(view, "render", lambda: 1 / 0)
    terminal.print(view._draw())
    assert view.broken
    view.close()
    assert failures == []


def test_a_closed_stderr_neither_ends_the_process_nor_touches_stdout(monkeypatch, capsys):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        flush = write  # type: ignore[assignment]

    monkeypatch.setattr("sys.stderr", Closed())
    lines = Lines(StderrConsole())
    lines.stage("starting Ray")
    lines.stage("checking")
    print("the table")
    assert capsys.readouterr().out == "the table\n"


def test_which_view_a_console_gets(terminal, monkeypatch):
    with watching(terminal) as view:
        assert isinstance(view, LiveView)
    with watching(terminal, quiet=True) as view:
        assert isinstance(view, Silent)
        view.stage("x")
        view.preparing("x", 0.5)
        view.sweeping(FakeSweep(spec()), "cpu", 1)
        view.trial(record())
    with watching(Console(file=io.StringIO())) as view:
        assert isinstance(view, Lines)
    monkeypatch.setenv("TERM", "dumb")
    with watching(Console(file=io.StringIO(), force_terminal=True)) as view:
        assert isinstance(view, Lines)


def test_the_view_is_closed_when_the_sweep_fails(terminal):
    with pytest.raises(KeyboardInterrupt), watching(terminal) as view:
        raise KeyboardInterrupt
    assert isinstance(view, LiveView)
    assert not view._live.is_started


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (125.0, "2 min 5 s"), (3661.0, "1 h 1 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
