"""Select submitted jobs by target: an experiment, a table, a stage or a job id."""

from __future__ import annotations

from contextlib import suppress

from igpt.companion.experiments.tiers import TIERS
from igpt.companion.results.notebooks import near_misses
from igpt.companion.results.signature import Signer
from igpt.companion.run.targets import find_stages
from igpt.companion.slurm.ledger import Job, Ledger, run_roots
from igpt.errors import UsageError
from igpt.project import Project


def chosen_jobs(targets: list[str]) -> list[Job]:
    """The latest job of each stage in all run roots of this checkout, or of the stages that ``targets`` select.

    Raises UsageError for a target without submitted jobs.
    """
    latest = [job for root in run_roots(Project.here()) for job in Ledger(root).latest().values()]
    if not targets or not latest:
        return latest
    chosen: dict[Job, None] = {}
    for target in targets:
        names = _names(target, latest)
        named = [job for job in latest if names & job.words]
        if not named:
            close = near_misses(target, [job.name for job in latest])
            raise UsageError(f"nothing was submitted under {target!r}{close}; `igpt status` lists all")
        chosen |= dict.fromkeys(named)
    return list(chosen)


def chosen_folders(targets: list[str]) -> dict[Ledger, set[str]]:
    """The names of the chosen jobs' run folders, by ledger."""
    folders: dict[Ledger, set[str]] = {}
    for job in chosen_jobs(targets):
        folders.setdefault(job.ledger, set()).add(job.listed.folder)
    return folders


def _names(target: str, latest: list[Job]) -> set[str | None]:
    """The words that select a target's jobs: the target itself if it names a job, else the names of its stages."""
    if target[:1].isdigit() or any(target in job.words for job in latest):
        return {target}
    project = Project.here()
    stages = []
    for tier in TIERS:
        with suppress(UsageError):  # the target has no run in this tier
            stages += find_stages([target], tier, project)
    signer = Signer(project.notebooks)
    return {signer.canonical(stage).name for stage in stages or find_stages([target], None, project)}
