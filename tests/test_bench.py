"""The benchmarks measure what they say, on shapes small enough for a test."""

import json

import pytest
import torch
from typer.testing import CliRunner

from raymerge.bench import merge as bench_merge
from raymerge.bench.merge import Timed, bench_cases, time_backbone, time_case
from raymerge.bench.plain import PLAIN
from raymerge.bench.shapes import SPECTRA, TOWERS, MatrixShape, Tower, matrices_of, state_of
from raymerge.checkpoints import open_checkpoint
from raymerge.cli import app
from raymerge.methods import declared_methods

CPU = torch.device("cpu")


@pytest.fixture
def small_towers(monkeypatch):
    for name in TOWERS:
        monkeypatch.setitem(TOWERS, name, Tower(width=24, layers=2, patch=4, tokens=10, embed_dim=16))


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *args])
    return result.exit_code, result.stdout, result.stderr


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_checkpoints_are_as_large_as_the_published_ones():
    """Facts of the published image encoders: float32 parameters, text leftovers without the text tower included."""
    import open_clip

    for name, tower in TOWERS.items():
        visual = open_clip.create_model(name, pretrained=None, device="meta").visual
        shapes = {f"model.visual.{key}": tuple(value.shape) for key, value in visual.state_dict().items()}
        found = state_of(tower)
        assert {key: shape for key, shape in found.items() if ".visual." in key} == shapes
        matrices = sorted(shape for key, shape in shapes.items() if len(shape) == 2)
        expected = [(m.rows, m.cols) for m in matrices_of(tower) for _ in range(m.count)]
        assert sorted(expected) == matrices


@pytest.mark.parametrize("make", SPECTRA.values())
def test_task_matrices_repeat_and_differ_between_tasks(make):
    tasks = make(3, 20, 12)
    assert torch.equal(tasks, make(3, 20, 12))
    assert tasks.shape == (3, 20, 12)
    assert torch.linalg.matrix_rank(tasks.flatten(start_dim=1)) == 3


def test_decaying_singular_values():
    values = torch.linalg.svdvals(SPECTRA["decaying"](2, 400, 300)[0])
    assert values[0] / values[99] == pytest.approx(10, rel=0.2)


# --- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", bench_cases().values(), ids=lambda case: case.name)
@pytest.mark.parametrize(("rows", "cols"), [(80, 70), (70, 90)])
def test_both_sides_merge_the_same(case, rows, cols):
    row = time_case(case, MatrixShape("m", rows, cols, 4), 20, spectrum="decaying", repeats=2, device=CPU)
    num_outputs = {"iso-cts-fractions": 9, "tsv-m-nested": 3}.get(case.name, 1)
    assert (row.case, row.count) == (case.name, 4)
    assert row.num_tasks == (2 if case.method in ("scale-svd", "iso-iasad") else 20)
    assert len(row.plain_errors) == len(row.ours_errors) == num_outputs
    assert max(row.ours_errors) <= 2e-5
    chaotic = case.method in ("scale-svd", "iso-iasad")  # float32 keeps other entries
    assert max(row.plain_errors) <= (0.05 if chaotic else 1e-4)
    assert len(row.plain_s) == len(row.ours_s) == len(row.ratios) == 2
    assert min(*row.plain_s, *row.ours_s) > 0


def test_every_method_with_a_plain_transcription_is_timed():
    methods = {m.name for m in declared_methods().values() if m.kind == "merging"}
    assert {case.method for case in bench_cases().values()} == set(PLAIN) <= methods


def test_nested_sets_of_tasks():
    tsv = bench_cases()["tsv-m-nested"]
    assert [output.tasks for output in tsv.outputs(20)] == [None, tuple(range(14)), tuple(range(8))]
    assert [output.tasks for output in tsv.outputs(8)] == [None]


def test_a_backbone_costs_what_its_matrices_cost(small_towers, monkeypatch):
    def fake(case, shape, num_tasks, **_):
        text = f"{shape.rows} x {shape.cols}"
        seconds = (4.0, 6.0, 5.0), (1.0, 2.0, 0.5)
        return Timed(case.name, text, shape.count, num_tasks, *seconds, (1e-5,), (1e-6,), (f"note of {shape.name}",))

    monkeypatch.setattr(bench_merge, "time_case", fake)
    options = {"spectrum": "decaying", "repeats": 3, "device": CPU}
    *rows, total = time_backbone(bench_cases()["iso-c"], "ViT-B-16", 20, **options)
    assert [row.count for row in rows] == [2, 2, 2, 2, 1, 1]
    assert rows[0].shape == "attn.in_proj 72 x 24"
    assert (total.shape, total.count) == ("all", 10)
    assert (total.plain_s, total.ours_s) == ((40.0, 60.0, 50.0), (10.0, 20.0, 5.0))
    assert total.ratio == 5
    assert total.ratios == [4, 3, 10]
    assert len(total.ours_errors) == len(total.notes) == 6


def test_merge_command(small_towers):
    code, stdout, stderr = run("merge", "--case", "iso-c", "--repeats", "1", "--num-tasks", "3", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert found["spectrum"] == "decaying"
    assert [row["shape"] for row in found["rows"]][-2:] == ["proj 24 x 16", "all"]
    assert all(max(row["ours_errors"]) < 1e-5 for row in found["rows"])
    assert "iso-c, ViT-B-16, 3 tasks: 72 x 24" in stderr
    args = ("--backbone", "ViT-B-32", "--repeats", "1", "--num-tasks", "3", "--plain-dtype", "float64", "--quiet")
    code, stdout, stderr = run("merge", "--case", "ties", "--case", "iso-c", *args)
    assert (code, stderr) == (0, "")
    assert stdout.index("ties, ViT-B-32, 3 tasks") < stdout.index("iso-c, ViT-B-32, 3 tasks")
    assert "device: cpu, threads: 1" in stdout
    assert "plain: float64" in stdout
    assert stdout.count("0.0e+00") == 14, "float64 is what errors are measured against"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["merge", "--case", "iso_c"], "--case: there is no 'iso_c'. Did you mean 'iso-c'? Known: "),
        (["merge", "--backbone", "ViT-B-8"], "--backbone: there is no 'ViT-B-8'. Did you mean "),
        (["memory", "--backbone", "ViT"], "--backbone: there is no 'ViT'."),
        (["memory", "--method", "scale-svd"], "--method: there is none to measure called 'scale-svd'."),
        (["memory", "--method", "zero-shot"], "--method: there is none to measure called 'zero-shot'."),
    ],
)
def test_mistakes(args, message):
    code, stdout, stderr = run(*args)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_command(small_towers, tmp_path):
    folder = tmp_path / "new" / "checkpoints"
    args = ("--backbone", "ViT-B-32", "--num-tasks", "3", "--method", "iso-c", "--folder", str(folder))
    code, stdout, stderr = run("memory", *args, "--json")
    assert code == 0, stderr
    (row,) = json.loads(stdout)["rows"]
    assert (row["method"], row["num_tasks"]) == ("iso-c", 3)
    names = ["expert00.pt", "expert01.pt", "expert02.pt", "zero_shot.pt"]
    folder /= "ViT-B-32"
    assert sorted(path.name for path in folder.iterdir()) == names
    assert row["checkpoints"] == sum(path.stat().st_size for path in folder.iterdir())
    assert 20e6 < row["private"] < row["resident"] < 3e9
    base, expert = (open_checkpoint(folder / name) for name in ("zero_shot.pt", "expert01.pt"))
    changed = {name for name in base.names if not torch.equal(base.tensor(name), expert.tensor(name))}
    assert changed == {name for name in base.names if ".visual." in name}
    before = (folder / "expert01.pt").stat().st_mtime_ns
    code, stdout, stderr = run("memory", *args, "--quiet")
    assert (code, stderr) == (0, "")
    assert (folder / "expert01.pt").stat().st_mtime_ns == before
    assert "Peak memory of merging 3 x ViT-B-32" in stdout


def test_a_merge_that_fails_is_told(small_towers, tmp_path):
    args = ("--backbone", "ViT-B-32", "--num-tasks", "2", "--method", "iso-c", "--folder", str(tmp_path), "--quiet")
    (tmp_path / "ViT-B-32").mkdir()
    (tmp_path / "ViT-B-32" / "expert01.pt").write_bytes(b"no checkpoint")
    code, stdout, stderr = run("memory", *args)
    assert (code, stdout) == (1, "")
    assert stderr.startswith("error: 'raymerge merge' by iso-c ended with 4: error: ")
    assert "expert01.pt: not a checkpoint of plain tensors" in stderr
