"""Results whose models answer what a test says, image by image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raymerge.records import Cell, Point, Predictions, TaskReference, TaskScore, TrialRecord
from raymerge.results import ResultsWriter, RunContext, write_summary
from raymerge.summary import summarise

CONTEXT = RunContext(
    sweep="x",
    spec_hash="c0ffee",
    suite="toy",
    profile="full",
    suite_seed=0,
    suite_fingerprint="f1f1",
    objective="normalized_accuracy",
    precision="fp32",
)

Classes = Sequence[int]
LABELS: dict[str, Classes] = {"B": [0, 1] * 5, "A": [0, 1, 2, 3] * 5}


def classes(values: Classes) -> bytes:
    return np.array(values, dtype="<i4").tobytes()


def wrong(labels: Classes, *positions: int) -> list[int]:
    """The labels, but for some images."""
    return [(label + 1) % 4 if i in positions else label for i, label in enumerate(labels)]


def model_of(
    method: str,
    predicted: Mapping[str, Classes],
    labels: Mapping[str, Classes] = LABELS,
    *,
    stored: bool = True,
    **changes: Any,
) -> TrialRecord:
    """The test trial of a cell whose experts are right on half of the images."""
    scores = tuple(
        TaskScore(
            task,
            sum(one == other for one, other in zip(answers, labels[task], strict=True)),
            len(answers),
            predictions=Predictions(classes(answers), classes(labels[task])) if stored else None,
        )
        for task, answers in predicted.items()
    )
    record = TrialRecord(
        trial_id=f"{method}-test",
        cell=Cell("vit", tuple(predicted), method),
        point=Point(1.0),
        stage="test",
        split="test",
        status="finished",
        scores=scores,
        references={task: TaskReference(0.5, 0.1) for task in predicted},
        finished_at=1_700_000_000.25,
    )
    return replace(record, **changes)


def write_results(folder: Path, *records: TrialRecord, context: RunContext = CONTEXT) -> Path:
    """A finished sweep with these trials."""
    writer = ResultsWriter(folder, context)
    for record in records:
        writer.append(record)
    cells = list(dict.fromkeys(record.cell for record in records))
    write_summary(folder, summarise(records, cells, "normalized_accuracy"), context)
    return folder
