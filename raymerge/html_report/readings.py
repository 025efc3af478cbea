"""What a chart shows of one column of Table 1, in a sentence or two: its alternative text, and a line below it."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from raymerge.html_report.rows import EXPERTS, ZERO_SHOT, Row, Rows
from raymerge.renderers import label

MAX_TASKS = 3
"""How many tasks a sentence names."""


def of_tasks(rows: Rows, column: int, best: str | None) -> str:
    """
    Args:
        best: title of the merging method to speak of; None: there is none.
    """
    mine = [row for row in rows.tasks if row["column"] == column]
    by_method = {title: {r["task"]: r["accuracy"] for r in mine if r["method"] == title} for title in _titles(mine)}
    if best not in by_method:
        return ""
    merged, experts, zero_shot = by_method[best], by_method.get(EXPERTS, {}), by_method.get(ZERO_SHOT, {})
    sentences = [f"{best}: {_average(merged.values()):.1f} % on average."]
    if gaps := sorted((merged[task] - experts[task], task) for task in merged if task in experts):
        lost = ", ".join(f"{task} ({signed(gap)})" for gap, task in gaps[:MAX_TASKS] if gap < 0)
        sentences.append(f"Furthest below the experts, in points: {lost}." if lost else "No task is below its expert.")
    below = [task for task in merged if task in zero_shot and merged[task] < zero_shot[task]]
    if below:
        sentences.append(f"Below the zero-shot model: {_some(below)}.")
    return " ".join(sentences)


def of_alphas(rows: Rows, column: int) -> str:
    chosen = [row for row in rows.trials if row["column"] == column and row["chosen"]]
    if not chosen:
        return "No alpha is chosen yet."
    texts = [f"{row['method']} {row['alpha']:.3g}{_end(row)}" for row in chosen]
    return f"Chosen alpha: {', '.join(texts)}."


def of_parameter(rows: Rows, column: int, name: str) -> str:
    mine = [row for row in rows.parameters if row["column"] == column and row["parameter"] == name]
    sentences = []
    for method, group in groupby(mine, key=lambda row: row["method"]):
        found = list(group)
        values = [row["value"] for row in found]
        spread = f"between {min(values):.1f} and {max(values):.1f} % over {len(found)} values of {label(name)}"
        chosen = [f"{row['setting']:.3g}, with alpha {row['alpha']:.3g}{_end(row)}" for row in found if row["chosen"]]
        sentences.append(f"{method} {spread}{''.join(f'; chosen: {text}' for text in chosen)}.")
    return " ".join(sentences)


def of_history(rows: Rows, column: int) -> str:
    mine = [row for row in rows.trials if row["column"] == column]
    texts = []
    for method, group in groupby(mine, key=lambda row: row["method"]):
        found = list(group)
        first = next(row["number"] for row in found if row["best"] == found[-1]["best"])
        texts.append(f"{method} {found[-1]['best']:.1f} % at trial {first}")
    return f"Best found: {', '.join(texts)}." if texts else ""


def of_costs(costs: Sequence[Row]) -> str:
    images: dict[str, int] = {}
    for row in costs:
        images[row["method"]] = images.get(row["method"], 0) + row["images"]
    total = sum(images.values())
    if not total:
        return "No image was evaluated."
    most = max(images, key=lambda method: images[method])
    return f"{total:,} images in all; most for {most}: {100 * images[most] / total:.0f} %."


def signed(points: float) -> str:
    """With a minus that is as wide as a plus; nothing is neither."""
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _end(row: Row) -> str:
    return "" if row["end"] is None else f" (the {row['end']} end of its range)"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - MAX_TASKS
    return ", ".join(names[:MAX_TASKS]) + (f" and {rest} more" if rest > 0 else "")


def _average(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _titles(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))
