"""From words to jobs: what was submitted under an experiment, a table, a stage or a job's number."""

from __future__ import annotations

from collections.abc import Sequence

from igpt.companion.experiments.cells import experiments
from igpt.companion.results.notebooks import near_misses
from igpt.companion.results.signature import Signer
from igpt.companion.run.targets import find_stages
from igpt.companion.slurm.ledger import Array, Ledger
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project

Jobs = dict[str, tuple[Array, int]]  # the last job of each stage, by the stage's folder


def chosen(ledgers: Sequence[Ledger], targets: list[str]) -> list[tuple[Ledger, Jobs]]:
    """The last jobs of each shared folder that has some: all, or those that a target names.

    A target is an experiment, a table, a stage or a job. Raises UsageError for one under which nothing was submitted
    in any of the folders.
    """
    latest = [ledger.latest() for ledger in ledgers]
    found: list[Jobs] = [{} for _ in ledgers] if targets else latest
    for target in targets if any(latest) else []:
        names = _names(target, latest)
        mine = [{f: (array, i) for f, (array, i) in jobs.items() if names & _words(array, i)} for jobs in latest]
        if not any(mine):
            close = near_misses(target, [array.stages[index].name for jobs in latest for array, index in jobs.values()])
            raise UsageError(f"nothing was submitted under {target!r}{close}; `igpt status` lists all")
        for jobs, more in zip(found, mine, strict=True):
            jobs |= more
    return [(ledger, jobs) for ledger, jobs in zip(ledgers, found, strict=True) if jobs]


def chosen_now(ledger: Ledger, jobs: Jobs, targets: list[str]) -> Jobs:
    """What was chosen of one folder as it stands now that nobody else submits there."""
    return {folder: each for folder, each in ledger.latest().items() if folder in jobs or not targets}


def _words(array: Array, index: int) -> set[str | None]:
    """What a job goes by: its stage, its notebook, its number and its array's."""
    name = array.stages[index].name
    return {name, name.partition(",")[0], array.job, array.job_of(index)}


def _names(target: str, latest: list[Jobs]) -> set[str | None]:
    """The words that a target stands for: itself where a job goes by it, else the stages of what it names."""
    known = any(target in _words(array, index) for jobs in latest for array, index in jobs.values())
    if known or target[:1].isdigit():
        return {target}
    project = Project.here()
    signer = Signer(project.notebooks)
    stages = [s for tier in _tiers() for s in _stages_of(target, tier, project)] or find_stages([target], None, project)
    return {signer.canonical(stage).name for stage in stages}


def _tiers() -> list[str]:
    """All tiers that any experiment has."""
    return sorted({run.tier for experiment in experiments() for run in experiment.measurements})


def _stages_of(target: str, tier: str, project: Project) -> list[Stage]:
    """A target's stages in one tier; none when it has none there."""
    try:
        return find_stages([target], tier, project)
    except UsageError:
        return []
