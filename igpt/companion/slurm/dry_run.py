"""The dry run: which arrays, in which order, where, and what they are expected to take. Pure; nothing is submitted."""

from __future__ import annotations

import heapq
import math
import shlex
from dataclasses import dataclass

from tabulate import tabulate

from igpt.companion.experiments.costs import stage_hours
from igpt.companion.experiments.protocols import protocol, stage_demand
from igpt.companion.slurm.batches import Batch
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.slurm.scheduler import Queued
from igpt.companion.stage import Stage
from igpt.text import counted
from igpt.train.cost import CARD, UTILISATION

LISTED = 40  # stages by name


@dataclass(frozen=True)
class Expected:
    """What a stage should take once it runs, on the card of `igpt.train.cost`.

    hours : of wall time; None where the costs do not say: without a card, or for a notebook that has no price
    jobs : in a row, each as long as its time limit allows; never fewer than one
    """

    gpu_hours: float
    cards: int
    hours: float | None
    jobs: int

    @property
    def text(self) -> str:
        """In a few words."""
        if self.hours is None:
            return "time unknown"
        row = f", {self.jobs} jobs in a row" if self.jobs > 1 else ""
        return (
            f"{_hours(self.gpu_hours)} {CARD}-hours on {self.cards} card{'s' * (self.cards > 1)}, {_hours(self.hours)} hours{row}"
        )


def expect(stage: Stage, resources: Resources, profile: Profile) -> Expected:
    """What a stage, all of whose parameters are named, should take with what it asks for."""
    cost = stage_hours(stage)
    cards = resources.gpus * resources.nodes if protocol(stage.notebook).spreads else min(resources.gpus, 1)
    if not cost or not cards:
        return Expected(cost, cards, None, 1)
    usable = (60 * resources.minutes - profile.signal_seconds) / 3600
    return Expected(cost, cards, cost / cards, math.ceil(cost / cards / usable))


def describe(profile: Profile, batches: list[Batch], active: dict[Stage, Queued], fresh: int) -> str:
    """The arrays in their order, each stage's expected time, and that of the whole.

    active : the jobs of stages that are queued or running; fresh : stages that are finished
    """
    numbers = {planned.stage: place for place, batch in enumerate(batches, 1) for planned in batch.stages}
    expected = {p.stage: expect(p.in_full, batch.resources, profile) for batch in batches for p in batch.stages}
    rows = []
    for place, batch in enumerate(batches, 1):
        wanted = batch.resources
        after = sorted({numbers[stage] for stage in batch.parents if stage in numbers})
        queued = ["the queue"] if any(stage in active for stage in batch.parents) else []
        kind = f"{wanted.gpu_type} " if wanted.gpu_type and wanted.gpus else ""
        memory = f", {wanted.memory_gib:g} GiB" if wanted.memory_gib else ""
        rows.append(
            (
                place,
                len(batch.stages),
                ", ".join(dict.fromkeys(planned.stage.notebook for planned in batch.stages)),
                ", ".join([*map(str, after), *queued]) or "-",
                f"{wanted.nodes} x ({wanted.cpus} CPUs, {wanted.gpus} {kind}GPUs{memory})",
                _place(wanted),
                wanted.minutes,
                f"{sum(expected[p.stage].gpu_hours for p in batch.stages):,.1f}",
                f"{sum(disk_gib(p.in_full) for p in batch.stages):,.2f}",
            )
        )
    heads = ("Array", "Jobs", "Notebooks", "After", "Asks for", "Where", "Minutes", f"{CARD}-hours", "Disk GiB")
    lines = [tabulate(rows, heads, disable_numparse=True), ""] if rows else []
    lines += [f"  {numbers[stage]}: {stage.name}: {each.text}" for stage, each in expected.items()][:LISTED]
    lines += [f"  and {len(expected) - LISTED} more"] if len(expected) > LISTED else []
    lines += [_whole(profile, batches, expected)] if rows else []
    hours = sum(each.gpu_hours for each in expected.values())
    disk = sum(disk_gib(p.in_full) for batch in batches for p in batch.stages)
    said = (
        f"{counted(len(expected), 'job')} in {counted(len(rows), 'array')}, {hours:,.1f} GPU-hours of an {CARD},"
        f" {disk:,.2f} GiB of disk; {counted(len(active), 'stage')} queued or running, {fresh} finished; nothing was submitted"
    )
    return "\n".join([*lines, said])


def _place(wanted: Resources) -> str:
    """Where an array's jobs are to run, as sbatch is told."""
    named = {name: getattr(wanted, name) for name in ("partition", "account", "qos", "constraint")}
    given = {**{name: value for name, value in named.items() if value}, **wanted.options}
    return (
        " ".join(f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}" for name, value in given.items()) or "-"
    )


def _whole(profile: Profile, batches: list[Batch], expected: dict[Stage, Expected]) -> str:
    """How long it should take from the first job's start to the last one's end, and the stages that decide it."""
    ends: dict[Stage, float] = {}
    before: dict[Stage, Stage | None] = {}
    for batch in batches:
        last = max((stage for stage in batch.parents if stage in ends), key=ends.__getitem__, default=None)
        free = [ends[last] if last else 0.0] * min(profile.at_once, len(batch.stages))  # when each of the slots is
        for planned in batch.stages:
            ends[planned.stage] = heapq.heappop(free) + (expected[planned.stage].hours or 0.0)
            before[planned.stage] = last
            heapq.heappush(free, ends[planned.stage])
    chain = [max(ends, key=ends.__getitem__)]
    while (stage := before[chain[-1]]) is not None:
        chain.append(stage)
    unknown = sum(each.hours is None for each in expected.values())
    if unknown == len(expected):
        return "expected wall time: unknown"
    row = sum(expected[stage].jobs for stage in chain)
    beside = f", beside {counted(unknown, 'stage')} whose time is unknown" if unknown else ""
    return (
        f"expected wall time: {_hours(max(ends.values()))} hours and what the queue takes{beside};"
        f" {counted(row, 'job in a row decides', 'jobs in a row decide')} it:"
        f" {', then '.join(stage.name for stage in reversed(chain))} (at {UTILISATION:.0%} of an {CARD}'s peak; another card"
        " takes another time)"
    )


def _hours(hours: float) -> str:
    """Hours to a tenth, and never none."""
    return f"{hours:,.1f}" if hours >= 0.05 else "under 0.1"


def disk_gib(stage: Stage) -> float:
    """What a stage, all of whose parameters are named, takes of the disk in its folder."""
    demand = stage_demand(stage)
    return (demand.kept + demand.scratch) / 2**30
