"""Reading a YAML file of a few lines into plain values, with the line of every key, so that errors can name it."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from raymerge.errors import RaymergeError
from raymerge.spec_problems import Loc, shortened

MAX_BYTES = 64 * 1024
MAX_NODES = 20_000
"""After aliases are expanded: a few lines of nested aliases stand for billions of values."""
MAX_DEPTH = 40

Origins = dict[Loc, tuple[int, str]]
"""Line number and place, such as `x.yaml:3`, of every key and item."""


@dataclass(frozen=True)
class FileKind:
    """What a file is called in messages, and which error they are."""

    name: str
    error: type[RaymergeError]
    example: str = ""
    """A file that is there, such as sweeps/demo.yaml."""

    @property
    def such_as(self) -> str:
        return f" such as {self.example}" if self.example else ""


def read_yaml(path: str | os.PathLike[str], kind: FileKind) -> tuple[dict[str, Any], Origins]:
    """The mapping in a YAML file as builtin values.

    Raises:
        kind.error: the file cannot be read, is not YAML, or is no mapping.
    """
    source = os.fspath(path)
    tree = parse_yaml(_read(source, kind), source, kind)
    origins: Origins = {(): (0, source)}
    data = plain_values(tree, source, kind, origins)
    if data is None:
        raise kind.error(f"{source}: is empty; start from a copy of {kind.example or 'an example'}.")
    if not isinstance(data, dict):
        raise kind.error(f"{source}: holds {shortened(data)}, expected 'key: value' lines.")
    return data, origins


def _read(source: str, kind: FileKind) -> str:
    try:
        with Path(source).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise kind.error(f"{source}: no such file; give the path of a {kind.name}.") from None
    except IsADirectoryError:
        raise kind.error(f"{source}: is a folder, expected a {kind.name}{kind.such_as}.") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise kind.error(f"{source}: cannot be read ({error}).") from None
    if len(content) > MAX_BYTES:
        raise kind.error(f"{source}: is larger than {MAX_BYTES // 1024} KiB, expected a {kind.name} of a few lines.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise kind.error(f"{source}:{line}: is not UTF-8 text; save it as UTF-8.") from None


def parse_yaml(text: str, source: str, kind: FileKind, *, has_lines: bool = True) -> Any:
    """The tree of a YAML text; `source` names it in messages."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about anchors that are defined twice
            return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark and has_lines else source
        raise kind.error(f"{place}: is not valid YAML ({error.problem or error.context}).") from None
    except RecursionError:
        raise kind.error(f"{source}: is nested more than {MAX_DEPTH} levels deep.") from None
    except (YAMLError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        # the parser raises all of these on odd input; nothing but the text decides whether it does
        raise kind.error(
            f"{source}: is not valid YAML ({str(error).splitlines()[0] if str(error) else 'odd'})."
        ) from None


def plain_values(tree: Any, source: str, kind: FileKind, origins: Origins) -> Any:
    """The tree as builtin values; notes the line of every key and item in `origins`."""
    num_nodes = 0

    def convert(node: Any, loc: Loc) -> Any:
        nonlocal num_nodes
        num_nodes += 1
        if num_nodes > MAX_NODES or len(loc) > MAX_DEPTH:
            raise kind.error(
                f"{source}: stands for more than {MAX_NODES} values or {MAX_DEPTH} levels; do its aliases repeat?"
            )
        if isinstance(node, CommentedMap):
            for key in node:
                if not isinstance(key, str):
                    raise kind.error(
                        f"{origin_of(loc, origins)[1]}: key {shortened(key)} is not text; put it in quotes."
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
            raise kind.error(f"{origin_of(loc, origins)[1]}: '{'.'.join(map(str, loc))}' is too large a number.")
        for builtin in (bool, int, float, str):
            if isinstance(node, builtin):
                return builtin(node)
        if node is None:
            return None
        raise kind.error(
            f"{origin_of(loc, origins)[1]}: '{'.'.join(map(str, loc))}' is a {type(node).__name__}, expected a number, "
            "text, list or mapping; put it in quotes if it is text."
        )

    def note(loc: Loc, lines: Any, key: Any) -> None:
        if lines and key in lines:  # keys that came in through a merge (<<) have no line of their own
            line = lines[key][0] + 1
            origins[loc] = (line, f"{source}:{line}")

    return convert(tree, ())


def origin_of(loc: Loc, origins: Origins) -> tuple[int, str]:
    """The place of `loc`, or of the nearest thing around it that has one."""
    return next(origins[loc[:end]] for end in range(len(loc), -1, -1) if loc[:end] in origins)
