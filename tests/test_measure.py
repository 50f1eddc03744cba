from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt.measure import accuracy, mean_interval, sample_deviation, wilson


def test_an_accuracy_carries_its_wilson_interval() -> None:
    found = accuracy(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0]))
    assert found["value"] == 0.75
    assert found["images"] == 4
    z, p, n = 1.959963984540054, 0.75, 4
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (found["low"], found["high"]) == pytest.approx((centre - half, centre + half))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_the_accuracy_and_stays_inside(case: tuple[int, int]) -> None:
    correct, images = case
    low, high = wilson(correct, images)
    assert -1e-12 <= low <= correct / images <= high <= 1 + 1e-12


def test_the_interval_over_seeds_is_students() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.302652729911275 * 1.0 / math.sqrt(3))
    assert mean - low == pytest.approx(high - mean)


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([0.5]) == (0.5, -math.inf, math.inf)


def test_the_deviation_is_the_samples() -> None:
    assert sample_deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))
