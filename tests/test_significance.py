"""Tests of differences: against sums of the binomial, closed forms, and images drawn one by one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.significance import Estimate, holm, mcnemar, paired_bootstrap, unpaired


def counts(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# --- McNemar ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 1, 1.0),  # two sides of one toss
        (5, 0, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_by_hand(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_against_a_sum_of_the_binomial(only_first, only_second):
    """Both tails of tosses of a fair coin that are at least as uneven, counted in whole numbers."""
    n = only_first + only_second
    uneven = abs(only_first - only_second)
    expected = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= uneven) / 2**n
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


# --- Holm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01, 2 x 0.03, then 1 x 0.04 is below 0.06
        ([0.5, 0.01, 0.9], [1.0, 0.03, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_what_the_sequential_procedure_rejects(p_values):
    """Holm as it was published: from the smallest p on, reject while p <= level / number of those that are left."""
    level, rejected = 0.05, set()
    left = sorted(range(len(p_values)), key=lambda i: p_values[i])
    while left and p_values[left[0]] * len(left) <= level:
        rejected.add(left.pop(0))
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


# --- bootstrap -------------------------------------------------------------------------------------------------------

LARGE = (counts(300, 500, 90), counts(420, 430, 150), counts(10_000, 4_000, 2_500))


def normal_interval(only_first, only_second, total) -> tuple[float, float]:
    """Difference plus or minus 1.96 standard errors, by the variance of a mean of -1, 0 and 1."""
    mean = (only_second - only_first) / total
    variance = ((only_second + only_first) / total - mean**2) / total
    half = 1.959964 * math.sqrt(variance.sum()) / len(total)
    return mean.mean() - half, mean.mean() + half


def test_bootstrap_against_the_normal_interval():
    found = paired_bootstrap(*LARGE, draws=40_000)
    low, high = normal_interval(*LARGE)
    assert found.low == pytest.approx(low, abs=0.02 * (high - low))
    assert found.high == pytest.approx(high, abs=0.02 * (high - low))
    z = (low + high) / 2 / ((high - low) / 2 / 1.959964)
    assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.005)
    assert 0.01 < found.p < 0.1, "neither obvious nor hopeless"


def test_bootstrap_draws_images_within_tasks():
    """The same distribution as choosing images one by one, on tasks so small that it is far from normal."""
    only_first, only_second, total = counts(1, 0), counts(2, 3), counts(6, 9)
    rng = np.random.default_rng(1)
    draws = []
    for lost, won, n in zip(only_first, only_second, total, strict=True):
        outcomes = np.array([-1] * lost + [1] * won + [0] * (n - lost - won))
        draws.append(outcomes[rng.integers(0, n, size=(100_000, n))].mean(axis=1))
    statistic = np.mean(draws, axis=0)
    found = paired_bootstrap(only_first, only_second, total, draws=100_000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(statistic, [0.025, 0.975])), abs=0.02)
    assert found.p == pytest.approx(2 * (statistic <= 1e-12).mean(), rel=0.05)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 20)), min_size=1, max_size=5))
def test_exchanging_the_models_changes_the_sign_exactly(tasks):
    only_first, only_second, rest = (counts(*column) for column in zip(*tasks, strict=True))
    total = only_first + only_second + rest
    one = paired_bootstrap(only_first, only_second, total, draws=300)
    other = paired_bootstrap(only_second, only_first, total, draws=300)
    assert (other.low, other.high, other.p) == (-one.high, -one.low, one.p)


def test_models_that_agree_on_every_image():
    nothing = counts(0, 0)
    assert paired_bootstrap(nothing, nothing, counts(10, 20)) == Estimate(0.0, 0.0, 1.0)


def test_equal_wins_and_losses_are_no_difference_but_are_uncertain():
    found = paired_bootstrap(counts(10), counts(10), counts(100), draws=20_000)
    assert found.p == 1.0
    assert found.high == -found.low == pytest.approx(1.96 * math.sqrt(0.2 / 100), rel=0.05)


def test_every_task_has_the_same_weight():
    small_and_large = paired_bootstrap(counts(0, 0), counts(5, 0), counts(10, 100_000))
    alone = paired_bootstrap(counts(0), counts(5), counts(10))
    assert (small_and_large.low, small_and_large.high) == pytest.approx((alone.low / 2, alone.high / 2), abs=0.03)


def test_the_seed_decides():
    assert paired_bootstrap(*LARGE) == paired_bootstrap(*LARGE)
    assert paired_bootstrap(*LARGE, seed=1) != paired_bootstrap(*LARGE)


def test_where_there_is_no_difference_p_is_small_as_often_as_it_says():
    rng = np.random.default_rng(2)
    total = counts(400, 150, 600)
    p_values, covered = [], 0
    for _ in range(400):
        drawn = rng.multinomial(total, [0.1, 0.1, 0.8])
        found = paired_bootstrap(drawn[:, 0], drawn[:, 1], total, draws=400)
        p_values.append(found.p)
        covered += found.low <= 0 <= found.high
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.08
    assert 0.92 < covered / 400 < 0.97


def test_the_smallest_p():
    assert paired_bootstrap(counts(0), counts(90), counts(100), draws=999).p == 2 / 1000


# --- counts alone ----------------------------------------------------------------------------------------------------


def test_unpaired_by_hand():
    # variances: 0.25 / 100 + 0.16 / 100 and 0 + 0.25 / 25
    found = unpaired(counts(50, 25), counts(80, 12), counts(100, 25))
    difference = (0.3 - 0.52) / 2
    half = 1.959964 * math.sqrt(0.0025 + 0.0016 + 0.48 * 0.52 / 25) / 2
    assert (found.low, found.high) == pytest.approx((difference - half, difference + half), rel=1e-6)
    assert found.p is None


def test_unpaired_is_wider_where_models_err_together():
    rng = np.random.default_rng(0)
    hard = rng.random(5000)
    first, second = hard < 0.6 + 0.05 * rng.random(5000), hard < 0.62 + 0.05 * rng.random(5000)
    total = counts(5000)
    paired = paired_bootstrap(counts((first & ~second).sum()), counts((second & ~first).sum()), total)
    independent = unpaired(counts(first.sum()), counts(second.sum()), total)
    assert independent.high - independent.low > 2 * (paired.high - paired.low)
    assert independent.low < paired.low < (second.mean() - first.mean()) < paired.high < independent.high
