"""Which sweeps are the same, and the JSON Schema of a sweep file."""

from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from raymerge.methods import declared_methods
from raymerge.methods._method import Alpha
from raymerge.sweep_file import load_sweep
from raymerge.sweep_spec import SweepSpec, json_schema, resolve, spec_hash

DEMO = Path(__file__).parent.parent / "sweeps" / "demo.yaml"


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "resources.evaluators=2",
        "resources.gpus_per_evaluator=1",
        "trackers.mlflow.experiment_name=merging",
        "evaluation.batch_size=7",
        "evaluation.shard_images=64",
        "evaluation.store_predictions=true",
        "num_tasks=[20, 8, 14]",
        "profile=full",
        "search.trials=12",
    ],
)
def test_hash_ignores_what_does_not_decide_a_number(override):
    assert spec_hash(load_sweep(DEMO, [override])) == spec_hash(load_sweep(DEMO))


@pytest.mark.parametrize(
    "override",
    [
        "suite=other",
        "profile=reduced",
        "suite_seed=1",
        "backbones=[a]",
        "num_tasks=[8]",
        "tasks=[a]",
        "search.policy=grid",
        "search.trials=17",
        "search.batch=5",
        "search.seed=1",
        "search.objective=accuracy",
        "search.prune=null",
        "search.prune.margin=0.06",
        "search.patience=4",
        "methods=[iso-c]",
        "methods.iso-c.alpha=1",
        "methods.iso-cts.common_space_fraction=0.8",
        "evaluation.precision=bf16",
        "evaluation.max_images=10",
    ],
)
def test_hash_sees_what_decides_a_number(override):
    assert spec_hash(load_sweep(DEMO, [override])) != spec_hash(load_sweep(DEMO))


def test_hash_is_the_same_however_a_default_is_written():
    method = declared_methods()["iso-c"]
    assert isinstance(method.alpha, Alpha)
    search = method.alpha.search
    written = f"methods.iso-c.alpha={{low: {search.low}, high: {search.high}, step: {search.step}}}"
    assert spec_hash(load_sweep(DEMO, [written])) == spec_hash(load_sweep(DEMO))


def test_schema_is_valid_and_describes_every_key():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for model in (schema, *(schema["$defs"][name] for name in schema["$defs"] if name != "Alpha")):
        assert model["additionalProperties"] is False
        for key, field in model["properties"].items():
            assert field.get("description"), key
    assert list(schema["properties"]["methods"]["anyOf"][2]["properties"]) == list(declared_methods())


def test_schema_accepts_the_demo_sweep_and_its_resolution():
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(YAML(typ="safe", pure=True).load(DEMO.read_text()))
    validator.validate(resolve(load_sweep(DEMO)))
    validator.validate(resolve(load_sweep(DEMO, ["search.policy=paper", "methods.iso-c.alpha=[1, 2]"])))


@pytest.mark.parametrize(
    "change",
    [
        {"nme": "x"},
        {"num_tasks": [0]},
        {"num_tasks": []},
        {"methods": ["iso_c"]},
        {"methods": {"iso-c": {"alfa": 1}}},
        {"methods": {"iso-c": {"alpha": "1"}}},
        {"methods": {"zero-shot": {"alpha": 1}}},
        {"methods": {"iso-cts": {"common_space_fraction": 1.5}}},
        {"search": {"policy": "tpee"}},
        {"search": {"trials": 0}},
        {"resources": {"evaluators": 0}},
        {"evaluation": {"batch_size": "none"}},
    ],
)
def test_schema_refuses_what_the_loader_refuses(change):
    value = {"name": "x", "suite": "demo", "num_tasks": [8], "methods": ["iso-c"], **change}
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(value)
    with pytest.raises(ValueError, match="validation error"):
        SweepSpec.model_validate(value)
