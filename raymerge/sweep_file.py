"""Reading sweeps/*.yaml. What such a file may say is in `sweep_spec`, what it makes the search do in `search_space`."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from raymerge.errors import SweepFileError
from raymerge.spec_problems import Loc, problems_of, shortened
from raymerge.sweep_spec import SweepSpec

MAX_BYTES = 64 * 1024
MAX_NODES = 20_000
"""After aliases are expanded: a few lines of nested aliases stand for billions of values."""
MAX_DEPTH = 40
OVERRIDE = MAX_BYTES + 1
"""Sorts after every line."""


def load_sweep(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> SweepSpec:
    """Read and check a sweep file.

    Args:
        overrides: `a.b=c`, applied in order on top of the file; c is YAML. An override of tasks replaces num_tasks
            of the file, and the other way round.
    Raises:
        SweepFileError: the file cannot be read or is wrong; one line for every problem, with file and line, or with
            the override that caused it.
    """
    source = os.fspath(path)
    tree = _parse(_read(source), source)
    origins: dict[Loc, tuple[int, str]] = {(): (0, source)}
    data = _plain(tree, source, origins)
    if data is None:
        raise SweepFileError(f"{source}: is empty; start from a copy of sweeps/demo.yaml.")
    if not isinstance(data, dict):
        raise SweepFileError(f"{source}: holds {shortened(data)}, expected 'key: value' lines.")
    for override in overrides:
        _override(data, override, origins)
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        found = [(*_origin(loc, origins), sentence) for loc, sentence in problems_of(error, SweepSpec)]
        found.sort(key=lambda problem: problem[0])
        raise SweepFileError("\n".join(f"{place}: {sentence}" for _, place, sentence in found)) from None


def _read(source: str) -> str:
    try:
        with Path(source).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SweepFileError(f"{source}: no such file; give the path of a sweep file.") from None
    except IsADirectoryError:
        raise SweepFileError(f"{source}: is a folder, expected a sweep file such as sweeps/demo.yaml.") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise SweepFileError(f"{source}: cannot be read ({error}).") from None
    if len(content) > MAX_BYTES:
        raise SweepFileError(f"{source}: is larger than {MAX_BYTES // 1024} KiB, expected a sweep file of a few lines.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SweepFileError(f"{source}:{line}: is not UTF-8 text; save it as UTF-8.") from None


def _parse(text: str, source: str, *, has_lines: bool = True) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about anchors that are defined twice
            return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark and has_lines else source
        raise SweepFileError(f"{place}: is not valid YAML ({error.problem or error.context}).") from None
    except RecursionError:
        raise SweepFileError(f"{source}: is nested more than {MAX_DEPTH} levels deep.") from None
    except (YAMLError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        # the parser raises all of these on odd input; nothing but the text decides whether it does
        raise SweepFileError(
            f"{source}: is not valid YAML ({str(error).splitlines()[0] if str(error) else 'odd'})."
        ) from None


def _plain(tree: Any, source: str, origins: dict[Loc, tuple[int, str]]) -> Any:
    """The tree as builtin values; notes the line of every key and item in `origins`."""
    num_nodes = 0

    def convert(node: Any, loc: Loc) -> Any:
        nonlocal num_nodes
        num_nodes += 1
        if num_nodes > MAX_NODES or len(loc) > MAX_DEPTH:
            raise SweepFileError(
                f"{source}: stands for more than {MAX_NODES} values or {MAX_DEPTH} levels; do its aliases repeat?"
            )
        if isinstance(node, CommentedMap):
            for key in node:
                if not isinstance(key, str):
                    raise SweepFileError(
                        f"{_origin(loc, origins)[1]}: key {shortened(key)} is not text; put it in quotes."
                    )
                note((*loc, str(key)), node.lc.data, key)
            return {str(key): convert(value, (*loc, str(key))) for key, value in node.items()}
        if isinstance(node, CommentedSeq):
            for i, item in enumerate(node):
                note((*loc, i), node.lc.data, i)
                if isinstance(item, str):  # a list of method names becomes a mapping
                    note((*loc, str(item)), node.lc.data, i)
            return [convert(item, (*loc, i)) for i, item in enumerate(node)]
        if isinstance(node, ScalarBoolean):
            return bool(node)
        if isinstance(node, int) and abs(node) >= 2**63:
            raise SweepFileError(f"{_origin(loc, origins)[1]}: '{'.'.join(map(str, loc))}' is too large a number.")
        for kind in (bool, int, float, str):
            if isinstance(node, kind):
                return kind(node)
        if node is None:
            return None
        raise SweepFileError(
            f"{_origin(loc, origins)[1]}: '{'.'.join(map(str, loc))}' is a {type(node).__name__}, expected a number, "
            "text, list or mapping; put it in quotes if it is text."
        )

    def note(loc: Loc, lines: Any, key: Any) -> None:
        if lines and key in lines:  # keys that came in through a merge (<<) have no line of their own
            line = lines[key][0] + 1
            origins[loc] = (line, f"{source}:{line}")

    return convert(tree, ())


def _override(data: dict[str, Any], override: str, origins: dict[Loc, tuple[int, str]]) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise SweepFileError(f"override '{override}' is not of the form key=value, such as search.trials=8.")
    origin = f"override '{override}'"
    value = _plain(_parse(text, origin, has_lines=False), origin, {(): (0, origin)})
    if keys[0] in ("tasks", "num_tasks"):
        data.pop("num_tasks" if keys[0] == "tasks" else "tasks", None)
    parent = data
    for i, key in enumerate(keys[:-1]):
        child = parent.get(key)
        if i == 0 and key == "methods" and isinstance(child, str | list):
            child = {name: {} for name in ([child] if isinstance(child, str) else child) if isinstance(name, str)}
        if child is None:
            child = {}
            origins.setdefault(tuple(keys[: i + 1]), (OVERRIDE, origin))
        if not isinstance(child, dict):
            raise SweepFileError(
                f"{origin}: '{'.'.join(keys[: i + 1])}' is {shortened(child)} and has no '{keys[i + 1]}'; "
                f"override '{'.'.join(keys[: i + 1])}' as a whole."
            )
        parent[key] = child
        parent = child
    parent[keys[-1]] = value
    target = tuple(keys)
    for loc in [loc for loc in origins if loc[: len(target)] == target]:
        del origins[loc]
    origins[target] = (OVERRIDE, origin)


def _origin(loc: Loc, origins: dict[Loc, tuple[int, str]]) -> tuple[int, str]:
    """The place of `loc`, or of the nearest thing around it that has one."""
    return next(origins[loc[:end]] for end in range(len(loc), -1, -1) if loc[:end] in origins)
