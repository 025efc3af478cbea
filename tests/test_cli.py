"""The command line: what goes where, and with which exit code. No test starts Ray."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raymerge
from raymerge import cli, run
from raymerge.errors import ClusterError
from raymerge.output import open_output
from raymerge.records import Cell, Point, Split, TaskReference, TaskScore, TrialRecord
from raymerge.results import ResultsWriter, RunContext, write_summary
from raymerge.search_space import sweep_cells
from raymerge.suite_file import find_suite
from raymerge.summary import summarise
from raymerge.sweep_spec import resolve, spec_hash

ROOT = Path(__file__).parent.parent

SWEEP = """\
name: tiny
suite: demo
profile: reduced
num_tasks: 2
methods: [zero-shot, fine-tuned, weight-averaging, iso-c]
search: {trials: 4}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder with a sweep file, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    Path("tiny.yaml").write_text(SWEEP)


def call(*args: str):
    return CliRunner().invoke(cli.app, args, prog_name="raymerge", catch_exceptions=False)


def shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `command` in bash, where `raymerge` is the command line."""
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = f'set -o pipefail; raymerge() {{ "{sys.executable}" -m raymerge "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", script], env={**os.environ, **paths, **env}, capture_output=True, text=True, timeout=120
    )


class FakeSweep:
    """Stands in for raymerge.run.run_sweep: writes what a sweep writes, with made-up accuracies."""

    def __init__(self, accuracy: dict[str, int], *, interrupted: bool = False, error: BaseException | None = None):
        self.accuracy = accuracy
        """Correct images of 100 by method; a method without any fails."""
        self.interrupted = interrupted
        self.error = error
        self.calls: list[dict] = []

    def __call__(self, spec, output_dir, listener, *, address=None, debug=False, abandon=None):
        self.calls.append({"spec": spec, "output_dir": output_dir, "address": address, "debug": debug})
        listener.stage("starting Ray")
        print("something that a library prints")
        if self.error is not None:
            raise self.error
        suite = find_suite(spec.suite, spec.profile, spec.suite_seed, weights=spec.weights, data=spec.data)
        cells = sweep_cells(spec, suite.backbones, [task.name for task in suite.tasks])
        context = RunContext("tiny", spec_hash(spec), "demo", "reduced", 0, "f", "normalized_accuracy", "fp32")
        with open_output(output_dir, sweep=spec.name, spec=resolve(spec), spec_hash=spec_hash(spec)) as output:
            output.begin("f")
            writer = ResultsWriter(output_dir, context)
            records = [record for cell in cells for record in self._records(cell)]
            for record in records:
                writer.append(record)
            rows = summarise(records, cells, "normalized_accuracy")
            write_summary(output_dir, rows, context)
        return run.Outcome(rows, self.interrupted)

    def _records(self, cell: Cell) -> Iterator[TrialRecord]:
        splits: tuple[Split, ...] = ("val",) if self.interrupted else ("val", "test")
        for split in splits:
            correct = self.accuracy.get(cell.method)
            scores = () if correct is None else tuple(TaskScore(task, correct, 100) for task in cell.tasks)
            yield TrialRecord(
                trial_id=f"{cell.method}-{split}",
                cell=cell,
                point=Point(0.5),
                stage="search" if split == "val" else "test",
                split=split,
                status="failed" if correct is None else "finished",
                scores=scores,
                references={score.task: TaskReference(0.8, 0.1) for score in scores},
                error="the expert is not finite" if correct is None else None,
                finished_at=1_700_000_000.0,
            )
            if correct is None:
                return


ALL = {"zero-shot": 20, "fine-tuned": 80, "weight-averaging": 40, "iso-c": 60}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    sweep = FakeSweep(dict(ALL))
    monkeypatch.setattr("raymerge.run.run_sweep", sweep)
    return sweep


# --- sweep -------------------------------------------------------------------------------------------------------


def test_sweep_prints_its_table_and_where_the_results_are(fake):
    done = call("sweep", "tiny.yaml")
    assert done.exit_code == 0
    assert "demo-vit" in done.stdout
    assert re.search(r"Iso-C +│ +60\.0 \(75\.0\)", done.stdout)  # 0.6 / 0.8
    assert done.stdout.endswith("\n\nresults: results/tiny\n")
    assert "library" not in done.stdout
    assert done.stderr.splitlines() == [
        "loading sweep 'tiny'",
        "starting Ray",
        "something that a library prints",
        "read them again with: raymerge report results/tiny",
    ]


def test_options_of_sweep_reach_it(fake):
    done = call("sweep", "tiny.yaml", "--set", "search.trials=7", "--set", "search.seed=3", "--output", "my results",
                "--address", "auto", "--debug")  # fmt: skip
    assert done.exit_code == 0
    (made,) = fake.calls
    assert (made["spec"].search.trials, made["spec"].search.seed) == (7, 3)
    assert (made["output_dir"], made["address"], made["debug"]) == (Path("my results"), "auto", True)
    assert done.stdout.endswith("results: my results\n")
    assert "raymerge report 'my results'" in done.stderr
    assert call("sweep", "tiny.yaml").exit_code == 0
    assert (fake.calls[1]["address"], fake.calls[1]["debug"]) == (None, False)


def test_quiet_shows_results_only(fake):
    done = call("sweep", "tiny.yaml", "--quiet")
    assert done.exit_code == 0
    assert "results: results/tiny" in done.stdout
    assert done.stderr == "something that a library prints\n"


def test_json_of_a_sweep(fake):
    done = call("sweep", "tiny.yaml", "--json")
    assert done.exit_code == 0
    value = json.loads(done.stdout)
    assert (value["output"], value["interrupted"]) == ("results/tiny", False)
    assert [row["method"] for row in value["rows"]] == list(ALL)
    row = value["rows"][3]
    expected = {
        "backbone": "demo-vit",
        "num_tasks": 2,
        "alpha": 0.5,
        "status": "finished",
        "error": None,
        "val_accuracy": 0.6,
        "test_normalized_accuracy": 0.75,
        "test_trial_id": "iso-c-test",
    }
    assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert row["params"] == {}
    assert len(row["tasks"]) == 2
    assert "cell" not in row
    assert "point" not in row


def test_failed_cells_are_listed_and_change_the_exit_code(fake):
    del fake.accuracy["iso-c"]
    done = call("sweep", "tiny.yaml")
    assert done.exit_code == 3
    assert "(1) the expert is not finite" in done.stdout
    assert "results: results/tiny" in done.stdout
    assert "1 of 4 cells failed; the same command tries them again:\n" in done.stderr
    assert "  demo-vit/2 tasks/iso-c: the expert is not finite\n" in done.stderr
    done = call("sweep", "tiny.yaml", "--json")
    assert done.exit_code == 3
    failed = json.loads(done.stdout)["rows"][3]
    assert (failed["status"], failed["alpha"], failed["val_accuracy"]) == ("failed", None, None)


def test_interrupted_sweeps_say_how_to_go_on(fake):
    fake.interrupted = True
    done = call("sweep", "tiny.yaml", "--quiet")
    assert (done.exit_code, done.stdout) == (130, "")
    expected = "interrupted: everything finished so far is saved, and the same command continues from there.\n"
    assert done.stderr.endswith(expected)
    done = call("sweep", "tiny.yaml", "--json")
    assert done.exit_code == 130
    assert json.loads(done.stdout)["interrupted"] is True
    fake.error = KeyboardInterrupt()  # before trials begin
    done = call("sweep", "tiny.yaml")
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr.endswith(expected)


def test_unexpected_errors_are_one_line_unless_debugged(fake):
    fake.error = ValueError("seven is\nnot eight.")
    done = call("sweep", "tiny.yaml", "--quiet")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1:] == [
        "error: ValueError: seven is not eight. Run again with --debug for the traceback."
    ]
    done = call("sweep", "tiny.yaml", "--debug")
    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("error: ValueError: seven is not eight.\n")
    fake.error = AssertionError()
    assert "error: AssertionError. Run again" in call("sweep", "tiny.yaml").stderr


def test_expected_errors_keep_their_exit_code(fake):
    fake.error = ClusterError("no Ray cluster at 'auto'.")
    done = call("sweep", "tiny.yaml", "--quiet")
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr.endswith("error: no Ray cluster at 'auto'.\n")
    assert "Traceback" not in done.stderr
    done = call("sweep", "tiny.yaml", "--debug")
    assert done.exit_code == 4
    assert "Traceback" in done.stderr


def test_a_folder_of_another_sweep_is_refused(fake):
    assert call("sweep", "tiny.yaml").exit_code == 0
    for command in (["sweep"], ["sweep", "--dry-run"], ["plan"]):
        done = call(*command, "tiny.yaml", "--set", "search.trials=9")
        assert (done.exit_code, done.stdout) == (4, ""), command
        assert "holds the results of sweep 'tiny'" in done.stderr
    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("foo://bucket/x", "foo://bucket/x: cannot be used (Unrecognized filesystem type"),
        ("s3://", "s3://: cannot be used (Path cannot"),
        ("s3://me:secret@bucket/x?nonsense=1", "s3://me:***@bucket/x?nonsense=1: cannot be used (Unexpected query"),
    ],
)
def test_a_uri_that_means_nothing(fake, uri, message):
    for command in (["sweep", "tiny.yaml", "--output"], ["plan", "tiny.yaml", "--output"], ["report"]):
        done = call(*command, uri)
        assert (done.exit_code, done.stdout) == (4, ""), done.stderr
        assert message.partition("cannot")[0] in done.stderr
        assert "secret" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert fake.calls == []


def test_a_sweep_to_a_uri(fake, tmp_path):
    uri = f"file://{tmp_path}/results"
    done = call("sweep", "tiny.yaml", "--output", uri)
    assert done.exit_code == 0, done.stderr
    assert fake.calls[0]["output_dir"] == uri
    assert f"results: {uri}\n" in done.stdout
    assert call("report", uri).stdout in done.stdout
    assert f"Already done in {uri}" in call("plan", "tiny.yaml", "--output", uri).stdout
    assert not Path("file:").exists()


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sweep", "plan"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.yaml"], "error: missing.yaml: no such file; give the path of a sweep file.\n"),
        (["wrong.yaml"], "error: wrong.yaml:5: unknown method 'iso_c'. Did you mean 'iso-c'?"),
        (["tiny.yaml", "--set", "search"], "error: override 'search' is not of the form key=value"),
        (["tiny.yaml", "--set", "search.trials=many"], "error: override 'search.trials=many': "),
        (["tiny.yaml", "--set", "num_tasks=99"], "'num_tasks' asks for 99"),
        (["tiny.yaml", "--nonsense"], "No such option: --nonsense"),
        ([], "Missing argument"),
    ],
)
def test_mistakes_of_the_user(command, args, message, fake):
    Path("wrong.yaml").write_text(SWEEP.replace("iso-c", "iso_c"))
    done = call(command, *args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert fake.calls == []


def test_an_unknown_suite_is_found_before_any_work(fake):
    done = call("sweep", "tiny.yaml", "--set", "suite=demmo", "--set", "profile=null")
    assert done.exit_code == 4
    assert "unknown suite 'demmo'. Did you mean 'demo'?" in done.stderr
    assert fake.calls == []


# --- plan --------------------------------------------------------------------------------------------------------


def test_plan_of_a_new_sweep(fake):
    done = call("plan", "tiny.yaml")
    assert (done.exit_code, done.stderr) == (0, "")
    rows = [re.split(r" *│ *", line)[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row[2] for row in rows] == ["Zero-shot", "Fine-tuned", "Weight Averaging", "Iso-C"]
    assert [row[3] for row in rows] == ["1", "1", "1", "4"]
    sizes = find_suite("demo", "reduced").tasks[0].images
    images = [2 * (trials * sizes["val"] + sizes["test"]) for trials in (1, 4)]
    assert [row[4] for row in rows] == ["0", "0", *(f"{count:,}" for count in images)]
    references = 4 * (sizes["val"] + sizes["test"])
    assert done.stdout.splitlines()[-4:] == [
        f"At most 4 cells, 7 trials, 2 merges and {references + sum(images):,} images, "
        f"of which {references:,} for the zero-shot model and the experts.",
        "Nothing is done yet; results go to results/tiny.",
        "Reads 3 checkpoints, not on disk yet.",
        "Suite demo (reduced, seed 0): not prepared yet, which the sweep does first.",
    ]
    assert call("sweep", "tiny.yaml", "--dry-run").stdout == done.stdout
    assert fake.calls == []
    assert not Path("results").exists()


def test_plan_of_a_sweep_that_is_done(fake):
    assert call("sweep", "tiny.yaml").exit_code == 0
    done = call("plan", "tiny.yaml")
    assert done.exit_code == 0
    assert re.search(r"Iso-C .* all +│", done.stdout)
    assert "Already done in results/tiny: 4 of 4 cells; at most 0 images are left." in done.stdout


def test_plan_of_the_predictions_that_a_finished_sweep_lacks(fake):
    assert call("sweep", "tiny.yaml").exit_code == 0
    done = call("plan", "tiny.yaml", "--set", "evaluation.store_predictions=true", "--json")
    tasks = find_suite("demo", "reduced").tasks[:2]
    value = json.loads(done.stdout)
    assert (value["num_cells_done"], value["max_images_left"] > 0) == (0, True)
    assert [r["images_left"] for r in value["references"]] == [2 * sum(task.images["test"] for task in tasks)]


def test_plan_of_a_prepared_suite(fake):
    suite = find_suite("demo", "reduced")
    files = [suite.zero_shot_path("demo-vit"), *(suite.expert_path("demo-vit", t.name) for t in suite.tasks[:2])]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1500)
    (suite.root / "suite.json").write_text("{}")
    done = call("plan", "tiny.yaml")
    assert len(set(files)) == 3
    assert "Reads 3 checkpoints, 4.5 kB." in done.stdout
    assert f"Suite demo (reduced, seed 0): prepared in {suite.root}." in done.stdout


def test_plan_of_a_sweep_that_is_under_way(fake):
    fake.interrupted = True
    assert call("sweep", "tiny.yaml").exit_code == 130
    done = call("plan", "tiny.yaml")
    assert re.search(r"Iso-C .* 1 finished +│", done.stdout)
    assert "Already done in results/tiny: 0 of 4 cells; " in done.stdout


def test_json_of_a_plan(fake):
    done = call("plan", "tiny.yaml", "--json", "--output", "elsewhere")
    value = json.loads(done.stdout)
    assert (value["name"], value["max_trials"], value["output"]) == ("tiny", 7, "elsewhere")
    assert value["suite"] == {"name": "demo", "profile": "reduced", "seed": 0, "is_prepared": False}
    assert json.loads(call("sweep", "tiny.yaml", "--dry-run", "--json").stdout)["cells"] == value["cells"]


# --- report, schema, version -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("terminal", "┃ Method "),
        ("md", "| Iso-C | **60.0** (75.0) |"),
        ("latex", r"\begin{tabular}"),
        ("csv", "\niso-c,demo-vit,2,finished,"),
        ("json", '"accuracy": 0.6'),
    ],
)
def test_report(format, expected, fake):
    assert call("sweep", "tiny.yaml").exit_code == 0
    done = call("report", "results/tiny", "--format", format)
    assert (done.exit_code, done.stderr) == (0, "")
    assert expected in done.stdout
    assert done.stdout.endswith("\n")
    published = call("report", "results/tiny", "--format", format, "--published")
    assert published.exit_code == 0
    assert ("published" in published.stdout) or format in ("terminal", "md", "latex")


@pytest.mark.parametrize("format", ["terminal", "md", "latex"])
def test_published_accuracies_are_asked_for(format, fake):
    assert call("sweep", "tiny.yaml").exit_code == 0
    caption = "In brackets: the published accuracy."
    assert caption not in call("report", "results/tiny", "--format", format).stdout
    assert caption in call("report", "results/tiny", "--format", format, "--published").stdout


def test_report_ends_the_way_sweep_does(fake):
    swept = call("sweep", "tiny.yaml").stdout
    assert swept.startswith(call("report", "results/tiny").stdout)


def test_report_of_nothing():
    done = call("report", "nowhere")
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*nowhere: no such folder\. Give the --output of a sweep\.\n", done.stderr)
    assert call("report", ".", "--format", "word").exit_code == 2


def test_schema_is_json():
    done = call("schema")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["title"] == "raymerge sweep"


def test_version_and_help():
    assert call("--version").stdout == f"raymerge {raymerge.__version__}\n"
    shown = call("--help").stdout
    assert re.findall(r"^  (\w+)  ", shown, re.MULTILINE) == [
        "sweep",
        "plan",
        "report",
        "schema",
        "status",
        "compare",
        "query",
        "analyze",
        "figure",
        "merge",
        "stats",
        "evaluate",
        "finetune",
        "doctor",
        "rehearse",
        "bench",
        "suite",
        "data",
    ]
    for command in ("sweep", "plan", "report", "status", "schema", "stats"):
        assert call(command, "--help").exit_code == 0


# --- as a process ------------------------------------------------------------------------------------------------


def test_help_and_plans_import_nothing_heavy():
    script = """
import sys
from raymerge.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({name.partition(".")[0] for name in sys.modules}), sep="\\n", file=sys.stderr)
"""

    def imported(*args: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", script, *args],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return set(done.stderr.splitlines())

    assert not imported("--help") & {"torch", "ray", "optuna", "pandas", "pyarrow", "numpy", "pydantic", "rich"}
    assert not imported("stats", "--help") & {"torch", "ray", "optuna", "pandas", "pyarrow", "numpy", "open_clip"}
    assert not imported("merge", "--help") & {"torch", "ray", "optuna", "pandas", "pyarrow", "numpy", "open_clip"}
    for command in ("compare", "query"):
        assert not imported(command, "--help") & {"torch", "ray", "pandas", "pyarrow", "numpy", "scipy", "duckdb"}
    for command in (["plan", "tiny.yaml"], ["sweep", "tiny.yaml", "--dry-run", "--json"]):
        assert not imported(*command) & {"torch", "ray", "optuna", "pandas", "open_clip"}
    assert not imported("schema") & {"torch", "ray", "optuna", "pandas", "pyarrow"}


def test_exit_codes_of_the_process():
    for command, code in (("--version", 0), ("plan tiny.yaml", 0), ("plan missing.yaml", 2), ("unknown", 2)):
        done = shell(f"raymerge {command}")
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert bool(done.stdout) == (code == 0)


def test_a_reader_that_has_read_enough():
    done = shell("raymerge schema | head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")
    done = shell("raymerge plan tiny.yaml | true")
    assert (done.returncode, done.stderr) == (0, "")
    done = shell("raymerge plan missing.yaml 2>&1 >/dev/null | true")
    assert (done.returncode, done.stderr) == (2, "")


def test_closed_streams_are_nowhere():
    assert shell("raymerge plan tiny.yaml >&-").returncode == 0
    assert shell("raymerge plan missing.yaml 2>&-").returncode == 2
    done = shell("raymerge plan missing.yaml >&-")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_colour_is_for_terminals_that_want_it(fake):
    assert "\x1b" not in shell("raymerge plan tiny.yaml").stdout
    assert "\x1b" in shell("raymerge plan tiny.yaml", FORCE_COLOR="1").stdout
    with contextlib.suppress(ImportError):
        import pty

        def on_terminal(**env: str) -> str:
            child, parent = os.pipe()
            os.close(parent)
            os.close(child)
            master, slave = pty.openpty()
            process = subprocess.Popen(
                [sys.executable, "-m", "raymerge", "plan", "tiny.yaml"],
                env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **env},
                stdout=slave,
            )
            os.close(slave)
            shown = b""
            with contextlib.suppress(OSError):  # the other end is closed
                while part := os.read(master, 4096):
                    shown += part
            os.close(master)
            assert process.wait(timeout=60) == 0
            return shown.decode()

        assert "\x1b[1m" in on_terminal()
        assert "\x1b[3" not in on_terminal(NO_COLOR="1")


def test_output_that_is_no_unicode():
    done = shell("raymerge plan tiny.yaml", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "Iso-C" in done.stdout
