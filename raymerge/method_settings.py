"""What a sweep may say about the numbers of a method: alpha and the structural parameters."""

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raymerge.errors import did_you_mean
from raymerge.method_point import out_of_bounds
from raymerge.methods import declared_methods
from raymerge.methods._method import FixedAlpha, Method, Parameter
from raymerge.spec_problems import Loc, problems_of, shortened

Policy = Literal["tpe", "grid", "paper"]

MAX_VALUES = 10_000
"""The most values one range or list may have: a typing error in `step` must not fill the memory."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Range(Section):
    """The numbers low, low + step, ... up to high, which is one of them only if it lies on that grid."""

    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    step: float | None = Field(
        default=None,
        gt=0,
        description="Distance between neighbouring values. Without it every number in between may be tried, "
        "which only the policy tpe can do.",
    )

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.high < self.low:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        if self.step and (self.high - self.low) / self.step > MAX_VALUES:
            raise ValueError(f"a step of {self.step:g} makes more than {MAX_VALUES} values")
        return self

    def values(self) -> tuple[float, ...] | None:
        """All values in ascending order; None without a step."""
        if self.step is None:
            return None
        low, high, step = _exact(self.low), _exact(self.high), _exact(self.step)
        return tuple(float(low + i * step) for i in range((high - low) // step + 1))


class Linspace(Section):
    """`num` equally spaced alphas: linspace(0, stop, num + 1)[1:] from 0, as the published grids, which leave out
    alpha 0 (the zero-shot model); linspace(start, stop, num), both ends included, from any other start."""

    start: float = Field(default=0.0, description="First value; 0 itself is left out.")
    stop: float = Field(description="Last value, always included.")
    num: int = Field(ge=1, le=MAX_VALUES, description="How many values.")

    @model_validator(mode="after")
    def _check(self) -> "Linspace":
        if self.stop <= self.start:
            raise ValueError(f"stop {self.stop:g} is not above start {self.start:g}")
        if self.start != 0 and self.num == 1:
            raise ValueError("num 1 cannot include both start and stop; write the number alone")
        return self

    def values(self) -> tuple[float, ...]:
        """All values in ascending order."""
        start, stop = _exact(self.start), _exact(self.stop)
        if start == 0:
            return tuple(float(stop * i / self.num) for i in range(1, self.num + 1))
        return tuple(float(start + (stop - start) * i / (self.num - 1)) for i in range(self.num))


Setting = float | str | tuple[float, ...] | Range | Linspace
"""What a sweep says about one parameter of a method: its value, the values to try, or a range of them. A word for a
parameter that is one of several words."""


def _exact(value: float) -> Fraction:
    """The fraction that was meant: 0.1 is 1/10. Sums of such fractions round to the nearest float only once, so
    the same grid point is the same float however it was written."""
    near = Fraction(value).limit_denominator(1_000_000)
    return near if float(near) == value else Fraction(value)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, if there are any and none comes twice.

    Raises:
        ValueError: says which, to be put behind the key and the value.
    """
    if not values:
        raise ValueError("expected at least one")
    repeated = [value for value, times in Counter(values).items() if times > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is listed twice")
    return values


def read_methods(value: Any, policy: Policy | None) -> tuple[dict[str, dict[str, Setting]], list[tuple[Loc, str]]]:
    """The `methods` of a sweep file checked against the declarations, and every problem with its place.

    Args:
        policy: None where the search section is wrong itself; the settings are then not held against it.
    """
    if isinstance(value, str):
        value = [value]
    if value and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        try:
            value = dict.fromkeys(distinct(tuple(value)))
        except ValueError as error:
            return {}, [((), f"'methods' is {shortened(value)}: {error}.")]
    if not isinstance(value, Mapping) or not value:
        return {}, [
            ((), f"'methods' is {shortened(value)}, expected a list of method names or a mapping 'name: {{}}'.")
        ]
    declared = declared_methods()
    methods: dict[str, dict[str, Setting]] = {}
    problems: list[tuple[Loc, str]] = []
    for name, given in value.items():
        if name not in declared:
            problems.append(((name,), f"unknown method '{name}'. {did_you_mean(str(name), declared)}"))
        elif given is not None and not isinstance(given, Mapping):
            problems.append(
                ((name,), f"'methods.{name}' is {shortened(given)}, expected a mapping of settings or {{}}.")
            )
        else:
            methods[name], found = _read_settings(declared[name], given or {}, policy)
            problems += [((name, *loc), text) for loc, text in found]
    return methods, problems


def _read_settings(
    method: Method, given: Mapping[str, Any], policy: Policy | None
) -> tuple[dict[str, Setting], list[tuple[Loc, str]]]:
    parameters = {parameter.name: parameter for parameter in method.parameters}
    settings: dict[str, Setting] = {}
    problems: list[tuple[Loc, str]] = []
    for key, value in given.items():
        path = f"methods.{method.name}.{key}"
        if key == "alpha" and isinstance(method.alpha, FixedAlpha):
            problems.append(((key,), f"'{path}': {method.name} has a fixed alpha of {method.alpha.value}; remove it."))
            continue
        if key != "alpha" and key not in parameters:
            known = [*parameters] if isinstance(method.alpha, FixedAlpha) else ["alpha", *parameters]
            hint = did_you_mean(str(key), known) if known else "It has none."
            problems.append(((key,), f"unknown parameter '{path}'. {hint}"))
            continue
        choices = parameters[key].choices if key in parameters else None
        if choices is not None:
            if value in choices:
                settings[key] = value
            else:
                problems.append(((key,), f"'{path}' is {shortened(value)}, expected one of {', '.join(choices)}."))
            continue
        try:
            settings[key] = _read_setting(value, alpha=key == "alpha")
        except ValidationError as error:
            form = Linspace if error.title == "Linspace" else Range
            problems += [((key, *loc), text) for loc, text in problems_of(error, form, path)]
        except ValueError as error:
            problems.append(((key,), f"'{path}' is {shortened(value)}, {error}."))
        else:
            if key in parameters:
                problems += [((key,), f"'{path}' {text}") for text in _out_of_bounds(settings[key], parameters[key])]
    if policy and not problems:
        for key, setting in explicit_settings(method, settings, policy).items():
            problems += [((key,), text) for text in _against_policy(method, key, setting, policy)]
    return settings, problems


def _read_setting(value: Any, *, alpha: bool) -> Setting:
    if isinstance(value, Mapping):
        linspace = alpha and not value.keys() <= {"low", "high", "step"} and value.keys() & {"start", "stop", "num"}
        return (Linspace if linspace else Range).model_validate(value)
    if isinstance(value, Range) or (alpha and isinstance(value, Linspace)):
        return value
    if isinstance(value, list | tuple):
        if len(value) > MAX_VALUES:
            raise ValueError(f"expected at most {MAX_VALUES} numbers")
        return tuple(sorted(distinct(tuple(_number(item) for item in value))))
    return _number(value, " or {low, high, step}" + (" or {start, stop, num}" if alpha else ""))


def _number(value: Any, other_forms: str = "") -> float:
    if type(value) in (int, float) and abs(value) <= 1e300:  # also false for nan
        return float(value)
    raise ValueError("expected a number, a list of numbers" + other_forms if other_forms else "expected only numbers")


def _out_of_bounds(setting: Setting, parameter: Parameter) -> list[str]:
    ends = (setting.low, setting.high) if isinstance(setting, Range) else _values_of(setting)
    complaints = [(value, out_of_bounds(parameter, value)) for value in ends]
    return [f"is {value:g}, {complaint}." for value, complaint in complaints if complaint][:1]


def _values_of(setting: Setting) -> tuple[float, ...]:
    if isinstance(setting, Range | Linspace):
        return setting.values() or ()
    assert not isinstance(setting, str)
    return setting if isinstance(setting, tuple) else (setting,)


def _against_policy(method: Method, key: str, setting: Setting, policy: Policy) -> list[str]:
    continuous = isinstance(setting, Range) and setting.step is None
    per_task = method.per_task_parameter
    if continuous and (policy != "tpe" or (per_task and per_task.name == key)):
        return [f"'methods.{method.name}.{key}' has no step, so its values cannot be listed; add 'step'."]
    searched = not isinstance(setting, float | str) and key != "alpha" and not (per_task and per_task.name == key)
    if searched and policy == "paper":
        return [
            f"'methods.{method.name}.{key}' is searched, but policy paper searches alpha alone; "
            "give one number, or choose policy tpe or grid."
        ]
    return []


def explicit_settings(method: Method, given: Mapping[str, Setting], policy: Policy) -> dict[str, Setting]:
    """Every setting of a method: the given ones, and what the method declares for the others.

    Policy paper takes the published alpha grid and the default of every searched parameter.
    """
    settings: dict[str, Setting] = {}
    if not isinstance(method.alpha, FixedAlpha):
        interval, paper = method.alpha.search, method.alpha.paper
        if policy == "paper" or (policy == "grid" and interval.step is None):
            settings["alpha"] = Linspace(stop=paper.stop, num=paper.num)
        else:
            settings["alpha"] = Range(low=interval.low, high=interval.high, step=interval.step)
    for parameter in method.parameters:
        if parameter.per_task is not None:
            settings[parameter.name] = tuple(sorted(parameter.per_task))
        elif parameter.search is not None and policy != "paper":
            found = parameter.search
            settings[parameter.name] = Range(low=found.low, high=found.high, step=found.step)
        else:
            settings[parameter.name] = parameter.default if parameter.choices else float(parameter.default)
    return {**settings, **given}
