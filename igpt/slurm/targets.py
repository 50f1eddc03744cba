"""From words to jobs: what was submitted under an experiment, a table, a stage or a job's number."""

from __future__ import annotations

from igpt.errors import UsageError
from igpt.experiments import experiments
from igpt.project import Project
from igpt.results.notebooks import near_misses
from igpt.results.signature import Signer
from igpt.run.targets import find_stages
from igpt.slurm.ledger import Array, Ledger
from igpt.stage import Stage


def chosen(ledger: Ledger, targets: list[str]) -> dict[str, tuple[Array, int]]:
    """The last job of each stage by folder: all, or those that a target names (an experiment, a table, a stage, a job).

    Raises UsageError for a target under which nothing was submitted.
    """
    latest = ledger.latest()
    if not targets:
        return latest
    project = Project.here()
    signer = Signer(project.notebooks)
    found: dict[str, tuple[Array, int]] = {}
    for target in targets:
        mine = {
            folder: (array, index)
            for folder, (array, index) in latest.items()
            if target in (array.stages[index].name, array.stages[index].name.partition(",")[0], array.job, array.job_of(index))
        }
        if not mine and not target[:1].isdigit():
            stages = [s for tier in _tiers() for s in _stages_of(target, tier, project)] or find_stages([target], None, project)
            names = {signer.canonical(stage).name for stage in stages}
            mine = {folder: each for folder, each in latest.items() if each[0].stages[each[1]].name in names}
        found |= mine
    if not found and latest:
        close = near_misses(targets[0], [array.stages[index].name for array, index in latest.values()])
        raise UsageError(f"nothing was submitted under {targets[0]!r}{close}; `igpt status` lists all")
    return found


def _tiers() -> list[str]:
    """All tiers that any experiment has."""
    return sorted({run.tier for experiment in experiments() for run in experiment.runs})


def _stages_of(target: str, tier: str, project: Project) -> list[Stage]:
    """A target's stages in one tier; none when it has none there."""
    try:
        return find_stages([target], tier, project)
    except UsageError:
        return []
