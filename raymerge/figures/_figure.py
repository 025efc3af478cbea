"""What a figure declares, and the rows of tables that it picks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymerge.analysis_tables import load
from raymerge.charts import Chart
from raymerge.errors import UsageError, did_you_mean
from raymerge.methods import declared_methods

if TYPE_CHECKING:
    import pandas

Option = Literal["backbone", "num_tasks", "rank_rule", "layer"]

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
    """What fills the rows that a figure needs."""

    sweep: str | None = None
    """Name of a sweep of the demo; None: an analysis alone has them."""

    def command(self, folder: Path) -> str:
        if self.sweep is None:
            return f"`raymerge analyze SUITE --output {folder}` writes them"
        return (
            f"run `raymerge sweep sweeps/{self.sweep}.yaml`, then "
            f"`raymerge analyze demo --results results/{self.sweep} --output {folder}`"
        )


ANALYSIS = Source()
SWEEP = Source("demo")
ABLATIONS = Source("demo_ablations")


@dataclass
class Tables:
    """The tables of one folder, each read when it is asked for."""

    folder: Path
    _frames: dict[str, "pandas.DataFrame"] = field(default_factory=dict)

    def some(self, table: str, **equal: Any) -> "pandas.DataFrame":
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

    def need(
        self, what: str, source: Source, table: str, *, defined: Sequence[str] = (), **equal: Any
    ) -> "pandas.DataFrame":
        """As `some`, where a figure is nothing without such rows.

        Args:
            what: which rows, for people.
            defined: columns that may not be null; other rows are left out.
        Raises:
            UsageError: there are none.
        """
        frame = self.some(table, **equal).dropna(subset=list(defined))
        if frame.empty:
            about = "is empty" if self.some(table).empty else f"has no {what}"
            raise UsageError(f"{self.folder}: table '{table}' {about}; {source.command(self.folder)}.")
        return frame

    def of_backbone(self, frame: "pandas.DataFrame", choice: Choice) -> "pandas.DataFrame":
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

    def of_count(self, frame: "pandas.DataFrame", choice: Choice) -> "pandas.DataFrame":
        """The rows of the number of tasks that was asked for, or of the paper's, or of the smallest one."""
        known = counts(frame)
        self._check_count(known, choice)
        number = choice.num_tasks or (PAPER_NUM_TASKS if PAPER_NUM_TASKS in known else known[0])
        return frame[(frame["num_tasks"] == number).fillna(False)]

    def of_counts(self, frame: "pandas.DataFrame", choice: Choice) -> "pandas.DataFrame":
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


def counts(frame: "pandas.DataFrame") -> list[int]:
    return sorted({int(number) for number in frame["num_tasks"].dropna()})


def first_tasks(names: "pandas.Series", number: int) -> list[str]:
    """The tasks that were merged: the first of the suite, whose order the tables keep."""
    return list(dict.fromkeys(names))[:number]


def in_order(names: Iterable[str]) -> list[str]:
    """Methods in the order of METHODS, others after them."""
    known = list(declared_methods())
    return sorted(dict.fromkeys(names), key=lambda name: known.index(name) if name in known else len(known))


def method_title(name: str) -> str:
    declared = declared_methods()
    return declared[name].title if name in declared else name


def nearest_fraction(frame: "pandas.DataFrame", fraction: float | None = None) -> float:
    """Of the common-space fractions in a frame the nearest to one, or to what Iso-CTS has where nothing is said."""
    (default,) = (p.default for p in declared_methods()["iso-cts"].parameters if p.name == "common_space_fraction")
    wanted = float(default) if fraction is None else fraction
    return float(min(frame["common_space_fraction"].dropna().unique(), key=lambda found: abs(found - wanted)))
