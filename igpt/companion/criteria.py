"""What is claimed before a run: a metric to measure, and the criterion that judges it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from igpt.companion.stage import Stage

M = TypeVar("M")


@dataclass(frozen=True)
class Metric:
    """A value of each seed's record; ``minus`` another metric, seed by seed, when there is one."""

    stages: tuple[Stage, ...]  # one per seed
    key: str  # among the record's values
    minus: Metric | None = None

    def all_stages(self) -> tuple[Stage, ...]:
        """The stages whose records decide it."""
        return self.stages + (self.minus.all_stages() if self.minus else ())


@dataclass(frozen=True)
class Criterion(Generic[M]):
    """When a claim counts as reproduced; written before the run, in words and as data. ``M`` is `Metric` in a measurement.

    matches : the mean lies within ``margin`` of the published value
    above, below : the 95 % interval over seeds of the metric minus ``against`` lies on that side of zero; notebooks
    give every value of such a criterion an interval of its own, which decides where there is one seed
    inside : every seed's value lies strictly between 0 and 1
    shown : nothing is claimed in this tier; the value is shown
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
        """Every stage the value and its verdict need, once each."""
        against = self.criterion.against.all_stages() if self.criterion.against else ()
        return tuple(dict.fromkeys(self.metric.all_stages() + against))
