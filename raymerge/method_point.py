"""One point of a method: alpha and a value for every parameter, checked against what the method declares. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from raymerge.errors import UsageError, did_you_mean
from raymerge.methods import declared_methods
from raymerge.methods._method import FixedAlpha, Method, Parameter

MAX_ALPHA = 1e30
"""So that float32 can hold it."""


def merging_method(name: str) -> Method:
    """The declaration of a method that merges.

    Raises:
        UsageError: there is no such method, or it is a reference that merges nothing.
    """
    declared = declared_methods()
    merging = {other: method for other, method in declared.items() if method.kind == "merging"}
    if name in merging:
        return merging[name]
    if name in declared:
        what = "a reference that merged models are compared with" if declared[name].is_reference else "a model per task"
        raise UsageError(f"method '{name}' is {what}, and merges nothing. Known: {', '.join(merging)}.")
    raise UsageError(f"unknown method '{name}'. {did_you_mean(name, merging)}")


@dataclass(frozen=True)
class MethodPoint:
    """What is done to the models.

    params: a value for every parameter of the method.
    alpha: None for an update that is not to be scaled.
    update_only: the result is the update, before alpha.
    """

    method: str
    params: Mapping[str, Any]
    alpha: float | None
    update_only: bool = False


def point_of(
    method: Method, params: Mapping[str, Any], alpha: Any, num_tasks: int, *, update_only: bool = False
) -> MethodPoint:
    """The point that a user asks for; a parameter that is not given has the declared default.

    Args:
        params: numbers, words, or for a parameter that every task may have its own value of, one number per task.
        alpha: may be None for an update, and has to be for a method with a fixed alpha.
    Raises:
        UsageError: an unknown parameter, a value that it cannot have, or alpha is missing or not the user's to choose.
    """
    known = {parameter.name: parameter for parameter in method.parameters}
    for name in params:
        if name not in known:
            hint = did_you_mean(name, known) if known else "It has none."
            raise UsageError(f"method '{method.name}' has no parameter '{name}'. {hint}")
    values: dict[str, Any] = {}
    for name, parameter in known.items():
        value = params.get(name, parameter.default)
        if (complaint := _complaint(parameter, value, num_tasks)) is not None:
            raise UsageError(f"parameter '{name}' of method '{method.name}' is {value!r}, {complaint}.")
        values[name] = _plain(value)
    return MethodPoint(method.name, values, _alpha(method, alpha, num_tasks, update_only), update_only)


def _alpha(method: Method, alpha: Any, num_tasks: int, update_only: bool) -> float | None:
    if isinstance(method.alpha, FixedAlpha):
        if alpha is not None:
            raise UsageError(f"method '{method.name}' has a fixed alpha of {method.alpha.value}; leave alpha out.")
        return method.alpha.at(num_tasks)
    if alpha is None and not update_only:
        search = method.alpha.search
        raise UsageError(
            f"method '{method.name}' needs an alpha: a sweep would look for it between {search.low:.2g} and "
            f"{search.high:g}. Give --alpha, or alpha= in Python."
        )
    if alpha is not None and not (_is_number(alpha) and abs(alpha) <= MAX_ALPHA):  # false for nan
        raise UsageError(f"alpha is {alpha!r}, expected a number from {-MAX_ALPHA:g} to {MAX_ALPHA:g}.")
    return None if alpha is None else float(alpha)


def read_params(method: Method, texts: Sequence[str]) -> dict[str, Any]:
    """The values in arguments such as `keep=0.3`, `prune_level=row` and `mask_lambda=0.3,0.5,0.4`, by name.

    Raises:
        UsageError: an argument is not of that form, or a name comes twice.
    """
    known = {parameter.name: parameter for parameter in method.parameters}
    params: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UsageError(f"'{text}' is not a parameter and its value, expected NAME=VALUE such as keep=0.2.")
        if name in params:
            raise UsageError(f"parameter '{name}' is given twice; leave one of them out.")
        parameter = known.get(name)
        if parameter is None or parameter.choices is not None:
            params[name] = value
        elif parameter.per_task is not None and "," in value:
            params[name] = tuple(_number(item) for item in value.split(","))
        else:
            params[name] = _number(value)
    return params


def out_of_bounds(parameter: Parameter, value: float) -> str | None:
    """`expected 0 to 1`, or None for a value that the parameter may have."""
    if parameter.low <= value <= parameter.high:  # false for nan
        return None
    return f"expected {parameter.low:g} to {parameter.high:g}"


def _complaint(parameter: Parameter, value: Any, num_tasks: int) -> str | None:
    if parameter.choices is not None:
        return None if value in parameter.choices else f"expected one of {', '.join(parameter.choices)}"
    numbers = [value]
    if isinstance(value, list | tuple) and parameter.per_task is not None:
        numbers = [*value]
        if len(numbers) != num_tasks:
            return f"expected one number, or one for each of the {num_tasks} experts"
    for number in numbers:
        if not _is_number(number):
            return "expected a number"
        if (complaint := out_of_bounds(parameter, float(number))) is not None:
            return complaint
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """As sweeps have it: a float, a word, or a tuple of floats."""
    if isinstance(value, str):
        return value
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)


def _number(text: str) -> float | str:
    """The number, or the text itself, which is then complained about."""
    try:
        return float(text)
    except ValueError:
        return text.strip()
