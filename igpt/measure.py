"""Measured values with their units, as in records, and their 95 % confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


class Measured(TypedDict, total=False):
    """One number with its unit; an accuracy is a fraction with its interval over the test images."""

    value: float
    unit: str
    low: float
    high: float
    images: int


def number(value: float, unit: str) -> Measured:
    """A number without an interval."""
    return {"value": float(value), "unit": unit}


def accuracy(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> Measured:
    """Accuracy of predictions, int64 (images,), with its Wilson interval.

    >>> import numpy as np
    >>> found = accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    >>> found["value"], round(found["low"], 2), round(found["high"], 2)
    (0.75, 0.3, 0.95)
    """
    correct, images = int((predictions == labels).sum()), len(labels)
    low, high = wilson(correct, images)
    return {"value": correct / images, "unit": "fraction", "low": low, "high": high, "images": images}


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Wilson interval of an accuracy, as fractions, from ``correct`` of ``images`` test images."""
    from scipy.stats import binomtest

    interval = binomtest(correct, images).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and Student's t interval over independent runs; infinite bounds for a single run.

    >>> [round(each, 3) for each in mean_interval([0.9, 0.92, 0.94])]
    [0.92, 0.87, 0.97]
    """
    from scipy.stats import t

    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, -math.inf, math.inf
    margin = float(t.ppf((1 + LEVEL) / 2, n - 1)) * sample_deviation(values) / math.sqrt(n)
    return mean, mean - margin, mean + margin


def sample_deviation(values: Sequence[float]) -> float:
    """Standard deviation with n - 1 in the denominator."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


Seconds = dict[str, list[float]]  # of a speed comparison: each candidate's seconds, one per round


def ratios(seconds: Seconds, slower: str, faster: str) -> tuple[float, float, float]:
    """Median, minimum and maximum, over rounds, of the seconds of ``slower`` divided by those of ``faster``."""
    quotients = [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]
    return statistics.median(quotients), min(quotients), max(quotients)
