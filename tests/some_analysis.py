"""Tables of an analysis without a suite: small random task matrices, and accuracies that fit their alignment."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raymerge.analysis_tables import TABLES, table_path

RULES = ("paper", "released_code")
ALPHAS = tuple(round(0.2 * i, 1) for i in range(1, 16))
TASKS = ("Cars", "DTD", "EuroSAT", "GTSRB", "MNIST", "RESISC45", "SVHN", "SUN397", "STL10", "OxfordIIITPet")
TASKS += ("Flowers102", "CIFAR100", "PCAM", "FER2013", "CIFAR10", "Food101", "FashionMNIST", "RenderedSST2")
TASKS += ("EMNIST", "KMNIST")

_BLOCK = "model.visual.transformer.resblocks"
Rows = list[dict[str, Any]]


def write_table(folder: Path, table: str, rows: Rows | pd.DataFrame) -> None:
    frame = pd.DataFrame(rows).reindex(columns=TABLES[table].names)
    pq.write_table(pa.Table.from_pandas(frame, TABLES[table], preserve_index=False), table_path(folder, table))


def write_analysis(
    folder: Path,
    tasks: Sequence[str] = TASKS[:4],
    num_tasks: Sequence[int] = (2, 4),
    backbone: str = "ViT-B-16",
    num_blocks: int = 2,
) -> Path:
    """The whole folder."""
    folder.mkdir(exist_ok=True)
    for table, rows in analysis(tasks, num_tasks, backbone, num_blocks).items():
        write_table(folder, table, rows)
    return folder


def analysis(tasks: Sequence[str], num_tasks: Sequence[int], backbone: str, num_blocks: int) -> dict[str, Rows]:
    """The rows of every table."""
    layers = task_matrices(len(tasks), num_blocks)
    found: dict[str, Rows] = {table: [] for table in TABLES}
    found["spectra"] += _spectra("task", [(None, name, s) for name, s in _task_spectra(layers, tasks)])
    found["cosines"] += _task_cosines(layers, tasks)
    for count in num_tasks:
        part = _of_count(layers, tasks[:count])
        for table, rows in part.items():
            found[table] += [{"num_tasks": count, **row} for row in rows]
    return {table: [{"backbone": backbone, **row} for row in rows] for table, rows in found.items()}


def task_matrices(num_tasks: int, num_blocks: int, width: int = 24) -> dict[str, np.ndarray]:
    """Layer -> (tasks, rows, cols): a decaying spectrum of the tasks' own, some of it shared."""
    shapes = {"model.visual.positional_embedding": (10, width)}
    for block in range(num_blocks):
        shapes[f"{_BLOCK}.{block}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{_BLOCK}.{block}.attn.out_proj.weight"] = (width, width)
        shapes[f"{_BLOCK}.{block}.mlp.c_fc.weight"] = (4 * width, width)
        shapes[f"{_BLOCK}.{block}.mlp.c_proj.weight"] = (width, 4 * width)
    shapes["model.visual.proj"] = (width, 16)
    random = np.random.default_rng(0)

    def one(rows: int, cols: int, decay: float) -> np.ndarray:
        u, _, vh = np.linalg.svd(random.standard_normal((rows, cols)), full_matrices=False)
        return (u * np.exp(-np.arange(len(vh)) / decay)) @ vh

    made = {}
    for layer, (rows, cols) in shapes.items():
        shared = one(rows, cols, 2.0)
        weights = np.linspace(0.8, 0.1, num_tasks)
        made[layer] = np.stack([weight * shared + one(rows, cols, 4.0) for weight in weights]) / 50
    return made


def rank(s: np.ndarray, epsilon: float = 0.05) -> int:
    """The smallest k that leaves a share of `epsilon` of the Frobenius norm."""
    left = np.sqrt(np.maximum(1 - np.cumsum(s**2) / np.sum(s**2), 0))
    return int(np.argmax(left <= epsilon)) + 1


def sar(matrix: np.ndarray, u: np.ndarray) -> float:
    return float(np.linalg.norm(u.T @ matrix) / np.linalg.norm(matrix))


def _task_spectra(layers: dict[str, np.ndarray], tasks: Sequence[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for position, task in enumerate(tasks):
        yield task, {layer: np.linalg.svd(m[position], compute_uv=False) for layer, m in layers.items()}


def _spectra(matrix: str, found: list[tuple[float | None, str | None, dict[str, np.ndarray]]]) -> Rows:
    return [
        {
            "matrix": matrix,
            "task": task,
            "common_space_fraction": fraction,
            "layer": layer,
            "index": index,
            "singular_value": float(value),
        }
        for fraction, task, spectra in found
        for layer, values in spectra.items()
        for index, value in enumerate(values)
    ]


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other))


def _flat(layers: dict[str, np.ndarray], position: int) -> np.ndarray:
    return np.concatenate([m[position].ravel() for m in layers.values()])


def _task_cosines(layers: dict[str, np.ndarray], tasks: Sequence[str]) -> Rows:
    flat = [_flat(layers, position) for position in range(len(tasks))]
    return [
        {"kind": "task-task", "source": one, "target": other, "cosine": _cosine(flat[i], flat[j])}
        for i, one in enumerate(tasks)
        for j, other in enumerate(tasks)
    ]


def _of_count(all_layers: dict[str, np.ndarray], tasks: Sequence[str]) -> dict[str, Rows]:
    """All that depends on how many tasks are merged."""
    layers = {layer: m[: len(tasks)] for layer, m in all_layers.items()}
    svds = {layer: np.linalg.svd(m.sum(0), full_matrices=False) for layer, m in layers.items()}
    ta = {layer: s for layer, (_, s, _) in svds.items()}
    iso = {layer: np.full_like(s, s.mean()) for layer, s in ta.items()}
    cts = {layer: 1.2 * s for layer, s in iso.items()}
    found: dict[str, Rows] = {
        "spectra": [
            *_spectra("task-arithmetic", [(None, None, ta)]),
            *_spectra("iso-c", [(None, None, iso)]),
            *_spectra("iso-cts", [(0.8, None, cts)]),
        ],
        "cosines": [],
        "ranks": [],
        "alignments": [],
        "nai": [],
        "correlations": [],
        "curves": [],
    }
    points = [("task-arithmetic", None, None, 0.0), ("iso-c", None, None, 1.0), ("iso-cts", 0.8, None, 1.0)]
    points += [("spectrum-interpolation", None, beta / 10, beta / 10) for beta in range(11)]
    averages: dict[tuple[str, str, float | None, str], float] = {}
    for rule in RULES:
        ks = {}
        for method, fraction, beta, flatness in points:
            shared = {"common_space_fraction": fraction, "beta": beta, "rank_rule": rule}
            merged = {layer: (1 - flatness) * s + flatness * s.mean() for layer, s in ta.items()}
            ks[method] = {layer: max(1, rank(s) - (rule == "released_code")) for layer, s in merged.items()}
            if method == "iso-cts":
                ks[method] = {layer: k + 1 for layer, k in ks[method].items()}
            found["ranks"] += [
                {"method": method, **shared, "layer": layer, "num_values": len(ta[layer]), "k": k}
                for layer, k in ks[method].items()
            ]
            for position, task in enumerate(tasks):
                values = {x: sar(layers[x][position], svds[x][0][:, :k]) for x, k in ks[method].items()}
                averages[rule, method, beta, task] = float(np.mean([*values.values()]))
                pair = {"kind": "task-merged", "source": task, "target": method, **shared}
                found["alignments"] += [
                    *({**pair, "layer": x, "k": ks[method][x], "sar": value} for x, value in values.items()),
                    {**pair, "sar": averages[rule, method, beta, task]},
                ]
        own = {
            layer: [np.linalg.svd(m, full_matrices=False)[0][:, : ks["task-arithmetic"][layer]] for m in ms]
            for layer, ms in layers.items()
        }
        for i, source in enumerate(tasks):
            for j, target in enumerate(tasks):
                mean = float(np.mean([sar(layers[x][i], own[x][j]) for x in layers]))
                pair = {"kind": "task-task", "source": source, "target": target, "rank_rule": rule}
                found["alignments"].append({**pair, "sar": mean})
    merged = {
        "task-arithmetic": np.concatenate([m.sum(0).ravel() for m in layers.values()]),
        "iso-c": np.concatenate([((u * iso[x]) @ vh).ravel() for x, (u, _, vh) in svds.items()]),
    }
    cosines = {
        (method, task): _cosine(_flat(layers, i), vector)
        for method, vector in merged.items()
        for i, task in enumerate(tasks)
    }
    found["cosines"] += [
        {"kind": "task-merged", "source": task, "target": method, "cosine": value}
        for (method, task), value in cosines.items()
    ]
    found["nai"], found["correlations"] = _nai(averages, cosines, tasks)
    found["curves"] = _curves(tasks, {(m, t): v for (r, m, b, t), v in averages.items() if r == "paper" and b is None})
    return found


def _references(tasks: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Zero-shot and expert accuracy."""
    random = np.random.default_rng(1)
    return {task: (0.3 + 0.4 * random.random(), 0.85 + 0.14 * random.random()) for task in tasks}


def _nai(
    averages: dict[tuple[str, str, float | None, str], float],
    cosines: dict[tuple[str, str], float],
    tasks: Sequence[str],
) -> tuple[Rows, Rows]:
    random = np.random.default_rng(2)
    references = _references(tasks)
    rows: Rows = []
    for method in ("task-arithmetic", "iso-c"):
        for task in tasks:
            zero_shot, expert = references[task]
            nai = 1.2 * (averages["paper", method, None, task] ** 2 - 0.2) + 0.08 * random.standard_normal()
            accuracies = {"zero_shot_accuracy": zero_shot, "expert_accuracy": expert}
            for rule in RULES:
                rows.append(
                    {
                        "method": method,
                        "task": task,
                        "accuracy": zero_shot + nai * (expert - zero_shot),
                        **accuracies,
                        "nai": nai,
                        "rank_rule": rule,
                        "sar": averages[rule, method, None, task],
                        "cosine": cosines[method, task],
                    }
                )
    correlations: Rows = []
    frame = pd.DataFrame(rows)
    for (method, rule), part in frame.groupby(["method", "rank_rule"], sort=False):
        shared = {"method": method, "num_points": len(part)}
        correlations.append(
            {**shared, "quantity": "sar", "rank_rule": rule, "pearson": float(part["nai"].corr(part["sar"]))}
        )
        if rule == RULES[0]:
            correlations.append({**shared, "quantity": "cosine", "pearson": float(part["nai"].corr(part["cosine"]))})
    return rows, correlations


def _curves(tasks: Sequence[str], sars: dict[tuple[str, str], float]) -> Rows:
    """Parabolas in alpha; what a structural parameter does is a parabola, too."""
    points: list[tuple[str, str, float, dict[str, float]]] = [
        ("demo", "zero-shot", -1.0, {}),
        ("demo", "fine-tuned", 9.0, {}),
        ("demo", "task-arithmetic", 0.6, {}),
        ("demo", "ties", 0.62, {}),
        ("demo", "tsv-m", 0.72, {}),
        ("demo", "iso-c", 0.75, {}),
        *(("demo", "iso-cts", 0.8 - (f - 0.8) ** 2 / 4, {"common_space_fraction": f}) for f in (0.2, 0.4, 0.6, 0.8)),
        *(
            ("demo_ablations", "spectrum-interpolation", 0.6 + 0.15 * (1 - (1 - beta) ** 2), {"beta": beta})
            for beta in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
        ),
        *(
            ("demo_ablations", "truncated-iso-c", 0.75 * min(1.0, 0.1 + 1.5 * k), {"rank_fraction": k})
            for k in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
        ),
        ("demo_ablations", "single-task-iso-c", 0.9, {}),
    ]
    best: dict[tuple[str, str], tuple[float, dict[str, float]]] = {}
    rows: Rows = []
    for results, method, height, params in points:
        alphas = (0.0,) if method in ("zero-shot", "fine-tuned") else ALPHAS
        for alpha in alphas:
            rows += _trial(results, method, alpha, params, height, tasks, "val")
        optimum = min(alphas, key=lambda alpha: abs(alpha - _optimum(method)))
        if (results, method) not in best or height > best[results, method][0]:
            best[results, method] = height, {"alpha": optimum, **params}
    for (results, method), (height, point) in best.items():
        params = {key: value for key, value in point.items() if key != "alpha"}
        rows += _trial(results, method, point["alpha"], params, height, tasks, "test")
    for row in rows:
        point = best[row["results"], row["method"]][1]
        row["is_chosen"] = all(row[key] == value for key, value in point.items())
    return rows


def _optimum(method: str) -> float:
    return {"task-arithmetic": 0.4, "ties": 0.8, "single-task-iso-c": 1.4}.get(method, 1.2)


def _trial(
    results: str, method: str, alpha: float, params: dict[str, float], height: float, tasks: Sequence[str], split: str
) -> Rows:
    rows: Rows = []
    for position, (task, (zero_shot, expert)) in enumerate(_references(tasks).items()):
        match method:
            case "zero-shot":
                nai = 0.0
            case "fine-tuned":
                nai = 1.0
            case _:
                nai = height - 0.15 * (alpha - _optimum(method)) ** 2 - 0.01 * position - 0.01 * len(tasks)
        accuracy = max(0.02, zero_shot + nai * (expert - zero_shot)) - 0.01 * (split == "test")
        expert -= 0.01 * (split == "test")
        shared = {"results": results, "method": method, "split": split, "alpha": alpha, **params}
        shared["stage"] = "test" if split == "test" else "search"
        rows.append(
            {**shared, "task": task, "accuracy": accuracy, "normalized_accuracy": accuracy / expert, "nai": nai}
        )
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("accuracy", "normalized_accuracy", "nai")}
    return [*rows, {**{k: v for k, v in rows[0].items() if k != "task"}, **means}]
