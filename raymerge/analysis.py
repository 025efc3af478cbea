"""The paper's analyses of a suite, and of sweeps over it, as the tables of `analysis_tables`.

What is computed from checkpoints is kept in the cache, tensor by tensor and by content: an analysis that was
interrupted goes on, and one that only adds results of sweeps factorises nothing again.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raymerge.alignment import EPSILON
from raymerge.analysis_tables import TABLES, Frame, to_frame
from raymerge.checkpoints import file_sha256, open_checkpoint
from raymerge.layer_analysis import (
    ISO_CTS,
    AnalysisSettings,
    Merged,
    Spectrum,
    TensorAnalysis,
    analyse_matrix,
    analyse_other,
)
from raymerge.linalg import stored
from raymerge.merge_cache import code_version as merging_version
from raymerge.merging import Models, is_matrix, task_tensors_of
from raymerge.notes import about
from raymerge.preflight import check_backbone, check_expert
from raymerge.records import content_id
from raymerge.suites import Suite, cache_dir
from raymerge.sweep_curves import chosen_fractions, correlations, nai_beside_alignment
from raymerge.whole_file import make_directory, whole_file

_DEFAULT_FRACTION = 0.8
"""Of Iso-CTS, where no sweep has chosen another one."""

Report = Callable[[str, float], None]
"""Told what is being done and which fraction of it is behind."""

_PRODUCTS = pa.schema(
    [
        ("num_tasks", pa.int32()),
        ("kind", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("layer", pa.string()),
        ("common_space_fraction", pa.float64()),
        ("value", pa.float64()),
        ("source_squared", pa.float64()),
        ("target_squared", pa.float64()),
    ]
)
_PARTS: Mapping[str, pa.Schema] = {
    **{name: TABLES[name] for name in ("spectra", "ranks", "alignments")},
    "products": _PRODUCTS,
}
"""What is kept of a tensor."""


def analyse(
    suite: Suite,
    backbones: Sequence[str],
    sizes: Sequence[int],
    curves: Frame,
    *,
    epsilon: float = EPSILON,
    device: torch.device | None = None,
    report: Report = lambda what, fraction: None,
) -> dict[str, pa.Table]:
    """All `TABLES` of `analysis_tables`.

    Args:
        sizes: of the task sets, each the first so many tasks of the suite.
        curves: of `read_curves`, what sweeps over the suite found.
        epsilon: of Eq. 6, the residual that an effective rank leaves.
        device: where to factorise; None: the CPU.
    Raises:
        CheckpointError, MergeInputError: as `analyse_backbone`.
    """
    chosen = chosen_fractions(curves, ISO_CTS)
    parts: dict[str, list[pa.Table]] = {}
    for backbone in backbones:
        fractions = {n: tuple(sorted({_DEFAULT_FRACTION, *chosen.get((backbone, n), ())})) for n in sizes}
        settings = AnalysisSettings(fractions, epsilon=epsilon)
        found = analyse_backbone(suite, backbone, settings, device=device or torch.device("cpu"), report=report)
        for name, table in found.items():
            parts.setdefault(name, []).append(table)
    tables = {name: pa.concat_tables(found) for name, found in parts.items()}
    nai = nai_beside_alignment(curves, to_frame(tables["alignments"]), to_frame(tables["cosines"]))
    frames = {"curves": curves, "nai": nai, "correlations": correlations(nai)}
    return tables | {name: _table(frame, TABLES[name]) for name, frame in frames.items()}


def analyse_backbone(
    suite: Suite,
    backbone: str,
    settings: AnalysisSettings,
    *,
    device: torch.device,
    report: Report = lambda what, fraction: None,
) -> dict[str, pa.Table]:
    """Tables `spectra`, `cosines`, `ranks` and `alignments` of one backbone.

    Args:
        settings: whose task sets are the first tasks of the suite.
    Raises:
        CheckpointError: a checkpoint is missing or damaged, or does not fit the backbone.
        MergeInputError: an analysis failed, naming the tensor.
    """
    tasks = [task.name for task in suite.tasks][: max(settings.fractions)]
    check_backbone(suite, backbone)
    experts = []
    for i, task in enumerate(tasks):
        report(f"checking {backbone}/{task}", i / len(tasks))
        experts.append(check_expert(suite, backbone, task))
    models = Models(open_checkpoint(suite.zero_shot_path(backbone)), tuple(experts))
    parts: dict[str, list[pa.Table]] = {name: [] for name in _PARTS}
    names = list(models.zero_shot.parameters)
    for i, name in enumerate(names):
        report(f"{backbone}: {name}", i / len(names))
        for table, rows in _tensor(models, name, tasks, settings, device).items():
            parts[table].append(rows)
    found = {name: pa.concat_tables([_PARTS[name].empty_table(), *tables]) for name, tables in parts.items()}
    products = found.pop("products")
    found["cosines"] = _cosines(products)
    found["alignments"] = pa.concat_tables([_average_alignments(found["alignments"]), found["alignments"]])
    return {name: _with_backbone(rows, backbone, TABLES[name]) for name, rows in found.items()}


def _tensor(
    models: Models, name: str, tasks: Sequence[str], settings: AnalysisSettings, device: torch.device
) -> dict[str, pa.Table]:
    """The rows of one tensor; none where no expert changed it."""
    task_tensors = task_tensors_of(models, name)
    if not stored(task_tensors).any():
        return {}
    digest = hashlib.sha256(task_tensors.contiguous().numpy().view(np.uint8).data).hexdigest()
    key = content_id([_code_version(), digest, name, list(tasks), dataclasses.asdict(settings)], length=32)
    folder = cache_dir() / "analysis" / key
    if (kept := _read_kept(folder)) is not None:
        return kept
    analyse = analyse_matrix if is_matrix(name, task_tensors.ndim - 1) else analyse_other
    with about(name):
        rows = _rows(analyse(task_tensors.to(device), settings), name, tasks)
    _keep(rows, folder)
    return rows


@cache
def _code_version() -> str:
    package = Path(__file__).parent
    files = ["analysis.py", "analysis_tables.py", "layer_analysis.py", "alignment.py"]
    return content_id([merging_version(), *(file_sha256(package / file) for file in files)])


def _read_kept(folder: Path) -> dict[str, pa.Table] | None:
    try:
        found = {name: pq.read_table(folder / f"{name}.parquet", page_checksum_verification=True) for name in _PARTS}
    except (pa.ArrowException, OSError):  # not there, or torn by hand
        return None
    return found if all(found[name].schema.equals(schema) for name, schema in _PARTS.items()) else None


def _keep(rows: Mapping[str, pa.Table], folder: Path) -> None:
    try:
        make_directory(folder)
        for name, table in rows.items():
            with whole_file(folder / f"{name}.parquet") as file:
                pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    except OSError:  # a full disk costs the cache, not the analysis
        shutil.rmtree(folder, ignore_errors=True)


def _rows(found: TensorAnalysis, layer: str, tasks: Sequence[str]) -> dict[str, pa.Table]:
    def named(target: int | Merged) -> dict[str, Any]:
        if isinstance(target, int):
            return {"kind": "task-task", "target": tasks[target]}
        return {"kind": "task-merged", "target": target.method, **_parameters(target)}

    rows = {
        "ranks": [
            {
                "num_tasks": rank.of.num_tasks,
                "method": rank.of.method,
                **_parameters(rank.of),
                "rank_rule": rank.rule,
                "layer": layer,
                "num_values": rank.num_values,
                "k": rank.k,
            }
            for rank in found.ranks
        ],
        "alignments": [
            {
                "num_tasks": alignment.by.num_tasks,
                "source": tasks[alignment.source],
                **named(alignment.target),
                "rank_rule": alignment.rule,
                "layer": layer,
                "k": alignment.k,
                "sar": alignment.sar,
            }
            for alignment in found.alignments
        ],
        "products": [
            {
                "num_tasks": None if isinstance(product.target, int) else product.target.num_tasks,
                "source": tasks[product.source],
                **named(product.target),
                "layer": layer,
                "value": product.value,
                "source_squared": product.source_squared,
                "target_squared": product.target_squared,
            }
            for product in found.products
        ],
    }
    tables = {name: pa.Table.from_pylist(values, schema=_PARTS[name]) for name, values in rows.items()}
    return {"spectra": _spectra(found.spectra, layer, tasks), **tables}


def _spectra(spectra: Sequence[Spectrum], layer: str, tasks: Sequence[str]) -> pa.Table:
    schema = TABLES["spectra"]
    if not spectra:
        return schema.empty_table()
    heads = []
    for spectrum in spectra:
        of = spectrum.of
        if isinstance(of, int):
            heads.append({"matrix": "task", "task": tasks[of], "layer": layer})
        else:
            heads.append({"matrix": of.method, "num_tasks": of.num_tasks, "layer": layer, **_parameters(of)})
    size = len(spectra[0].values)
    table = pa.Table.from_pylist(heads, schema=schema).take(np.repeat(np.arange(len(heads)), size))
    columns = {
        "index": np.tile(np.arange(size), len(spectra)),
        "singular_value": np.concatenate([spectrum.values.numpy() for spectrum in spectra]),
    }
    for name, values in columns.items():
        table = table.set_column(schema.get_field_index(name), name, pa.array(values, schema.field(name).type))
    return table.cast(schema)


def _parameters(merged: Merged) -> dict[str, Any]:
    return {"common_space_fraction": merged.common_space_fraction, "beta": merged.beta}


def _table(frame: Frame, schema: pa.Schema) -> pa.Table:
    """Columns that the frame lacks are null; NaN is, too."""
    missing = {name: None for name in schema.names if name not in frame.columns}
    return pa.Table.from_pandas(frame.assign(**missing)[schema.names], schema=schema, preserve_index=False)


def _grouped(frame: Frame, by: Sequence[str]) -> Any:
    return frame.groupby(list(by), dropna=False, sort=False, observed=True)


def _average_alignments(alignments: pa.Table) -> pa.Table:
    """Over layers, unweighted; a layer that an expert left as it was has no say in its average."""
    keys = ["num_tasks", "kind", "source", "target", "common_space_fraction", "beta", "rank_rule"]
    means = _grouped(to_frame(alignments), keys)["sar"].mean().reset_index()
    return _table(means, TABLES["alignments"])


def _cosines(products: pa.Table) -> pa.Table:
    """Of every tensor, and of all together: the first rows, whose layer is null."""
    import pandas

    keys = ["num_tasks", "kind", "source", "target", "common_space_fraction"]
    by_layer = to_frame(products)
    sums = _grouped(by_layer, keys)[["value", "source_squared", "target_squared"]].sum().reset_index()
    frame = pandas.concat([sums, by_layer], ignore_index=True)
    norms = (frame["source_squared"] * frame["target_squared"]) ** 0.5
    frame["cosine"] = (frame["value"] / norms.where(norms > 0)).clip(-1.0, 1.0)
    return _table(frame, TABLES["cosines"])


def _with_backbone(rows: pa.Table, backbone: str, schema: pa.Schema) -> pa.Table:
    names = pa.repeat(pa.scalar(backbone, pa.string()), len(rows))
    return rows.set_column(schema.get_field_index("backbone"), "backbone", names)
