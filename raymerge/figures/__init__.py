"""FIGURES: every file of this folder that does not start with an underscore is one figure of the paper."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path

from raymerge.figures._figure import Figure
from raymerge.figures._tables import Choice, Tables

__all__ = ["FIGURES", "Choice", "Figure", "Tables"]


def _paper_order(figure: Figure) -> tuple[int, str]:
    found = re.search(r"\d+", figure.paper)
    return int(found.group()) if found else 0, figure.paper


def _figures() -> dict[str, Figure]:
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))
    figures = [importlib.import_module(f"{__name__}.{path.stem}").FIGURE for path in files]
    return {figure.name: figure for figure in sorted(figures, key=_paper_order)}


FIGURES: Mapping[str, Figure] = _figures()
"""By name, in the order of the paper."""
