"""Verdicts: apply the criterion of an experiment to its records, and test whether records agree. Never stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from igpt.companion.criteria import Criterion, Metric
from igpt.companion.results.record import Record, Value
from igpt.companion.stage import Stage
from igpt.measure import mean_interval

Word = Literal["reproduced", "differs", "undecided", "shown", "pending"]
RecordOf = Callable[[Stage], Record | None]


@dataclass(frozen=True)
class Outcome:
    """A metric over its seeds: values, mean, 95 % interval.

    The interval is over seeds. With a single seed it is the interval in the record (over test images or draws of labels), or
    infinite if the record has none.
    """

    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Verdict:
    """A verdict as one word, with a sentence that explains it."""

    word: Word
    sentence: str


def outcomes_apart(one: Outcome, other: Outcome) -> bool:
    """Whether the intervals of two outcomes are disjoint; infinite intervals never are."""
    return one.high < other.low or other.high < one.low


def outcome(metric: Metric, record_of: RecordOf) -> Outcome | None:
    """The outcome of a metric; None if a record or value is missing."""
    measured = _measured(metric, record_of)
    if measured is None:
        return None
    records = tuple(record for record in map(record_of, metric.all_stages()) if record is not None)
    return Outcome(tuple(value for value, _ in measured), *_interval(measured), records)


def judge(metric: Metric, criterion: Criterion[Metric], record_of: RecordOf, *, published: float) -> Verdict:
    """The verdict of a criterion; pending until all required records exist.

    For ``above`` and ``below``, the claim is reproduced if the interval of the difference (see `Outcome`) lies on the claimed
    side of zero, differs if it lies on the other side, and is undecided if it contains zero. With a single seed every value
    needs an interval. A record without one is from a version that wrote none, and the claim is pending until it is rerun.
    """
    measured = _measured(metric, record_of)
    if measured is None:
        return Verdict("pending", "not run")
    if criterion.kind == "shown":
        return Verdict("shown", criterion.claim)
    if criterion.kind == "matches":
        mean, _, _ = _interval(measured)
        word: Word = "reproduced" if abs(mean - published) <= criterion.margin else "differs"
        return Verdict(word, f"{criterion.claim}: {mean:.6g} against {published:.6g}")
    if criterion.kind == "inside":
        inside = [0 < value < 1 for value, _ in measured]
        return Verdict("reproduced" if all(inside) else "differs", f"{criterion.claim}: in {sum(inside)} of {len(inside)} seeds")
    against = _measured(criterion.against, record_of) if criterion.against else [(0.0, 0.0)] * len(measured)
    if against is None:
        return Verdict("pending", "what it is compared with has not run")
    lacking = _without_interval(metric, record_of) or (criterion.against and _without_interval(criterion.against, record_of))
    if len(measured) == 1 and lacking:
        key, stage = lacking
        return Verdict("pending", f"{key} has no interval, since its record is of an older version: igpt run {stage.name}")
    mean, low, high = _interval([_less(a, b) for a, b in zip(measured, against, strict=True)])
    over = f"over {len(measured)} seeds" if len(measured) > 1 else "with one seed, the interval over test images or draws"
    points = f"{100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    sentence = f"{criterion.claim}: difference {points} {over}"
    if low <= 0 <= high:
        return Verdict("undecided", sentence)
    return Verdict("reproduced" if (low > 0) == (criterion.kind == "above") else "differs", sentence)


Uncertain = tuple[float, float]  # a value, and half the width of its own 95 % interval


def _measured(metric: Metric, record_of: RecordOf) -> list[Uncertain] | None:
    """One value per seed with its half width; None if a record or its value is missing."""
    records = [record for stage in metric.stages if (record := record_of(stage)) is not None]
    values = [(value.value, _half(value)) for record in records if (value := record.values.get(metric.key)) is not None]
    if len(values) < len(metric.stages):
        return None
    if metric.minus is None:
        return values
    others = _measured(metric.minus, record_of)
    return None if others is None else [_less(a, b) for a, b in zip(values, others, strict=True)]


def _without_interval(metric: Metric, record_of: RecordOf) -> tuple[str, Stage] | None:
    """Key and stage of the first value without an interval; None if all have one."""
    for stage in metric.stages:
        record = record_of(stage)
        if record is not None and math.isinf(_half(record.values[metric.key])):
            return metric.key, stage
    return _without_interval(metric.minus, record_of) if metric.minus else None


def _half(value: Value) -> float:
    """Half the width of a value's interval; infinite without an interval."""
    return math.inf if value.low is None or value.high is None else (value.high - value.low) / 2


def _less(a: Uncertain, b: Uncertain) -> Uncertain:
    """The difference of two values as if they were independent, which is conservative for values on the same images."""
    return a[0] - b[0], math.hypot(a[1], b[1])


def _interval(measured: list[Uncertain]) -> tuple[float, float, float]:
    """Mean and interval over seeds; with a single seed, the interval of the value."""
    if len(measured) == 1:
        [(value, half)] = measured
        return value, value - half, value + half
    return mean_interval([value for value, _ in measured])


def apart(one: Value, other: Value) -> bool:
    """Whether the intervals of two values are disjoint; False if a value has no interval or the units differ."""
    if one.low is None or one.high is None or other.low is None or other.high is None or one.unit != other.unit:
        return False
    return one.high < other.low or other.high < one.low


def differing_values(one: Record, other: Record) -> list[str]:
    """Sorted names of the values whose intervals in two records of one stage are disjoint."""
    return sorted(name for name in one.values.keys() & other.values.keys() if apart(one.values[name], other.values[name]))
