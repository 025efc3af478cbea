"""What `auto` stands for: the rule on made-up figures, the measurement on a tiny suite, and a whole sweep by it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_suite
import torch
from tiny_suite import BACKBONE

from raymerge import agreement as agreement_module
from raymerge import results
from raymerge.agreement import Agreement
from raymerge.evaluation_choice import (
    MIN_AGREEMENT,
    MIN_GAIN,
    EvaluationChoice,
    Judged,
    choose,
    common_choice,
    fastest_fit,
    judge,
)
from raymerge.execution import choose as choose_once
from raymerge.execution import with_precision
from raymerge.output import Output, open_output, read_manifest
from raymerge.progress import Silent
from raymerge.run import OutputStore
from raymerge.suites import Suite
from raymerge.sweep_spec import EvaluationSettings, SweepSpec, spec_hash

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.tiny_suite(tmp_path_factory.mktemp("suite"), num_tasks=2)


def row(precision: str, same: int, seconds: float, *, images: int = 1000, backbone: str = "b") -> Agreement:
    return Agreement(backbone, "t", precision, images, same, 500, 500, seconds, 10.0)


def test_samples_are_pooled_within_a_backbone_and_the_worst_backbone_counts():
    judged = judge(
        [
            [row("bf16", 990, 2.0), row("fp16", 1000, 4.0), row("bf16", 3000, 3.0, images=3000)],
            [row("bf16", 994, 5.0, backbone="c"), row("fp16", 1000, 6.0, backbone="c")],
        ]
    )
    assert judged == (Judged("bf16", 0.994, 3.0), Judged("fp16", 1.0, 2.0))


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ([], "fp32"),
        ([Judged("bf16", 0.999, 3.0), Judged("fp16", 1.0, 2.0)], "bf16"),
        ([Judged("bf16", 0.994, 3.0), Judged("fp16", 1.0, 2.0)], "fp16"),
        ([Judged("bf16", MIN_AGREEMENT, MIN_GAIN)], "bf16"),
        ([Judged("bf16", 1.0, 1.09)], "fp32"),
        ([Judged("bf16", 0.9, 9.0), Judged("fp16", 0.99, 9.0)], "fp32"),
    ],
)
def test_the_fastest_that_agrees(judged, expected):
    assert fastest_fit(judged) == expected


def test_what_is_given_is_not_measured(suite, monkeypatch):
    monkeypatch.setattr(agreement_module, "measure_agreement", None)
    settings = EvaluationSettings(precision="bf16")
    assert choose(suite, settings, {BACKBONE: ["Task0"]}, device=CPU) == EvaluationChoice("bf16")


def test_precisions_are_compared_on_a_sample_of_every_task(suite, monkeypatch):
    asked: list[dict[str, Any]] = []

    def measure(suite: Suite, backbone: str, tasks: Any, precisions: Any, **options: Any) -> list[Agreement]:
        asked.append({"backbone": backbone, "tasks": tasks, "precisions": precisions, **options})
        return [row(precision, 1000, 2.0) for precision in precisions for _ in tasks]

    monkeypatch.setattr(agreement_module, "measure_agreement", measure)
    settings = EvaluationSettings(precision="auto", max_images=7)
    choice = choose(suite, settings, {BACKBONE: ["Task0", "Task1"]}, device=CPU)
    assert choice == EvaluationChoice("bf16", {}, (Judged("bf16", 1.0, 5.0),))
    (options,) = asked
    assert (options["tasks"], options["precisions"]) == (["Task0", "Task1"], ("bf16",))
    assert (options["max_images"], options["batch_size"]) == (7, None)
    choose(suite, EvaluationSettings(precision="auto", batch_size=3), {BACKBONE: ["Task0"]}, device=CPU)
    assert (asked[1]["max_images"], asked[1]["batch_size"]) == (64, 3)


def test_on_real_models(suite):
    choice = choose(suite, EvaluationSettings(precision="auto"), {BACKBONE: ["Task0", "Task1"]}, device=CPU)
    (judged,) = choice.judged
    assert judged.precision == "bf16"
    assert 0.7 < judged.agreement <= 1
    assert judged.gain > 0
    assert choice.precision == fastest_fit(choice.judged)


def test_a_choice_survives_json():
    choice = EvaluationChoice("bf16", {"ViT-B-32": 128}, (Judged("bf16", 0.9975, 3.26), Judged("fp16", 1.0, 2.0)))
    assert EvaluationChoice.from_dict(json.loads(json.dumps(choice.as_dict()))) == choice
    assert str(choice) == (
        "precision bf16 (bf16 3.3 times as fast, 99.75 % agreement; fp16 2.0 times as fast, 100.00 % agreement), "
        "batches of ViT-B-32 128"
    )
    assert str(EvaluationChoice("fp32")) == "precision fp32"


SPEC = SweepSpec.model_validate(
    {"name": "x", "suite": "fake", "num_tasks": [2], "methods": ["iso-c"], "evaluation": {"precision": "auto"}}
)


def test_the_precision_takes_the_place_of_auto():
    resolved = with_precision(SPEC, "bf16")
    assert resolved.evaluation.precision == "bf16"
    assert resolved.model_copy(update={"evaluation": SPEC.evaluation}) == SPEC
    assert spec_hash(resolved) != spec_hash(SPEC), "so an output folder belongs to the one or the other"


def opened(folder: Path) -> Output:
    return open_output(folder, sweep="x", spec={}, spec_hash="1")


def test_whoever_continues_a_sweep_keeps_the_choice(tmp_path, suite, monkeypatch):
    choice = EvaluationChoice("bf16", {BACKBONE: 128}, (Judged("bf16", 1.0, 2.0),))
    with opened(tmp_path) as output:
        output.begin("f")
        assert output.choice is None
        output.keep_choice(choice.as_dict())
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest["evaluation_choice"]["precision"] == "bf16"
    monkeypatch.setattr("raymerge.cluster.choose_evaluation", None)
    with opened(tmp_path) as output:
        output.begin("f")
        store = OutputStore(output, SPEC, suite, None)
        assert choose_once(store, SPEC, suite, {BACKBONE: ["Task0"]}, Silent()) == choice
    assert read_manifest(tmp_path) == output.manifest


def test_devices_of_several_kinds_compute_alike():
    small = EvaluationChoice("bf16", {"a": 64, "b": 128}, (Judged("bf16", 1.0, 2.0),))
    large = EvaluationChoice("bf16", {"a": 256, "b": 32}, (Judged("bf16", 0.999, 3.0),))
    slow = EvaluationChoice("fp32", {"a": 512, "b": 512}, (Judged("bf16", 0.9, 3.0),))
    assert common_choice([small]) == small
    assert common_choice([small, large]) == EvaluationChoice("bf16", {"a": 64, "b": 32}, small.judged)
    assert common_choice([small, slow]) == EvaluationChoice("fp32", {"a": 64, "b": 128}, slow.judged)
    assert common_choice([slow, large]) == EvaluationChoice("fp32", {"a": 256, "b": 32}, slow.judged)


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_by_auto(tmp_path, suite):
    spec = tmp_path / "auto.yaml"
    spec.write_text(
        f"name: auto\nsuite: {suite.root}\nnum_tasks: [2]\nmethods: [task-arithmetic]\nsearch: {{trials: 2}}\n"
        "evaluation: {precision: auto}\n"
    )
    command = [sys.executable, "-m", "raymerge", "sweep", str(spec), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "RAYMERGE_HOME": str(tmp_path / "home"), "NO_COLOR": "1"}
    run: dict[str, Any] = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    first = subprocess.run(command, check=False, **run)
    assert first.returncode == 0, first.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    choice = EvaluationChoice.from_dict(manifest["evaluation_choice"])
    assert f"evaluating with {choice}" in first.stderr
    assert manifest["spec"]["evaluation"]["precision"] == "auto"
    rows = results.load(tmp_path / "out", "evaluations")
    assert set(rows["precision"]) == {choice.precision}
    # as if another machine had decided otherwise: trials of another precision are other trials
    other = "fp32" if choice.precision == "bf16" else "bf16"
    manifest["evaluation_choice"]["precision"] = other
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    second = subprocess.run(command, check=False, **run)
    assert second.returncode == 0, second.stderr
    assert "measuring precisions" not in second.stderr
    both = results.load(tmp_path / "out", "trials")
    assert both.groupby("precision").size().to_dict() == {
        precision: len(both) // 2 for precision in (choice.precision, other)
    }
    assert isinstance(both, pd.DataFrame)
