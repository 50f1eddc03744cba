"""Dry runs: the arrays, their order, options and expected cost. Pure functions; nothing is submitted."""

from __future__ import annotations

import heapq
import math
import shlex
from dataclasses import dataclass

from tabulate import tabulate

from igpt.companion.experiments.machines import CARD, H100, UTILISATION
from igpt.companion.experiments.protocols import known_demand, protocol
from igpt.companion.slurm.batches import Batch
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.slurm.scheduler import Queued
from igpt.companion.stage import Stage
from igpt.text import counted

LISTED = 40  # stages listed by name; the rest are only counted


@dataclass(frozen=True)
class Expected:
    """The expected cost of a stage, on the card `igpt.companion.experiments.machines.CARD`.

    hours : wall time; None if unknown: without a card, or for a notebook without a cost model
    jobs : consecutive jobs that the stage takes under its time limit; at least one
    """

    gpu_hours: float
    disk_gib: float
    cards: int
    hours: float | None
    jobs: int

    @property
    def text(self) -> str:
        """The expected time as a phrase."""
        if self.hours is None:
            return "time unknown"
        chain = f", {self.jobs} jobs in a row" if self.jobs > 1 else ""
        return f"{_hours(self.gpu_hours)} {CARD}-hours on {counted(self.cards, 'card')}, {_hours(self.hours)} hours{chain}"


def expect(stage: Stage, resources: Resources, profile: Profile) -> Expected:
    """The expected cost of a stage with these resources. The stage must name all its parameters."""
    demand = known_demand(stage)
    disk, gpu_hours = (demand.kept + demand.scratch) / 2**30, demand.work.hours(H100.rates)
    cards = resources.gpus * resources.nodes if protocol(stage.notebook).spreads else min(resources.gpus, 1)
    if not gpu_hours or not cards:
        return Expected(gpu_hours, disk, cards, None, 1)
    usable_hours = (60 * resources.minutes - profile.signal_seconds) / 3600
    return Expected(gpu_hours, disk, cards, gpu_hours / cards, math.ceil(gpu_hours / cards / usable_hours))


def describe(profile: Profile, batches: list[Batch], active: dict[Stage, Queued], fresh: int) -> str:
    """The text of a dry run: a table of the arrays in order, each stage's expected time, and the total.

    active : queued or running stages with their jobs; fresh : number of finished stages
    """
    numbers = {planned.stage: number for number, batch in enumerate(batches, 1) for planned in batch.stages}
    expected = {p.stage: expect(p.in_full, batch.resources, profile) for batch in batches for p in batch.stages}
    rows = []
    for number, batch in enumerate(batches, 1):
        resources, costs = batch.resources, [expected[planned.stage] for planned in batch.stages]
        after = [str(n) for n in sorted({numbers[stage] for stage in batch.parents if stage in numbers})]
        after += ["the queue"] if any(stage in active for stage in batch.parents) else []
        kind = f"{resources.gpu_type} " if resources.gpu_type and resources.gpus else ""
        memory = f", {resources.memory_gib:g} GiB" if resources.memory_gib else ""
        rows.append(
            {
                "Array": number,
                "Jobs": len(batch.stages),
                "Notebooks": ", ".join(dict.fromkeys(planned.stage.notebook for planned in batch.stages)),
                "After": ", ".join(after) or "-",
                "Asks for": f"{resources.nodes} x ({resources.cpus} CPUs, {resources.gpus} {kind}GPUs{memory})",
                "Where": _options(resources),
                "Minutes": resources.minutes,
                f"{CARD}-hours": f"{sum(each.gpu_hours for each in costs):,.1f}",
                "Disk GiB": f"{sum(each.disk_gib for each in costs):,.2f}",
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
    """The sbatch options that determine where an array's jobs run, as one line."""
    settings = {name: getattr(asked, name) for name in ("partition", "account", "qos", "constraint")}
    options = {**{name: value for name, value in settings.items() if value}, **asked.options}
    words = [f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}" for name, value in options.items()]
    return " ".join(words) or "-"


def _whole(profile: Profile, batches: list[Batch], expected: dict[Stage, Expected]) -> str:
    """A sentence on the expected wall time, from the first start to the last end, and on its critical path."""
    if all(each.hours is None for each in expected.values()):
        return "expected wall time: unknown"
    ends: dict[Stage, float] = {}
    predecessor: dict[Stage, Stage | None] = {}
    for batch in batches:
        latest_parent = max((stage for stage in batch.parents if stage in ends), key=ends.__getitem__, default=None)
        slots = [ends[latest_parent] if latest_parent else 0.0] * min(profile.at_once, len(batch.stages))  # end times
        for planned in batch.stages:
            ends[planned.stage] = heapq.heappop(slots) + (expected[planned.stage].hours or 0.0)
            predecessor[planned.stage] = latest_parent
            heapq.heappush(slots, ends[planned.stage])
    critical = [max(ends, key=ends.__getitem__)]
    while (stage := predecessor[critical[-1]]) is not None:
        critical.append(stage)
    unknown = sum(each.hours is None for each in expected.values())
    jobs = sum(expected[stage].jobs for stage in critical)
    exceptions = f", beside {counted(unknown, 'stage')} whose time is unknown" if unknown else ""
    return (
        f"expected wall time: {_hours(max(ends.values()))} hours and what the queue takes{exceptions};"
        f" {counted(jobs, 'job in a row decides', 'jobs in a row decide')} it:"
        f" {', then '.join(stage.name for stage in reversed(critical))} (at {UTILISATION:.0%} of an {CARD}'s peak; another card"
        " takes another time)"
    )


def _hours(hours: float) -> str:
    """Hours with one decimal; "under 0.1" instead of 0.0."""
    return f"{hours:,.1f}" if hours >= 0.05 else "under 0.1"
