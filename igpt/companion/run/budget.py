"""The budget of a run on existing weights: the stages that fit this machine, their order, and their costs.

This module measures, downloads and runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from igpt.companion.experiments.costs import Cost, Disks, lacking, stage_cost
from igpt.companion.experiments.machines import GIB, Card
from igpt.companion.experiments.protocols import protocol
from igpt.companion.experiments.tiers import tier_of
from igpt.companion.results.plan import PlannedStage
from igpt.companion.stage import Stage
from igpt.text import counted


@dataclass(frozen=True)
class Budget:
    """The stages to run with their costs on a card, and the skipped stages.

    stages : parents first
    wanted : the requested stages; the others are their dependencies
    skipped : the stages that cannot be run, with the reasons
    """

    card: Card
    stages: tuple[PlannedStage, ...]
    costs: dict[Stage, Cost]
    wanted: frozenset[Stage]
    skipped: dict[Stage, str]

    @property
    def total(self) -> Cost:
        """The cost of all stages together."""
        return sum((self.costs[planned.stage] for planned in self.stages), Cost())

    def seconds(self, planned: PlannedStage) -> float:
        """The expected seconds of a stage."""
        return 3600 * self.costs[planned.stage].hours

    def rank(self) -> dict[Stage, float]:
        """For each stage the hours of the cheapest wanted stage that needs it, with dependencies; the lowest rank runs first."""
        ranks: dict[Stage, float] = {}
        for planned in reversed(self.stages):  # dependent stages before their parents
            own = [self.chain(planned).hours] if planned.stage in self.wanted else []
            ranks[planned.stage] = min(own + [ranks[p.stage] for p in self.stages if planned.stage in p.parents])
        return ranks

    def chain(self, planned: PlannedStage) -> Cost:
        """The cost of a stage together with its dependencies in the budget."""
        needed = {planned.stage}
        for other in reversed(self.stages):
            if other.stage in needed:
                needed |= {*other.parents} & self.costs.keys()
        return sum((self.costs[stage] for stage in needed), Cost())

    def without(self, stages: Iterable[Stage], why: str) -> Budget:
        """The budget without ``stages``, their dependents, and dependencies that no other stage needs."""
        return _settled(replace(self, skipped={**self.skipped, **dict.fromkeys(stages, why)}))

    def datasets(self) -> dict[str, list[Stage]]:
        """The required data sets with the stages that read them, those of the cheapest stages first."""
        rank, readers = self.rank(), dict[str, list[Stage]]()
        for planned in sorted(self.stages, key=lambda planned: rank[planned.stage]):
            for name in protocol(planned.stage.notebook).prior_datasets(planned.in_full.parameters):
                readers.setdefault(name, []).append(planned.stage)
        return readers

    def summary(self, memory: float, disks: Disks) -> str:
        """The expected cost of the run in one line; ``memory`` is the free memory in bytes."""
        total = self.total
        hours = f"{total.hours:,.1f} hours" if total.hours >= 0.1 else f"{60 * total.hours:.1f} minutes"
        download = f"{total.to_fetch / 1e9:,.1f} GB to download" if total.to_fetch else "nothing to download"
        disk = ", ".join(
            f"{size / 1e9:,.1f} GB of the disk of {folder}, of which {free / 1e9:,.1f} are free"
            for folder, size, free in disks.taken(total)
        )
        return (
            f"{counted(len(self.stages), 'stage')}, about {hours} one after the other ({self.card.source});"
            f" {'' if total.exact else 'at least '}{download}; at most {disk},"
            f" and {total.memory / GIB:,.1f} GiB of memory, of which {memory / GIB:,.1f} are"
        )

    def scratch_space(self, disks: Disks) -> float:
        """Bytes for temporary files on the disk of ``runs/``, beside all files that are kept; at least what one stage needs."""
        total = self.total
        [(_, size, free), *_] = disks.taken(total)
        return max(free - (size - total.scratch), math.ceil(total.scratch))


def on_existing_weights(stages: Iterable[Stage]) -> bool:
    """Whether all stages evaluate weights that exist, released ones or a user's own; such runs have a budget."""
    return all(tier_of(stage) == "released" or stage.parameters.get("weights", "trained") != "trained" for stage in stages)


def make_budget(todo: Iterable[PlannedStage], wanted: Iterable[Stage], card: Card, *, memory: float, disks: Disks) -> Budget:
    """The budget of the stages in ``todo`` (parents first) that fit a machine.

    wanted : the requested stages, in ``todo`` or not
    memory : free memory in bytes
    """
    stages = tuple(todo)
    costs = {planned.stage: known_cost(planned.in_full, card) for planned in stages}
    skipped = {stage: why for stage, cost in costs.items() if (why := lacking(cost, card, memory, disks))}
    budget = _settled(Budget(card, stages, costs, frozenset(wanted) & costs.keys(), skipped))
    # A stage that fits alone may not fit together with its dependencies.
    more = {p.stage: why for p in budget.stages if (why := lacking(budget.chain(p), card, memory, disks))}
    return _settled(replace(budget, skipped={**budget.skipped, **more}))


def known_cost(stage: Stage, card: Card) -> Cost:
    """The cost of a stage on a card; zero if unknown, for example for a user's notebook."""
    try:
        return stage_cost(stage, card)
    except KeyError:
        return Cost()


def _settled(budget: Budget) -> Budget:
    """The budget without skipped stages, their dependents, and dependencies that no other stage needs."""
    skipped = dict(budget.skipped)
    for planned in budget.stages:  # parents come first
        skipped_parent = next((parent for parent in planned.parents if parent in skipped), None)
        if skipped_parent is not None and planned.stage not in skipped:
            skipped[planned.stage] = f"{skipped_parent.name} is skipped"
    needed = set(budget.wanted)
    for planned in reversed(budget.stages):
        if planned.stage in needed and planned.stage not in skipped:
            needed |= {*planned.parents}
    stages = tuple(planned for planned in budget.stages if planned.stage in needed and planned.stage not in skipped)
    return replace(budget, stages=stages, skipped=skipped)
