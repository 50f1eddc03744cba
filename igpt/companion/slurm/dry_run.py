"""The dry run: which arrays, in which order, where, and what they should take. Pure; nothing is submitted."""

from __future__ import annotations

import heapq
import math
import shlex
from dataclasses import dataclass

from tabulate import tabulate

from igpt.companion.experiments.costs import stage_hours
from igpt.companion.experiments.machines import CARD, UTILISATION
from igpt.companion.experiments.protocols import protocol, stage_demand
from igpt.companion.slurm.batches import Batch
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.slurm.scheduler import Queued
from igpt.companion.stage import Stage
from igpt.text import counted

LISTED = 40  # stages by name


@dataclass(frozen=True)
class Expected:
    """What a stage should take once it runs, on the card of `igpt.companion.experiments.machines`.

    hours : of wall time; None where the costs do not say: without a card, or for a notebook that has no price
    jobs : in a row, each as long as its time limit allows; at least one
    """

    gpu_hours: float
    disk_gib: float
    cards: int
    hours: float | None
    jobs: int

    @property
    def text(self) -> str:
        """In a few words."""
        if self.hours is None:
            return "time unknown"
        row = f", {self.jobs} jobs in a row" if self.jobs > 1 else ""
        return f"{_hours(self.gpu_hours)} {CARD}-hours on {counted(self.cards, 'card')}, {_hours(self.hours)} hours{row}"


def expect(stage: Stage, resources: Resources, profile: Profile) -> Expected:
    """What a stage, all of whose parameters are named, should take with what it asks for."""
    demand = stage_demand(stage)
    disk = (demand.kept + demand.scratch) / 2**30
    gpu_hours = stage_hours(stage)
    cards = resources.gpus * resources.nodes if protocol(stage.notebook).spreads else min(resources.gpus, 1)
    if not gpu_hours or not cards:
        return Expected(gpu_hours, disk, cards, None, 1)
    usable = (60 * resources.minutes - profile.signal_seconds) / 3600
    return Expected(gpu_hours, disk, cards, gpu_hours / cards, math.ceil(gpu_hours / cards / usable))


def describe(profile: Profile, batches: list[Batch], active: dict[Stage, Queued], fresh: int) -> str:
    """The arrays in their order, each stage's expected time, and that of the whole.

    active : the jobs of stages that are queued or running; fresh : stages that are finished
    """
    numbers = {planned.stage: number for number, batch in enumerate(batches, 1) for planned in batch.stages}
    expected = {p.stage: expect(p.in_full, batch.resources, profile) for batch in batches for p in batch.stages}
    rows = []
    for number, batch in enumerate(batches, 1):
        asked, mine = batch.resources, [expected[planned.stage] for planned in batch.stages]
        after = [str(n) for n in sorted({numbers[stage] for stage in batch.parents if stage in numbers})]
        after += ["the queue"] if any(stage in active for stage in batch.parents) else []
        kind = f"{asked.gpu_type} " if asked.gpu_type and asked.gpus else ""
        memory = f", {asked.memory_gib:g} GiB" if asked.memory_gib else ""
        rows.append(
            {
                "Array": number,
                "Jobs": len(batch.stages),
                "Notebooks": ", ".join(dict.fromkeys(planned.stage.notebook for planned in batch.stages)),
                "After": ", ".join(after) or "-",
                "Asks for": f"{asked.nodes} x ({asked.cpus} CPUs, {asked.gpus} {kind}GPUs{memory})",
                "Where": _options(asked),
                "Minutes": asked.minutes,
                f"{CARD}-hours": f"{sum(each.gpu_hours for each in mine):,.1f}",
                "Disk GiB": f"{sum(each.disk_gib for each in mine):,.2f}",
            }
        )
    lines = [tabulate(rows, "keys", disable_numparse=True), ""] if rows else []
    lines += [f"  {numbers[stage]}: {stage.name}: {each.text}" for stage, each in expected.items()][:LISTED]
    lines += [f"  and {len(expected) - LISTED} more"] if len(expected) > LISTED else []
    lines += [_whole(profile, batches, expected)] if rows else []
    lines.append(
        f"{counted(len(expected), 'job')} in {counted(len(rows), 'array')},"
        f" {sum(each.gpu_hours for each in expected.values()):,.1f} GPU-hours of an {CARD},"
        f" {sum(each.disk_gib for each in expected.values()):,.2f} GiB of disk;"
        f" {counted(len(active), 'stage')} queued or running, {fresh} finished; nothing was submitted"
    )
    return "\n".join(lines)


def _options(asked: Resources) -> str:
    """The options of sbatch that say where an array's jobs run."""
    named = {name: getattr(asked, name) for name in ("partition", "account", "qos", "constraint")}
    options = {**{name: value for name, value in named.items() if value}, **asked.options}
    words = [f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}" for name, value in options.items()]
    return " ".join(words) or "-"


def _whole(profile: Profile, batches: list[Batch], expected: dict[Stage, Expected]) -> str:
    """The time from the first job's start to the last one's end, and the stages that decide it."""
    if all(each.hours is None for each in expected.values()):
        return "expected wall time: unknown"
    ends: dict[Stage, float] = {}
    before: dict[Stage, Stage | None] = {}
    for batch in batches:
        last = max((stage for stage in batch.parents if stage in ends), key=ends.__getitem__, default=None)
        slots = [ends[last] if last else 0.0] * min(profile.at_once, len(batch.stages))  # when each is free
        for planned in batch.stages:
            ends[planned.stage] = heapq.heappop(slots) + (expected[planned.stage].hours or 0.0)
            before[planned.stage] = last
            heapq.heappush(slots, ends[planned.stage])
    chain = [max(ends, key=ends.__getitem__)]
    while (stage := before[chain[-1]]) is not None:
        chain.append(stage)
    unknown = sum(each.hours is None for each in expected.values())
    row = sum(expected[stage].jobs for stage in chain)
    beside = f", beside {counted(unknown, 'stage')} whose time is unknown" if unknown else ""
    return (
        f"expected wall time: {_hours(max(ends.values()))} hours and what the queue takes{beside};"
        f" {counted(row, 'job in a row decides', 'jobs in a row decide')} it:"
        f" {', then '.join(stage.name for stage in reversed(chain))} (at {UTILISATION:.0%} of an {CARD}'s peak; another card"
        " takes another time)"
    )


def _hours(hours: float) -> str:
    """Hours to a tenth, and never 0.0."""
    return f"{hours:,.1f}" if hours >= 0.05 else "under 0.1"
