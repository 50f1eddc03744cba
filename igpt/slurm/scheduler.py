"""What is asked of SLURM: one call an array to submit, one a look, one to cancel. Every call has a limit of its own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from igpt.errors import UsageError
from igpt.project import Project
from igpt.slurm.batches import dependency
from igpt.slurm.ledger import Array, Ledger
from igpt.slurm.profile import Profile, Resources

SECONDS = 60  # that the scheduler has for an answer
OVER = {  # SLURM's words for a job that will do nothing more
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED"),
    "PREEMPTED",
}
INHERITED = ("IGPT_DATA", "IGPT_WEIGHTS")  # of whoever submits


@dataclass(frozen=True)
class Queued:
    """A job as the scheduler sees it."""

    job: str
    state: str
    reason: str

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.state in OVER

    @property
    def held(self) -> str:
        """Why it will never begin by itself, and what lets it; empty when it will."""
        reason = self.reason.replace("_", " ")  # newer schedulers write it so
        if self.over or self.state == "RUNNING":
            return ""
        if reason == "DependencyNeverSatisfied":
            return "what it waits for has failed: `igpt cancel` it, then `igpt resume`"
        if reason == "JobHeldAdmin":
            return f"held by an administrator: ask for `scontrol release {self.job}`"
        if re.search("held|hold|special", f"{reason} {self.state}", re.IGNORECASE):
            return f"held ({reason or self.state}): `scontrol release {self.job}` lets it go on"
        return ""


class Queue:
    """The scheduler's answer to one question: what is queued or running of some arrays."""

    def __init__(self, jobs: Mapping[tuple[str, int], Queued], numbers: Mapping[str, str]) -> None:
        self._jobs = jobs
        self.numbers = numbers  # the arrays' own, by their titles

    def find(self, array: Array, index: int) -> Queued | None:
        """One job, if the scheduler still knows it."""
        return self._jobs.get((array.title, index))

    def active(self, array: Array, index: int) -> Queued | None:
        """One job, if it is queued or running."""
        job = self.find(array, index)
        return job if job is not None and not job.over else None


def require() -> None:
    """Raise UsageError where there is no SLURM, before anything is written for it."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UsageError(NO_SCHEDULER)


def look(arrays: Sequence[Array]) -> Queue:
    """Ask for all of the arrays at once. Raises UsageError when there is no scheduler, or it does not answer."""
    if not arrays:
        return Queue({}, {})
    names = ",".join(array.title for array in arrays)
    answer = call("squeue", "-h", "-r", "-t", "all", "-n", names, "-o", "%j|%F|%K|%T|%r")
    jobs: dict[tuple[str, int], Queued] = {}
    numbers: dict[str, str] = {}
    for line in answer.splitlines():
        title, number, place, state, reason = line.split("|", 4)
        index = int(place) if place.isdigit() else 0
        numbers[title] = number
        job = f"{number}_{index}" if place.isdigit() else number
        jobs[title, index] = Queued(job, state, "" if reason == "None" else reason)
    return Queue(jobs, numbers)


def submit(
    ledger: Ledger,
    array: Array,
    functions: Sequence[Callable[[], object]],
    profile: Profile,
    resources: Resources,
    *,
    after: Iterable[str] = (),
    root: Project,
) -> str:
    """Submit an array in one call; the scheduler's number of it.

    functions : one a job, called there without arguments
    after : the jobs to wait for
    root : the folder of the code that they run

    Raises UsageError with the scheduler's words when it refuses.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    # submitit counts any stop of a job under ten minutes as a timeout; the jobs themselves say when it is enough.
    executor = submitit.SlurmExecutor(ledger.logs(array.token), max_num_timeout=1_000_000, python=python_command(profile))
    executor.update_parameters(**job_parameters(array, profile, resources, after=after, root=root))
    try:
        with executor.batch():
            jobs: list[submitit.Job[object]] = [executor.submit(function) for function in functions]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = " ".join(str(error).split()).removeprefix("sbatch: error: ")
        raise UsageError(f"the scheduler refuses it ({said}): mend the profile, `igpt doctor` says more") from None
    return str(jobs[0].job_id).partition("_")[0]


def python_command(profile: Profile) -> str:
    """What starts Python in a job; without srun the shell becomes it, so that the batch step's signal reaches it."""
    python = profile.python or shlex.quote(sys.executable)
    return python if profile.srun else f"exec {python}"


def job_parameters(
    array: Array, profile: Profile, resources: Resources, *, after: Iterable[str], root: Project
) -> dict[str, object]:
    """What submitit is given, from which it writes the sbatch file."""
    grace = profile.signal_seconds
    options: dict[str, object] = {"requeue": True, **profile.gpu_options(resources.gpus), **profile.options}
    if not profile.srun:
        options["signal"] = f"B:USR2@{grace}"
    waits = dependency(after)
    wanted = {
        "job_name": array.title,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cpus,
        "mem": f"{round(resources.memory_gib * 1024)}M" if resources.memory_gib else None,
        "signal_delay_s": grace,
        "array_parallelism": profile.at_once,
        "use_srun": profile.srun,
        "srun_args": ["--kill-on-bad-exit=1"] if resources.nodes > 1 else None,
        "setup": _setup(profile, resources, root),
        "additional_parameters": {**options, **({"dependency": waits} if waits else {})},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _setup(profile: Profile, resources: Resources, root: Project) -> list[str]:
    """Shell lines before the work: the user's, then where the code and the data are."""
    exported = {
        **{name: os.environ[name] for name in INHERITED if name in os.environ},
        "OMP_NUM_THREADS": str(resources.cpus),
        **profile.environment,
        "PYTHONPATH": str(root.root),
        "PYTHONSAFEPATH": "1",  # or the working directory, a checkout that may have changed, would come before it
        "IGPT_ROOT": str(root.root),
    }
    return [*profile.setup, *(f"export {name}={shlex.quote(value)}" for name, value in exported.items())]


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs, by their numbers, in one call."""
    if wanted := sorted(set(jobs)):
        call("scancel", "--quiet", *wanted)


def call(*command: str) -> str:
    """What a command of the scheduler prints. Raises UsageError when it is not there, refuses or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        raise UsageError(NO_SCHEDULER) from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{command[0]} has not answered for {SECONDS} s: the scheduler may be down, try again later") from None
    if done.returncode:
        said = " ".join(done.stderr.rpartition("fatal: ")[2].split())
        raise UsageError(f"{command[0]} refuses ({said}): see whether the scheduler is up, `sinfo` says")
    return done.stdout


NO_SCHEDULER = "there is no SLURM here: log in where sbatch is, run slurm/local-cluster up, or give --profile local"
