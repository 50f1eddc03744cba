"""How many stages run at once on this machine: the needs of each stage, and the slots of the machine.

The needs of a stage depend on the machine and the stage alone, not on other running stages: the number of threads can change
the last digits, and a resumed run should keep its number of threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from igpt.companion.experiments.costs import Cost
from igpt.companion.experiments.protocols import protocol
from igpt.companion.experiments.tiers import tier_of
from igpt.companion.run.budget import Budget, on_existing_weights
from igpt.companion.stage import Stage

AT_ONCE = 4  # stages that share the cores of a machine without GPUs: as many models as the laptop tier trains


class Need(NamedTuple):
    """The resources that a running stage occupies; memory and disk in bytes, 0 if not counted."""

    cores: int
    gpus: int = 0
    memory: int = 0
    disk: int = 0


Needs = Callable[[Stage], Need]


@dataclass(frozen=True)
class Slots:
    """The free resources of a machine; ``gpus`` as in CUDA_VISIBLE_DEVICES, memory and disk in bytes."""

    cores: int
    gpus: tuple[str, ...] = ()
    memory: float = math.inf
    disk: float = math.inf  # for temporary files of stages

    def take(self, need: Need) -> tuple[Slots, Slots] | None:
        """Split off the slots of one stage: its part, and the rest; None if there is not enough."""
        if self.cores < need.cores or len(self.gpus) < need.gpus or self.memory < need.memory or self.disk < need.disk:
            return None
        part = Slots(need.cores, self.gpus[: need.gpus], need.memory, need.disk)
        return part, Slots(self.cores - need.cores, self.gpus[need.gpus :], self.memory - need.memory, self.disk - need.disk)

    def give_back(self, part: Slots) -> Slots:
        """The slots after a part is free again."""
        gpus = (*self.gpus, *part.gpus)
        return Slots(self.cores + part.cores, gpus, self.memory + part.memory, self.disk + part.disk)

    def fitting(self, needs: Iterable[Need]) -> int:
        """How many of the stages, taken in order, fit at once; at least one."""
        count, free = 0, self
        for need in needs:
            if (taken := free.take(need)) is None:
                break
            count, free = count + 1, taken[1]
        return max(count, 1)


def default_needs(slots: Slots, budget: Budget | None = None) -> Needs:
    """The needs of each stage on a machine with these slots; a cluster profile may set others.

    A tiny stage needs one core and no GPU: its model is not faster with more. A speed comparison needs the whole machine.
    Any other stage needs one GPU, if there are any, and an equal share of the cores, or OMP_NUM_THREADS if set. Without a GPU,
    a stage on released weights needs all cores, since memory holds one such stage at a time. Training and fine-tuning need
    IGPT_DEVICES GPUs if set, or for the paper's models the largest number that divides the recipe's batch.
    Memory and disk are counted only with a budget.
    """
    threads, devices = omp_threads(), os.environ.get("IGPT_DEVICES", "")
    share = min(threads or max(slots.cores // (len(slots.gpus) or AT_ONCE), 1), slots.cores)

    def cores_and_gpus(stage: Stage) -> tuple[int, int]:
        tier, settings = tier_of(stage), protocol(stage.notebook)
        if tier == "speed":
            return slots.cores, len(slots.gpus)
        if tier == "tiny":
            return min(threads or 1, slots.cores), 0
        if not slots.gpus and on_existing_weights([stage]):
            return slots.cores, 0
        if not (slots.gpus and settings.network):
            return share, 0
        if settings.spreads and devices.isdecimal():
            return share, min(int(devices), len(slots.gpus))
        if settings.spreads and tier in ("paper", "released"):
            [recipe] = settings.recipes(stage.parameters)
            return share, max(count for count in range(1, len(slots.gpus) + 1) if recipe.batch % count == 0)
        return share, 1

    def needs(stage: Stage) -> Need:
        cost = budget.costs[stage] if budget else Cost()
        return Need(*cores_and_gpus(stage), math.ceil(cost.memory), math.ceil(cost.scratch))

    return needs


def omp_threads() -> int | None:
    """The number of threads in OMP_NUM_THREADS, the first one of a list; None if unset or not a positive number."""
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(threads) if threads.isdecimal() and int(threads) else None
