"""From stages to job arrays: which go together, and which wait for which. Pure; nothing is submitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from igpt.companion.results.plan import PlannedStage
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.stage import Stage

SEPARATE = 32  # arrays of one depth and shape that may wait for different parents, before such are put together
ONE_BY_ONE = 8  # jobs of one array that another waits for by their own numbers; more, and it waits for all of it


@dataclass(frozen=True)
class Batch:
    """The stages of one array, alike in what they ask for, and the stages of earlier ones that they wait for."""

    stages: tuple[PlannedStage, ...]
    resources: Resources
    parents: frozenset[Stage]


def make_batches(todo: Sequence[PlannedStage], profile: Profile, waiting: Iterable[Stage] = ()) -> list[Batch]:
    """Arrays for ``todo``, parents before children, none larger than the profile allows.

    waiting : stages that are queued or running already, to be waited for and not submitted

    A stage waits for its own parents and no other's, as long as that takes few arrays.
    """
    coming = {planned.stage for planned in todo} | set(waiting)
    depth: dict[Stage, int] = {}
    groups: dict[tuple[int, Resources, frozenset[Stage]], list[PlannedStage]] = {}
    for planned in todo:  # parents come first in a plan
        parents = frozenset(planned.parents) & coming
        depth[planned.stage] = 1 + max((depth.get(parent, 0) for parent in parents), default=0)
        groups.setdefault((depth[planned.stage], profile.resources(planned.stage), parents), []).append(planned)
    alike: dict[tuple[int, Resources], list[tuple[frozenset[Stage], list[PlannedStage]]]] = {}
    for (level, resources, parents), members in groups.items():
        alike.setdefault((level, resources), []).append((parents, members))
    batches = []
    for (_, resources), found in sorted(alike.items(), key=lambda item: item[0][0]):
        together = -(-len(found) // SEPARATE)
        for start in range(0, len(found), together):
            part = found[start : start + together]
            stages = [planned for _, members in part for planned in members]
            parents = frozenset[Stage]().union(*(needed for needed, _ in part))
            for place in range(0, len(stages), profile.array_size):
                batches.append(Batch(tuple(stages[place : place + profile.array_size]), resources, parents))
    return batches


def dependency(jobs: Iterable[str]) -> str | None:
    """What sbatch is to wait for; ``afterany``, since each job looks itself whether its parents' records stand."""
    by_array: dict[str, list[str]] = {}
    for job in sorted(set(jobs)):
        by_array.setdefault(job.partition("_")[0], []).append(job)
    named = [name for array, own in by_array.items() for name in (own if len(own) <= ONE_BY_ONE else [array])]
    return f"afterany:{':'.join(named)}" if named else None
