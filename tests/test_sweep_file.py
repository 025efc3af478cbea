"""Reading sweep files: what is accepted, what is refused and in which words."""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from raymerge.errors import SweepFileError
from raymerge.methods import declared_methods
from raymerge.search_space import search_space
from raymerge.sweep_file import load_sweep
from raymerge.sweep_spec import SweepSpec, resolve, spec_hash

DEMO = Path(__file__).parent.parent / "sweeps" / "demo.yaml"
MINIMAL = "name: x\nsuite: demo\nnum_tasks: [8]\nmethods: [iso-c]\n"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory):
    """Write text to x.yaml and load it; a SweepFileError names the file as x.yaml, without its folder."""
    folder = tmp_path_factory.mktemp("sweeps")

    def load(text: str | bytes = MINIMAL, *overrides: str) -> SweepSpec:
        path = folder / "x.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        try:
            return load_sweep(path, overrides)
        except SweepFileError as error:
            raise SweepFileError(str(error).replace(str(path), "x.yaml")) from None

    return load


@pytest.fixture
def problems(sweep):
    """The lines of the error that a file and overrides make."""

    def collect(text: str | bytes, *overrides: str) -> list[str]:
        with pytest.raises(SweepFileError) as caught:
            sweep(text, *overrides)
        return str(caught.value).splitlines()

    return collect


# --- accepted ----------------------------------------------------------------------------------------------------


def test_demo_sweep_is_what_the_documentation_says():
    spec = load_sweep(DEMO)
    assert spec.num_tasks == (8, 14, 20)
    assert ", ".join(spec.methods) == (
        "zero-shot, fine-tuned, weight-averaging, task-arithmetic, ties, consensus-ta, tsv-m, iso-c, iso-cts"
    )
    assert (spec.search.policy, spec.search.trials, spec.search.batch, spec.search.seed) == ("tpe", 12, 4, 0)
    assert spec.name == "demo"


def test_defaults(sweep):
    spec = sweep()
    assert spec.search.model_dump() == {
        "policy": "tpe",
        "trials": 16,
        "batch": 4,
        "seed": 0,
        "objective": "normalized_accuracy",
        "prune": {"after": 0.25, "margin": 0.05},
        "patience": 3,
    }
    assert spec.evaluation.model_dump() == {
        "precision": "fp32",
        "batch_size": "auto",
        "denominators": "measured",
        "shard_images": 1024,
        "store_predictions": False,
        "max_images": None,
    }
    assert spec.resources.model_dump() == {
        "evaluators": "auto",
        "cpus_per_evaluator": 1.0,
        "gpus_per_evaluator": 0.0,
    }
    assert (spec.profile, spec.suite_seed, spec.backbones, spec.tasks) == ("full", 0, None, None)


def test_only_the_demo_suite_has_a_default_profile(sweep):
    assert sweep(MINIMAL.replace("demo", "other")).profile is None


def test_one_value_stands_for_a_list_of_one(sweep):
    spec = sweep("name: x\nsuite: demo\nnum_tasks: 8\nbackbones: ViT-B-32\nmethods: iso-c\n")
    assert (spec.num_tasks, spec.backbones, spec.methods) == ((8,), ("ViT-B-32",), {"iso-c": {}})


def test_methods_as_list_and_as_mapping_are_the_same(sweep):
    as_mapping = sweep("name: x\nsuite: demo\nnum_tasks: [8]\nmethods:\n  iso-c:\n  ties: {}\n")
    assert as_mapping == sweep("name: x\nsuite: demo\nnum_tasks: [8]\nmethods: [iso-c, ties]\n")


def test_empty_section_means_defaults(sweep):
    assert sweep(MINIMAL + "search:\nevaluation:\nresources:\ntrackers:\n") == sweep()


def test_null_prune_switches_pruning_off(sweep):
    assert sweep(MINIMAL + "search: {prune: null}\n").search.prune is None


def test_byte_order_mark_and_merge_keys_are_read(sweep):
    text = "base: &b {trials: 3}\n" + MINIMAL + "search:\n  <<: *b\n  seed: 1\n"
    spec = sweep(b"\xef\xbb\xbf" + text.replace("base: &b {trials: 3}\n", "").replace("<<: *b", "trials: 3").encode())
    assert (spec.search.trials, spec.search.seed) == (3, 1)
    with pytest.raises(
        SweepFileError, match=r"^x.yaml:1: unknown key 'base'\."
    ) as caught:  # merged, and only 'base' is wrong
        sweep(text)
    assert len(str(caught.value).splitlines()) == 1


# --- overrides ---------------------------------------------------------------------------------------------------


def test_overrides_apply_in_order_and_read_yaml(sweep):
    spec = sweep(MINIMAL, "search.trials=3", "search.trials=5", "num_tasks=[14, 20]", "evaluation.max_images=null")
    assert (spec.search.trials, spec.num_tasks, spec.evaluation.max_images) == (5, (14, 20), None)


def test_override_of_a_method_setting_in_a_list_of_methods(sweep):
    spec = sweep(MINIMAL, "methods.iso-c.alpha=1.5", "methods.iso-cts.common_space_fraction=0.5")
    assert spec.methods == {"iso-c": {"alpha": 1.5}, "iso-cts": {"common_space_fraction": 0.5}}


@pytest.mark.parametrize("policy", ["tpe", "grid", "paper"])
def test_a_word_is_a_value_under_every_policy(sweep, policy):
    text = MINIMAL.replace("[iso-c]", "{scale-svd: {apply: merged}}") + f"search: {{policy: {policy}}}\n"
    spec = sweep(text)
    assert spec.methods == {"scale-svd": {"apply": "merged"}}
    space = search_space(spec, declared_methods()["scale-svd"], 8)
    assert space.fixed == {
        "sparsity": 0.1,
        "rank_ratio": 0.75,
        "num_iters": 10.0,
        "prune_level": "row",
        "apply": "merged",
    }
    assert space.num_merges == 1
    assert resolve(spec)["methods"]["scale-svd"]["prune_level"] == "row"
    assert spec_hash(spec) != spec_hash(sweep(text, "methods.scale-svd.apply=per_task"))


def test_override_inside_a_mapping_keeps_its_other_keys(sweep):
    text = MINIMAL.replace("[iso-c]", "{iso-c: {alpha: {low: 1, high: 2, step: 0.5}}}")
    assert sweep(text, "methods.iso-c.alpha.high=1.5").methods["iso-c"]["alpha"].values() == (1.0, 1.5)


def test_override_of_tasks_replaces_num_tasks_and_back(sweep):
    spec = sweep(MINIMAL, "tasks=[shapes, digits]")
    assert (spec.tasks, spec.num_tasks) == (("shapes", "digits"), None)
    spec = sweep(MINIMAL, "tasks=shapes", "num_tasks=14")
    assert (spec.tasks, spec.num_tasks) == (None, (14,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.trials", "override 'search.trials' is not of the form key=value, such as search.trials=8."),
        ("search..trials=1", "override 'search..trials=1' is not of the form key=value, such as search.trials=8."),
        ("search.trails=1", "override 'search.trails=1': unknown key 'search.trails'. Did you mean 'trials'? Known: "),
        ("serach.trials=1", "override 'serach.trials=1': unknown key 'serach'. Did you mean 'search'? Known: "),
        ("search.trials=0", "override 'search.trials=0': 'search.trials' is 0, expected at least 1."),
        ("methods.iso_c.alpha=1", "override 'methods.iso_c.alpha=1': unknown method 'iso_c'. Did you mean 'iso-c'?"),
        ("name.first=1", "override 'name.first=1': 'name' is 'x' and has no 'first'; override 'name' as a whole."),
        ("num_tasks=[8", "override 'num_tasks=[8': is not valid YAML ("),
        ("name=", "override 'name=': 'name' is None, expected text; put it in quotes."),
    ],
)
def test_wrong_override_is_named(problems, override, message):
    (line,) = problems(MINIMAL, override)
    assert line.startswith(message)


_numbers = st.floats(-100, 100, allow_subnormal=False) | st.integers(-100, 100)
_alphas = (
    _numbers.map(float)
    | st.lists(_numbers.map(float), min_size=1, max_size=4, unique=True)
    | st.builds(
        lambda low, width, step: {"low": float(low), "high": float(low + width), "step": step},
        st.integers(-5, 5),
        st.integers(0, 5),
        st.none() | st.floats(0.01, 1.0),
    )
    | st.builds(lambda stop, num: {"start": 0.0, "stop": stop, "num": num}, st.floats(0.1, 3.0), st.integers(1, 40))
)
_words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
_specs = st.fixed_dictionaries(
    {
        "name": _words,
        "suite": _words,
        "profile": st.none() | _words,
        "suite_seed": st.integers(0, 2**32 - 1),
        "backbones": st.none() | st.lists(_words, min_size=1, max_size=3, unique=True),
        "num_tasks": st.lists(st.integers(1, 20), min_size=1, max_size=3, unique=True),
        "search": st.fixed_dictionaries(
            {
                "trials": st.integers(1, 1000),
                "seed": st.integers(0, 2**32 - 1),
                "objective": st.sampled_from(["accuracy", "normalized_accuracy"]),
                "prune": st.none() | st.fixed_dictionaries({"after": st.just(0.5), "margin": st.floats(0, 1)}),
            }
        ),
        "methods": st.dictionaries(
            st.sampled_from(["iso-c", "tsv-m", "task-arithmetic"]),
            st.fixed_dictionaries({}, optional={"alpha": _alphas}),
            min_size=1,
        ),
        "evaluation": st.fixed_dictionaries({"max_images": st.none() | st.integers(1, 10**6)}),
        "resources": st.fixed_dictionaries({"evaluators": st.just("auto") | st.integers(1, 99)}),
        "trackers": st.fixed_dictionaries({}, optional={"mlflow": st.fixed_dictionaries({"tracking_uri": st.none()})}),
    }
)


def flat(value: dict[str, Any], prefix: str = "") -> list[str]:
    overrides = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            overrides += flat(item, f"{prefix}{key}.")
        else:
            overrides.append(f"{prefix}{key}={json.dumps(item)}")
    return overrides


@settings(max_examples=30, deadline=None)
@given(value=_specs)
def test_a_spec_survives_yaml_overrides_and_resolution(value):
    spec = SweepSpec.model_validate(value)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.yaml"
        with path.open("w") as file:
            YAML(typ="safe", pure=True).dump(value, file)
        assert load_sweep(path) == spec
        path.write_text("name: other\nsuite: other\nnum_tasks: [3]\nmethods: {}\n")
        assert load_sweep(path, flat(value)) == spec
    again = SweepSpec.model_validate(resolve(spec))
    assert spec_hash(again) == spec_hash(spec)
    assert resolve(again) == resolve(spec)
    for name in spec.methods:
        assert search_space(again, declared_methods()[name], 8) == search_space(spec, declared_methods()[name], 8)


# --- refused -----------------------------------------------------------------------------------------------------


def test_every_problem_has_its_line_in_one_error(problems):
    text = """\
name: x y
suite: demo
num_tasks: [8, 0, eight]
methods:
  iso_c: {}
  iso-c: {alfa: 1}
  iso-cts:
    alpha: {low: 3, high: 1, stp: 2}
    common_space_fraction: 1.2
  zero-shot: {alpha: 1}
serch: 3
search:
  policy: tpee
  trials: many
  prune: {aftr: 0.1}
resources: {evaluators: 0, gpus_per_evaluator: 1.5}
evaluation: {batch_size: none, max_images: 0}
"""
    expected = [
        "x.yaml:1: 'name' is 'x y': expected up to 100 letters, digits, '.', '_' or '-', since it names a folder.",
        "x.yaml:3: 'num_tasks.1' is 0, expected at least 1.",
        "x.yaml:3: 'num_tasks.2' is 'eight', expected a whole number.",
        "x.yaml:5: unknown method 'iso_c'. Did you mean 'iso-c'? Known: ",
        "x.yaml:6: unknown parameter 'methods.iso-c.alfa'. Did you mean 'alpha'? Known: alpha.",
        "x.yaml:8: unknown key 'methods.iso-cts.alpha.stp'. Did you mean 'step'? Known: high, low, step.",
        "x.yaml:9: 'methods.iso-cts.common_space_fraction' is 1.2, expected 0 to 1.",
        "x.yaml:10: 'methods.zero-shot.alpha': zero-shot has a fixed alpha of 0.0; remove it.",
        "x.yaml:11: unknown key 'serch'. Did you mean 'search'? Known: backbones, ",
        "x.yaml:13: 'search.policy' is 'tpee'. Did you mean 'tpe'? Known: grid, paper, tpe.",
        "x.yaml:14: 'search.trials' is 'many', expected a whole number.",
        "x.yaml:15: unknown key 'search.prune.aftr'. Did you mean 'after'? Known: after, margin.",
        "x.yaml:16: 'resources.evaluators' is 0: no evaluator can run; write 'auto' or a whole number of at least 1.",
        "x.yaml:16: 'resources.gpus_per_evaluator' is 1.5: Ray shares out whole units above 1; write ",
        "x.yaml:17: 'evaluation.batch_size' is 'none': expected 'auto' or a whole number of at least 1.",
        "x.yaml:17: 'evaluation.max_images' is 0, expected at least 1.",
    ]
    found = problems(text)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("[iso-c, iso-d]", "x.yaml:4: unknown method 'iso-d'. Did you mean 'iso-c'?"),
        ("[ties, ties]", "x.yaml:4: 'methods' is ['ties', 'ties']: 'ties' is listed twice."),
        ("[]", "x.yaml:4: 'methods' is [], expected a list of method names or a mapping 'name: {}'."),
        ("", "x.yaml:4: 'methods' is None, expected a list of method names"),
        ("[{iso-c: {}}]", "x.yaml:4: 'methods' is [{'iso-c': {}}], expected a list of method names"),
        ("{iso-c: 3}", "x.yaml:4: 'methods.iso-c' is 3, expected a mapping of settings or {}."),
        ("{zero-shot: {beta: 3}}", "x.yaml:4: unknown parameter 'methods.zero-shot.beta'. It has none."),
        (
            "{scale-svd: {apply: merge}}",
            "x.yaml:4: 'methods.scale-svd.apply' is 'merge', expected one of per_task, merged.",
        ),
        (
            "{iso-iasad: {prune_level: [row, element]}}",
            "x.yaml:4: 'methods.iso-iasad.prune_level' is ['row', 'element'], expected one of row, element.",
        ),
        ("{scale-svd: {apply: 1}}", "x.yaml:4: 'methods.scale-svd.apply' is 1, expected one of per_task, merged."),
        ("{scale-svd: {sparsity: row}}", "x.yaml:4: 'methods.scale-svd.sparsity' is 'row', expected a number"),
        ("{iso-c: {alpha: true}}", "x.yaml:4: 'methods.iso-c.alpha' is True, expected a number, a list of numbers"),
        ("{iso-c: {alpha: one}}", "x.yaml:4: 'methods.iso-c.alpha' is 'one', expected a number, a list of numbers"),
        ("{iso-c: {alpha: .nan}}", "x.yaml:4: 'methods.iso-c.alpha' is nan, expected a number"),
        ("{iso-c: {alpha: []}}", "x.yaml:4: 'methods.iso-c.alpha' is [], expected at least one."),
        ("{iso-c: {alpha: [1, x]}}", "x.yaml:4: 'methods.iso-c.alpha' is [1, 'x'], expected only numbers."),
        ("{iso-c: {alpha: [1, 1.0]}}", "x.yaml:4: 'methods.iso-c.alpha' is [1, 1.0], 1.0 is listed twice."),
        ("{iso-c: {alpha: {low: 1}}}", "x.yaml:4: 'methods.iso-c.alpha.high' is missing."),
        ("{iso-c: {alpha: {low: 2, high: 1}}}", "x.yaml:4: 'methods.iso-c.alpha' is {'high': 1, 'low': 2}: low 2 is"),
        ("{iso-c: {alpha: {low: 1, high: 2, step: 0}}}", "x.yaml:4: 'methods.iso-c.alpha.step' is 0, expected above 0"),
        ("{iso-c: {alpha: {low: 0, high: 2, step: 1e-9}}}", "x.yaml:4: 'methods.iso-c.alpha' is {'high': 2, "),
        ("{iso-c: {alpha: {start: 0, stop: 1}}}", "x.yaml:4: 'methods.iso-c.alpha.num' is missing."),
        ("{iso-c: {alpha: {start: 1, stop: 0, num: 3}}}", "x.yaml:4: 'methods.iso-c.alpha' is {'num': 3, 'start': 1, "),
        ("{iso-c: {alpha: {start: 1, stop: 2, num: 1}}}", "x.yaml:4: 'methods.iso-c.alpha' is {'num': 1, 'start': 1, "),
        ("{ties: {keep: [0.2, 1.5]}}", "x.yaml:4: 'methods.ties.keep' is 1.5, expected 0.0001 to 1."),
        ("{ties: {keep: {low: 0, high: 1, step: 0.5}}}", "x.yaml:4: 'methods.ties.keep' is 0, expected 0.0001 to 1."),
        ("{ties: {keep: {start: 0, stop: 1, num: 3}}}", "x.yaml:4: 'methods.ties.keep.low' is missing."),
    ],
)
def test_wrong_methods(problems, methods, message):
    assert problems(MINIMAL.replace("[iso-c]", methods))[0].startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsuite: demo\nmethods: [ties]\n", "x.yaml: no task set: add 'num_tasks: [8]' or 'tasks: [...]'."),
        (MINIMAL + "tasks: [shapes]\n", "x.yaml:5: 'tasks' and 'num_tasks' exclude each other; remove one of them."),
        (MINIMAL.replace("[8]", "[8, 8]"), "x.yaml:3: 'num_tasks' is [8, 8]: 8 is listed twice."),
        (MINIMAL.replace("[8]", "[]"), "x.yaml:3: 'num_tasks' is []: expected at least one."),
        (MINIMAL.replace("[8]", "true"), "x.yaml:3: 'num_tasks.0' is True, expected a whole number."),
        (MINIMAL.replace("[8]", "8.0"), "x.yaml:3: 'num_tasks' is 8.0, expected a list."),
        (MINIMAL.replace("name: x\n", ""), "x.yaml: 'name' is missing."),
        (MINIMAL.replace("name: x", "name: ../x"), "x.yaml:1: 'name' is '../x': expected up to 100 letters"),
        (MINIMAL.replace("name: x", "name: 3"), "x.yaml:1: 'name' is 3, expected text; put it in quotes."),
        (MINIMAL + "schema_version: 2\n", "x.yaml:5: 'schema_version' is 2. Known: 1."),
        (MINIMAL + "search: fast\n", "x.yaml:5: 'search' is 'fast', expected a mapping."),
        (MINIMAL + "search: {trials: '3'}\n", "x.yaml:5: 'search.trials' is '3', expected a whole number."),
        (MINIMAL + "search:\n  prune:\n    after: 0\n", "x.yaml:7: 'search.prune.after' is 0, expected above 0"),
        (
            MINIMAL + "search: {policy: paper, objective: accuracy}\n",
            "x.yaml:5: 'search.objective' is 'accuracy': policy paper selects by normalized_accuracy.",
        ),
        (MINIMAL + "trackers: {tensorbord: {}}\n", "x.yaml:5: unknown key 'trackers.tensorbord'. Did you mean"),
        (MINIMAL + "trackers: {wandb: {mode: off}}\n", "x.yaml:5: 'trackers.wandb.mode' is 'off'. "),
        (MINIMAL + "resources: {cpus_per_evaluator: -1}\n", "x.yaml:5: 'resources.cpus_per_evaluator' is -1, expected"),
        ("", "x.yaml: is empty; start from a copy of sweeps/demo.yaml."),
        ("# nothing\n", "x.yaml: is empty;"),
        ("- a\n- b\n", "x.yaml: holds ['a', 'b'], expected 'key: value' lines."),
        ("just words\n", "x.yaml: holds 'just words', expected"),
        ("name: x\nsuite: [demo\nmethods: y\n", "x.yaml:3: is not valid YAML ("),
        ("name: x\nname: y\n", "x.yaml:2: is not valid YAML (found duplicate key"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: is not valid YAML ("),
        ("a: *b\n", "x.yaml:1: is not valid YAML ("),
        ("name: \x07\n", "x.yaml: is not valid YAML ("),
        (b"name: x\nsuite: \xff\n", "x.yaml:2: is not UTF-8 text; save it as UTF-8."),
        (b"\xff\xfen\x00a\x00", "x.yaml:1: is not UTF-8 text"),
        ("8: x\n", "x.yaml: key 8 is not text; put it in quotes."),
        ("? [a]\n: b\n", "x.yaml: key "),
        ("name: 2026-11-23\n", "x.yaml:1: 'name' is a "),
        ("name: 2026-13-45\n", "x.yaml: is not valid YAML ("),
        ("name: !!python/object:os.system x\n", "x.yaml:1: 'name' is a "),
        ("name: " + "9" * 5000 + "\n", "x.yaml: is not valid YAML ("),
        ("name: 0x" + "f" * 5000 + "\n", "x.yaml:1: 'name' is too large a number."),
        ("a: " + "[" * 300 + "]" * 300 + "\n", "x.yaml: "),
        ("a" * 70_000, "x.yaml: is larger than 64 KiB, expected a sweep file of a few lines."),
    ],
)
def test_wrong_files(problems, text, message):
    assert problems(text)[0].startswith(message)


def test_nested_aliases_do_not_fill_the_memory(problems):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    assert problems("\n".join(lines)) == [
        "x.yaml: stands for more than 20000 values or 40 levels; do its aliases repeat?"
    ]


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(SweepFileError, match=r"nowhere\.yaml: no such file; give the path of a sweep file\."):
        load_sweep(tmp_path / "nowhere.yaml")
    with pytest.raises(SweepFileError, match=r"is a folder, expected a sweep file such as sweeps/demo\.yaml\."):
        load_sweep(tmp_path)
    with pytest.raises(SweepFileError, match=r"cannot be read \("):
        load_sweep("a\0b")
    with pytest.raises(SweepFileError, match=r"cannot be read \("):
        load_sweep(tmp_path / ("x" * 5000))


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@?,#\n\t 01.\\<~=e"), max_size=40) | st.text(max_size=40))
@example("!!set {a}")
@example("!!omap [a: b]")
@example("!!binary aGk=")
@example("a: !!float x")
@example("a: !!int ''")
@example("<<: 3")
@example("a: &a [*a]")
@example("&a {b: *a}")
@example("&a a: &a b")
@example("%YAML 9.9\n---\na")
@example("\ud800")
def test_any_text_is_a_sweep_or_a_sentence(sweep, text):
    for arguments in ((text,), (MINIMAL, f"search={text}"), (MINIMAL, text)):
        with contextlib.suppress(SweepFileError):
            sweep(*arguments)


# --- imports -----------------------------------------------------------------------------------------------------


def test_import_is_light():
    code = (
        "import sys, raymerge.sweep_file, raymerge.plan\n"
        "heavy = {'torch', 'ray', 'optuna', 'pyarrow', 'pandas', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
