"""`igpt submit` and `igpt resume`: submit the stages of a plan as job arrays. Submission is idempotent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from igpt.companion.experiments.machines import H100
from igpt.companion.experiments.protocols import known_demand
from igpt.companion.results.plan import Plan
from igpt.companion.run.folder import finished_record, run_folder
from igpt.companion.run.local import check_data, plan_stages, run_plan
from igpt.companion.run.own_weights import share_names
from igpt.companion.run.slots import Need, Slots
from igpt.companion.run.targets import find_stages
from igpt.companion.slurm.batches import Batch, make_batches
from igpt.companion.slurm.dry_run import describe
from igpt.companion.slurm.job import StageJob
from igpt.companion.slurm.ledger import Job, Ledger, Listed, clock, new_array, remember_run_root, user
from igpt.companion.slurm.profile import Profile, find_profile, known_as, profile_path, read_profile
from igpt.companion.slurm.scheduler import HIDDEN, Queued, Unanswered, look, number_of, require, settle, settled_by, submit
from igpt.companion.slurm.snapshot import check_clean, plan_of_snapshot, take_snapshot
from igpt.companion.slurm.targets import chosen_ledgers, locked_jobs
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.files import write_text
from igpt.machine import cores, gpus
from igpt.project import Project
from igpt.text import counted


@dataclass(frozen=True)
class Submission:
    """The arrays to submit, and the state of the plan's other stages."""

    ledger: Ledger
    profile_name: str
    profile: Profile
    batches: list[Batch]
    active: dict[Stage, Queued]  # queued and running stages with their jobs
    fresh: int  # number of finished stages


def submit_targets(targets: list[str], tier: str | None, profile_name: str, *, dry_run: bool, dirty: bool) -> str:
    """Submit the stages that the targets need and that are not fresh, finished, queued or running; a summary.

    Raises UsageError for an unknown target or profile, uncommitted changes, missing data, or if the scheduler refuses.
    Arrays submitted before the error remain submitted; the same command submits the rest.
    """
    project = Project.here()
    profile = find_profile(project, profile_name)
    profile_name = known_as(project, profile_name)
    local = profile.scheduler == "local"
    os.environ.update(profile.environment if local else profile.folders)
    plan = plan_stages(project, find_stages(targets, tier, project))
    if local:
        return run_here(project, plan, profile, dry_run=dry_run)
    run_root = profile.run_root(project)
    ledger = Ledger(run_root)
    if dry_run:
        with ledger.alone() if ledger.folder.exists() else nullcontext():
            decision = prepare(profile_name, profile, plan, ledger)
        return describe(profile, decision.batches, decision.active, decision.fresh)
    require()
    check_data(planned for planned in plan if planned.state != "fresh")
    code_name = check_clean(project, dirty=dirty)
    share_names(project, run_root)
    with ledger.alone():
        remember_run_root(project, run_root)  # even if another clone has submitted all stages
        decision = prepare(profile_name, profile, plan, ledger)
        if not decision.batches:
            waiting = f", {len(decision.active)} queued or running" if decision.active else ""
            return (
                f"nothing to submit: {decision.fresh} of {counted(len(plan), 'stage')} finished{waiting}{hidden_jobs(decision)}"
            )
        numbers = carry_out(decision, take_snapshot(project, run_root, code_name))
    count = sum(len(batch.stages) for batch in decision.batches)
    arrays = f"{counted(len(decision.batches), 'array')} ({', '.join(numbers)})"
    return f"{counted(count, 'job')} submitted in {arrays}; `igpt status` shows them{hidden_jobs(decision)}"


def run_here(project: Project, plan: Plan, profile: Profile, *, dry_run: bool) -> str:
    """Run a plan in the foreground, without a scheduler; a summary.

    Raises UsageError for a stage that asks for more GPUs than the machine has.
    """
    slots = Slots(cores(), tuple(gpus()))
    requests = {planned.stage: profile.resources(planned.stage) for planned in plan}
    waiting = [planned.stage for planned in plan if planned.state != "fresh"]
    for stage in waiting:
        if (resources := requests[stage]).gpus > len(slots.gpus):
            raise UsageError(
                f"{stage.name} asks for {counted(resources.gpus, 'GPU')} and this machine has {len(slots.gpus)}: lower"
                f" stages.{stage.notebook}"
            )
    if dry_run:
        machine = f"{counted(slots.cores, 'core')} and {counted(len(slots.gpus), 'GPU')}"
        return f"{counted(len(waiting), 'stage')} would run here on {machine}; nothing was run"
    ran = run_plan(
        project, plan, slots=slots, needs=lambda stage: Need(min(requests[stage].cpus, slots.cores), requests[stage].gpus)
    )
    if not ran:
        return f"nothing to run: {counted(len(plan), 'stage is finished', 'stages are finished')}"
    return f"{counted(ran, 'stage')} run, {len(plan) - ran} finished before"


def hidden_jobs(decided: Submission) -> str:
    """The end of a summary: other users' hidden jobs that count as queued or running; empty if there are none."""
    hidden = [(stage, job) for stage, job in decided.active.items() if job.state == HIDDEN]
    more = f", and {len(hidden) - 1} more like it" if len(hidden) > 1 else ""
    return f"; {hidden[0][0].name} is job {hidden[0][1].number}, {hidden[0][1].reason}{more}" if hidden else ""


def prepare(profile_name: str, profile: Profile, plan: Plan, ledger: Ledger) -> Submission:
    """Decide what to submit, with one query of the scheduler. The caller must hold `Ledger.alone`.

    Raises UsageError while it is unknown whether an earlier submission of one of the stages has arrived.
    """
    root = ledger.run_root
    todo = plan.to_run(lambda planned: finished_record(root, planned.stage, planned.signature) is not None)
    latest = ledger.latest()
    jobs = {p.stage: latest[name] for p in todo if (name := run_folder(root, p.stage, p.signature).name) in latest}
    queue = look(jobs.values())
    if unknown := settle(jobs.values(), queue):
        array = unknown[0].array
        owner = f", or have {array.owner} run it" if array.owner != user() else ""
        raise UsageError(
            f"{unknown[0].name} was submitted at {clock(array.since)} without an answer, and the scheduler shows no such job yet:"
            f" run this again after {clock(settled_by(unknown[0], queue))}{owner}; if there is still no such job, it is submitted"
            " again"
        )
    active = {stage: queued for stage, job in jobs.items() if (queued := queue.active(job))}
    batches = make_batches([planned for planned in todo if planned.stage not in active], profile, active)
    return Submission(ledger, profile_name, profile, batches, active, len(plan) - len(todo))


def carry_out(decided: Submission, code: Project) -> list[str]:
    """Submit the arrays in order; their SLURM job ids.

    A refused array is withdrawn from the ledger. An array without an answer stays in the ledger until its fate is known.
    """
    ledger, profile = decided.ledger, decided.profile
    jobs = {stage: job.number for stage, job in decided.active.items()}
    submitted: list[str] = []
    first = 1 + max((array.number for array in ledger.arrays()), default=0)
    for number, batch in enumerate(decided.batches, first):
        listed = [
            Listed(
                name=planned.stage.name,
                folder=run_folder(ledger.run_root, planned.stage, planned.signature).name,
                planned=round(known_demand(planned.in_full).work.hours(H100.rates), 4),
            )
            for planned in batch.stages
        ]
        array = new_array(listed, batch.resources, number=number, profile=decided.profile_name, snapshot=code)
        first_job = Job(ledger, array, 0)
        ledger.write(array)
        write_text(first_job.profile_path, profile.model_dump_json(indent=1, exclude_unset=True) + "\n")
        functions = [
            StageJob(planned.stage, planned.signature, Job(ledger, array, index), profile.signal_seconds)
            for index, planned in enumerate(batch.stages)
        ]
        after = [jobs[stage] for stage in batch.parents]
        earlier = f"; the {len(submitted)} arrays before it remain submitted" if submitted else ""
        try:
            job = submit(first_job, functions, profile, batch.resources, after=after)
        except Unanswered as error:
            arrived = _arrived(first_job)
            if arrived is None:
                raise UsageError(
                    f"the scheduler has not said whether it takes {first_job.name} ({error}): run the same command again in"
                    f" a few minutes, which first looks for the job; `igpt status` shows whether it was taken{earlier}"
                ) from None
            job = arrived
        except UsageError as error:
            ledger.withdraw(array)
            raise UsageError(f"{error}{earlier}") from None
        array = array.model_copy(update={"job": job})
        ledger.write(array)
        submitted.append(job)
        jobs |= {planned.stage: str(array.job_of(index)) for index, planned in enumerate(batch.stages)}
    return submitted


def _arrived(job: Job) -> str | None:
    """The SLURM job id of an array whose submission had no answer; None if the scheduler does not show it now."""
    try:
        queue = look([job])
    except UsageError:
        return None
    settle([job], queue)
    return number_of(job, queue)


def resume(targets: list[str]) -> str:
    """Requeue failed, cancelled and lost jobs with the code of their first submission; a summary."""
    project = Project.here()
    numbers, waiting, count = list[str](), list[str](), 0
    for ledger in chosen_ledgers(targets):
        with locked_jobs(ledger, targets) as jobs:
            queue = look(jobs)
            unknown = {job.array.token for job in settle(jobs, queue)}
            unfinished = [job for job in jobs if not job.finished and job.array.token not in unknown]
            waiting += [f"job {held.number} is {held.held}" for job in unfinished if (held := queue.active(job)) and held.held]
            by_code: dict[tuple[str, str], list[Job]] = {}
            for job in unfinished:
                if queue.active(job) is None:
                    by_code.setdefault((job.array.snapshot, job.array.profile), []).append(job)
            for (snapshot, profile_name), lost in by_code.items():
                code = Project(Path(snapshot))
                if not code.root.is_dir():
                    raise UsageError(f"the snapshot {code.root} is gone: submit {lost[0].name} again instead")
                profile = _profile_now(project, profile_name, lost)
                plan = plan_of_snapshot(code, [job.name for job in lost], profile.folders)
                for job in lost:
                    if damaged := job.damaged_record:
                        damaged.replace(damaged.with_name(f"{damaged.name}.damaged"))
                decided = prepare(profile_name, profile, plan, ledger)
                numbers += carry_out(decided, code)
                count += sum(len(batch.stages) for batch in decided.batches)
    summary = f"{counted(count, 'job')} submitted again ({', '.join(numbers)})"
    return "; ".join([summary if count else "nothing to resume: no job has failed or is lost", *waiting])


def _profile_now(project: Project, name: str, jobs: Iterable[Job]) -> Profile:
    """The current profile of the jobs; if its file is deleted, the copy from the last submission.

    The data folders are those of that submission, unless the profile or the environment now sets others.
    """
    paths = [path for job in jobs if (path := job.profile_path).exists()]
    kept = read_profile(paths[-1].read_bytes(), paths[-1]) if paths else None
    if kept and not os.access(profile_path(project, name), os.R_OK):
        return kept
    profile = find_profile(project, name)
    return profile.model_copy(update={"environment": {**(kept.folders if kept else {}), **profile.environment}})
