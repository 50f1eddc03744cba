"""From stages to job arrays: which go together, and which wait for which. Pure; nothing is submitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from igpt.companion.results.plan import PlannedStage
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.stage import Stage

T = TypeVar("T")
SEPARATE = 32  # arrays of one depth and shape that may wait for different parents; more are merged
ONE_BY_ONE = 8  # jobs of one array that another waits for by their own numbers; for more it waits for the whole array


@dataclass(frozen=True)
class Batch:
    """The stages of one array, which ask for the same, and the stages of earlier arrays that they wait for."""

    stages: tuple[PlannedStage, ...]
    resources: Resources
    parents: frozenset[Stage]


def make_batches(todo: Sequence[PlannedStage], profile: Profile, waiting: Iterable[Stage] = ()) -> list[Batch]:
    """Arrays for ``todo``, parents before children, none larger than the profile allows.

    waiting : stages that are queued or running already, to be waited for and not submitted

    A stage waits for its own parents and no others, as long as that takes few arrays.
    """
    coming = {planned.stage for planned in todo} | set(waiting)
    depth: dict[Stage, int] = {}
    alike: dict[tuple[int, Resources], dict[frozenset[Stage], list[PlannedStage]]] = {}
    for planned in todo:  # parents come first in a plan
        parents = frozenset(planned.parents) & coming
        depth[planned.stage] = 1 + max((depth.get(parent, 0) for parent in parents), default=0)
        key = (depth[planned.stage], profile.resources(planned.stage))
        alike.setdefault(key, {}).setdefault(parents, []).append(planned)
    batches = []
    for (_, resources), by_parents in sorted(alike.items(), key=lambda item: item[0][0]):
        for groups in _chunks(list(by_parents.items()), -(-len(by_parents) // SEPARATE)):
            parents = frozenset[Stage]().union(*(parents for parents, _ in groups))
            stages = [planned for _, members in groups for planned in members]
            batches += [Batch(tuple(some), resources, parents) for some in _chunks(stages, profile.array_size)]
    return batches


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def dependency(jobs: Iterable[str]) -> str | None:
    """The value of sbatch's dependency. It is ``afterany``, since each job checks its parents' records itself."""
    by_array: dict[str, list[str]] = {}
    for job in sorted(set(jobs)):
        by_array.setdefault(job.partition("_")[0], []).append(job)
    named = [name for array, own in by_array.items() for name in (own if len(own) <= ONE_BY_ONE else [array])]
    return f"afterany:{':'.join(named)}" if named else None
