"""Select submitted jobs by target: an experiment, a table, a stage or a job id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from igpt.companion.experiments.tiers import TIERS
from igpt.companion.results.notebooks import near_misses
from igpt.companion.results.signature import Signer
from igpt.companion.run.targets import find_stages
from igpt.companion.slurm.ledger import Job, Ledger, run_roots
from igpt.companion.stage import Stage
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
        named = [job for job in latest if target in job.words]
        if not named:
            names = _stage_names(target)
            named = [job for job in latest if job.name in names]
        if not named:
            close = near_misses(target, [job.name for job in latest])
            raise UsageError(f"nothing was submitted under {target!r}{close}; `igpt status` lists all")
        chosen |= dict.fromkeys(named)
    return list(chosen)


def chosen_ledgers(targets: list[str]) -> list[Ledger]:
    """The ledgers that have chosen jobs."""
    return list(dict.fromkeys(job.ledger for job in chosen_jobs(targets)))


@contextmanager
def locked_jobs(ledger: Ledger, targets: list[str]) -> Iterator[list[Job]]:
    """Lock a ledger; its chosen jobs, including those of a submission that has just ended."""
    with ledger.alone():
        yield [job for job in chosen_jobs(targets) if job.ledger == ledger]


def _stage_names(target: str) -> set[str]:
    """The names of a target's stages in all tiers; empty for an unknown target."""
    project = Project.here()
    stages: list[Stage] = []
    for tier in TIERS:
        with suppress(UsageError):  # the target is unknown, or has no run in this tier
            stages += find_stages([target], tier, project)
    signer = Signer(project.notebooks)
    return {signer.canonical(stage).name for stage in stages}
