"""Claims declared before a run: the metric to measure, and the criterion that judges it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from igpt.companion.stage import Stage

M = TypeVar("M")


@dataclass(frozen=True)
class Metric:
    """One value from the record of each seed, minus another metric seed by seed if ``minus`` is set."""

    stages: tuple[Stage, ...]  # one per seed
    key: str  # in `Record.values`
    minus: Metric | None = None

    def all_stages(self) -> tuple[Stage, ...]:
        """All stages whose records the metric reads."""
        return self.stages + (self.minus.all_stages() if self.minus else ())


@dataclass(frozen=True)
class Criterion(Generic[M]):
    """When a claim counts as reproduced, declared before the run. ``M`` is `Metric` in a `Measurement`.

    matches : the mean lies within ``margin`` of the published value
    above, below : the 95 % interval over seeds of the metric minus ``against`` lies above or below zero;
    with a single seed the interval in its record decides, which notebooks write for every such value
    inside : every seed's value lies strictly between 0 and 1
    shown : no claim in this tier; the value is only shown
    """

    kind: Literal["matches", "above", "below", "inside", "shown"]
    claim: str
    against: M | None = None
    margin: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """How one tier measures one published number."""

    tier: str
    metric: Metric
    criterion: Criterion[Metric]

    def stages(self) -> tuple[Stage, ...]:
        """All stages that the value and its verdict need, without duplicates."""
        against = self.criterion.against.all_stages() if self.criterion.against else ()
        return tuple(dict.fromkeys(self.metric.all_stages() + against))
