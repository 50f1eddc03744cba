"""Plans: which stages are fresh, stale or missing, and why, compared with the records on disk.

Planning neither runs nor writes anything. The order is topological: parents before children.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Literal

from igpt.companion.results.record import Record
from igpt.companion.results.signature import Signature, Signer
from igpt.companion.stage import Stage

State = Literal["fresh", "stale", "missing"]


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan: its current signature, its parents, and its record if any."""

    stage: Stage
    signature: Signature
    parents: tuple[Stage, ...]
    record: Record | None

    @property
    def state(self) -> State:
        """``fresh`` if the record has the current signature, ``stale`` if not, ``missing`` without a record."""
        if self.record is None:
            return "missing"
        return "fresh" if self.record.signature == self.signature.digest else "stale"

    @property
    def in_full(self) -> Stage:
        """The stage with all its parameters, from its signature."""
        prefix = "parameter "
        given = {
            name.removeprefix(prefix): json.loads(value)
            for name, value in self.signature.parts.items()
            if name.startswith(prefix)
        }
        return Stage.of(self.stage.notebook, **given)

    @property
    def why(self) -> str:
        """The reason of the state in one line: the parts of the signature that changed since the record."""
        if self.record is None:
            return "no record"
        changed = [] if self.state == "fresh" else self.signature.difference(self.record.parts)
        return f"changed: {', '.join(changed)}" if changed else "nothing changed"


class Plan:
    """Planned stages in topological order."""

    def __init__(self, stages: dict[Stage, PlannedStage]) -> None:
        self._stages = stages

    def __iter__(self) -> Iterator[PlannedStage]:
        """The planned stages, parents first."""
        return iter(self._stages.values())

    def __len__(self) -> int:
        """Number of stages."""
        return len(self._stages)

    def __getitem__(self, stage: Stage) -> PlannedStage:
        """One planned stage, by its canonical stage."""
        return self._stages[stage]

    def to_run(self, finished: Callable[[PlannedStage], bool], wanted: Iterable[Stage] = ()) -> list[PlannedStage]:
        """The stages to run, parents first.

        These are all stages that are not ``finished`` (complete in their run folder) and are stale, missing, in ``wanted``, or
        parents of a stage to run.
        """
        needed: set[Stage] = set()
        wanted = set(wanted)

        def need(planned: PlannedStage) -> None:
            if planned.stage not in needed and not finished(planned):
                needed.add(planned.stage)
                for parent in planned.parents:
                    need(self[parent])

        for planned in self:
            if planned.state != "fresh" or planned.stage in wanted:
                need(planned)
        return [planned for planned in self if planned.stage in needed]


def make_plan(stages: Iterable[Stage], signer: Signer, record_of: Callable[[Stage], Record | None]) -> Plan:
    """The plan of ``stages`` and all their ancestors.

    Raises UsageError for an unknown notebook or parameter, or a record that cannot be read.
    """
    parents: dict[Stage, tuple[Stage, ...]] = {}
    queue = sorted({signer.canonical(stage) for stage in stages})
    while queue:
        stage = queue.pop()
        if stage not in parents:
            parents[stage] = tuple(signer.parents(stage).values())
            queue += parents[stage]
    order = TopologicalSorter({stage: parents[stage] for stage in sorted(parents)}).static_order()
    return Plan({stage: PlannedStage(stage, signer.sign(stage), parents[stage], record_of(stage)) for stage in order})
