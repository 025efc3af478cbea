"""The rows of tables that a figure shows, and what to do where there are none."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raymerge.analysis_tables import Frame, load
from raymerge.errors import UsageError, did_you_mean

Series = Any
"""A pandas.Series, as `Frame`."""

PAPER_BACKBONE = "ViT-B-16"
PAPER_NUM_TASKS = 8
"""What most figures of the paper show, and ours where there is such."""

RULES: Mapping[str, str] = {"released_code": "released code", "paper": "paper"}
"""How the rank of a merged matrix is counted, and whose rule it is."""


@dataclass(frozen=True)
class Choice:
    """What to show of an analysis; None: what the figure shows by itself."""

    backbone: str | None = None
    num_tasks: int | None = None
    rank_rule: str | None = None
    layer: str | None = None

    @property
    def rule(self) -> str:
        """The published figures follow the released code."""
        return self.rank_rule or "released_code"


@dataclass(frozen=True)
class Source:
    """What fills the rows that a figure needs: the analysis itself, or one with a sweep among its results."""

    of_demo: str | None = None
    of_published: str | None = None
    """Names of sweeps, of the demo suite and of the published one."""

    def command(self, folder: Path, suite: str) -> str:
        analyze = f"raymerge analyze {suite} --output {folder}"
        sweep = self.of_demo if suite == DEMO else self.of_published
        if sweep is None:
            return f"`{analyze}` writes it"
        return f"run `raymerge sweep sweeps/{sweep}.yaml`, then `{analyze}` with `--results results/{sweep}` added"


DEMO = "demo"
ANALYSIS = Source()
SWEEP = Source("demo", "full_grid")
ABLATIONS = Source("demo_ablations", "ablations")


@dataclass
class Tables:
    """The tables of one folder, each read when it is asked for."""

    folder: Path
    _frames: dict[str, Frame] = field(default_factory=dict)

    @property
    def suite(self) -> str:
        """What was analyzed, by the manifest; a folder without one passes for the demo's."""
        try:
            return str(json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))["suite"])
        except (OSError, ValueError, LookupError, TypeError):
            return DEMO

    def some(self, table: str, **equal: Any) -> Frame:
        """The rows whose columns have these values: None stands for null, a tuple for any of its values.

        Raises:
            UsageError: the table is missing or cannot be read.
        """
        if table not in self._frames:
            self._frames[table] = load(self.folder, table)
        frame = self._frames[table]
        for column, value in equal.items():
            if value is None:
                frame = frame[frame[column].isna()]
            elif isinstance(value, tuple):
                frame = frame[frame[column].isin(value)]
            else:
                frame = frame[(frame[column] == value).fillna(False)]
        return frame

    def need(self, what: str, source: Source, table: str, *, defined: Sequence[str] = (), **equal: Any) -> Frame:
        """As `some`, where a figure is nothing without such rows.

        Args:
            what: which rows, for people.
            defined: columns that may not be null; other rows are left out.
        Raises:
            UsageError: there are none.
        """
        frame = self.some(table, **equal).dropna(subset=list(defined))
        if frame.empty:
            raise self.lack(what, source, table)
        return frame

    def lack(self, what: str, source: Source, table: str) -> UsageError:
        """That a table has no such rows, and how to get them."""
        about = "is empty" if self.some(table).empty else f"has no {what}"
        return UsageError(f"{self.folder}: table '{table}' {about}; {source.command(self.folder, self.suite)}.")

    def of_backbone(self, frame: Frame, choice: Choice) -> Frame:
        """The rows of the backbone that was asked for, or of the paper's, or of the first one.

        Raises:
            UsageError: there is no such backbone.
        """
        known = list(dict.fromkeys(frame["backbone"]))
        if choice.backbone is not None and choice.backbone not in known:
            raise UsageError(
                f"--backbone: '{choice.backbone}' is not in {self.folder}. {did_you_mean(choice.backbone, known)}"
            )
        name = choice.backbone or (PAPER_BACKBONE if PAPER_BACKBONE in known else known[0])
        return frame[frame["backbone"] == name]

    def of_count(self, frame: Frame, choice: Choice) -> Frame:
        """The rows of the number of tasks that was asked for, or of the paper's, or of the smallest one."""
        known = counts(frame)
        self._check_count(known, choice)
        number = choice.num_tasks or (PAPER_NUM_TASKS if PAPER_NUM_TASKS in known else known[0])
        return frame[(frame["num_tasks"] == number).fillna(False)]

    def of_counts(self, frame: Frame, choice: Choice) -> Frame:
        """The rows of the number of tasks that was asked for, or of all of them."""
        self._check_count(counts(frame), choice)
        return frame if choice.num_tasks is None else frame[(frame["num_tasks"] == choice.num_tasks).fillna(False)]

    def _check_count(self, known: list[int], choice: Choice) -> None:
        """
        Raises:
            UsageError: nothing was merged of so many tasks.
        """
        if choice.num_tasks is not None and choice.num_tasks not in known:
            numbers = ", ".join(map(str, known))
            raise UsageError(
                f"--num-tasks: {self.folder} has nothing for {choice.num_tasks} tasks, only for {numbers}."
            )


def counts(frame: Frame) -> list[int]:
    return sorted({int(number) for number in frame["num_tasks"].dropna()})


def first_tasks(names: Series, number: int) -> list[str]:
    """The tasks that were merged: the first of the suite, whose order the tables keep."""
    return list(dict.fromkeys(names))[:number]
