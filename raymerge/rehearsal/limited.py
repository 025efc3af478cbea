"""A sweep cut down to what a rehearsal can run: every cell, few points of each, few images."""

from typing import Any

from raymerge.method_settings import Setting, explicit_settings
from raymerge.methods import declared_methods
from raymerge.sweep_spec import SweepSpec, resolve

MAX_VALUES = 2
"""Of alpha, and of every parameter."""


def limited_sweep(spec: SweepSpec, suite: str, max_images: int) -> dict[str, Any]:
    """A sweep file, as values, with the cells of `spec` on another suite.

    Args:
        suite: the miniature's suite file.
        max_images: of every split.
    """
    value = resolve(spec)
    value["name"] = f"{spec.name[:80]}-rehearsal"
    value |= {"suite": suite, "profile": None, "suite_seed": 0, "weights": None, "data": None, "moments": None}
    value["search"] |= {"trials": min(spec.search.trials, MAX_VALUES), "patience": 1}
    value["evaluation"] |= {"max_images": max_images, "denominators": "measured"}
    value["resources"] = {"evaluators": "auto", "cpus_per_evaluator": 1.0, "gpus_per_evaluator": 0.0}
    declared = declared_methods()
    for name, given in spec.methods.items():
        for key, setting in explicit_settings(declared[name], given, spec.search.policy).items():
            if (few := _few(setting)) is not None:
                value["methods"][name][key] = few
    return value


def _few(setting: Setting) -> list[float] | None:
    """Some values of a setting with more, from its middle; None where it has none to spare."""
    if isinstance(setting, int | float | str):
        return None
    values = setting if isinstance(setting, tuple) else setting.values()
    if values is None or len(values) <= MAX_VALUES:
        return None
    return [values[(i + 1) * len(values) // (MAX_VALUES + 1)] for i in range(MAX_VALUES)]
