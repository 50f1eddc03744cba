"""What the stages of a run should take on this machine: which of them it can hold, which come first, how long the whole is.

Pure: nothing is measured, fetched or run here.
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
    """The stages to carry out, what each costs on a card, and which are left.

    stages : parents first; left : why, of those that were wanted and cannot be carried out
    wanted : those that were asked for; the others are what these stand on
    """

    card: Card
    stages: tuple[PlannedStage, ...]
    costs: dict[Stage, Cost]
    wanted: frozenset[Stage]
    left: dict[Stage, str]

    @property
    def total(self) -> Cost:
        """What all stages cost together."""
        return sum((self.costs[planned.stage] for planned in self.stages), Cost())

    def seconds(self, planned: PlannedStage) -> float:
        """What a stage should take."""
        return 3600 * self.costs[planned.stage].hours

    def rank(self) -> dict[Stage, float]:
        """The least comes first: hours of a wanted stage with its dependencies, or of the cheapest that needs it."""
        found: dict[Stage, float] = {}
        for planned in reversed(self.stages):  # dependents before their parents
            dependents = [found[other.stage] for other in self.stages if planned.stage in other.parents and other.stage in found]
            own = [self._chain(planned).hours] if planned.stage in self.wanted else []
            found[planned.stage] = min(own + dependents)
        return found

    def without(self, stages: Iterable[Stage], why: str) -> Budget:
        """The same without some stages, and without their dependents and what was for them only."""
        return _settled(replace(self, left={**self.left, **dict.fromkeys(stages, why)}))

    def reading(self, dataset: str) -> list[Stage]:
        """The stages that read a data set."""
        return [p.stage for p in self.stages if dataset in protocol(p.stage.notebook).prior_datasets(p.in_full.parameters)]

    def datasets(self) -> list[str]:
        """The data sets that the stages read, those of the cheapest stages first."""
        rank = self.rank()
        by_rank = sorted(self.stages, key=lambda planned: rank[planned.stage])
        names = [name for p in by_rank for name in protocol(p.stage.notebook).prior_datasets(p.in_full.parameters)]
        return list(dict.fromkeys(names))

    def says(self, memory: float, disks: Disks) -> str:
        """What the run is expected to take, in one line; ``memory`` bytes are free."""
        whole = self.total
        hours = f"{whole.hours:,.1f} hours" if whole.hours >= 0.1 else f"{60 * whole.hours:.1f} minutes"
        fetched = f"{whole.to_fetch / 1e9:,.1f} GB to download" if whole.to_fetch else "nothing to download"
        disk = ", ".join(
            f"{size / 1e9:,.1f} GB of the disk of {folder}, of which {free / 1e9:,.1f} are free"
            for folder, size, free in disks.taken(whole)
        )
        return (
            f"{counted(len(self.stages), 'stage')}, about {hours} one after the other ({self.card.source});"
            f" {'' if whole.exact else 'at least '}{fetched}; at most {disk},"
            f" and {whole.memory / GIB:,.1f} GiB of memory, of which {memory / GIB:,.1f} are"
        )

    def spare(self, disks: Disks) -> float:
        """Bytes on the disk of the stages' folders for what passes there, of as many stages at once as that holds.

        Free beside all that stays; at least what one stage takes.
        """
        whole = self.total
        [(_, size, free), *_] = disks.taken(whole)
        return max(free - (size - whole.scratch), math.ceil(whole.scratch))

    def _chain(self, planned: PlannedStage) -> Cost:
        """What a stage costs with all its dependencies that are to be carried out too."""
        needed = {planned.stage}
        for other in reversed(self.stages):
            if other.stage in needed:
                needed |= {*other.parents} & self.costs.keys()
        return sum((self.costs[stage] for stage in needed), Cost())


def is_released(stages: Iterable[Stage]) -> bool:
    """Whether stages evaluate weights that exist, all of them: these are run by a budget."""
    return all(tier_of(stage) == "released" or stage.parameters.get("weights", "trained") != "trained" for stage in stages)


def make_budget(todo: Iterable[PlannedStage], wanted: Iterable[Stage], card: Card, *, memory: float, disks: Disks) -> Budget:
    """The budget of the stages of ``todo``, parents first, that a machine can hold.

    wanted : those that were asked for, of ``todo`` or not
    memory : bytes that are free
    """
    stages = tuple(todo)
    costs = {planned.stage: _cost(planned.in_full, card) for planned in stages}
    left = {stage: why for stage, cost in costs.items() if (why := lacking(cost, card, memory, disks))}
    budget = _settled(Budget(card, stages, costs, frozenset(wanted) & costs.keys(), left))
    # Each by itself has room; with its dependencies it may have none.
    full = {p.stage: why for p in budget.stages if (why := lacking(budget._chain(p), card, memory, disks))}
    return _settled(replace(budget, left={**budget.left, **full}))


def _cost(stage: Stage, card: Card) -> Cost:
    """What a stage costs; nothing is known of a notebook of one's own."""
    try:
        return stage_cost(stage, card)
    except KeyError:
        return Cost()


def _settled(budget: Budget) -> Budget:
    """The same less what is left, its dependents, and what nothing that remains depends on."""
    left = dict(budget.left)
    for planned in budget.stages:  # parents come first
        lost = next((parent for parent in planned.parents if parent in left), None)
        if lost is not None and planned.stage not in left:
            left[planned.stage] = f"{lost.name} is skipped"
    needed: set[Stage] = set()
    for planned in reversed(budget.stages):
        if planned.stage not in left and (planned.stage in budget.wanted or planned.stage in needed):
            needed |= {planned.stage, *planned.parents}
    stages = tuple(planned for planned in budget.stages if planned.stage in needed)
    return replace(budget, stages=stages, left=left)
