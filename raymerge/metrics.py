"""Scores of a merged model relative to its references. Accuracies are fractions 0..1, never percent."""

import math
from collections.abc import Iterable, Sequence


def normalized_accuracy(accuracy: float, expert_accuracy: float) -> float:
    """accuracy / expert accuracy on the same split; can exceed 1. NaN when the expert has 0."""
    return accuracy / expert_accuracy if expert_accuracy else math.nan


def nai(accuracy: float, zero_shot_accuracy: float, expert_accuracy: float) -> float:
    """Normalized accuracy improvement, (merged - zero-shot) / (expert - zero-shot); can leave 0..1.

    NaN when the expert is no better and no worse than zero-shot. Source: Marczak et al. 2025, arXiv:2502.04959.
    """
    gap = expert_accuracy - zero_shot_accuracy
    return (accuracy - zero_shot_accuracy) / gap if gap else math.nan


def average(values: Iterable[float]) -> float:
    """Unweighted mean over tasks: every data set counts the same, whatever its size. NaN of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's correlation coefficient, -1..1. NaN of fewer than two points, or where either does not vary."""
    mean_x, mean_y = average(xs), average(ys)
    dx, dy = [x - mean_x for x in xs], [y - mean_y for y in ys]
    spread = math.sqrt(math.fsum(d * d for d in dx) * math.fsum(d * d for d in dy))
    return math.fsum(a * b for a, b in zip(dx, dy, strict=True)) / spread if spread else math.nan
