"""Imports point down, heavy packages stay in their layer, and only the command line prints."""

import ast
import graphlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raymerge"

LAYERS = {
    "raymerge": 0,
    "raymerge.records": 0,
    "raymerge.errors": 0,
    "raymerge.allocator": 0,
    "raymerge.interrupts": 0,
    "raymerge.notes": 0,
    "raymerge.alignment": 1,
    "raymerge.layer_analysis": 1,
    "raymerge.methods": 1,
    "raymerge.linalg": 1,
    "raymerge.linalg_joined": 1,
    "raymerge.linalg_leading": 1,
    "raymerge.metrics": 1,
    "raymerge.selection": 1,
    "raymerge.backbones": 2,
    "raymerge.checkpoints": 2,
    "raymerge.data": 2,
    "raymerge.data_files": 2,
    "raymerge.finetuning": 2,
    "raymerge.heads": 2,
    "raymerge.images": 2,
    "raymerge.merge_cache": 2,
    "raymerge.merge_request": 2,
    "raymerge.merging": 2,
    "raymerge.method_point": 2,
    "raymerge.model_config": 2,
    "raymerge.model_file": 2,
    "raymerge.moment_files": 2,
    "raymerge.not_data": 2,
    "raymerge.pickle_globals": 2,
    "raymerge.preflight": 2,
    "raymerge.processes": 2,
    "raymerge.safe_loading": 2,
    "raymerge.suite_files": 2,
    "raymerge.suites": 2,
    "raymerge.training": 2,
    "raymerge.whole_file": 2,
    "raymerge.agreement": 3,
    "raymerge.api": 3,
    "raymerge.batch_size": 3,
    "raymerge.evaluation": 3,
    "raymerge.finetuning.expert": 3,
    "raymerge.input_moments": 3,
    "raymerge.merge_model": 3,
    "raymerge.model_card": 3,
    "raymerge.moment_collection": 3,
    "raymerge.staging": 3,
    "raymerge.suite_files.convert": 3,
    "raymerge.suite_files.fetch": 3,
    "raymerge.suite_files.verify": 3,
    "raymerge.node_check": 3,
    "raymerge.node_files": 3,
    "raymerge.single_model": 3,
    "raymerge.cluster": 4,
    "raymerge.dispatcher": 4,
    "raymerge.doctor": 4,
    "raymerge.driver": 4,
    "raymerge.evaluation_choice": 4,
    "raymerge.evaluator_pool": 4,
    "raymerge.execution": 4,
    "raymerge.finetuning.jobs": 4,
    "raymerge.merge_jobs": 4,
    "raymerge.method_settings": 4,
    "raymerge.plan": 4,
    "raymerge.preparation": 4,
    "raymerge.ray_metrics": 4,
    "raymerge.remote_driver": 4,
    "raymerge.search": 4,
    "raymerge.search_space": 4,
    "raymerge.serial": 4,
    "raymerge.shards": 4,
    "raymerge.spec_problems": 4,
    "raymerge.sweep_file": 4,
    "raymerge.sweep_spec": 4,
    "raymerge.suite_file": 4,
    "raymerge.suite_spec": 4,
    "raymerge.suite_nodes": 4,
    "raymerge.trackers": 4,
    "raymerge.tuning": 4,
    "raymerge.worker": 4,
    "raymerge.yaml_file": 4,
    "raymerge.analysis": 5,
    "raymerge.analysis_tables": 5,
    "raymerge.bench": 5,
    "raymerge.sweep_curves": 5,
    "raymerge.charts": 5,
    "raymerge.compare": 5,
    "raymerge.event_log": 5,
    "raymerge.bench.simulated": 4,
    "raymerge.bench.sleeping": 4,
    "raymerge.rehearsal": 5,
    "raymerge.figures": 5,
    "raymerge.folder": 5,
    "raymerge.html_report": 5,
    "raymerge.lease": 5,
    "raymerge.observers": 5,
    "raymerge.output": 5,
    "raymerge.output_lock": 5,
    "raymerge.plan_view": 5,
    "raymerge.published": 5,
    "raymerge.provenance": 5,
    "raymerge.query": 5,
    "raymerge.renderers": 5,
    "raymerge.report": 5,
    "raymerge.result_schema": 5,
    "raymerge.results": 5,
    "raymerge.rewriter": 5,
    "raymerge.significance": 5,
    "raymerge.status": 5,
    "raymerge.status_file": 5,
    "raymerge.suite_files.views": 5,
    "raymerge.summary": 5,
    "raymerge.tally": 5,
    "raymerge.verdict": 5,
    "raymerge.__main__": 6,
    "raymerge.cli": 6,
    "raymerge.cli_analyze": 6,
    "raymerge.cli_bench": 6,
    "raymerge.cli_bench_chaos": 6,
    "raymerge.cli_bench_cluster": 6,
    "raymerge.cli_bench_evaluate": 6,
    "raymerge.cli_compare": 6,
    "raymerge.cli_data": 6,
    "raymerge.cli_doctor": 6,
    "raymerge.cli_evaluate": 6,
    "raymerge.cli_figure": 6,
    "raymerge.cli_finetune": 6,
    "raymerge.cli_merge": 6,
    "raymerge.cli_options": 6,
    "raymerge.cli_query": 6,
    "raymerge.cli_rehearse": 6,
    "raymerge.cli_stats": 6,
    "raymerge.cli_status": 6,
    "raymerge.cli_suite": 6,
    "raymerge.cli_suites": 6,
    "raymerge.command_page": 6,
    "raymerge.progress": 6,
    "raymerge.run": 6,
    "raymerge.streams": 6,
}
"""Layer of every module; a package stands for what is in it."""

THIRD_PARTY = {0: set(), 1: {"torch", "jaxtyping"}}
"""All that the lowest layers may import beside the standard library."""

ONLY_IN = {"ray": {4}, "optuna": {4}, "pydantic": {4}, "typer": {6}}
"""Packages that belong to one layer."""

MAY_PRINT = {"raymerge.cli", "raymerge.progress", "raymerge.streams"}

PRINTS = {"print", "rich.print", "rich.print_json", "typer.echo", "typer.secho", "click.echo", "click.secho"} | {
    f"sys.{stream}.{method}" for stream in ("stdout", "stderr") for method in ("write", "writelines")
}


def layer_of(module: str) -> int | None:
    """The layer of the longest prefix in LAYERS; the package itself stands for no module but itself."""
    while module not in LAYERS and "." in module:
        module = module.rpartition(".")[0]
        if module == "raymerge":
            return None
    return LAYERS.get(module)


def imports_of(module: str, tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Absolute names of everything imported anywhere in a file, inside functions and TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.rsplit(".", node.level)[0] + "." if node.level else ""
            base = (package + (node.module or "")).rstrip(".")
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield submodule if submodule in modules else base


def called_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything called, imports of `from a import b as c` undone."""
    aliases = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, dot, tail = ast.unparse(node.func).partition(".")
            yield aliases.get(head, head) + dot + tail


def violations(sources: Mapping[str, str]) -> list[str]:
    """What is wrong with the given modules, by module name."""
    found = []
    trees = {module: ast.parse(source) for module, source in sources.items()}
    graph: dict[str, set[str]] = {module: set() for module in trees}
    for module, tree in trees.items():
        layer = layer_of(module)
        if layer is None:
            found.append(f"{module} has no layer: enter it in LAYERS")
            continue
        for name in sorted(set(imports_of(module, tree, set(trees)))):
            package = name.partition(".")[0]
            if package == "raymerge":
                target = layer_of(name)
                if target is None:
                    found.append(f"{module} imports {name}, which has no layer")
                elif target > layer:
                    found.append(f"{module} (layer {layer}) imports {name} (layer {target})")
                if name in trees and name != module:
                    graph[module].add(name)
            elif package not in sys.stdlib_module_names:
                if layer in THIRD_PARTY and package not in THIRD_PARTY[layer]:
                    found.append(f"{module} (layer {layer}) imports {package}")
                if layer not in ONLY_IN.get(package, {layer}):
                    found.append(f"{module} (layer {layer}) imports {package}, which belongs to {ONLY_IN[package]}")
        if module not in MAY_PRINT:
            found += [
                f"{module} calls {name}: only the command line prints" for name in called_names(tree) if name in PRINTS
            ]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"cycle: {' -> '.join(error.args[1])}")
    return found


def sources_of(folder: Path) -> dict[str, str]:
    files = {path.relative_to(folder.parent).with_suffix(""): path for path in sorted(folder.rglob("*.py"))}
    names = {".".join(p.parts[:-1] if p.name == "__init__" else p.parts): path for p, path in files.items()}
    return {name: path.read_text(encoding="utf-8") for name, path in names.items()}


def test_the_package_keeps_to_its_layers():
    assert violations(sources_of(PACKAGE)) == []


def test_the_list_of_layers_is_complete_and_has_no_leftovers():
    sources = sources_of(PACKAGE)
    assert len(sources) > 20
    assert not [module for module in LAYERS if module not in sources]


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("raymerge.records", "import raymerge.errors", None),
        (
            "raymerge.records",
            "from raymerge import driver",
            "raymerge.records (layer 0) imports raymerge.driver (layer 4)",
        ),
        (
            "raymerge.methods.x",
            "import raymerge.merging",
            "raymerge.methods.x (layer 1) imports raymerge.merging (layer 2)",
        ),
        (
            "raymerge.methods.x",
            "from ..merging import y",
            "raymerge.methods.x (layer 1) imports raymerge.merging (layer 2)",
        ),
        (
            "raymerge.plan",
            "def f():\n  import raymerge.report",
            "raymerge.plan (layer 4) imports raymerge.report (layer 5)",
        ),
        ("raymerge.plan", "import raymerge.new", "raymerge.plan imports raymerge.new, which has no layer"),
        ("raymerge.new", "", "raymerge.new has no layer: enter it in LAYERS"),
        ("raymerge.errors", "import torch", "raymerge.errors (layer 0) imports torch"),
        ("raymerge.errors", "import json, os.path", None),
        ("raymerge.metrics", "import numpy as np", "raymerge.metrics (layer 1) imports numpy"),
        ("raymerge.metrics", "import torch.nn.functional as F", None),
        (
            "raymerge.evaluation",
            "from ray import tune",
            "raymerge.evaluation (layer 3) imports ray, which belongs to {4}",
        ),
        ("raymerge.report", "import optuna", "raymerge.report (layer 5) imports optuna, which belongs to {4}"),
        ("raymerge.report", "print(1)", "raymerge.report calls print: only the command line prints"),
        ("raymerge.report", "from rich import print as p\np(1)", "raymerge.report calls rich.print: only"),
        ("raymerge.report", "import sys\nsys.stderr.write('x')", "raymerge.report calls sys.stderr.write: only"),
        ("raymerge.run", "print(1)", "raymerge.run calls print: only the command line prints"),
        ("raymerge.cli", "import typer\ntyper.echo(1)\nprint(2)", None),
    ],
)
def test_violations_are_found(module, source, message):
    found = violations({"raymerge.driver": "", "raymerge.merging": "", module: source})
    assert len(found) == (message is not None)
    assert not message or found[0].startswith(message)


def test_cycles_are_found():
    sources = {"raymerge.plan": "import raymerge.search", "raymerge.search": "from raymerge import plan"}
    (found,) = violations(sources)
    assert found.startswith("cycle: ")
