"""`igpt submit` and `igpt resume`: a plan's stages as arrays at the scheduler, each stage once."""

from __future__ import annotations

import os
import pickle
import platform
import secrets
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from igpt.companion.experiments.costs import stage_hours
from igpt.companion.results.plan import Plan, PlannedStage
from igpt.companion.run.folder import finished_record, run_folder
from igpt.companion.run.local import check_data, plan_stages
from igpt.companion.run.own_weights import hand_on
from igpt.companion.run.targets import find_stages
from igpt.companion.slurm.batches import Batch, make_batches
from igpt.companion.slurm.dry_run import describe
from igpt.companion.slurm.job import StageJob
from igpt.companion.slurm.ledger import Array, Ledger, Listed, arrays_of, clock, homes, remember_home, user
from igpt.companion.slurm.profile import FOLDERS, Profile, find_profile, known_as, profile_path, read_profile
from igpt.companion.slurm.scheduler import HIDDEN, Queued, Unanswered, look, number_of, require, settle, settled_by, submit
from igpt.companion.slurm.snapshot import check_clean, take_snapshot
from igpt.companion.slurm.targets import Jobs, chosen, chosen_now
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.files import write_text
from igpt.project import Project
from igpt.text import counted


@dataclass(frozen=True)
class Submission:
    """What a submission is to do, decided and not yet done."""

    home: Project
    profile_name: str
    profile: Profile
    plan: Plan
    batches: list[Batch]
    active: dict[Stage, Queued]  # queued or running already: their jobs
    fresh: int


def submit_targets(targets: list[str], tier: str | None, profile_name: str, *, dry_run: bool, dirty: bool) -> str:
    """Submit what the targets need and is neither fresh, finished, queued nor running; what to say of it.

    Raises UsageError for an unknown target or profile, a checkout with changes, data that are not there, or a
    scheduler that refuses, before anything is submitted that would not be continued by the same command.
    """
    project = Project.here()
    profile = find_profile(project, profile_name)
    profile_name = known_as(project, profile_name)
    local = profile.scheduler == "local"
    os.environ.update({name: value for name, value in profile.environment.items() if local or name in FOLDERS})
    plan = plan_stages(project, find_stages(targets, tier, project))
    if local:
        from igpt.companion.slurm.local import run_here

        return run_here(project, plan, profile, dry_run=dry_run)
    if dry_run:
        ledger = Ledger(profile.home(project))
        with ledger.alone() if ledger.folder.exists() else nullcontext():
            decided = prepare(profile_name, profile, plan, ledger)
        return describe(profile, decided.batches, decided.active, decided.fresh)
    require()
    check_data(project, plan)
    code = check_clean(project, dirty=dirty)
    home = profile.home(project)
    ledger = Ledger(home)
    hand_on(project, home)
    with ledger.alone():
        remember_home(project, home)  # also when another clone has submitted all of it
        decided = prepare(profile_name, profile, plan, ledger)
        if not decided.batches:
            waiting = f", {len(decided.active)} queued or running" if decided.active else ""
            return f"nothing to submit: {decided.fresh} of {counted(len(plan), 'stage')} finished{waiting}{hidden_ones(decided)}"
        code_folder = take_snapshot(project, home, code)
        jobs = carry_out(decided, ledger, code_folder)
    count = sum(len(batch.stages) for batch in decided.batches)
    arrays = f"{counted(len(decided.batches), 'array')} ({', '.join(jobs)})"
    said = f"{counted(count, 'job')} submitted in {arrays}; `igpt status` shows them"
    return f"{said}{hidden_ones(decided)}"


def hidden_ones(decided: Submission) -> str:
    """Words on the jobs of others that count as at work, though the scheduler does not show them."""
    found = [(stage, job) for stage, job in decided.active.items() if job.state == HIDDEN]
    more = f", and {len(found) - 1} more like it" if len(found) > 1 else ""
    return f"; {found[0][0].name} is job {found[0][1].job}, {found[0][1].reason}{more}" if found else ""


def prepare(profile_name: str, profile: Profile, plan: Plan, ledger: Ledger) -> Submission:
    """Decide what to submit, with one question to the scheduler. Only for who holds the ledger alone.

    Raises UsageError while it is not known whether an earlier submission of one of the stages has arrived.
    """
    home = ledger.home

    def finished(planned: PlannedStage) -> bool:
        return finished_record(home, planned.stage, planned.signature) is not None

    todo = plan.to_run(finished)
    latest = ledger.latest()
    known = {p.stage: latest[name] for p in todo if (name := run_folder(home, p.stage, p.signature).name) in latest}
    active = _active(ledger, known)
    batches = make_batches([planned for planned in todo if planned.stage not in active], profile, active)
    return Submission(home, profile_name, profile, plan, batches, active, len(plan) - len(todo))


def _active(ledger: Ledger, known: dict[Stage, tuple[Array, int]]) -> dict[Stage, Queued]:
    """Of stages that were submitted once, those whose jobs are still queued or running; and their jobs."""
    arrays = arrays_of(known.values())
    queue = look(ledger, arrays)
    if unknown := settle(ledger, arrays, queue):
        array = unknown[0]
        until = settled_by(array, queue)
        other = f", or have {array.owner} run it" if array.owner != user() else ""
        raise UsageError(
            f"{array.stages[0].name} was submitted at {clock(array.since)} without an answer, and the scheduler shows no such job"
            f" yet: run this again after {clock(until)}{other}; if there is still no such job, it is submitted again"
        )
    return {stage: job for stage, each in known.items() if (job := queue.active(*each))}


def carry_out(decided: Submission, ledger: Ledger, code: Project) -> list[str]:
    """Submit the arrays in their order; the scheduler's numbers.

    An array that is refused leaves no trace, one without an answer stays in the ledger until it is known what became of it.
    """
    jobs = {stage: job.job for stage, job in decided.active.items()}
    sent: list[str] = []
    first = 1 + max((array.number for array in ledger.arrays()), default=0)
    for number, batch in enumerate(decided.batches, first):
        array = new_array(decided, batch, number, code)
        ledger.write(array)
        write_text(ledger.profile_path(array.token), decided.profile.model_dump_json(indent=1, exclude_unset=True) + "\n")
        functions = [
            stage_job(decided.home, array, index, planned, decided.profile) for index, planned in enumerate(batch.stages)
        ]
        after = [jobs[stage] for stage in batch.parents]
        stay = f"; the {len(sent)} arrays before it remain submitted" if sent else ""
        try:
            job = submit(ledger, array, functions, decided.profile, batch.resources, after=after, root=code)
        except Unanswered as error:
            found = _arrived(ledger, array)
            if found is None:
                raise UsageError(
                    f"the scheduler has not said whether it takes {array.stages[0].name} ({error}): run the same command again in"
                    f" a few minutes, which first looks for the job; `igpt status` shows whether it was taken{stay}"
                ) from None
            job = found
        except UsageError as error:
            ledger.withdraw(array)
            raise UsageError(f"{error}{stay}") from None
        array = array.model_copy(update={"job": job})
        ledger.write(array)
        sent.append(job)
        jobs |= {planned.stage: str(array.job_of(index)) for index, planned in enumerate(batch.stages)}
    return sent


def _arrived(ledger: Ledger, array: Array) -> str | None:
    """The scheduler's number of an array whose submission had no answer, if it can be asked at once."""
    try:
        queue = look(ledger, [array])
    except UsageError:
        return None
    settle(ledger, [array], queue)
    return number_of(ledger, array, queue)


def new_array(decided: Submission, batch: Batch, number: int, code: Project) -> Array:
    """An array as it is before the scheduler knows of it."""
    return Array(
        token=secrets.token_hex(6),
        number=number,
        job=None,
        profile=decided.profile_name,
        snapshot=str(code.root),
        submitted=datetime.now(UTC).isoformat(timespec="milliseconds"),
        by=f"{user()} on {platform.node()}",
        gpus=batch.resources.gpus,
        nodes=batch.resources.nodes,
        minutes=batch.resources.minutes,
        stages=tuple(
            Listed(
                name=planned.stage.name,
                folder=run_folder(decided.home, planned.stage, planned.signature).name,
                planned=round(stage_hours(planned.in_full), 4),
            )
            for planned in batch.stages
        ),
    )


def stage_job(home: Project, array: Array, index: int, planned: PlannedStage, profile: Profile) -> StageJob:
    """What is called on the node."""
    return StageJob(
        stage=planned.stage,
        signature=planned.signature,
        home=home.root,
        token=array.token,
        index=index,
        minutes=array.minutes,
        signal_seconds=profile.signal_seconds,
        gpus=array.gpus,
        nodes=array.nodes,
        code=Path(array.snapshot),
    )


def resume(targets: list[str]) -> str:
    """Queue again what failed, was cancelled or is lost, with the code it was first submitted with; what to say of it."""
    project = Project.here()
    said, waiting, count = [], [], 0
    for ledger, jobs in chosen([Ledger(home) for home in homes(project)], targets):
        with ledger.alone():
            lost, held = _lost(ledger, chosen_now(ledger, jobs, targets))
            waiting += held
            by_code: dict[tuple[str, str], list[Listed]] = {}
            for array, index in lost:
                by_code.setdefault((array.snapshot, array.profile), []).append(array.stages[index])
            for (snapshot, name), stages in by_code.items():
                code = Project(Path(snapshot))
                if not code.root.is_dir():
                    raise UsageError(f"the snapshot {code.root} is gone: submit {stages[0].name} again instead")
                profile = _profile_of(project, ledger, name, [array for array, _ in lost])
                plan = _plan_of(code, [stage.name for stage in stages], profile)
                _set_aside(ledger, stages)
                decided = prepare(name, profile, plan, ledger)
                numbers = carry_out(decided, ledger, code)
                count += sum(len(batch.stages) for batch in decided.batches)
                said += numbers
    done = (
        f"{counted(count, 'job')} submitted again ({', '.join(said)})"
        if count
        else "nothing to resume: no job has failed or is lost"
    )
    return "; ".join([done, *(f"job {job.job} is {job.held}" for job in waiting)])


def _set_aside(ledger: Ledger, stages: Sequence[Listed]) -> None:
    """Make room for the records of stages where files stand that are no valid ones."""
    for stage in stages:
        if damaged := ledger.damaged(stage.folder):
            damaged.replace(damaged.with_name(f"{damaged.name}.damaged"))


def _profile_of(project: Project, ledger: Ledger, name: str, arrays: list[Array]) -> Profile:
    """A profile as it is now; where its file has gone, as the last of the arrays was submitted with it.

    Data lie where they lay then, unless the profile or the shell now says otherwise.
    """
    paths = [path for array in arrays if array.profile == name and (path := ledger.profile_path(array.token)).exists()]
    kept = read_profile(paths[-1].read_bytes(), paths[-1]) if paths else None
    if kept and not os.access(profile_path(project, name), os.R_OK):
        return kept
    profile = find_profile(project, name)
    folders = {key: value for key, value in (kept.environment if kept else {}).items() if key in FOLDERS}
    return profile.model_copy(update={"environment": {**folders, **profile.environment}})


def _plan_of(code: Project, names: list[str], profile: Profile) -> Plan:
    """The plan of stages by name, with the code of a snapshot: signed by a process that runs it, with the profile's data."""
    program = (
        "import pickle, sys; from igpt.project import Project; from igpt.companion.run.local import plan_stages;"
        " from igpt.companion.run.targets import find_stages; project = Project.here();"
        " sys.stdout.buffer.write(pickle.dumps(plan_stages(project, find_stages(sys.argv[1:], None, project))))"
    )
    folders = {name: profile.environment[name] for name in FOLDERS if name in profile.environment}
    environment = {**os.environ, **folders, "IGPT_ROOT": str(code.root), "PYTHONPATH": str(code.root), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", program, *names], env=environment, capture_output=True)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UsageError(f"the code in {code.root} cannot plan {names[0]} ({' '.join(last)}): submit it again instead")
    plan: Plan = pickle.loads(done.stdout)
    return plan


def _lost(ledger: Ledger, jobs: Jobs) -> tuple[list[tuple[Array, int]], list[Queued]]:
    """Of the chosen stages' last jobs, those that have neither a record nor a job at work; and the held ones."""
    arrays = arrays_of(jobs.values())
    queue = look(ledger, arrays)
    unknown = settle(ledger, arrays, queue)
    unfinished = [each for folder, each in jobs.items() if not ledger.finished(folder) and each[0] not in unknown]
    active = [job for each in unfinished if (job := queue.active(*each))]
    return [each for each in unfinished if queue.active(*each) is None], [job for job in active if job.held]
