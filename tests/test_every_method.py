"""What every merging method promises, over METHODS: a new file is tested before its author writes a test."""

import ast
import dataclasses
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raymerge import methods
from raymerge.errors import MergeInputError
from raymerge.methods import METHODS, Alpha, FixedAlpha, MethodFolder, declared_methods
from raymerge.methods._method import Method

FUNCTIONS = ("merge", "factorise", "task_factors", "statistic", "task_update")
MATRIX_SHAPES = [(8, 8), (12, 5), (5, 12), (1, 4), (4, 1), (1, 1)]
OTHER_SHAPES = [(), (7,), (3, 2, 2, 4)]

Update = Callable[[Tensor], Tensor]


def factors_of(method: Method, task_tensors: Tensor) -> Any:
    """Factors for the default parameters; where the method asks for input moments, the inputs differ in strength."""
    moments = None
    if method.moments:
        moments = [torch.linspace(0.5, 2.0, task_tensors.shape[-1])[None]] * len(task_tensors)
    return method.factors(task_tensors, moments=moments)


def updates_of(method: Method) -> dict[str, Update]:
    """Every kind of update a method gives, as functions of one tensor's task tensors, with default parameters."""
    params = {parameter.name: parameter.default for parameter in method.parameters}

    def extra(task_tensors: Tensor) -> dict:
        return params | (
            {} if method.statistic is None else {"statistic": method.statistic(lambda: [task_tensors], **params)}
        )

    def merge(task_tensors: Tensor) -> Tensor:
        return method.merge(factors_of(method, task_tensors), **extra(task_tensors))

    kinds: dict[str, Update] = {}
    if method.merge is not None:
        kinds["merge"] = merge
    if method.task_update is not None:
        kinds["task_update"] = lambda task_tensors: method.task_update(task_tensors, 0, **extra(task_tensors))
    return kinds


KINDS = [(name, kind) for name in METHODS for kind in updates_of(METHODS[name])]
CASES = [
    (name, kind, shape)
    for name, kind in KINDS
    for shape in [*MATRIX_SHAPES, *(OTHER_SHAPES if METHODS[name].matrices == "all" else [])]
]


def update_of(name: str, kind: str) -> Update:
    return updates_of(METHODS[name])[kind]


def random_tasks(*shape: int, num_tasks: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tasks, *shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "kind", "shape"), CASES)
def test_shape_dtype_and_a_read_only_input(name, kind, shape, dtype):
    tasks = random_tasks(*shape, dtype=dtype)
    before = tasks.clone()
    update = update_of(name, kind)(tasks)
    assert update.shape == shape
    assert update.dtype == dtype
    assert torch.isfinite(update).all()
    assert torch.equal(tasks, before), "the input is read only"
    update += 1
    assert torch.equal(tasks, before), "what comes back is nobody else's memory"


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_same_input_same_bits(name, kind):
    tasks = random_tasks(12, 5)
    update = update_of(name, kind)
    assert torch.equal(update(tasks), update(tasks.clone()))


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].factorise is not None])
def test_merging_twice_from_the_same_factors(name):
    method = METHODS[name]
    params = {parameter.name: parameter.default for parameter in method.parameters}
    tasks = random_tasks(6, 9)
    factors = pickle.loads(pickle.dumps(factors_of(method, tasks)))  # factors travel between processes
    first = method.merge(factors, **params)
    expected = first.clone()
    first *= 0
    assert torch.equal(method.merge(factors, **params), expected), "an update may be scaled in place"


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].merge is not None])
@pytest.mark.parametrize("shape", MATRIX_SHAPES)
def test_task_order_is_irrelevant(name, shape):
    tasks = random_tasks(*shape, num_tasks=4)
    update = update_of(name, "merge")
    torch.testing.assert_close(update(tasks[[2, 0, 3, 1]]), update(tasks))


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("scale", [2.0, -2.0, 0.3])
def test_homogeneous(name, kind, scale):
    tasks = random_tasks(6, 9, dtype=torch.float64)
    update = update_of(name, kind)
    torch.testing.assert_close(update(scale * tasks), scale * update(tasks))


@pytest.mark.parametrize(("name", "kind", "shape"), CASES)
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_zero_task_tensors_give_exactly_zero(name, kind, shape, num_tasks):
    update = update_of(name, kind)(torch.zeros(num_tasks, *shape))
    assert torch.equal(update, torch.zeros(shape))


@pytest.mark.parametrize(("name", "kind", "shape"), CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(name, kind, shape, value):
    tasks = random_tasks(*shape)
    tasks[1].view(-1)[-1] = value
    with pytest.raises(MergeInputError, match="expected finite values"):
        update_of(name, kind)(tasks)


@pytest.mark.parametrize(("name", "kind", "shape"), CASES)
def test_no_task(name, kind, shape):
    with pytest.raises(MergeInputError, match="hold no task"):
        update_of(name, kind)(torch.zeros(0, *shape))


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("num_tasks", [1, 4])
def test_input_that_is_not_contiguous(name, kind, num_tasks):
    tasks = random_tasks(6, 9, num_tasks=num_tasks).mT
    strided = random_tasks(5, 8, num_tasks=2 * num_tasks)[::2, ::2, 1::2]
    update = update_of(name, kind)
    for view in (tasks, strided):
        torch.testing.assert_close(update(view), update(view.contiguous()))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_more_tasks_than_rank_and_rank_deficient_input(name, kind):
    """Finite, the same again, and independent of the task order even where a basis is not unique."""
    low_rank = random_tasks(8, 1, num_tasks=2, dtype=torch.float64) @ random_tasks(1, 6, num_tasks=2, seed=1).double()
    one = random_tasks(6, 5, num_tasks=1)
    for tasks in (
        random_tasks(3, 4, num_tasks=7),
        low_rank,
        one.repeat(3, 1, 1),  # the same expert three times
        torch.cat([one, -one]),  # a sum of zero
        torch.cat([one, torch.zeros(1, 6, 5)]),  # a task that left the layer alone
    ):
        update = update_of(name, kind)
        first = update(tasks)
        assert torch.isfinite(first).all()
        assert torch.equal(update(tasks), first)
        if kind == "merge":
            torch.testing.assert_close(update(tasks.flip(0)), first)


@pytest.mark.parametrize("name", METHODS)
def test_declaration_is_the_loaded_method(name):
    declared, loaded = METHODS.declaration(name), METHODS[name]
    nothing = dict.fromkeys(FUNCTIONS)
    assert dataclasses.replace(declared, **nothing) == dataclasses.replace(loaded, **nothing)
    assert declared.name == name
    for role in FUNCTIONS:
        assert (getattr(declared, role) is None) == (getattr(loaded, role) is None)


def test_declared_functions_are_the_loaded_ones():
    tasks = random_tasks(3, 4)
    assert torch.equal(METHODS.declaration("task-arithmetic").merge(tasks), tasks.sum(dim=0))
    assert pickle.loads(pickle.dumps(declared_methods())) == declared_methods()


@pytest.mark.parametrize("name", METHODS)
def test_declared_values_are_usable(name):
    method = METHODS[name]
    assert method.source.startswith("arXiv:")
    assert method.title
    if isinstance(method.alpha, Alpha):
        search, grid = method.alpha.search, method.alpha.paper.values()
        assert search.step is not None
        steps = round((search.high - search.low) / search.step)
        assert steps + 1 == len(grid), "the default search walks the published grid"
        assert [search.low + i * search.step for i in range(len(grid))] == pytest.approx(list(grid), rel=1e-12)
        assert (search.low, search.high) == (grid[0], grid[-1])
    else:
        assert isinstance(method.alpha, FixedAlpha)
    for parameter in method.parameters:
        assert parameter.description
        if parameter.choices is not None:
            assert parameter.default in parameter.choices
            assert parameter.search is None
            continue
        values = [parameter.default, *(parameter.per_task or ())]
        values += [parameter.search.low, parameter.search.high] if parameter.search else []
        assert all(parameter.low <= value <= parameter.high for value in values)
    assert method.per_task_parameter is None or method.task_update is not None
    if method.merge is not None:
        accepted = set(inspect.signature(method.merge).parameters)
        assert {parameter.name for parameter in method.parameters} <= accepted


def test_fixed_alphas():
    fixed = {name: method.alpha for name, method in declared_methods().items() if isinstance(method.alpha, FixedAlpha)}
    assert {name: alpha.at(8) for name, alpha in fixed.items()} == {
        "zero-shot": 0.0,
        "fine-tuned": 1.0,
        "weight-averaging": 0.125,
    }


def test_methods_are_listed_in_the_order_of_their_papers():
    known = [
        *("zero-shot", "fine-tuned", "weight-averaging", "task-arithmetic", "ties", "consensus-ta"),
        *("scale-svd", "tsv-m"),
        *("iso-c", "iso-cts", "iso-iasad", "single-task-iso-c", "spectrum-interpolation", "truncated-iso-c"),
    ]
    assert [name for name in METHODS if name in known] == known, "whatever files were added"
    sources = [METHODS.declaration(name).source for name in METHODS]
    assert sources == sorted(sources)
    assert list(declared_methods()) == list(METHODS)
    assert len(METHODS) == len(sources)
    assert "iso-c" in METHODS
    assert "iso_c" not in METHODS
    with pytest.raises(KeyError):
        METHODS["iso_c"]


def test_declarations_need_no_torch():
    code = (
        "import sys; from raymerge.methods import METHODS, declared_methods\n"
        "assert METHODS.declaration('iso-cts').parameters[0].default == 0.8\n"
        "assert list(declared_methods()) == list(METHODS)\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "METHODS['iso-c']\n"
        "assert 'torch' in sys.modules and 'raymerge.methods.ties' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


GOOD = """
from raymerge.methods._method import FixedAlpha, Method
METHOD = Method(name="{name}", title="T", source="{source}", alpha=FixedAlpha(-1 / 2 + 3 * 0.5 - 0.25))
"""


def test_a_new_file_is_a_new_method(tmp_path, monkeypatch):
    package = tmp_path / "somebodys_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_not_a_method.py").write_text("nonsense(")
    (package / "later.py").write_text(GOOD.format(name="later", source="arXiv:2601.00001"))
    (package / "two_words.py").write_text(GOOD.format(name="two-words", source="arXiv:1901.00001"))
    monkeypatch.syspath_prepend(tmp_path)
    found = MethodFolder(package, "somebodys_methods")
    assert list(found) == ["two-words", "later"]
    assert found["two-words"] == found.declaration("two-words")
    assert found["later"].alpha == FixedAlpha(0.75)


def test_a_file_that_fails_to_import_fails_loudly(tmp_path, monkeypatch):
    package = tmp_path / "broken_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "bad.py").write_text("import no_such_module_here\n" + GOOD.format(name="bad", source="arXiv:1"))
    monkeypatch.syspath_prepend(tmp_path)
    found = MethodFolder(package, "broken_methods")
    assert found.declaration("bad").title == "T", "the text alone is fine"
    with pytest.raises(ModuleNotFoundError, match="no_such_module_here"):
        found["bad"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "no METHOD = Method"),
        ("METHOD = 3", r"should be Method\(name='broken'"),
        ("METHOD = Method('broken')", "every field by keyword"),
        (GOOD.format(name="other", source=""), r"broken.py:3: METHOD should be Method\(name='broken'"),
        ('METHOD = Method(name="broken", title=TITLE)', "'TITLE' in METHOD is neither"),
        ('METHOD = Method(name="broken", title="", source="", alpha=FixedAlpha(float("1")))', r"float\(.1.\)"),
        ('METHOD = Method(name="broken", title="", source="", alpha=FixedAlpha(1.0 ** 2))', r"1\.0 \*\* 2"),
    ],
)
def test_a_declaration_that_cannot_be_read_fails_loudly(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(MethodFolder(tmp_path, "nowhere"))


def test_a_file_that_is_not_python_fails_loudly(tmp_path):
    (tmp_path / "broken.py").write_text("METHOD = Method(")
    with pytest.raises(SyntaxError):
        list(MethodFolder(tmp_path, "nowhere"))


def test_a_missing_field_fails_loudly(tmp_path):
    (tmp_path / "broken.py").write_text('METHOD = Method(name="broken")')
    with pytest.raises(TypeError, match="title"):
        list(MethodFolder(tmp_path, "nowhere"))


@pytest.mark.parametrize("name", METHODS)
def test_method_files_import_no_neighbour_above_them(name):
    """Method files are functions of tensors: torch, jaxtyping, the standard library and this layer, nothing else."""
    path = Path(methods.__path__[0]) / f"{name.replace('-', '_')}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {module for module in imported if module.startswith("raymerge")}
    assert all(module.startswith(("raymerge.methods.", "raymerge.linalg", "raymerge.errors")) for module in ours)
    assert {module.split(".")[0] for module in imported - ours} <= {"torch", "jaxtyping", "collections", "dataclasses"}
