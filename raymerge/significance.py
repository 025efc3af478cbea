"""Whether a difference of accuracies can be chance: tests over the images of the test split, which is a sample.

What is not in them: another seed of the search, other experts. Counts come per task; all differences are second minus
first, as fractions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

LEVEL = 0.95
DRAWS = 10_000
SEED = 0
ROUNDING = 1e-12
"""Averages of fractions that are this near to each other are equal."""

Counts = Int[np.ndarray, " tasks"]


@dataclass(frozen=True)
class Estimate:
    """An interval at LEVEL around a difference, and the two-sided p value of no difference where there is one."""

    low: float
    high: float
    p: float | None = None


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact McNemar test of two models on the same images.

    Where one model is right and the other wrong, each is as likely to be the right one if they are equally good, so
    only_first is Binomial(only_first + only_second, 1/2). Images on which both are right, or both wrong, say nothing.

    Source: McNemar 1947, doi:10.1007/BF02295996, with the binomial distribution in place of chi-squared.

    Args:
        only_first, only_second: images that only the one model classifies correctly.
    Returns:
        The two-sided p value.
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, corrected for their number, in the same order.

    With p_(1) <= ... <= p_(m), the corrected p_(i) is the largest of (m - j + 1) p_(j), j <= i, and at most 1. Below
    0.05 with probability 0.05 at most for any of the tests in which there is no difference, however they depend on
    each other.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70.
    """
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, (len(p_values) - rank) * p_values[position])
        corrected[position] = min(1.0, highest)
    return corrected


def paired_bootstrap(
    only_first: Counts, only_second: Counts, total: Counts, *, draws: int = DRAWS, seed: int = SEED
) -> Estimate:
    """How much the difference of two average accuracies could change with other images of the same kind.

    The statistic is (1/T) sum_t (only_second_t - only_first_t) / total_t. The images of every task are drawn anew, as
    many as there are, with replacement. That changes nothing but how many of them only the one, only the other model
    gets right, and these counts are multinomial: drawing them is drawing the images. The interval is between quantiles
    of the draws, and p is the level at which it would end at 0; p is at least 2 / (draws + 1).

    Exchanging the models changes the signs, exactly.

    Args:
        only_first, only_second: images of every task that only the one model classifies correctly.
        total: images of every task.
    """
    gains = only_second - only_first
    if not gains.any():  # the draws are as likely as their negatives, so the interval is made symmetric
        half = float(np.quantile(np.abs(_draws(only_first, only_second, total, draws, seed)), LEVEL))
        return Estimate(0.0 - half, half, 1.0)
    if gains[gains.nonzero()[0][0]] < 0:
        other = paired_bootstrap(only_second, only_first, total, draws=draws, seed=seed)
        return Estimate(-other.high, -other.low, other.p)
    found = _draws(only_first, only_second, total, draws, seed)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    rarer = min((found <= ROUNDING).sum(), (found >= -ROUNDING).sum())
    return Estimate(float(low), float(high), min(1.0, 2 * (1 + int(rarer)) / (draws + 1)))


def _draws(
    only_first: Counts, only_second: Counts, total: Counts, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    shares = np.stack([only_first, only_second, total - only_first - only_second], axis=1) / total[:, None]
    counts = np.random.default_rng(seed).multinomial(total, shares, size=(draws, len(total)))  # (draws, tasks, 3)
    return ((counts[..., 1] - counts[..., 0]) / total).mean(axis=1)


def unpaired(first: Counts, second: Counts, total: Counts) -> Estimate:
    """The interval of the difference of two average accuracies of which only counts are known.

    The variance of the difference is taken as (1/T^2) sum_t (a_t (1 - a_t) + b_t (1 - b_t)) / total_t, as if the models
    had been tested on different images. On the same images they mostly err together, so the truth is narrower. No
    smaller than the paired interval but by chance, hence no p value, which would be taken for one of a paired test.

    Args:
        first, second: images of every task that the models classify correctly.
        total: images of every task.
    """
    a, b = first / total, second / total
    half = float(stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(((a * (1 - a) + b * (1 - b)) / total).sum()) / len(total))
    difference = float((b - a).mean())
    return Estimate(difference - half, difference + half)
