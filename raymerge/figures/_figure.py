"""What a figure declares, and what all of them call methods."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from raymerge.charts import Chart
from raymerge.figures._tables import Choice, Frame, Tables
from raymerge.methods import declared_methods

Option = Literal["backbone", "num_tasks", "rank_rule", "layer"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """FIGURE of every file of this folder."""

    name: str
    paper: str
    """Where the paper has it, such as "Fig. 1"."""
    title: str
    description: str
    """One sentence."""
    tables: tuple[str, ...]
    """Without which it is nothing."""
    options: tuple[Option, ...]
    draw: Callable[[Tables, Choice], Chart]


def in_order(names: Iterable[str]) -> list[str]:
    """Methods in the order of METHODS, others after them."""
    known = list(declared_methods())
    return sorted(dict.fromkeys(names), key=lambda name: known.index(name) if name in known else len(known))


def method_title(name: str) -> str:
    declared = declared_methods()
    return declared[name].title if name in declared else name


def nearest_fraction(frame: Frame) -> float:
    """Of the common-space fractions in a frame the one that is nearest to Iso-CTS's own."""
    (own,) = (p.default for p in declared_methods()["iso-cts"].parameters if p.name == "common_space_fraction")
    return min(map(float, frame["common_space_fraction"].dropna()), key=lambda fraction: abs(fraction - float(own)))
