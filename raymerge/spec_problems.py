"""What is wrong with a sweep, in sentences for its author instead of pydantic's."""

import re
import reprlib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from raymerge.errors import did_you_mean

Loc = tuple[str | int, ...]


def problems_of(error: ValidationError, root: type[BaseModel], prefix: str = "") -> list[tuple[Loc, str]]:
    """Where each problem is, and one sentence about it for the user.

    Args:
        root: the model that was validated; its fields are the known names.
        prefix: dotted path of that model in the sweep file.
    """
    return [(details["loc"], _sentence(details, root, prefix)) for details in error.errors(include_url=False)]


def _sentence(details: Mapping[str, Any], root: type[BaseModel], prefix: str) -> str:
    loc, kind, value = details["loc"], details["type"], details["input"]
    context = details.get("ctx", {})
    path = ".".join([prefix] * bool(prefix) + [str(part) for part in loc])
    if kind == "sweep":
        return context["sentence"]
    if kind == "missing":
        return f"'{path}' is missing."
    if kind == "extra_forbidden":
        return f"unknown key '{path}'. {did_you_mean(str(loc[-1]), _model_at(root, loc[:-1]).model_fields)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return f"'{path}' is {shortened(value)}. {did_you_mean(str(value), known)}"
    if kind == "value_error":
        return f"'{path}' is {shortened(value)}: {context['error']}."
    limits = {
        "greater_than": "above",
        "greater_than_equal": "at least",
        "less_than": "below",
        "less_than_equal": "at most",
    }
    if kind in limits:
        return f"'{path}' is {shortened(value)}, expected {limits[kind]} {next(iter(context.values()))}."
    expected = {
        "model_type": "expected a mapping",
        "model_attributes_type": "expected a mapping",
        "tuple_type": "expected a list",
        "int_type": "expected a whole number",
        "float_type": "expected a number",
        "string_type": "expected text; put it in quotes",
    }.get(kind, details["msg"].replace("Input should be", "expected"))
    return f"'{path}' is {shortened(value)}, {expected}."


def _model_at(root: type[BaseModel], loc: Iterable[str | int]) -> type[BaseModel]:
    for part in loc:
        if str(part) in root.model_fields:  # otherwise it is an item of the list or mapping that the field is
            root = next(_models_in(root.model_fields[str(part)].annotation), root)
    return root


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def as_problem(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("sweep", "{sentence}", {"sentence": sentence})


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60
shortened: Callable[[Any], str] = _repr.repr
