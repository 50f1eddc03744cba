"""Group stages into job arrays with dependencies. Pure functions; nothing is submitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from igpt.companion.results.plan import PlannedStage
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.stage import Stage

T = TypeVar("T")
SEPARATE = 32  # arrays of equal depth and resources with different parents; more are merged
ONE_BY_ONE = 8  # jobs of one array that a dependency names one by one; with more it names the whole array


@dataclass(frozen=True)
class Batch:
    """The stages of one array, which share their resources, and the stages of earlier arrays that they wait for."""

    stages: tuple[PlannedStage, ...]
    resources: Resources
    parents: frozenset[Stage]


def make_batches(todo: Sequence[PlannedStage], profile: Profile, waiting: Iterable[Stage] = ()) -> list[Batch]:
    """Arrays for ``todo``, parents before children, at most as large as the profile allows.

    waiting : stages that are already queued or running, which are waited for and not submitted

    A stage waits for its own parents only, unless that would take more than `SEPARATE` arrays.
    """
    unfinished = {planned.stage for planned in todo} | set(waiting)
    depth: dict[Stage, int] = {}
    groups_by_key: dict[tuple[int, Resources], dict[frozenset[Stage], list[PlannedStage]]] = {}
    for planned in todo:  # parents first
        parents = frozenset(planned.parents) & unfinished
        depth[planned.stage] = 1 + max((depth.get(parent, 0) for parent in parents), default=0)
        key = (depth[planned.stage], profile.resources(planned.stage))
        groups_by_key.setdefault(key, {}).setdefault(parents, []).append(planned)
    batches = []
    for (_, resources), by_parents in sorted(groups_by_key.items(), key=lambda item: item[0][0]):
        for groups in _chunks(list(by_parents.items()), -(-len(by_parents) // SEPARATE)):
            parents = frozenset[Stage]().union(*(parents for parents, _ in groups))
            stages = [planned for _, members in groups for planned in members]
            batches += [Batch(tuple(chunk), resources, parents) for chunk in _chunks(stages, profile.array_size)]
    return batches


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def dependency(jobs: Iterable[str]) -> str | None:
    """The value of sbatch's ``--dependency``; None without jobs. ``afterany``: each job checks its parents' records."""
    by_array: dict[str, list[str]] = {}
    for job in sorted(set(jobs)):
        by_array.setdefault(job.partition("_")[0], []).append(job)
    names = [name for array, ids in by_array.items() for name in (ids if len(ids) <= ONE_BY_ONE else [array])]
    return f"afterany:{':'.join(names)}" if names else None
