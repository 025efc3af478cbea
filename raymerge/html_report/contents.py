"""What a page is made of, read from a folder of results and not yet looked at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymerge import output, results, status
from raymerge.folder import Folder, Location
from raymerge.report import Table1

Frame = Any
"""A pandas frame; pandas' own annotations forbid half of what is done with one."""


@dataclass(frozen=True)
class Contents:
    """`trials` and `evaluations` as `results.load` returns them."""

    location: str
    """For people."""
    verdict: status.Verdict
    explanation: str
    """What has become of the sweep, as `raymerge status` says it."""
    table: Table1
    manifest: Mapping[str, Any]
    """{}: there is none."""
    trials: Frame
    evaluations: Frame


def read_contents(output_dir: Location) -> Contents:
    """
    Raises:
        UsageError: there are no results, or none yet.
        OutputError: the folder or its manifest cannot be read.
    """
    table = Table1.from_output(output_dir)
    found = status.report(output_dir)
    tables = results.read_tables(output_dir, predictions=False)
    return Contents(
        location=Folder.at(output_dir).name,
        verdict=found.verdict,
        explanation=found.explanation,
        table=table,
        manifest=output.read_manifest(output_dir) or {},
        trials=tables["trials"].to_pandas(),
        evaluations=tables["evaluations"].to_pandas(),
    )
