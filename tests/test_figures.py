"""The paper's figures from tables of an analysis: what is drawn of hand-made tables, and what is refused."""

import json
import math
import re
import struct
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from charts_by_mark import Mark, encodings, legend_names, marks, texts
from hypothesis import given
from some_analysis import TASKS, write_analysis, write_table
from typer.testing import CliRunner

from raymerge import cli
from raymerge.analysis_tables import TABLES, load
from raymerge.charts import named_scale
from raymerge.errors import UsageError
from raymerge.figures import FIGURES, Choice, Tables
from raymerge.figures._curves import best, searched
from raymerge.figures._labels import places, spread
from raymerge.figures._scatter import pearson_note
from raymerge.figures._spectrum import block_of, kind_of, log_ticks, thinned
from raymerge.figures.interpolation import interpolated
from raymerge.figures.single_task import columns_for
from raymerge.figures.spectra import example_layer

BLOCK = "model.visual.transformer.resblocks"
OUT = f"{BLOCK}.4.attn.out_proj.weight"


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables like those of an analysis: four tasks, sets of two and four."""
    return write_analysis(tmp_path_factory.mktemp("figures") / "analysis")


def by_hand(folder: Path, **tables: list[dict[str, Any]]) -> Tables:
    """A folder whose tables have these rows, of the backbone "vit" unless they say otherwise."""
    folder.mkdir(exist_ok=True)
    for table in TABLES:
        write_table(folder, table, [{"backbone": "vit", **row} for row in tables.get(table, [])])
    return Tables(folder)


def draw(name: str, tables: Tables, **choice: Any) -> Any:
    return FIGURES[name].draw(tables, Choice(**choice))


def line_of(chart: Any, name: str, field: str = "name") -> Mark:
    """The line that only has the rows of a name."""
    (found,) = [mark for mark in marks(chart, "line") if set(mark.column(field)) == {name}]
    return found


def run(*args: str) -> Any:
    return CliRunner().invoke(cli.app, ["figure", *args], prog_name="raymerge", catch_exceptions=False)


# --- all figures ------------------------------------------------------------------------------------------------------


def test_the_figures_of_the_paper_in_its_order():
    assert {name: figure.paper for name, figure in FIGURES.items()} == {
        "spectra": "Fig. 1",
        "cosines": "Fig. 2",
        "nai-alignment": "Fig. 3",
        "interpolation": "Fig. 4",
        "truncation": "Fig. 5a",
        "task-counts": "Fig. 5b, c",
        "fraction": "Fig. 6",
        "layer-spectra": "Fig. 7",
        "alpha": "Fig. 8",
        "single-task": "Fig. 9",
    }
    for figure in FIGURES.values():
        assert set(figure.tables) <= set(TABLES)
        assert figure.description.endswith(".")


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_becomes_a_file(name, analysis, tmp_path: Path):
    path = tmp_path / f"{name}.svg"
    found = run(name, str(analysis), "-o", str(path))
    assert (found.exit_code, found.stdout, found.stderr) == (0, f"{path}\n", "")
    text = path.read_text()
    assert text.startswith("<svg")
    chart = draw(name, Tables(analysis))
    title, caption = texts(chart)
    assert title in text
    assert "ViT-B-16" in caption
    assert not re.search(r"NaN|undefined|\bnull\b|Infinity", text)
    for channel in ("x", "y"):
        titles = {
            e.get("title") or (e.get("axis") or {}).get("title") for e in encodings(chart, channel) if "field" in e
        }
        assert not titles & {"nai", "sar", "singular_value", "alpha", "cosine", "percent", "num_tasks", "label_x"}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_needs_its_tables_and_no_other(name, analysis, tmp_path: Path):
    needed = FIGURES[name].tables
    for table in TABLES:  # all others are there, but empty
        rows = load(analysis, table)
        write_table(tmp_path, table, rows if table in needed else rows.iloc[:0])
    before = texts(draw(name, Tables(tmp_path)))
    assert before[0] == texts(draw(name, Tables(analysis)))[0]
    for table in needed:
        write_table(tmp_path, table, [])
        with pytest.raises(UsageError) as caught:
            draw(name, Tables(tmp_path))
        assert str(caught.value).startswith(f"{tmp_path}: table '{table}' is empty; ")
        assert f"raymerge analyze demo --output {tmp_path}`" in str(caught.value)
        (tmp_path / f"{table}.parquet").unlink()
        with pytest.raises(UsageError, match=f"has no table {table}.parquet; raymerge analyze"):
            draw(name, Tables(tmp_path))
        write_table(tmp_path, table, load(analysis, table))


def test_a_figure_as_pdf_and_as_pixels(analysis, tmp_path: Path):
    files = {ending: tmp_path / f"x{ending}" for ending in (".pdf", ".png", ".svg")}
    for path in files.values():
        assert run("truncation", str(analysis), "-o", str(path)).exit_code == 0
    assert files[".pdf"].read_bytes().startswith(b"%PDF-")
    size = re.search(r'width="([\d.]+)" height="([\d.]+)"', files[".svg"].read_text())
    assert size is not None
    width, height = map(float, size.groups())
    assert 330 < width < 500
    assert struct.unpack(">II", files[".png"].read_bytes()[16:24]) == pytest.approx((2 * width, 2 * height), abs=2)


def test_the_list():
    for args in ([], ["--list"], ["spectra", "--list"]):
        lines = run(*args).stdout.splitlines()
        assert lines[0].split() == ["figure", "paper", "shows", "options"]
        assert [line.split()[0] for line in lines[1:]] == list(FIGURES)
        assert lines[1].rstrip().endswith("--backbone --num-tasks --layer")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["spectr", "DIR", "-o", "x.svg"], 2, "unknown figure 'spectr'. Did you mean 'spectra'? Known: alpha, "),
        (["spectra"], 2, "figure 'spectra' needs DIR, a folder of raymerge analyze; for example: raymerge figure "),
        (["spectra", "DIR"], 2, "figure 'spectra' needs -o FILE, where to write it; for example: raymerge figure "),
        (
            ["spectra", "DIR", "-o", "x.gif"],
            2,
            "x.gif: ends in '.gif', expected one of .html, .svg, .png, .pdf, .json.",
        ),
        (["spectra", "DIR", "-o", "no/x.svg"], 4, "no/x.svg: there is no folder no; make it, or name another one."),
        (
            ["spectra", "no", "-o", "x.svg"],
            2,
            "no: there is no such folder; raymerge analyze SUITE --output no makes it.",
        ),
        (
            ["alpha", "DIR", "-o", "x.svg", "--layer", "a"],
            2,
            "--layer: figure 'alpha' does not take it, only --backbone, ",
        ),
        (
            ["spectra", "DIR", "-o", "x.svg", "--backbone", "ViT-B16"],
            2,
            "--backbone: 'ViT-B16' is not in DIR. Did you mean 'ViT-B-16'? Known: ViT-B-16.",
        ),
        (
            ["spectra", "DIR", "-o", "x.svg", "--num-tasks", "3"],
            2,
            "--num-tasks: DIR has nothing for 3 tasks, only for 2, 4.",
        ),
        (
            ["alpha", "DIR", "-o", "x.svg", "--num-tasks", "3"],
            2,
            "--num-tasks: DIR has nothing for 3 tasks, only for 2, 4.",
        ),
        (
            ["spectra", "DIR", "-o", "x.svg", "--layer", "qkv"],
            2,
            "--layer: none of 10 layers has 'qkv' in its name; one is model.visual.positional_embedding.",
        ),
        (
            ["spectra", "DIR", "-o", "x.svg", "--layer", "out_proj"],
            2,
            f"--layer: 'out_proj' is in 2 names; the first is {BLOCK}.0.attn.out_proj.weight.",
        ),
    ],
)
def test_what_cannot_be_drawn(args, code, message, analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = run(*(str(analysis) if arg == "DIR" else arg for arg in args))
    assert (found.exit_code, found.stdout) == (code, "")
    assert found.stderr.startswith(
        "error: " + message.replace("DIR has", f"{analysis} has").replace("in DIR", f"in {analysis}")
    )
    assert len(found.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_table(analysis, tmp_path: Path):
    path = tmp_path / "spectra.parquet"
    path.write_bytes((analysis / "spectra.parquet").read_bytes()[:-100])
    found = run("spectra", str(tmp_path), "-o", str(tmp_path / "x.svg"))
    assert found.exit_code == 2
    assert found.stderr.startswith(f"error: {path}: cannot be read (")
    assert found.stderr.endswith("); make it again with raymerge analyze.\n")


@pytest.mark.parametrize(
    ("manifest", "analyze", "sweep"),
    [
        ('{"suite": "demo"}', "raymerge analyze demo", "demo_ablations"),
        ('{"suite": "tall-masks"}', "raymerge analyze tall-masks", "ablations"),
        ("{", "raymerge analyze demo", "demo_ablations"),
    ],
)
def test_the_command_that_fills_a_table_is_of_the_suite(manifest, analyze, sweep, tmp_path: Path):
    tables = by_hand(tmp_path, curves=[{"num_tasks": 2, "method": "iso-c"}])
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UsageError) as caught:
        draw("truncation", tables)
    assert str(caught.value) == (
        f"{tmp_path}: table 'curves' has no NAI of truncated Iso-C; run `raymerge sweep sweeps/{sweep}.yaml`, then "
        f"`{analyze} --output {tmp_path}` with `--results results/{sweep}` added."
    )
    assert (Path(__file__).parent.parent / "sweeps" / f"{sweep}.yaml").is_file()


@pytest.mark.parametrize(
    ("name", "method", "what"),
    [
        ("interpolation", "spectrum-interpolation", "NAI over beta"),
        ("truncation", "truncated-iso-c", "NAI of truncated Iso-C"),
        ("fraction", "iso-cts", "fractions of Iso-CTS with 3 alphas each"),
        ("alpha", "iso-c", "method with several alphas"),
        ("single-task", "single-task-iso-c", "Iso-C of single tasks"),
    ],
)
def test_a_chosen_point_alone_is_no_search(name, method, what, tmp_path: Path):
    point = {"common_space_fraction": 0.8, "beta": 0.5, "rank_fraction": 0.5}
    curves = [trial(method, 1.0, 0.5, split="test", stage="test", **point), trial("iso-c", 1.0, 0.5)]
    with pytest.raises(UsageError, match=f"table 'curves' has no {what}; run `raymerge sweep "):
        draw(name, by_hand(tmp_path, curves=curves))


def test_which_backbone_and_number_of_tasks(tmp_path: Path):
    rows = [
        {"backbone": backbone, "num_tasks": number, "matrix": "iso-c", "layer": OUT, "index": 0, "singular_value": 1.0}
        for backbone in ("ViT-B-32", "ViT-B-16")
        for number in (20, 8, 4)
    ]
    tables = by_hand(tmp_path, spectra=rows)
    assert texts(draw("spectra", tables))[1].startswith("ViT-B-16, 8 tasks, ")
    assert texts(draw("spectra", tables, backbone="ViT-B-32"))[1].startswith("ViT-B-32, 8 tasks, ")
    assert texts(draw("spectra", tables, num_tasks=20))[1].startswith("ViT-B-16, 20 tasks, ")
    others = by_hand(tmp_path, spectra=[row for row in rows if row["num_tasks"] != 8 and row["backbone"] == "ViT-B-32"])
    assert texts(draw("spectra", others))[1].startswith("ViT-B-32, 4 tasks, ")


# --- spectra ----------------------------------------------------------------------------------------------------------


def spectrum(matrix: str, values: list[float], layer: str = OUT, **more: Any) -> list[dict[str, Any]]:
    shared = {"matrix": matrix, "layer": layer, "num_tasks": None if matrix == "task" else 2, **more}
    return [{**shared, "index": index, "singular_value": value} for index, value in enumerate(values)]


SPECTRA = [
    *spectrum("task", [3.0, 1.0], task="a"),
    *spectrum("task", [2.0, 1.0], task="b"),
    *spectrum("task", [9.0, 8.0], task="c"),
    *spectrum("task-arithmetic", [4.0, 2.0]),
    *spectrum("iso-c", [3.0, 3.0]),
    *spectrum("iso-cts", [5.0, 5.0], common_space_fraction=0.3),
    *spectrum("iso-cts", [3.5, 3.5], common_space_fraction=0.7),
    *spectrum("iso-c", [7.0, 7.0], num_tasks=3),
    *spectrum("iso-c", [6.0, 6.0], layer=OUT.replace("4", "3")),
]


def test_spectra_of_one_layer(tmp_path: Path):
    chart = draw("spectra", by_hand(tmp_path, spectra=SPECTRA))
    singles, merged = marks(chart, "line")
    assert [(row["line"], row["number"], row["singular_value"]) for row in singles.rows] == [
        ("a", 1, 3.0),
        ("a", 2, 1.0),
        ("b", 1, 2.0),
        ("b", 2, 1.0),
    ], "c is not among the first two tasks"
    assert [(row["name"], row["singular_value"]) for row in merged.rows] == [
        ("Task Arithmetic", 4.0),
        ("Task Arithmetic", 2.0),
        ("Iso-C", 3.0),
        ("Iso-C", 3.0),
        ("Iso-CTS", 3.5),
        ("Iso-CTS", 3.5),
    ]
    assert singles.look["strokeWidth"] < merged.look["strokeWidth"]
    colour = merged.encoding["color"]["scale"]
    assert colour["domain"] == ["Single tasks", "Task Arithmetic", "Iso-C", "Iso-CTS"]
    assert colour["range"][1:] == named_scale(colour["domain"][1:], "color").to_dict()["range"]
    assert merged.encoding["y"]["scale"]["type"] == "log"
    assert texts(chart)[1] == (
        "vit, 2 tasks, transformer.resblocks.4.attn.out_proj.weight. Iso-CTS with common-space fraction 0.7."
    )


def test_another_layer(tmp_path: Path):
    tables = by_hand(tmp_path, spectra=SPECTRA)
    (_, merged) = marks(draw("spectra", tables, layer="3.attn"), "line")
    assert merged.column("singular_value") == [6.0, 6.0]


@pytest.mark.parametrize(
    ("layers", "wanted", "found"),
    [
        ([f"{BLOCK}.{i}.attn.out_proj.weight" for i in range(12)], None, OUT),
        ([f"{BLOCK}.{i}.attn.out_proj.weight" for i in range(3)], None, f"{BLOCK}.1.attn.out_proj.weight"),
        (
            [f"{BLOCK}.4.attn.in_proj_weight", f"{BLOCK}.0.attn.out_proj.weight"],
            None,
            f"{BLOCK}.0.attn.out_proj.weight",
        ),
        (["a", "b", "c"], None, "b"),
        (["model.visual.proj", OUT], "proj", "model.visual.proj"),
        (["model.visual.proj", OUT], "model.visual.proj", "model.visual.proj"),
        (["model.visual.proj", OUT], "4.attn", OUT),
    ],
)
def test_the_layer_that_is_shown(layers, wanted, found):
    assert example_layer(layers, wanted) == found


def test_parts_of_names_of_layers():
    names = ["attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]
    assert [kind_of(f"{BLOCK}.11.{name}") for name in names] == [
        "attn.in_proj",
        "attn.out_proj",
        "mlp.c_fc",
        "mlp.c_proj",
    ]
    assert block_of(f"{BLOCK}.11.mlp.c_fc.weight") == 11
    assert (block_of("model.visual.proj"), kind_of("model.visual.proj")) == (None, "proj")


@given(st.integers(1, 3000), st.integers(8, 300))
def test_thinned_lines_keep_their_ends_and_their_beginning(num_values, max_points):
    kept = thinned(num_values, max_points)
    assert len(kept) == min(num_values, max_points)
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, num_values - 1)
    assert kept[: max_points // 4] == list(range(min(num_values, max_points // 4)))
    gaps = np.diff(kept[max_points // 4 :])
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_long_spectra_are_thinned_and_flat_ones_are_two_points(tmp_path: Path):
    long = [0.99**i for i in range(1024)]
    rows = [*spectrum("task-arithmetic", long), *spectrum("iso-c", [0.5] * 1024)]
    _, merged = marks(draw("spectra", by_hand(tmp_path, spectra=rows)), "line")
    of_sum = [row for row in merged.rows if row["name"] == "Task Arithmetic"]
    assert len(of_sum) == 200
    assert [row["singular_value"] for row in of_sum] == [float(f"{long[row['number'] - 1]:.6g}") for row in of_sum]
    assert [row["number"] for row in merged.rows if row["name"] == "Iso-C"] == [1, 1024]
    low, high = merged.encoding["y"]["scale"]["domain"]
    assert (low, high) == pytest.approx((1e-4, 1.3)), "four decades, not five"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.002, 30.0, [0.01, 0.1, 1, 10]),
        (0.01, 1.0, [0.01, 0.1, 1]),
        (0.04, 3.0, [0.05, 0.1, 0.2, 0.5, 1, 2]),
        (0.3, 0.4, []),
    ],
)
def test_ticks_of_a_logarithmic_axis(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_spectra_of_all_layers(tmp_path: Path):
    proj = "model.visual.proj"
    rows = [*SPECTRA, *spectrum("task", [2.0], task="a", layer=proj), *spectrum("iso-c", [1.0], layer=proj)]
    chart = draw("layer-spectra", by_hand(tmp_path, spectra=rows))
    areas, lines = marks(chart, "area"), marks(chart, "line")
    assert [
        [(r["block"], r["kind"], r["position"], r["singular_value"], r["max"]) for r in area.rows] for area in areas
    ] == [
        [("block 4", "attn.out_proj", 0.5, 2.0, 3.0), ("block 4", "attn.out_proj", 1.0, 1.0, 1.0)],
        [(None, "proj", 1.0, 2.0, 2.0)],
    ]
    assert [(row["block"], row["name"], row["singular_value"]) for row in lines[0].rows if row["position"] == 1.0] == [
        ("block 4", "Task Arithmetic", 2.0),
        ("block 4", "Iso-C", 3.0),
        ("block 4", "Iso-CTS", 3.5),
        ("block 3", "Iso-C", 6.0),
    ]
    assert [(row["kind"], row["name"], row["singular_value"]) for row in lines[1].rows] == [("proj", "Iso-C", 1.0)]


# --- pairs of tasks, and NAI against what may explain it --------------------------------------------------------------


def pairs(values: dict[tuple[str, str], float], **more: Any) -> list[dict[str, Any]]:
    name = "sar" if "rank_rule" in more else "cosine"
    return [{"kind": "task-task", "source": a, "target": b, name: v, **more} for (a, b), v in values.items()]


COSINES = pairs(
    {
        ("a", "a"): 1.0,
        ("a", "b"): 0.2,
        ("b", "a"): 0.2,
        ("b", "b"): 1.0,
        ("a", "c"): -0.7,
        ("c", "c"): 1.0,
        ("c", "a"): -0.7,
    }
)
MERGED = [
    {"kind": "task-merged", "num_tasks": number, "source": "a", "target": "iso-c", "cosine": 0.5} for number in (2, 3)
]


def nai_row(method: str, task: str, nai: float | None, **more: Any) -> dict[str, Any]:
    row = {
        "num_tasks": 2,
        "method": method,
        "task": task,
        "nai": nai,
        "rank_rule": "released_code",
        "sar": 0.5,
        "cosine": 0.1,
    }
    return {**row, **more}


def test_cosines_between_tasks(tmp_path: Path):
    tables = by_hand(tmp_path, cosines=[*COSINES, *MERGED])
    chart = draw("cosines", tables)
    heat, selves = marks(chart, "rect")
    assert [(row["source"], row["target"], row["cosine"]) for row in heat.rows] == [("a", "b", 0.2), ("b", "a", 0.2)]
    assert [row["source"] for row in selves.rows] == ["a", "b"]
    assert "color" not in selves.encoding
    assert heat.encoding["color"]["scale"]["domain"] == [0.2, 0.2], "not stretched to the ones of the diagonal"
    assert heat.encoding["x"]["sort"] == heat.encoding["y"]["sort"] == ["a", "b"]
    assert not marks(chart, "point"), "there are no results"
    of_three = draw("cosines", tables, num_tasks=3)
    assert marks(of_three, "rect")[0].encoding["color"]["scale"]["domain"] == [-0.7, 0.2]


def test_one_task_has_no_pair(tmp_path: Path):
    alignments = pairs({("a", "a"): 0.9}, rank_rule="paper", num_tasks=1)
    nai = [nai_row("iso-c", "a", 0.5, rank_rule="paper", num_tasks=1)]
    chart = draw("nai-alignment", by_hand(tmp_path, alignments=alignments, nai=nai), rank_rule="paper")
    pair, itself = marks(chart, "rect")
    assert (pair.rows, itself.column("sar")) == ([], [0.9])
    assert pair.encoding["color"]["scale"]["domain"] == [0.0, 1.0]


def test_numbers_in_cells_while_there_is_room(analysis, tmp_path: Path):
    few, many = draw("cosines", Tables(analysis)), tmp_path / "many"
    assert [row["cosine"] for row in marks(few, "text")[0].rows]
    tasks = TASKS[:11]
    rows = pairs({(a, b): 0.1 for a in tasks for b in tasks})
    merged = [{**MERGED[0], "num_tasks": 11}]
    assert not marks(draw("cosines", by_hand(many, cosines=[*rows, *merged])), "text")


def test_nai_against_cosines(tmp_path: Path):
    nai = [
        nai_row("iso-c", "a", 0.5, cosine=0.3),
        nai_row("iso-c", "a", 0.5, cosine=0.3, rank_rule="paper"),
        nai_row("iso-c", "b", None, cosine=0.4),
        nai_row("ties", "a", 0.9),
        nai_row("task-arithmetic", "a", 0.25, cosine=0.2),
        nai_row("iso-c", "a", 0.7, num_tasks=3),
    ]
    correlations = [
        {"num_tasks": 2, "method": "iso-c", "quantity": "cosine", "num_points": 7, "pearson": -0.1234},
        {"num_tasks": 2, "method": "iso-c", "quantity": "sar", "rank_rule": "paper", "num_points": 7, "pearson": 0.9},
        {"num_tasks": 3, "method": "iso-c", "quantity": "cosine", "num_points": 7, "pearson": 0.8},
        {"num_tasks": 2, "method": "task-arithmetic", "quantity": "cosine", "num_points": 1, "pearson": None},
    ]
    tables = by_hand(tmp_path, cosines=[*COSINES, *MERGED], nai=nai, correlations=correlations)
    (points,) = marks(draw("cosines", tables), "point")
    assert [(row["name"], row["task"], row["cosine"], row["nai"]) for row in points.rows] == [
        ("Iso-C", "a", 0.3, 0.5),
        ("Task Arithmetic", "a", 0.2, 0.25),
    ]
    assert points.encoding["color"]["scale"]["domain"] == ["Task Arithmetic", "Iso-C"]
    told = points.encoding["color"]["legend"]["labelExpr"]
    assert json.loads(told[told.index("{") : told.index("}") + 1]) == {
        "Iso-C": ": Pearson r = \u22120.12 (n = 7)",
        "Task Arithmetic": "",
    }


def test_what_is_said_of_a_correlation():
    assert pearson_note(0.876, 8) == ": Pearson r = 0.88 (n = 8)"
    assert pearson_note(-1.0, 20) == ": Pearson r = \u22121.00 (n = 20)"
    assert pearson_note(math.nan, 1) == ""


def test_nai_against_alignment_by_the_rule_that_is_chosen(tmp_path: Path):
    nai = [
        nai_row("iso-c", t, 0.5, rank_rule=rule, sar=s)
        for rule, s in (("paper", 0.9), ("released_code", 0.6))
        for t in "ab"
    ]
    alignments = [
        *pairs({("a", "b"): 0.3, ("b", "a"): 0.4, ("a", "a"): 0.99}, rank_rule="released_code", num_tasks=2),
        *pairs({("a", "b"): 0.7, ("b", "a"): 0.8, ("a", "a"): 0.99}, rank_rule="paper", num_tasks=2),
        *pairs({("a", "b"): 0.1}, rank_rule="paper", num_tasks=2, layer=OUT),
        *pairs({("a", "b"): 0.1}, rank_rule="paper", num_tasks=3),
    ]
    correlations = [
        {"num_tasks": 2, "method": "iso-c", "quantity": "sar", "rank_rule": rule, "num_points": 8, "pearson": r}
        for rule, r in (("paper", 0.11), ("released_code", 0.22))
    ]
    tables = by_hand(tmp_path, nai=nai, alignments=alignments, correlations=correlations)
    for rule, sar, off, r in (("released_code", 0.6, [0.3, 0.4], "0.22"), ("paper", 0.9, [0.7, 0.8], "0.11")):
        chart = draw("nai-alignment", tables, rank_rule=rule)
        (points,) = marks(chart, "point")
        assert [(row["task"], row["sar"]) for row in points.rows] == [("a", sar), ("b", sar)]
        assert f"Pearson r = {r} (n = 8)" in points.encoding["color"]["legend"]["labelExpr"]
        heat = marks(chart, "rect")[0]
        assert heat.column("sar") == off
        assert [heat.encoding[axis]["axis"]["title"] for axis in "xy"] == ["Subspace of", "Task matrix of"]
        assert f"ranks by the rule of the {rule.replace('_', ' ')}" in texts(chart)[1]
    assert marks(draw("nai-alignment", tables), "rect")[0].column("sar") == [0.3, 0.4], "the published figures' rule"


def test_labels_of_points_are_where_there_is_room(analysis):
    chart = draw("nai-alignment", Tables(analysis), num_tasks=4)
    labels = next(mark for mark in marks(chart, "text") if "label_x" in mark.rows[0])
    assert sorted(labels.column("task")) == sorted([*TASKS[:4], *TASKS[:4]])
    (points,) = marks(chart, "point")
    low, high = points.encoding["x"]["scale"]["domain"]
    assert all(low < value < high for value in labels.column("label_x"))


@given(st.lists(st.tuples(st.floats(40, 290), st.floats(20, 220)), min_size=1, max_size=12))
def test_labels_cover_no_other_label(points):
    labels = [f"task{i}" for i in range(len(points))]
    found = places(points, labels, 330, 240)
    left = {"left": 0.0, "center": 0.5, "right": 1.0}
    width, height = 0.5 * 10 * 5, 9.0  # of the letters themselves
    corners = [(place.x - left[place.align] * width, place.y) for place in found]
    for (x, y), (other_x, other_y) in combinations(corners, 2):
        assert abs(x - other_x) >= width or abs(y - other_y) >= height
    for (x, y), place in zip(points, found, strict=True):
        distance = math.dist((x, y), (place.line_x, place.line_y))
        assert distance < 50
        assert place.is_far == (math.dist((x, y), (place.x, place.y)) > 9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_labels_at_the_ends_of_lines_are_spread(values):
    gap = 0.06
    moved = spread(values, gap, 0.0, 1.0)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(moved[b] - moved[a] >= gap - 1e-9 for a, b in pairwise(order))
    assert min(moved) >= -1e-9
    assert max(moved) <= 1 + 1e-9
    if all(values[b] - values[a] >= gap for a, b in pairwise(order)):
        assert moved == pytest.approx(values), "what is apart stays"


def test_spread_by_hand():
    assert spread([0.5, 0.5], 0.2, 0.0, 1.0) == pytest.approx([0.4, 0.6])
    assert spread([1.0, 1.0, 0.1], 0.2, 0.0, 1.0) == pytest.approx([0.8, 1.0, 0.1])
    assert spread([0.3, 0.5, 0.5], 0.2, 0.0, 1.0) == pytest.approx([0.43333 - 0.2, 0.43333, 0.43333 + 0.2], abs=1e-4)


# --- searches ---------------------------------------------------------------------------------------------------------


def trial(method: str, alpha: float, normalized: float | None, task: str | None = None, **more: Any) -> dict[str, Any]:
    """A row of `curves`, on validation; NAI and accuracy are made up from the normalized accuracy."""
    made = normalized if normalized is not None else 0.5
    row = {
        "results": "r",
        "num_tasks": 2,
        "method": method,
        "split": "val",
        "stage": "search",
        "task": task,
        "alpha": alpha,
    }
    return {
        **row,
        "accuracy": made / 2,
        "normalized_accuracy": normalized,
        "nai": made - 0.3,
        "is_chosen": False,
        **more,
    }


def curves_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([{"backbone": "vit", **row} for row in rows]).reindex(columns=TABLES["curves"].names)


def test_searched_points_are_averages_of_validation():
    frame = curves_of(
        [
            trial("iso-c", 2.0, 0.7),
            trial("iso-c", 1.0, 0.6),
            trial("iso-c", 1.0, 0.9, task="a"),
            trial("iso-c", 1.0, 0.9, split="test", stage="test"),
            trial("iso-c", 4.0, 0.9, stage="calibration"),
            trial("ties", 1.0, None, accuracy=0.25),
        ]
    )
    found = searched(frame)
    assert [tuple(row) for row in found[["method", "alpha", "score"]].to_numpy()] == [
        ("iso-c", 1.0, 0.6),
        ("ties", 1.0, 0.25),
        ("iso-c", 2.0, 0.7),
    ]


def test_of_several_sweeps_the_one_that_tried_most():
    small = [trial("iso-c", alpha, 0.9, results="small") for alpha in (1.0, 2.0)]
    large = [trial("iso-c", alpha, 0.5, results="large") for alpha in (1.0, 2.0, 3.0)]
    other = [trial("iso-c", 1.0, 0.4, results="small", num_tasks=3)]
    found = searched(curves_of([*small, *large, *other]))
    assert set(zip(found["num_tasks"], found["results"], strict=True)) == {(2, "large"), (3, "small")}


def test_the_best_of_equals_has_the_smallest_alpha():
    points = searched(curves_of([trial("iso-c", 3.0, 0.7), trial("iso-c", 2.0, 0.7), trial("iso-c", 1.0, 0.6)]))
    assert list(best(points, ["method"])["alpha"]) == [2.0]


def alignment(target: str, sar: float, **more: Any) -> dict[str, Any]:
    row = {
        "num_tasks": 2,
        "kind": "task-merged",
        "source": "a",
        "target": target,
        "rank_rule": "released_code",
        "sar": sar,
    }
    return {**row, **more}


def test_interpolation(tmp_path: Path):
    method = "spectrum-interpolation"
    curves = [
        trial(method, 1.0, 0.5, beta=0.0),
        trial(method, 2.0, 0.6, beta=0.0, nai=0.11),
        trial(method, 1.0, 0.8, beta=1.0, nai=0.22),
        trial(method, 2.0, 0.7, beta=1.0, nai=0.99),
        trial(method, 1.0, 0.4, beta=1.0, nai=0.33, num_tasks=3),
    ]
    alignments = [
        alignment(method, 0.2, beta=0.0),
        alignment(method, 0.4, beta=0.0, source="b"),
        alignment(method, 0.9, beta=0.0, rank_rule="paper"),
        alignment(method, 0.9, beta=0.0, layer=OUT),
        alignment(method, 0.8, beta=1.0),
        alignment(method, 0.5, beta=1.0, num_tasks=3),
        alignment("iso-c", 0.99),
    ]
    spectra = [*spectrum("task-arithmetic", [6.0, 2.0]), *spectrum("task-arithmetic", [60.0, 2.0], num_tasks=3)]
    tables = by_hand(tmp_path, curves=curves, alignments=alignments, spectra=spectra)
    chart = draw("interpolation", tables)
    spectra_line = next(mark for mark in marks(chart, "line") if "singular_value" in mark.rows[0])
    assert [(row["beta"], row["singular_value"]) for row in spectra_line.rows if row["number"] == 1] == [
        ("0", 6.0),
        ("0.25", 5.5),
        ("0.5", 5.0),
        ("0.75", 4.5),
        ("1", 4.0),
    ]
    of_sar, of_nai = marks(chart, "point")
    assert [(row["name"], row["beta"], row["sar"]) for row in of_sar.rows] == [
        ("2 tasks", 0.0, 0.3),
        ("2 tasks", 1.0, 0.8),
        ("3 tasks", 1.0, 0.5),
    ]
    assert [(row["name"], row["beta"], row["alpha"], row["nai"]) for row in of_nai.rows] == [
        ("2 tasks", 0.0, 2.0, 0.11),
        ("2 tasks", 1.0, 1.0, 0.22),
        ("3 tasks", 1.0, 1.0, 0.33),
    ], "the NAI at the alpha of the best normalized accuracy"
    assert "validation split" in texts(chart)[1]
    one = draw("interpolation", tables, num_tasks=3)
    assert {row["name"] for mark in marks(one, "point") for row in mark.rows} == {"3 tasks"}
    assert next(m for m in marks(one, "line") if "singular_value" in m.rows[0]).column("singular_value")[0] == 60.0


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=8), st.floats(0, 1))
def test_interpolated_spectra_keep_their_mean_and_their_order(values, beta):
    s = pd.Series(sorted(values, reverse=True))
    found = interpolated(s, beta)
    assert found.mean() == pytest.approx(s.mean())
    assert (found.diff().dropna() <= 1e-12).all()
    assert found.max() - found.min() == pytest.approx((1 - beta) * (s.max() - s.min()), abs=1e-9)


def test_truncation(tmp_path: Path):
    method = "truncated-iso-c"
    curves = [
        trial(method, 1.0, 0.5, rank_fraction=0.5),
        trial(method, 1.0, 0.9, task="a", rank_fraction=0.5, nai=0.7),
        trial(method, 1.0, 0.1, task="b", rank_fraction=0.5),
        trial(method, 2.0, 0.6, rank_fraction=0.5, nai=0.31),
        trial(method, 2.0, 0.6, task="a", rank_fraction=0.5, nai=0.32),
        trial(method, 2.0, 0.6, task="b", rank_fraction=0.5, nai=None),
        trial(method, 1.0, 0.8, rank_fraction=1.0, nai=0.51),
        trial(method, 1.0, 0.8, task="a", rank_fraction=1.0, nai=0.52),
        trial(method, 1.0, 0.8, task="b", rank_fraction=1.0, nai=0.53),
    ]
    chart = draw("truncation", by_hand(tmp_path, curves=curves))
    thin, thick = marks(chart, "line")
    assert [(row["task"], row["rank_fraction"], row["nai"]) for row in thin.rows] == [
        ("a", 0.5, 0.32),
        ("a", 1.0, 0.52),
        ("b", 1.0, 0.53),
    ], "at the alpha with the best average, not at each task's own"
    assert [(row["rank_fraction"], row["alpha"], row["nai"]) for row in thick.rows] == [
        (0.5, 2.0, 0.31),
        (1.0, 1.0, 0.51),
    ]
    (labels,) = marks(chart, "text")
    assert labels.column("task") == ["a", "b"]
    gap = 1.15 * 10 * (np.diff(labels.encoding["y"]["scale"]["domain"])[0] / 260)
    assert abs(np.diff(labels.column("label"))[0]) == pytest.approx(gap, rel=1e-3)


def test_task_counts(tmp_path: Path):
    alignments = [
        alignment("task-arithmetic", 0.2),
        alignment("task-arithmetic", 0.6, source="b"),
        alignment("task-arithmetic", 0.1, num_tasks=3),
        alignment("task-arithmetic", 0.9, rank_rule="paper"),
        alignment("iso-cts", 0.7, common_space_fraction=0.75),
        alignment("iso-cts", 0.5, common_space_fraction=0.1),
        alignment("spectrum-interpolation", 0.9, beta=0.5),
    ]
    test = {"split": "test", "stage": "test", "is_chosen": True}
    curves = [
        trial("iso-cts", 1.0, 0.8, **test),
        trial("iso-cts", 1.0, 0.9, **{**test, "results": "later"}),
        trial("iso-cts", 1.0, 0.9, task="a", **test),
        trial("iso-cts", 1.0, 0.9),
        trial("ties", 1.0, 0.9, **test),
        trial("task-arithmetic", 1.0, 0.6, **{**test, "num_tasks": 3}),
    ]
    chart = draw("task-counts", by_hand(tmp_path, alignments=alignments, curves=curves))
    of_sar, of_accuracy = marks(chart, "point")
    assert [(row["name"], row["num_tasks"], row["sar"]) for row in of_sar.rows] == [
        ("Task Arithmetic", 2, 0.4),
        ("Task Arithmetic", 3, 0.1),
        ("Iso-CTS", 2, 0.7),
    ]
    assert [(row["name"], row["num_tasks"], row["accuracy"]) for row in of_accuracy.rows] == [
        ("Iso-CTS", 2, 40.0),
        ("Task Arithmetic", 3, 30.0),
    ]
    assert "common-space fraction 0.75" in texts(chart)[1]
    assert legend_names(chart) == ["Task Arithmetic", "Iso-CTS"]


def test_fractions(tmp_path: Path):
    def tried(fraction: float, best_of_all: float, **more: Any) -> list[dict[str, Any]]:
        return [
            trial("iso-cts", alpha, best_of_all - abs(alpha - 1), common_space_fraction=fraction, **more)
            for alpha in (0.8, 1.0, 1.2)
        ]

    curves = [
        *tried(0.2, 0.6),
        *tried(0.8, 0.8),
        *tried(0.2, 0.4, num_tasks=3),
        trial("iso-cts", 1.0, 0.99, common_space_fraction=0.5),
        trial("iso-c", 1.0, 0.5),
        trial("iso-c", 2.0, 0.7),
    ]
    chart = draw("fraction", by_hand(tmp_path, curves=curves))
    of_two, ring, of_three, ring_of_three = marks(chart, "point")
    assert [(row["name"], row["fraction"], row["percent"]) for row in of_two.rows] == [
        ("Iso-CTS", 0.2, 30.0),
        ("Iso-CTS", 0.8, 40.0),
        ("Iso-C", 1.0, 35.0),
    ], "a fraction with one alpha is left out"
    assert [(row["fraction"], row["percent"]) for row in ring.rows] == [(0.8, 40.0)]
    assert [row["fraction"] for row in ring_of_three.rows] == [0.2]
    rules = marks(chart, "rule")
    assert [rule.column("percent") for rule in rules] == [[35.0], []]
    domains = [mark.encoding["y"]["scale"]["domain"] for mark in (of_two, of_three)]
    assert [high - low for low, high in domains] == pytest.approx([12.4, 12.4]), "all panels span as many points"
    assert [sum(domain) / 2 for domain in domains] == pytest.approx([35.0, 20.0])
    assert [text.rows[0]["text"] for text in marks(chart, "text")] == ["2 tasks", "3 tasks"]
    with pytest.raises(UsageError, match=r"has no fractions of Iso-CTS with 3 alphas each; run `raymerge sweep"):
        draw("fraction", by_hand(tmp_path, curves=curves[-3:]))


def test_alpha(tmp_path: Path):
    curves = [
        trial("iso-cts", 1.0, 0.5, common_space_fraction=0.2),
        trial("iso-cts", 1.0, 0.6, common_space_fraction=0.8),
        trial("iso-cts", 2.0, 0.7, common_space_fraction=0.2),
        trial("weight-averaging", 0.5, 0.4),
        trial("task-arithmetic", 0.1, 0.5),
        trial("task-arithmetic", 0.2, 0.4),
        trial("truncated-iso-c", 0.1, 0.5, rank_fraction=0.1),
        trial("truncated-iso-c", 0.2, 0.5, rank_fraction=0.1),
        trial("task-arithmetic", 0.1, 0.3, num_tasks=3),
        trial("task-arithmetic", 0.2, 0.2, num_tasks=3),
    ]
    chart = draw("alpha", by_hand(tmp_path, curves=curves))
    points, rings = marks(chart, "point")
    found = [(row["tasks"], row["name"], row["alpha"], row["percent"], row["is_best"]) for row in points.rows]
    assert sorted(found) == [
        ("2 tasks", "Iso-CTS", 1.0, 60.0, False),
        ("2 tasks", "Iso-CTS", 2.0, 70.0, True),
        ("2 tasks", "Task Arithmetic", 0.1, 50.0, True),
        ("2 tasks", "Task Arithmetic", 0.2, 40.0, False),
        ("3 tasks", "Task Arithmetic", 0.1, 30.0, True),
        ("3 tasks", "Task Arithmetic", 0.2, 20.0, False),
    ]
    assert all(row["is_best"] for row in rings.rows)
    assert len(rings.rows) == 3
    assert legend_names(chart) == ["Task Arithmetic", "Iso-CTS"]
    assert line_of(chart, "Iso-CTS").column("percent") == [60.0, 70.0]
    assert texts(chart)[1].startswith("vit; mean over tasks, validation split; at every alpha the best of the other ")


def test_backbones_are_rows_of_the_figure_of_alpha(tmp_path: Path):
    curves = [trial("ties", alpha, 0.5, backbone=name) for name in ("one", "two") for alpha in (0.1, 0.2)]
    tables = by_hand(tmp_path, curves=curves)
    assert draw("alpha", tables).to_dict()["facet"]["row"]["sort"] == ["one", "two"]
    of_one = draw("alpha", tables, backbone="two")
    assert "row" not in of_one.to_dict()["facet"]
    assert {row["backbone"] for row in marks(of_one, "point")[0].rows} == {"two"}


def test_single_tasks(tmp_path: Path):
    method = "single-task-iso-c"
    curves = [
        trial(method, 1.0, 0.5, accuracy=0.4),
        trial(method, 1.0, 0.5, task="a", accuracy=0.4),  # an expert of 0.8
        trial(method, 1.0, 0.5, task="b", accuracy=0.3),  # of 0.6
        trial(method, 2.0, 0.75, accuracy=0.6),
        trial(method, 2.0, 0.5, task="a", accuracy=0.4),
        trial(method, 2.0, 1.0, task="b", accuracy=0.6),
        trial(method, 1.0, 0.5, accuracy=0.1, num_tasks=1),
        trial(method, 1.0, 0.5, task="a", accuracy=0.1, num_tasks=1),
    ]
    chart = draw("single-task", by_hand(tmp_path, curves=curves))
    expert, flat = marks(chart, "line")
    assert flat.encoding["y"]["field"] == "percent"
    assert expert.encoding["y"]["field"] == "expert"
    rows = [(row["task"], row["alpha"], row["percent"], row["expert"]) for row in flat.rows]
    assert rows == [
        ("Average", 1.0, 40.0, 70.0),
        ("Average", 2.0, 60.0, 70.0),
        ("a", 1.0, 40.0, 80.0),
        ("b", 1.0, 30.0, 60.0),
        ("a", 2.0, 40.0, 80.0),
        ("b", 2.0, 60.0, 60.0),
    ], "the largest set of tasks"
    assert texts(chart)[1] == (
        "vit, 2 tasks, validation split. The average at its best alpha, 2, is 10.0 points below that of the experts."
    )


@pytest.mark.parametrize(("panels", "columns"), [(21, 7), (15, 5), (9, 3), (5, 5), (18, 6), (3, 3), (4, 4)])
def test_columns_leave_few_places_empty(panels, columns):
    assert columns_for(panels) == columns
