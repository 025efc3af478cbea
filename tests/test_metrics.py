import math

import pytest

from raymerge.metrics import average, nai, normalized_accuracy


def test_normalized_accuracy():
    assert normalized_accuracy(0.6, 0.8) == pytest.approx(0.75)
    assert normalized_accuracy(0.9, 0.8) == pytest.approx(1.125), "not clipped"
    assert math.isnan(normalized_accuracy(0.5, 0.0))


def test_nai():
    assert nai(0.7, 0.6, 0.8) == pytest.approx(0.5)
    assert nai(0.5, 0.6, 0.8) == pytest.approx(-0.5), "worse than zero-shot"
    assert nai(0.6, 0.6, 0.8) == 0
    assert nai(0.8, 0.6, 0.8) == pytest.approx(1)
    assert math.isnan(nai(0.5, 0.6, 0.6))


def test_average_is_the_mean_of_ratios():
    assert average([0.5, 1.0, 0.9]) == pytest.approx(0.8)
    assert average(normalized_accuracy(a, e) for a, e in [(0.4, 0.8), (0.9, 0.9)]) == pytest.approx(0.75)
    assert math.isnan(average([]))
