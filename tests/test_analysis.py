"""`raymerge analyze`: from checkpoints and results of sweeps to tables. No test starts Ray."""

import json
import math
from pathlib import Path

import fake_sweep
import numpy as np
import pandas as pd
import pytest
import tiny_suite
import torch
from typer.testing import CliRunner

from raymerge import analysis, analysis_tables, cli
from raymerge.analysis_tables import TABLES, load
from raymerge.checkpoints import open_checkpoint, save_state_dict
from raymerge.errors import UsageError
from raymerge.metrics import pearson
from raymerge.result_schema import RunContext
from raymerge.results import ResultsWriter, write_summary
from raymerge.search_space import sweep_cells
from raymerge.suites import Suite
from raymerge.summary import summarise
from raymerge.sweep_curves import chosen_fractions, correlations, nai_beside_alignment, read_curves

BACKBONE = tiny_suite.BACKBONE
METHODS = {
    "zero-shot": {},
    "fine-tuned": {},
    "task-arithmetic": {"alpha": [0.2, 0.6]},
    "iso-c": {"alpha": [0.4, 0.8, 1.2]},
    "iso-cts": {"alpha": [0.8, 1.2], "common_space_fraction": [0.25, 0.5]},
    "spectrum-interpolation": {"alpha": [0.4, 0.8], "beta": [0.0, 1.0]},
    "single-task-iso-c": {"alpha": [0.4, 0.8]},
}


def write_results(folder: Path, suite: str = "fake", seed: int = 0) -> Path:
    """Results of a sweep over task sets of 2 and 4 whose accuracies are made up."""
    spec = fake_sweep.spec_of(METHODS, policy="grid", prune=None)
    records = fake_sweep.run(spec)
    context = RunContext("x", "hash", suite, "full", seed, "f1", "normalized_accuracy", "fp32")
    writer = ResultsWriter(folder, context)
    for record in records:
        writer.append(record)
    cells = sweep_cells(spec, ["vit"], [task.name for task in fake_sweep.TASKS])
    write_summary(folder, summarise(records, cells, "normalized_accuracy"), context)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("sweeps") / "first")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.tiny_suite(tmp_path_factory.mktemp("suite"), num_tasks=4)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def analyze(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["analyze", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


# --- of sweeps -------------------------------------------------------------------------------------------------------


def test_curves_have_every_finished_trial_and_its_average(results):
    curves = read_curves(fake_sweep.SUITE, [str(results)])
    evaluations = pd.read_parquet(results / "evaluations")
    own = curves[(curves["method"] == "spectrum-interpolation") & (curves["num_tasks"] == 4)]
    search = own[own["stage"] == "search"]
    assert len(search[search["task"].isna()]) == 4, "two alphas times two betas"
    assert set(search["beta"]) == {0.0, 1.0}
    for _, point in search[search["task"].isna()].iterrows():
        same = search[(search["alpha"] == point["alpha"]) & (search["beta"] == point["beta"]) & search["task"].notna()]
        assert set(same["task"]) == {"T0", "T1", "T2", "T3"}
        for score in ("accuracy", "normalized_accuracy", "nai"):
            assert point[score] == pytest.approx(same[score].mean())
        rows = evaluations[evaluations["trial_id"] == point["trial_id"]]
        assert sorted(same["accuracy"]) == sorted(rows["accuracy"])
    (best,) = search[search["is_chosen"] & search["task"].isna()].to_dict("records")
    assert best["normalized_accuracy"] == search["normalized_accuracy"][search["task"].isna()].max()
    (test,) = own[(own["stage"] == "test") & own["task"].isna()].to_dict("records")
    assert (test["alpha"], test["beta"], test["is_chosen"]) == (best["alpha"], best["beta"], True)
    assert set(curves["results"]) == {"first"}


def test_of_two_folders_the_first_counts(results, tmp_path):
    again = write_results(tmp_path / "second")
    curves = read_curves(fake_sweep.SUITE, [str(again), str(results)])
    assert set(curves["results"]) == {"second"}
    assert len(curves) == len(read_curves(fake_sweep.SUITE, [str(results)]))


def test_no_folder_is_an_empty_table():
    curves = read_curves(fake_sweep.SUITE, [])
    assert curves.empty
    assert chosen_fractions(curves, "iso-cts") == {}


def test_results_of_another_suite_are_refused(tmp_path):
    other = write_results(tmp_path / "other", seed=7)
    with pytest.raises(
        UsageError, match=r"of suite 'fake', profile full, seed 7, expected 'fake', profile full, seed 0"
    ):
        read_curves(fake_sweep.SUITE, [str(other)])


def test_chosen_fractions(results):
    curves = read_curves(fake_sweep.SUITE, [str(results)])
    summary = pd.read_parquet(results / "summary")
    expected = summary[summary["method"] == "iso-cts"].set_index("num_tasks")["common_space_fraction"]
    assert chosen_fractions(curves, "iso-cts") == {("vit", n): [expected[n]] for n in (2, 4)}


def table(rows: list[dict], name: str) -> pd.DataFrame:
    return pd.DataFrame(rows).reindex(columns=TABLES[name].names)


def test_nai_beside_alignment_by_hand():
    point = {"backbone": "b", "num_tasks": 2, "method": "iso-cts", "common_space_fraction": 0.5, "stage": "test"}
    point["results"] = "first"
    scores = {"accuracy": 0.6, "zero_shot_accuracy": 0.2, "expert_accuracy": 1.0, "nai": 0.5}
    curves = pd.DataFrame(
        [
            {**point, **scores, "task": "A"},
            {**point, **scores, "task": "B", "nai": 0.9},
            {**point, **scores, "task": None},
            {**point, **scores, "task": "A", "stage": "search", "nai": 0.1},
            {**point, **scores, "task": "A", "method": "ties", "common_space_fraction": None},
            {**point, **scores, "task": "A", "results": "second", "nai": 0.3},
        ]
    )
    pair = {"backbone": "b", "num_tasks": 2, "kind": "task-merged", "target": "iso-cts"}
    alignments = table(
        [
            {**pair, "source": task, "common_space_fraction": fraction, "rank_rule": rule, "layer": layer, "sar": sar}
            for task, sar in (("A", 0.7), ("B", 0.8))
            for fraction, rule, layer in ((0.5, "paper", None), (0.8, "paper", None), (0.5, "paper", "x"))
        ],
        "alignments",
    )
    cosines = table(
        [{**pair, "source": task, "common_space_fraction": 0.5, "cosine": c} for task, c in (("A", 0.3), ("B", 0.2))],
        "cosines",
    )
    found = nai_beside_alignment(curves, alignments, cosines)
    columns = ["method", "task", "accuracy", "nai", "rank_rule", "sar", "cosine"]
    assert found[columns].to_dict("split")["data"] == [
        ["iso-cts", "A", 0.6, 0.5, "paper", 0.7, 0.3],
        ["iso-cts", "B", 0.6, 0.9, "paper", 0.8, 0.2],
    ]
    r = correlations(found)
    assert r[["quantity", "num_points"]].to_numpy().tolist() == [["sar", 2], ["cosine", 2]]
    assert r["pearson"].tolist() == pytest.approx([1.0, -1.0])


def test_correlations_leave_out_what_is_undefined():
    rows = [
        {
            "backbone": "b",
            "num_tasks": 3,
            "method": "m",
            "task": task,
            "nai": nai,
            "rank_rule": rule,
            "sar": sar,
            "cosine": c,
        }
        for rule in ("paper", "released_code")
        for task, nai, sar, c in (
            ("A", 0.1, 0.5, 0.3),
            ("B", 0.7, 0.6, 0.1),
            ("C", 0.4, 0.9, 0.2),
            ("D", None, 0.1, 0.9),
        )
    ]
    found = correlations(pd.DataFrame(rows)).astype({"rank_rule": object})
    found = found.where(found.notna(), None).to_dict("records")
    assert [(row["quantity"], row["rank_rule"], row["num_points"]) for row in found] == [
        ("sar", "paper", 3),
        ("sar", "released_code", 3),
        ("cosine", None, 3),
    ]
    assert found[0]["pearson"] == pytest.approx(pearson([0.1, 0.7, 0.4], [0.5, 0.6, 0.9]))
    assert found[2]["pearson"] == pytest.approx(-1.0)


# --- of checkpoints --------------------------------------------------------------------------------------------------


def task_vectors(suite: Suite) -> dict[str, np.ndarray]:
    def state(path: Path) -> dict[str, np.ndarray]:
        checkpoint = open_checkpoint(path)
        return {name: checkpoint.tensor(name).double().numpy() for name in checkpoint.names}

    base = state(suite.zero_shot_path(BACKBONE))
    experts = [state(suite.expert_path(BACKBONE, task.name)) for task in suite.tasks]
    return {name: np.stack([expert[name] - value for expert in experts]) for name, value in base.items()}


@pytest.fixture(scope="module")
def tables(suite, tmp_path_factory) -> Path:
    """Of the tiny suite alone."""
    folder = tmp_path_factory.mktemp("tables") / "out"
    code, out, _ = analyze(suite.root, "--num-tasks", "2", "--num-tasks", "4", "--output", folder, "--quiet")
    assert code == 0
    assert "Subspace alignment ratio" in out
    assert str(folder) in out
    return folder


def test_cosines_of_whole_task_vectors(suite, tables):
    deltas = task_vectors(suite)
    flat = np.concatenate([value.reshape(4, -1) for value in deltas.values()], axis=1)
    names = [task.name for task in suite.tasks]
    cosines = load(tables, "cosines")
    whole = cosines[cosines["layer"].isna()]
    pairs = whole[whole["kind"] == "task-task"].set_index(["source", "target"])["cosine"]
    assert len(pairs) == 16
    for i, source in enumerate(names):
        for j, target in enumerate(names):
            expected = flat[i] @ flat[j] / np.linalg.norm(flat[i]) / np.linalg.norm(flat[j])
            assert pairs[source, target] == pytest.approx(expected, abs=1e-6)
    merged = whole[(whole["target"] == "task-arithmetic") & (whole["num_tasks"] == 2)].set_index("source")["cosine"]
    assert list(merged.index) == names[:2]
    summed = flat[:2].sum(axis=0)
    for i, source in enumerate(names[:2]):
        expected = flat[i] @ summed / np.linalg.norm(flat[i]) / np.linalg.norm(summed)
        assert merged[source] == pytest.approx(expected, abs=1e-6)


def test_averages_are_over_matrices_that_changed(suite, tables):
    matrices = {
        name
        for name, value in task_vectors(suite).items()
        if value.ndim == 3 and "text_projection" not in name and value.any()
    }
    alignments = load(tables, "alignments")
    by_layer = alignments[alignments["layer"].notna()]
    assert set(by_layer["layer"]) == matrices
    keys = ["num_tasks", "kind", "source", "target", "common_space_fraction", "beta", "rank_rule"]
    means = by_layer.groupby(keys, dropna=False)["sar"].mean()
    averages = alignments[alignments["layer"].isna()].set_index(keys)["sar"]
    assert len(averages) == len(means)
    pd.testing.assert_series_equal(averages.sort_index(), means.sort_index())
    assert set(alignments["rank_rule"]) == {"paper", "released_code"}
    assert set(alignments["beta"].dropna()) == {i / 10 for i in range(11)}


def test_spectra_and_ranks_of_a_layer(suite, tables):
    name = "model.visual.transformer.resblocks.0.attn.out_proj.weight"
    deltas = task_vectors(suite)[name]
    spectra = load(tables, "spectra")
    layer = spectra[spectra["layer"] == name]
    (own,) = [group for key, group in layer.groupby("task") if key == "Task1"]
    np.testing.assert_allclose(own["singular_value"], np.linalg.svd(deltas[1])[1], rtol=1e-4)
    assert own["index"].tolist() == list(range(len(own)))
    iso = layer[(layer["matrix"] == "iso-c") & (layer["num_tasks"] == 4)]["singular_value"]
    np.testing.assert_allclose(iso, np.linalg.svd(deltas.sum(axis=0))[1].mean(), rtol=1e-5)
    ranks = load(tables, "ranks")
    assert set(ranks["method"]) == {"task-arithmetic", "iso-c", "iso-cts", "spectrum-interpolation"}
    by_beta = ranks[(ranks["layer"] == name) & (ranks["rank_rule"] == "paper") & (ranks["num_tasks"] == 4)]
    ends = by_beta.set_index(by_beta["beta"].fillna(-1.0))["k"]
    plain = by_beta.set_index("method")["k"]
    assert ends[0.0] == plain["task-arithmetic"]
    assert ends[1.0] == plain["iso-c"]
    assert plain["task-arithmetic"] < plain["iso-c"]


def test_without_results_what_depends_on_them_is_empty(tables):
    for name in ("curves", "nai", "correlations"):
        assert load(tables, name).empty
    manifest = json.loads((tables / "manifest.json").read_text())
    assert (manifest["suite"], manifest["num_tasks"], manifest["epsilon"]) == ("tiny", [2, 4], 0.05)


def test_what_was_factorised_is_kept(suite, tmp_path, monkeypatch):
    args = [suite.root, "--num-tasks", "2", "--quiet", "--output"]
    assert analyze(*args, tmp_path / "a")[0] == 0

    def unexpected(*args: object) -> None:
        raise AssertionError("factorised again")

    monkeypatch.setattr(analysis, "analyse_matrix", unexpected)
    assert analyze(*args, tmp_path / "b")[0] == 0
    for name in TABLES:
        assert load(tmp_path / "a", name).equals(load(tmp_path / "b", name))
    assert analyze(*args, tmp_path / "c", "--epsilon", "0.1")[0] == 1, "but not for another question"


def test_a_torn_cache_is_computed_again(suite, tmp_path, home):
    args = [suite.root, "--num-tasks", "2", "--quiet", "--output"]
    analyze(*args, tmp_path / "a")
    for path in (home / "analysis").rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:40])
    assert analyze(*args, tmp_path / "b")[0] == 0
    assert load(tmp_path / "a", "alignments").equals(load(tmp_path / "b", "alignments"))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--num-tasks", "9"], 2, "suite 'tiny' has 4 tasks, --num-tasks asks for 9."),
        (["--epsilon", "1"], 2, "--epsilon is 1, expected a number between 0 and 1."),
        (["--backbone", "vit-x"], 2, "suite 'tiny' has no backbone 'vit-x'."),
        (["--results", "{tmp}/none"], 2, "none: no such folder. Give the --output of a sweep."),
        (["--results", "{results}"], 2, "its results are of suite 'fake', profile full, seed 0, expected 'tiny'"),
        (["--output", "s3://bucket/x"], 2, "is not a folder of this machine"),
        (["--output", "{results}"], 4, "holds other things than an analysis; name a new or empty folder"),
    ],
)
def test_bad_usage(suite, results, tmp_path, args, code, message):
    before = sorted(tmp_path.rglob("*"))
    found, _, err = analyze(suite.root, "--quiet", *(arg.format(tmp=tmp_path, results=results) for arg in args))
    assert (found, message in err) == (code, True), err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_broken_expert_is_named(suite, tmp_path):
    broken = tiny_suite.tiny_suite(tmp_path / "suite", num_tasks=2)
    path = broken.expert_path(BACKBONE, "Task1")
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = analyze(broken.root, "--quiet", "--output", tmp_path / "out")
    assert code == 4
    assert str(path) in err
    assert not (tmp_path / "out").exists()


def test_json(suite, tmp_path):
    code, out, _ = analyze(suite.root, "--num-tasks", "4", "--json", "--quiet", "--output", tmp_path / "out")
    assert code == 0
    value = json.loads(out)
    assert value["num_rows"].keys() == TABLES.keys()
    alignments = load(tmp_path / "out", "alignments")
    wanted = alignments[
        (alignments["target"] == "iso-c") & alignments["layer"].isna() & (alignments["rank_rule"] == "paper")
    ]
    (iso,) = [row for row in value["sar"] if (row["method"], row["rank_rule"]) == ("iso-c", "paper")]
    assert iso["sar"] == pytest.approx(wanted["sar"].mean())


def test_experts_equal_to_the_base_have_nothing_to_align(tmp_path):
    same = tiny_suite.tiny_suite(tmp_path / "suite", num_tasks=2)
    checkpoint = open_checkpoint(same.zero_shot_path(BACKBONE))
    state = {name: checkpoint.tensor(name).clone() for name in checkpoint.names}
    for task in same.tasks:
        save_state_dict(same.expert_path(BACKBONE, task.name), state)
    code, _, _ = analyze(same.root, "--quiet", "--output", tmp_path / "out")
    assert code == 0
    assert load(tmp_path / "out", "alignments").empty


def test_an_expert_that_left_a_layer_alone_has_no_say_there(tmp_path):
    suite = tiny_suite.tiny_suite(tmp_path / "suite", num_tasks=2)
    base, path = open_checkpoint(suite.zero_shot_path(BACKBONE)), suite.expert_path(BACKBONE, "Task1")
    expert = open_checkpoint(path)
    name = "model.visual.transformer.resblocks.0.attn.out_proj.weight"
    state = {n: (base if n == name else expert).tensor(n).clone() for n in expert.names}
    del expert
    save_state_dict(path, state)
    assert analyze(suite.root, "--quiet", "--output", tmp_path / "out")[0] == 0
    alignments = load(tmp_path / "out", "alignments")
    own = alignments[(alignments["source"] == "Task1") & (alignments["target"] == "iso-c")]
    assert own[own["layer"] == name]["sar"].isna().all()
    averages = own[own["layer"].isna()]["sar"]
    assert len(averages) == 2
    assert not averages.isna().any()
    assert not torch.equal(state[name], torch.zeros_like(state[name]))
    assert all(math.isfinite(value) for value in averages)


def test_tables_that_are_missing_or_damaged(tables, tmp_path):
    with pytest.raises(UsageError, match=r"there is no such folder; raymerge analyze SUITE --output"):
        load(tmp_path / "none", "nai")
    with pytest.raises(UsageError, match=r"unknown table 'spectrum'. Did you mean 'spectra'"):
        load(tables, "spectrum")
    (tmp_path / "nai.parquet").write_bytes((tables / "nai.parquet").read_bytes()[:100])
    with pytest.raises(UsageError, match=r"nai.parquet: cannot be read"):
        load(tmp_path, "nai")
    assert analysis_tables.table_path(tables, "nai").is_file()
