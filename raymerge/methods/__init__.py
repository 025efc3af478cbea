"""METHODS: every file of this folder that does not start with an underscore is one merging method.

Names, parameters and ranges are read from the source text, so that a sweep file is checked without importing torch.
Only `METHODS[name]` imports the method's file. Methods are listed in the order in which their papers appeared.
"""

import ast
import importlib
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raymerge.methods._method import Alpha, AlphaGrid, FixedAlpha, Interval, Method, Parameter

__all__ = ["METHODS", "Alpha", "AlphaGrid", "FixedAlpha", "Interval", "Method", "Parameter", "declared_methods"]

_RECORDS = {cls.__name__: cls for cls in (Alpha, AlphaGrid, FixedAlpha, Interval, Parameter)}
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_FUNCTIONS = ("merge", "factorise", "task_factors", "statistic", "task_update")


@dataclass(frozen=True)
class DeclaredFunction:
    """Stands in a declaration for a function of the method's file; imports the file when called."""

    package: str
    method: str
    role: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(_load(self.package, self.method), self.role)(*args, **kwargs)


class MethodFolder(Mapping[str, Method]):
    """Method name -> Method. Iteration and `declaration` read source text; indexing imports."""

    def __init__(self, folder: Path, package: str):
        self._folder = folder
        self._package = package

    @cached_property
    def _declarations(self) -> dict[str, Method]:
        files = sorted(path for path in self._folder.glob("*.py") if not path.name.startswith("_"))
        methods = [read_declaration(path, self._package) for path in files]
        methods.sort(key=lambda method: (method.source, method.name))  # "arXiv:2212.04089" sorts by date
        return {method.name: method for method in methods}

    def declaration(self, name: str) -> Method:
        """What the method's file declares, its functions being stand-ins. Imports nothing.

        Raises:
            KeyError: there is no such method.
        """
        return self._declarations[name]

    def __getitem__(self, name: str) -> Method:
        return _load(self._package, self._declarations[name].name)

    def __contains__(self, name: object) -> bool:
        return name in self._declarations

    def __iter__(self) -> Iterator[str]:
        return iter(self._declarations)

    def __len__(self) -> int:
        return len(self._declarations)


def _load(package: str, method: str) -> Method:
    return importlib.import_module(f"{package}.{method.replace('-', '_')}").METHOD


def read_declaration(path: Path, package: str) -> Method:
    """The METHOD of a method file as far as it is data, without importing the file.

    Raises:
        ValueError: METHOD is missing, misnamed, or not made of literals, arithmetic and the records of _method.py.
        SyntaxError: the file is not Python.
    """
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["METHOD"]:
            return _declared(node.value, path, package)
    raise ValueError(f"{path}: no METHOD = Method(...) at module level; a file that is no method starts with '_'")


def _declared(node: ast.expr, path: Path, package: str) -> Method:
    name = path.stem.replace("_", "-")
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Method" and not node.args:
        fields: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg in _FUNCTIONS and isinstance(keyword.value, ast.Name):
                fields[keyword.arg] = DeclaredFunction(package, name, keyword.arg)
            elif keyword.arg is not None:
                fields[keyword.arg] = _value(keyword.value, path)
        if fields.get("name") == name:
            return Method(**fields)
    raise ValueError(f"{path}:{node.lineno}: METHOD should be Method(name={name!r}, ...), every field by keyword")


def _value(node: ast.expr, path: Path) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=elements):
            return tuple(_value(element, path) for element in elements)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, path)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, path), _value(right, path))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _RECORDS:
            fields = {keyword.arg: _value(keyword.value, path) for keyword in keywords if keyword.arg is not None}
            return _RECORDS[name](*(_value(arg, path) for arg in args), **fields)
    raise ValueError(
        f"{path}:{node.lineno}: {ast.unparse(node)!r} in METHOD is neither a literal, arithmetic on literals, nor one "
        f"of {', '.join(_RECORDS)}: declarations are read without importing the file"
    )


METHODS = MethodFolder(Path(__file__).parent, __name__)


def declared_methods() -> dict[str, Method]:
    """Every declaration by name, in the order of METHODS. Does not import torch."""
    return {name: METHODS.declaration(name) for name in METHODS}
