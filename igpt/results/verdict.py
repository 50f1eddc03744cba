"""Verdicts: the rule of an experiment applied to its records. Computed, never stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from igpt.claim import Quantity, Rule
from igpt.measure import mean_interval
from igpt.results.record import Record
from igpt.stage import Stage

Word = Literal["reproduced", "differs", "undecided", "shown", "pending"]
RecordOf = Callable[[Stage], Record | None]


@dataclass(frozen=True)
class Outcome:
    """A quantity over its seeds: values, mean, 95 % interval over seeds; nothing when a record is missing."""

    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Verdict:
    """One word, and the sentence that says why."""

    word: Word
    sentence: str


def outcome(quantity: Quantity, record_of: RecordOf) -> Outcome | None:
    """A quantity's values, seed by seed; None when any record it needs is missing."""
    values = _values(quantity, record_of)
    if values is None:
        return None
    records = tuple(record for record in map(record_of, quantity.all_stages()) if record is not None)
    return Outcome(tuple(values), *mean_interval(values), records)


def judge(quantity: Quantity, rule: Rule, record_of: RecordOf, *, published: float) -> Verdict:
    """The verdict of a rule; pending until every record it needs stands.

    A claim of a side (above, below) is reproduced when the interval over seeds lies on it, differs when it
    lies on the other, and is undecided when it holds zero.
    """
    found = outcome(quantity, record_of)
    if found is None:
        return Verdict("pending", "not run")
    if rule.kind == "shown":
        return Verdict("shown", rule.claim)
    if rule.kind == "matches":
        word: Word = "reproduced" if abs(found.mean - published) <= rule.margin else "differs"
        return Verdict(word, f"{rule.claim}: {found.mean:.6g} against {published:.6g}")
    if rule.kind == "inside":
        inside = [0 < value < 1 for value in found.values]
        return Verdict("reproduced" if all(inside) else "differs", f"{rule.claim}: in {sum(inside)} of {len(inside)} seeds")
    against = _values(rule.against, record_of) if rule.against else [0.0] * len(found.values)
    if against is None:
        return Verdict("pending", "what it is compared with has not run")
    differences = [a - b for a, b in zip(found.values, against, strict=True)]
    mean, low, high = mean_interval(differences)
    sentence = f"{rule.claim}: difference {_span(mean, low, high)} over {len(differences)} seeds"
    if low <= 0 <= high:
        return Verdict("undecided", sentence)
    return Verdict("reproduced" if (low > 0) == (rule.kind == "above") else "differs", sentence)


def _values(quantity: Quantity, record_of: RecordOf) -> list[float] | None:
    """One value a seed, None when a record is missing or was made before the value was measured."""
    found = [record.values.get(quantity.key) for stage in quantity.stages if (record := record_of(stage)) is not None]
    values = [value.value for value in found if value is not None]
    if len(values) < len(quantity.stages):
        return None
    if quantity.minus is None:
        return values
    others = _values(quantity.minus, record_of)
    return None if others is None else [a - b for a, b in zip(values, others, strict=True)]


def _span(mean: float, low: float, high: float) -> str:
    """A difference of fractions with its interval, in points."""
    return f"{100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
