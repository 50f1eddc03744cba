"""All calls to SLURM: one per array to submit, one per query of the queue, one to cancel. Every call has a time limit."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from igpt.companion.slurm.batches import dependency
from igpt.companion.slurm.ledger import FINAL, QUEUED_AGAIN, Array, Job, clock, one_per_array, user
from igpt.companion.slurm.profile import Profile, Resources
from igpt.errors import UsageError
from igpt.files import NO_ROOM
from igpt.project import Project

SECONDS = 60.0  # time limit of a SLURM command
ENDED_FOR_GOOD = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED"}
OVER = {*ENDED_FOR_GOOD, "PREEMPTED", "NODE_FAIL"}  # SLURM states of ended jobs; the last two may be requeued
HIDDEN = "HIDDEN"  # igpt's own state: another user's job that may be queued or running and that SLURM does not show
# Seconds in which a submission without an answer may still arrive: sbatch itself retries for two minutes. A job that arrives
# later does no work: only with the job id does submitit's pickle file get the name under which the job looks for it.
GRACE = 150.0
HIDDEN_DAYS = 7.0  # after which another user's hidden job that waits in the queue counts as gone
UNANSWERED = re.compile(  # messages of sbatch if it is unknown whether the job was accepted
    r"unable to contact|timed out|unexpected message|not connected|connection (failure|reset|refused|closed)|broken pipe"
    r"|(send|receive|shutdown|communication\w*) failure|zero bytes|temporarily unavailable|no route to host|interrupted",
    re.IGNORECASE,
)
REFUSED = re.compile(r"error: |fatal: |unrecognized option|invalid option|requires an argument")
UNREACHABLE = {  # messages of SLURM commands that cannot reach the controller, and the remedy
    r"slurm\.conf|ClusterName needs|configuration (file|source)|fetch.?config|DNS SRV": (
        "SLURM is not set up on this machine: log in where it is, or set SLURM_CONF to its slurm.conf"
    ),
    r"munge|authentication|credential": (
        "munge, by which SLURM knows who asks, does not work here: have it started (or its key and clock set right), or log in"
        " elsewhere"
    ),
    r"resolve|no route to host|network is unreachable|name or service": (
        "this machine does not find the host of SLURM's controller: see to its network, or log in elsewhere"
    ),
    UNANSWERED.pattern: "SLURM's controller, slurmctld, does not answer: try again when `scontrol ping` says that it is up",
}
TOO_MANY = re.compile(r"(QOS|Assoc)\w*Submit|unable to accept job", re.IGNORECASE)  # not an error of the profile
REASONS = {  # why a job is pending: SLURM's reason and its meaning; "held" jobs never start by themselves
    "DependencyNeverSatisfied": "held, since a job it waits for has failed: `igpt cancel` it, then `igpt resume`",
    "ReservationDeleted|RESV.DEL.HOLD": "held, since its reservation is gone: {mend}",
    "JobHeldAdmin": "held by an administrator: ask for `scontrol release {job}`",
    "JobHeldUser": "held by its owner: `scontrol release {job}` releases it",
    "launch failed.*": "held, since it could not be started on its node: `scontrol release {job}` tries again",
    ".*(held|hold|special).*": "held: `scontrol release {job}` releases it",
    "(Partition|QOS|Association)TimeLimit": "held, since it asks for more minutes than it may: {mend}",
    "PartitionNodeLimit": "held, since it asks for more nodes than its partition allows: {mend}",
    "(QOS|Assoc)Max.*Per(Job|Node).*|QOSMin.*|MaxMemPerLimit": "held, since one job may not ask for so much: {mend}",
    "Invalid(Account|QOS)|(Account|QOS)NotAllowed": "held, since its account or QOS is refused: {mend}",
    "BadConstraints": "held, since no node is as it asks: {mend}",
    "Resources": "waits for free resources",
    "Priority": "waits for its turn: others have a higher priority",
    "Dependency": "waits for jobs that it depends on",
    "BeginTime": "waits for its start time",
    "JobArrayTaskLimit": "waits for others of its array, of which at_once in the profile may run together",
    "Partition(Down|Inactive)": "waits, since its partition starts no jobs at present: ask the administrators for how long",
    "(ReqNodeNotAvail|NodeDown|Nodes required).*": "waits for nodes that are down, drained or reserved: ask the administrators",
    "QOS.*": "waits, since a limit of its QOS is reached: it begins as other jobs end",
    "Assoc.*": "waits, since a limit of its account is reached: it begins as other jobs end",
    "Licenses": "waits for a free licence",
    "Reservation": "waits for its reservation to begin",
}


# Environment variables that must not reach SLURM commands or jobs: options of SLURM commands, which would override the job's
# script; the variables of an interactive job (salloc, srun --pty); the devices of a running stage.
NOT_OURS = re.compile(
    r"(SBATCH|SALLOC|SRUN|SQUEUE|SCANCEL|SACCT|SINFO|SCONTROL|SLURMD|PMIX?)_|SLURM_(?!(CONF|CONF_SERVER|JWT)$)"
    r"|(CUDA|ROCR)_VISIBLE_DEVICES$|GPU_DEVICE_ORDINAL$|IGPT_(DEVICES|NODES|RENDEZVOUS|PLANNED)$"
)
NO_SCHEDULER = (
    "there is no SLURM here: log in where sbatch is, or run slurm/local-cluster up; `igpt run` and `igpt submit --profile local`"
    " need none"
)


@dataclass(frozen=True)
class Queued:
    """A job as squeue or sacct shows it."""

    number: str
    state: str
    reason: str = ""
    seconds: float = 0.0  # since its last start
    node: str = ""

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in OVER

    @property
    def waits(self) -> str:
        """Why the job is pending, with SLURM's reason in parentheses; empty once it has started."""
        if self.over or self.state in ("RUNNING", HIDDEN):
            return ""
        reason = self.reason.replace("_", " ")  # newer versions of SLURM write it with underscores
        for word in (self.state, reason):
            for pattern, meaning in REASONS.items():
                if re.fullmatch(pattern, word, re.IGNORECASE):
                    mend = "`igpt cancel` it, change the profile and `igpt resume`"
                    return f"{meaning.format(job=self.number, mend=mend)} ({reason or self.state})"
        return f"waits ({reason})" if reason else "waits"

    @property
    def held(self) -> str:
        """`waits` for a job that never starts by itself; empty for other jobs."""
        return self.waits if self.waits.startswith("held") else ""


class Unreachable(UsageError):
    """SLURM is not installed, cannot be reached, or does not answer."""


class Unanswered(UsageError):
    """It is unknown whether a submission has arrived."""


@dataclass(frozen=True)
class Queue:
    """The answer of squeue or sacct: jobs by their array's title and index, and job ids of arrays by title.

    An entry with the index None stands for all jobs of the array without an entry of their own.
    """

    jobs: dict[tuple[str, int | None], Queued] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: str) -> Queue:
        """Parse lines of title, job id, state, elapsed time and node, and from squeue the reason, separated by ``|``."""
        queue = cls()
        for line in answer.splitlines():
            title, number, state, time_used, node, *reason = line.split("|", 5)
            array, _, index = number.partition("_")
            parts = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", time_used)
            days, hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0, 0)
            queue.numbers[title] = array
            queue.jobs[title, int(index) if index.isdigit() else None] = Queued(
                number,
                state.partition(" ")[0],  # without "by 1000", the user who cancelled it
                "" if reason in ([], ["None"]) else reason[0],
                float(((days * 24 + hours) * 60 + minutes) * 60 + seconds),
                "" if node == "None assigned" else node,
            )
        return queue

    def find(self, job: Job) -> Queued | None:
        """The entry of a job; None if SLURM no longer lists it."""
        queued = self.jobs.get((job.array.title, job.index)) or self.jobs.get((job.array.title, None))
        return replace(queued, number=job.number or queued.number) if queued else None

    def active(self, job: Job) -> Queued | None:
        """The entry of a job if it is queued or running; else None."""
        queued = self.find(job)
        return queued if queued is not None and not queued.over else None


def require() -> None:
    """Raise Unreachable if SLURM is not installed, before any files are written."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise Unreachable(NO_SCHEDULER)


def look(jobs: Iterable[Job], *, seconds: float = SECONDS) -> Queue:
    """Query the queue for all arrays of the jobs at once. Raises Unreachable if SLURM does not answer.

    seconds : time limit of each command

    If ``PrivateData`` hides other users' jobs, these have the state `HIDDEN` until there is evidence that they have ended;
    see `_hidden`.
    """
    jobs = list(jobs)
    if not jobs:
        return Queue()
    names = ",".join(job.array.title for job in one_per_array(jobs))
    queue = Queue.of(call("squeue", "-h", "-r", "-t", "all", "-n", names, "-o", "%j|%i|%T|%M|%N|%r", seconds=seconds))
    absent = [job for job in jobs if job.array.title not in queue.numbers]
    unknown = [job for job in absent if job.array.job is None]
    others = [job for job in absent if job.array.owner not in ("", user())]
    if others and not _private(seconds):
        others = []
    accounting = accounted([*unknown, *others], seconds=seconds)
    queue.numbers.update(
        {job.array.title: accounting.numbers[job.array.title] for job in unknown if job.array.title in accounting.numbers}
    )
    for job in others:
        if hidden := _hidden(job, accounting.find(job)):
            queue.jobs[job.array.title, job.index] = hidden
    return queue


def _private(seconds: float) -> bool:
    """Whether SLURM hides the jobs of other users."""
    setting = re.search(r"^PrivateData\s*= (.*)$", call("scontrol", "show", "config", seconds=seconds), re.MULTILINE)
    return setting is not None and bool({"jobs", "all"} & set(setting[1].lower().split(",")))


def _hidden(job: Job, accounting: Queued | None) -> Queued | None:
    """Another user's job that squeue does not show, as long as it counts as active; None once it counts as ended.

    Evidence, in this order: its last status, the accounting, the end that its owner's commands recorded, and time. A running
    job counts as active until its time limit has passed since its last status, a pending one for `HIDDEN_DAYS`.
    """
    status = job.status
    if status and (status.state in FINAL or (status.state == "stopped" and not status.why.endswith(QUEUED_AGAIN))):
        return None
    if (accounting is not None and accounting.over) or job.end in ENDED_FOR_GOOD:
        return None
    deadline = job.last_sign + (60 * job.array.minutes if job.state == "running" else 86400 * HIDDEN_DAYS)
    if accounting is None and time.time() > deadline:
        return None
    owner = job.array.owner
    note = f": it counts as queued or running until {clock(deadline)}, or until {owner} runs `igpt cancel`"
    reason = f"a job of {owner} that PrivateData hides{'' if accounting else note}"
    return Queued(job.number or job.array.title, HIDDEN, reason)


def accounted(jobs: Iterable[Job], *, seconds: float = SECONDS) -> Queue:
    """The jobs in SLURM's accounting; empty if there is no accounting or it does not answer."""
    arrays = [job.array for job in one_per_array(jobs)]
    if not arrays:
        return Queue()
    first = datetime.fromtimestamp(min(array.since for array in arrays)) - timedelta(days=1)
    # With an end in the future: otherwise sacct omits jobs with a later start time.
    period = ("-S", max(first, datetime(1971, 1, 1)).strftime("%Y-%m-%d"), "-E", "now+366days")
    names = f"--name={','.join(array.title for array in arrays)}"
    try:
        return Queue.of(call("sacct", "-anXP", *period, names, "-o", "JobName,JobID,State,Elapsed,NodeList", seconds=seconds))
    except UsageError:
        return Queue()


def settle(jobs: Iterable[Job], queue: Queue) -> list[Job]:
    """Settle submissions that were interrupted or had no answer; returns one job of each array that may still arrive.

    An array that has arrived gets its job id, and its jobs their pickle files. Arrays that can no
    longer arrive are withdrawn from the ledger. The caller must hold `Ledger.alone`.
    """
    unknown = []
    for job in one_per_array(jobs):
        if job.array.job is not None:
            continue
        if number := number_of(job, queue):
            array = job.array.model_copy(update={"job": number})
            _give_work(array, job.logs)
            job.ledger.write(array)
        elif may_arrive(job, queue):
            unknown.append(job)
        else:
            job.ledger.withdraw(job.array)
    return unknown


def number_of(job: Job, queue: Queue) -> str | None:
    """The job id of an array without one in the ledger, from the queue, the accounting or the names of its logs; or None."""
    on_disk = (path.name.partition("_")[0] for path in sorted(job.logs.glob("*_log.*")))
    return queue.numbers.get(job.array.title) or next(filter(str.isdigit, on_disk), None)


def may_arrive(job: Job, queue: Queue) -> bool:
    """Whether a submission that SLURM does not show may still arrive."""
    return job.was_sent and time.time() < settled_by(job, queue)


def settled_by(job: Job, queue: Queue) -> float:
    """The time after which a submission that SLURM does not show cannot arrive, in seconds since the epoch."""
    hidden = queue.find(job)
    return job.array.since + (86400 * HIDDEN_DAYS if hidden and hidden.state == HIDDEN else GRACE)


def _give_work(array: Array, logs: Path) -> None:
    """Rename submitit's pickle files to the job ids, as submitit does once sbatch answers."""
    from submitit.core.utils import DelayedSubmission

    for path in logs.glob("*.pkl"):
        if "_" in path.name:
            continue  # renamed already
        with suppress(Exception):  # such as a pickle of other code: the job then ends without work and is shown as lost
            index = DelayedSubmission.load(path).function.job.index  # type: ignore[attr-defined]
            path.rename(path.with_name(f"{array.job_of(index)}_submitted.pkl"))


def submit(
    job: Job, functions: Sequence[Callable[[], object]], profile: Profile, resources: Resources, *, after: Iterable[str] = ()
) -> str:
    """Submit the array of a job, in one call; its SLURM job id.

    functions : one per job, called on the node without arguments
    after : ids of the jobs to wait for

    Raises UsageError with SLURM's message if it refuses, Unanswered if it may have accepted the array nevertheless.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    # submitit counts any stop of a job under ten minutes as a timeout; igpt counts timeouts itself, see `job.FRUITLESS`.
    executor = submitit.SlurmExecutor(job.logs, max_num_timeout=1_000_000, python=python_command(profile))
    executor.update_parameters(**job_parameters(job.array, profile, resources, after=after))
    try:
        # submitit would print a refusal a second time.
        with plain_shell(), redirect_stderr(io.StringIO()), executor.batch():
            jobs: list[submitit.Job[object]] = [executor.submit(function) for function in functions]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        message = " ".join(str(error).split()).removeprefix("sbatch: error: ")
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise UsageError(
                f"{job.ledger.folder} cannot take the jobs' files ({error.strerror}): make room, or set shared_folder to a disk"
                " that can be written, and submit again"
            ) from None
        if job.was_sent and not _refused(error):
            raise Unanswered(message or "sbatch was killed") from None
        if trouble := trouble_in(str(error)):
            raise Unreachable(f"nothing was submitted: {trouble}") from None
        todo = "mend the profile, `igpt doctor` says more"
        if TOO_MANY.search(message):
            todo = "wait until jobs of yours have ended, or submit fewer at once"
        raise UsageError(f"the scheduler refuses it ({message}): {todo}") from None
    return str(jobs[0].job_id).partition("_")[0]


def _refused(error: Exception) -> bool:
    """Whether sbatch has certainly submitted nothing."""
    code = error.__cause__.returncode if isinstance(error.__cause__, subprocess.CalledProcessError) else 0
    return code > 0 and REFUSED.search(str(error)) is not None and UNANSWERED.search(str(error)) is None


def python_command(profile: Profile) -> str:
    """The command that starts Python in a job; without srun with exec, so that Python receives the signal to the batch step."""
    python = profile.python or shlex.quote(sys.executable)
    return python if profile.srun else f"exec {python}"


def job_parameters(array: Array, profile: Profile, resources: Resources, *, after: Iterable[str] = ()) -> dict[str, object]:
    """The parameters of submitit, which writes the batch script from them."""
    grace = profile.signal_seconds
    options: dict[str, object] = {"requeue": True, **profile.gpu_options(resources), **resources.options}
    options["chdir"] = str(Project.here().root)  # independent of the folder of submission
    if not profile.srun:
        options["signal"] = f"B:USR2@{grace}"
    dependencies = dependency(after)
    exported = {
        "OMP_NUM_THREADS": str(resources.cpus),
        "SRUN_CPUS_PER_TASK": str(resources.cpus),  # since 22.05 srun ignores sbatch's value and binds a task to one core
        **profile.environment,
        "PYTHONPATH": array.snapshot,
        "PYTHONSAFEPATH": "1",  # else the working directory, a checkout that may have changed, comes first
        "IGPT_ROOT": array.snapshot,
    }
    parameters = {
        "job_name": array.title,
        **{name: getattr(resources, name) for name in ("partition", "account", "qos", "constraint")},
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cpus,
        "mem": f"{round(resources.memory_gib * 1024)}M" if resources.memory_gib else None,
        "signal_delay_s": grace,
        "array_parallelism": profile.at_once,
        "use_srun": profile.srun,
        "srun_args": ["--kill-on-bad-exit=1"] if resources.nodes > 1 else None,
        "setup": [
            "export IGPT_JOB_BEGUN=$(date +%s)",
            *profile.setup,
            *(f"export {name}={shlex.quote(value)}" for name, value in exported.items()),
        ],
        "additional_parameters": {**options, **({"dependency": dependencies} if dependencies else {})},
    }
    return {name: value for name, value in parameters.items() if value is not None}


def trial(parameters: dict[str, object]) -> str:
    """When sbatch would start a job with these parameters (``--test-only``). Raises UsageError if it refuses."""
    additional = parameters["additional_parameters"]
    assert isinstance(additional, dict)
    named = ("partition", "account", "qos", "constraint", "time", "nodes", "ntasks_per_node", "cpus_per_task", "mem")
    options = {**{name.replace("_", "-"): parameters[name] for name in named if name in parameters}, **additional}
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    process = ask("sbatch", "--test-only", *words, "--wrap", "true")
    printed = " ".join(process.stderr.split()).removeprefix("sbatch: ").removeprefix("allocation failure: ")
    if process.returncode:
        raise UsageError(trouble_in(process.stderr) or f"{printed}: mend the profile")
    start = re.search(r"to start at (\S+)", printed)
    return f"would start at {start[1]}" if start else printed


def cancel(numbers: Iterable[str]) -> None:
    """Cancel jobs by their ids, in one call."""
    if sorted_numbers := sorted(set(numbers)):
        call("scancel", "--quiet", *sorted_numbers)


def call(*command: str, seconds: float = SECONDS) -> str:
    """The output of a SLURM command. Raises UsageError if it fails, Unreachable if it cannot reach the controller."""
    process = ask(*command, seconds=seconds)
    if process.returncode:
        if trouble := trouble_in(process.stderr):
            raise Unreachable(trouble)
        printed = " ".join(process.stderr.rpartition("fatal: ")[2].split())
        raise UsageError(f"{command[0]} refuses ({printed}): see whether the scheduler is up, `sinfo` says")
    return process.stdout


def ask(*command: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command. Raises Unreachable if it is not installed or exceeds its time limit."""
    try:
        with plain_shell():
            return subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except FileNotFoundError:
        raise Unreachable(NO_SCHEDULER) from None
    except subprocess.TimeoutExpired as error:
        printed = error.stderr.decode(errors="replace") if error.stderr else ""
        raise Unreachable(trouble_in(printed) or trouble_in(f"{command[0]}: timed out after {seconds:g} s")) from None


def trouble_in(printed: str) -> str:
    """Why a command could not reach SLURM, from its output, with the remedy; empty for other errors."""
    for pattern, remedy in UNREACHABLE.items():
        lines = [line for line in printed.splitlines() if re.search(pattern, line, re.IGNORECASE)]
        for line in [line for line in lines if "If munged is up" not in line] or lines:
            return f"{remedy} ({re.sub(r'^(.*? )?error: |^[a-z]+: ', '', line.strip())})"
    return ""


@contextmanager
def plain_shell() -> Iterator[None]:
    """Context manager that removes the variables of `NOT_OURS` from the environment."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if NOT_OURS.match(name)}
    try:
        yield
    finally:
        os.environ.update(kept)
