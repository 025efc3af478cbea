"""Reading sweeps/*.yaml. What such a file may say is in `sweep_spec`, what it makes the search do in `search_space`."""

import os
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from raymerge.errors import SweepFileError
from raymerge.spec_problems import problems_of, shortened
from raymerge.sweep_spec import SweepSpec
from raymerge.yaml_file import MAX_BYTES, FileKind, Origins, origin_of, parse_yaml, plain_values, read_yaml

SWEEP_FILE = FileKind("sweep file", SweepFileError, "sweeps/demo.yaml")
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
    data, origins = read_yaml(path, SWEEP_FILE)
    for override in overrides:
        _override(data, override, origins)
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        found = [(*origin_of(loc, origins), sentence) for loc, sentence in problems_of(error, SweepSpec)]
        found.sort(key=lambda problem: problem[0])
        raise SweepFileError("\n".join(f"{place}: {sentence}" for _, place, sentence in found)) from None


def _override(data: dict[str, Any], override: str, origins: Origins) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise SweepFileError(f"override '{override}' is not of the form key=value, such as search.trials=8.")
    origin = f"override '{override}'"
    value = plain_values(parse_yaml(text, origin, SWEEP_FILE, has_lines=False), origin, SWEEP_FILE, {(): (0, origin)})
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
