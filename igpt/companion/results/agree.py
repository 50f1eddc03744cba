"""Whether two records of one stage say the same, as far as their intervals can tell."""

from __future__ import annotations

from igpt.companion.results.record import Record, Value
from igpt.companion.results.verdict import Outcome


def apart(one: Value, other: Value) -> bool:
    """Whether the intervals of two values have nothing in common; without both intervals nothing can be said."""
    if one.low is None or one.high is None or other.low is None or other.high is None or one.unit != other.unit:
        return False
    return one.high < other.low or other.high < one.low


def differing_values(one: Record, other: Record) -> list[str]:
    """Names of the values on which two records disagree beyond their intervals, in order."""
    return sorted(name for name in one.values.keys() & other.values.keys() if apart(one.values[name], other.values[name]))


def outcomes_apart(one: Outcome, other: Outcome) -> bool:
    """Whether the intervals over seeds have nothing in common; those of one seed are without end and say nothing."""
    return one.high < other.low or other.high < one.low
