"""What merging the matrices of a backbone costs, against the plain transcription in the same process.

Both sides get the same task matrices in memory, so that reading is nobody's cost, and the same threads. They take
turns, so that whatever else the machine does hits both.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raymerge.bench.plain import PLAIN
from raymerge.bench.shapes import SPECTRA, TOWERS, MatrixShape, matrices_of
from raymerge.merge_request import Output
from raymerge.merging import merge_tensor
from raymerge.methods import METHODS, declared_methods
from raymerge.notes import collected

NESTED = (8, 14, 20)
FEW_TASKS = 2
"""Of methods that treat every task by itself at length: the ratio depends on no number of tasks."""
FRACTIONS = tuple(k / 10 for k in range(1, 10))


@dataclass(frozen=True)
class Case:
    """Updates of one method that are wanted together.

    nested: of all published numbers of tasks up to the largest, not of the largest alone.
    """

    name: str
    method: str
    settings: tuple[Mapping[str, Any], ...]
    nested: bool = False

    def outputs(self, num_tasks: int) -> list[Output]:
        smaller = [tuple(range(count)) for count in NESTED[::-1] if self.nested and count < num_tasks]
        return [Output(setting, tasks=tasks) for tasks in (None, *smaller) for setting in self.settings]


def bench_cases() -> dict[str, Case]:
    """The methods of PLAIN at their defaults, Iso-CTS over fractions and TSV-M over numbers of tasks, by name."""
    cases = [
        Case(method.name, method.name, ({p.name: p.default for p in method.parameters},))
        for method in declared_methods().values()
        if method.name in PLAIN
    ]
    cases += [
        Case("iso-cts-fractions", "iso-cts", tuple({"common_space_fraction": k} for k in FRACTIONS)),
        Case("tsv-m-nested", "tsv-m", ({},), nested=True),
    ]
    return {case.name: case for case in cases}


@dataclass(frozen=True)
class Timed:
    """A case on `count` matrices of one shape, or on all of a backbone.

    plain_s, ours_s: seconds of every turn.
    plain_errors, ours_errors: of every update, relative to the norm of the plain transcription in float64.
    notes: what the method said of its result: fallbacks, weak inputs.
    """

    case: str
    shape: str
    count: int
    num_tasks: int
    plain_s: tuple[float, ...]
    ours_s: tuple[float, ...]
    plain_errors: tuple[float, ...]
    ours_errors: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        return statistics.median(self.plain_s) / statistics.median(self.ours_s)

    @property
    def ratios(self) -> list[float]:
        """Of every pair of turns."""
        return [plain / ours for plain, ours in zip(self.plain_s, self.ours_s, strict=True)]


def time_case(
    case: Case,
    shape: MatrixShape,
    num_tasks: int,
    *,
    spectrum: str,
    repeats: int,
    device: torch.device,
    plain_dtype: torch.dtype = torch.float32,
) -> Timed:
    """Time a case on one matrix of a shape, once what both sides call has been called.

    Args:
        plain_dtype: precision of the plain transcription. raymerge gets float32 and chooses for itself.
    """
    method = METHODS[case.method]
    if method.moments:
        num_tasks = min(num_tasks, FEW_TASKS)
    task_matrices = SPECTRA[spectrum](num_tasks, shape.rows, shape.cols).to(device)
    generator = torch.Generator().manual_seed(1)
    moments = [torch.rand(1, shape.cols, generator=generator).add(0.1).to(device) for _ in range(num_tasks)]
    outputs = case.outputs(num_tasks)

    def of_tasks(items: Any, output: Output) -> Any:
        return items if output.tasks is None else items[: len(output.tasks)]

    def plain(dtype: torch.dtype = plain_dtype) -> list[Tensor]:
        matrices, scales = task_matrices.to(dtype), [moment.to(dtype) for moment in moments]
        merge = PLAIN[case.method]
        return [merge(of_tasks(matrices, output), of_tasks(scales, output), **output.setting) for output in outputs]

    def ours() -> list[Tensor]:
        of_vectors: list[Any] = [None] * len(outputs)
        if method.statistic is not None:
            chosen = [of_tasks(task_matrices, output) for output in outputs]
            of_vectors = [
                method.statistic(lambda part=part: iter([part]), **output.setting)
                for part, output in zip(chosen, outputs, strict=True)
            ]
        given = moments if method.moments else None
        return merge_tensor(method, task_matrices, outputs, of_vectors, planned=outputs, moments=given)

    exact = plain(torch.float64)
    if device.type == "cuda":  # its libraries start at the first call in every precision
        plain()
    with collected() as notes:
        found = ours()  # warms up as well
    turns = [(_seconds(plain, device), _seconds(ours, device)) for _ in range(repeats)]
    return Timed(
        case.name,
        f"{shape.rows} x {shape.cols}",
        shape.count,
        num_tasks,
        tuple(plain_s for (plain_s, _), _ in turns),
        tuple(ours_s for _, (ours_s, _) in turns),
        _errors(turns[0][0][1], exact),
        _errors(found, exact),
        tuple(dict.fromkeys(notes)),
    )


def time_backbone(
    case: Case,
    backbone: str,
    num_tasks: int,
    *,
    spectrum: str,
    repeats: int,
    device: torch.device,
    plain_dtype: torch.dtype = torch.float32,
    report: Callable[[str], None] = lambda _: None,
) -> list[Timed]:
    """A case on every shape of matrix of a backbone, and on all its matrices together, which comes last."""
    rows = []
    for shape in matrices_of(TOWERS[backbone]):
        report(f"{case.name}, {backbone}, {num_tasks} tasks: {shape.rows} x {shape.cols}")
        options: dict[str, Any] = {
            "spectrum": spectrum,
            "repeats": repeats,
            "device": device,
            "plain_dtype": plain_dtype,
        }
        row = time_case(case, shape, num_tasks, **options)
        rows.append(replace(row, shape=f"{shape.name} {row.shape}"))
    return [*rows, _together(rows)]


def _together(rows: Sequence[Timed]) -> Timed:
    """All matrices of a backbone, by what one of each shape costs in the same turn."""

    def total(turns: Iterator[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(
            sum(row.count * seconds for row, seconds in zip(rows, turn, strict=True))
            for turn in zip(*turns, strict=True)
        )

    return Timed(
        rows[0].case,
        "all",
        sum(row.count for row in rows),
        rows[0].num_tasks,
        total(row.plain_s for row in rows),
        total(row.ours_s for row in rows),
        tuple(error for row in rows for error in row.plain_errors),
        tuple(error for row in rows for error in row.ours_errors),
        tuple(dict.fromkeys(note for row in rows for note in row.notes)),
    )


def _seconds(run: Callable[[], list[Tensor]], device: torch.device) -> tuple[float, list[Tensor]]:
    _wait_for(device)
    start = time.perf_counter()
    values = run()
    _wait_for(device)
    return time.perf_counter() - start, values


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _errors(values: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, ...]:
    pairs = zip(values, exact, strict=True)
    return tuple(_relative(float((value.double() - exact).norm()), float(exact.norm())) for value, exact in pairs)


def _relative(error: float, norm: float) -> float:
    """A task that gets no direction, or an entry that too few tasks share, makes an update of zero."""
    return error / norm if norm else error
