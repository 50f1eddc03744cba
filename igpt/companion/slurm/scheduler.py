"""What is asked of SLURM: one call an array to submit, one a look, one to cancel. Every call has a limit of its own."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from igpt.companion.slurm.batches import dependency
from igpt.companion.slurm.ledger import Array, Ledger, clock, user
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.slurm.shell import plain_shell
from igpt.errors import UsageError
from igpt.files import NO_ROOM
from igpt.project import Project

SECONDS = 60.0  # that the scheduler has for an answer
OVER = {  # SLURM's words for a job that will do nothing more
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED"),
    "PREEMPTED",
}
HIDDEN = "HIDDEN"  # our word for another user's job that may be at work, where the scheduler does not say
# Seconds in which a submission without an answer may still arrive: sbatch itself goes on trying for two minutes. A job that
# arrives later still finds nothing to do, since submitit's file of its work is put in its place by its number only.
GRACE = 150.0
HIDDEN_DAYS = 7.0  # that another user's hidden job may wait in the queue before it counts as gone
UNANSWERED = re.compile(  # what sbatch says when it does not know either whether the job was taken
    r"unable to contact|timed out|unexpected message|not connected|connection (failure|reset|refused|closed)|broken pipe"
    r"|(send|receive|shutdown|communication\w*) failure|zero bytes|temporarily unavailable|no route to host|interrupted",
    re.IGNORECASE,
)
REFUSED = re.compile(r"error: |fatal: |unrecognized option|invalid option|requires an argument")
UNREACHABLE = {  # what SLURM's commands print when they do not get as far as its controller; what that means, and what to do
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
TOO_MANY = re.compile(r"(QOS|Assoc)\w*Submit|unable to accept job", re.IGNORECASE)  # whatever the profile asks for
REASONS = {  # SLURM's word for why a job has not begun, and what it means; one that begins with "held" lets none begin by itself
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


@dataclass(frozen=True)
class Queued:
    """A job as the scheduler sees it."""

    job: str
    state: str
    reason: str = ""
    seconds: float = 0.0  # since it began, this time
    node: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended for good."""
        return self.state in OVER

    @property
    def waits(self) -> str:
        """Why it has not begun, in words with SLURM's own beside them; empty when it has begun."""
        if self.over or self.state in ("RUNNING", HIDDEN):
            return ""
        reason = self.reason.replace("_", " ")  # newer schedulers write it so
        for word in (self.state, reason):
            for pattern, means in REASONS.items():
                if re.fullmatch(pattern, word, re.IGNORECASE):
                    mend = "`igpt cancel` it, change the profile and `igpt resume`"
                    return f"{means.format(job=self.job, mend=mend)} ({reason or self.state})"
        return f"waits ({reason})" if reason else "waits"

    @property
    def held(self) -> str:
        """The same of a job that will never begin by itself; empty for others."""
        return self.waits if self.waits.startswith("held") else ""


class Unreachable(UsageError):
    """The scheduler could not be asked."""


class Unanswered(UsageError):
    """Whether a submission has arrived is not known."""


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
        raise Unreachable(NO_SCHEDULER)


def look(ledger: Ledger, arrays: Sequence[Array], *, seconds: float = SECONDS) -> Queue:
    """Ask for all of the arrays at once. Raises Unreachable when there is no scheduler, or it does not answer in time.

    seconds : that each of its commands has for an answer

    Where ``PrivateData`` hides the jobs of others, theirs are in the answer as `HIDDEN` for as long as nothing says that
    they have ended; see `_hidden`.
    """
    if not arrays:
        return Queue({}, {})
    names = ",".join(array.title for array in arrays)
    answer = call("squeue", "-h", "-r", "-t", "all", "-n", names, "-o", "%j|%F|%K|%T|%M|%N|%r", seconds=seconds)
    jobs: dict[tuple[str, int], Queued] = {}
    numbers: dict[str, str] = {}
    for line in answer.splitlines():
        title, number, place, state, time_used, node, reason = line.split("|", 6)
        index = int(place) if place.isdigit() else 0
        numbers[title] = number
        job = f"{number}_{index}" if place.isdigit() else number
        jobs[title, index] = Queued(job, state, "" if reason == "None" else reason, _seconds(time_used), node)
    absent = [array for array in arrays if array.title not in numbers]
    unknown = [array for array in absent if array.job is None]
    others = [array for array in absent if array.owner not in ("", user())]
    others = others if others and _private(seconds) else []
    if not unknown and not others:
        return Queue(jobs, numbers)
    known = accounted([*unknown, *others], seconds=seconds)
    numbers |= {array.title: known.numbers[array.title] for array in unknown if array.title in known.numbers}
    for array in others:
        for index in range(len(array.stages)):
            if hidden := _hidden(ledger, array, index, known.find(array, index)):
                jobs[array.title, index] = hidden
    return Queue(jobs, numbers)


def _seconds(time_used: str) -> float:
    """SLURM's [days-][hours:]minutes:seconds in seconds; 0 for what is none."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", time_used)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _private(seconds: float) -> bool:
    """Whether the scheduler hides the jobs of others; its answer is not the whole then."""
    found = re.search(r"^PrivateData\s*= (.*)$", call("scontrol", "show", "config", seconds=seconds), re.MULTILINE)
    return found is not None and bool({"jobs", "all"} & set(found[1].lower().split(",")))


def _hidden(ledger: Ledger, array: Array, index: int, said: Queued | None) -> Queued | None:
    """Another user's job that squeue does not show, while it counts as at work; None once it is known to have ended.

    What counts is, in this order: its own last word, the accounting, what its owner's commands saw of its end, and time. A
    job that has said it runs counts until its limit of minutes after its last word, one that waits for `HIDDEN_DAYS` after
    that, or after its submission.
    """
    mark = ledger.mark(array.token, index)
    if mark and (mark.state in ("done", "failed", "cancelled") or (mark.state == "stopped" and "queued again" not in mark.why)):
        return None
    end = ledger.end(array.token, index)
    if (said is not None and said.over) or end in OVER - {"PREEMPTED", "NODE_FAIL"}:  # after which it may be queued again
        return None
    runs = mark is not None and mark.state == "running"
    until = ledger.last_sign(array, index) + (60 * array.minutes if runs else 86400 * HIDDEN_DAYS)
    if said is None and time.time() > until:
        return None
    counts = "" if said else f": it counts as queued or running until {clock(until)}, or until {array.owner} runs `igpt cancel`"
    return Queued(array.job_of(index) or array.title, HIDDEN, f"a job of {array.owner} that PrivateData hides{counts}")


def accounted(arrays: Sequence[Array], *, seconds: float = SECONDS) -> Queue:
    """What the accounting knows of arrays; nothing where there is none, or it does not answer."""
    if not arrays:
        return Queue({}, {})
    names = ",".join(array.title for array in arrays)
    first = datetime.fromtimestamp(min(array.since for array in arrays)) - timedelta(days=1)
    begin = max(first, datetime(1971, 1, 1)).strftime("%Y-%m-%d")
    # An end in the future, or sacct leaves out what was not to begin yet.
    command = ("sacct", "-a", "-n", "-X", "-P", "-S", begin, "-E", "now+366days", f"--name={names}")
    try:
        answer = call(*command, "-o", "JobName,JobID,State,ElapsedRaw,NodeList", seconds=seconds)
    except UsageError:
        return Queue({}, {})
    found: dict[tuple[str, int | None], Queued] = {}
    for line in answer.splitlines():
        title, job, state, elapsed, node = line.split("|", 4)
        place = job.partition("_")[2]
        index = int(place) if place.isdigit() else None  # of all places of an array that have no line of their own
        began = 0.0 if node == "None assigned" or not elapsed.isdigit() else float(elapsed)
        found[title, index] = Queued(job, state.partition(" ")[0], "", began, "" if node == "None assigned" else node)
    places = {(array.title, index): array.job_of(index) for array in arrays for index in range(len(array.stages))}
    jobs = {
        (title, index): replace(said, job=job or said.job)
        for (title, index), job in places.items()
        if (said := found.get((title, index)) or found.get((title, None)))
    }
    return Queue(jobs, {title: said.job.partition("_")[0] for (title, _), said in found.items()})


def settle(ledger: Ledger, arrays: Sequence[Array], queue: Queue) -> list[Array]:
    """Settle submissions that were cut off or had no answer; those of which it is still not known whether they arrived.

    One that has arrived gets its number, and its jobs their work. Only for who holds the ledger alone.
    """
    unknown = []
    for array in arrays:
        if array.job is not None:
            continue
        if number := number_of(ledger, array, queue):
            _give_work(ledger, array, number)
            ledger.write(array.model_copy(update={"job": number}))
        elif may_arrive(ledger, array, queue):
            unknown.append(array)
        else:
            ledger.withdraw(array)
    return unknown


def number_of(ledger: Ledger, array: Array, queue: Queue) -> str | None:
    """The scheduler's number of an array that has none in the ledger yet, from the queue, the accounting or its logs."""
    return queue.numbers.get(array.title) or ledger.number_on_disk(array)


def may_arrive(ledger: Ledger, array: Array, queue: Queue) -> bool:
    """Whether a submission of which nothing is to be seen may still have arrived."""
    return ledger.was_sent(array) and time.time() < settled_by(array, queue)


def settled_by(array: Array, queue: Queue) -> float:
    """When the scheduler's word that there is no such job counts for good, in seconds of the epoch."""
    hidden = queue.find(array, 0)
    return array.since + (86400 * HIDDEN_DAYS if hidden and hidden.state == HIDDEN else GRACE)


def _give_work(ledger: Ledger, array: Array, number: str) -> None:
    """Put submitit's files of the jobs' work where they look for it, as it would have done with an answer."""
    from submitit.core.utils import DelayedSubmission

    numbered = array.model_copy(update={"job": number})
    for path in ledger.logs(array.token).glob("*.pkl"):
        if "_" in path.name:
            continue  # in its place
        with suppress(Exception):  # of other code than this, say: then the job ends without its work, and is shown as lost
            index = DelayedSubmission.load(path).function.index  # type: ignore[attr-defined]
            path.rename(path.with_name(f"{numbered.job_of(index)}_submitted.pkl"))


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

    Raises UsageError with the scheduler's words when it refuses, Unanswered when it may have taken the array nevertheless.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    # submitit counts any stop of a job under ten minutes as a timeout; the jobs themselves say when it is enough.
    executor = submitit.SlurmExecutor(ledger.logs(array.token), max_num_timeout=1_000_000, python=python_command(profile))
    executor.update_parameters(**job_parameters(array, profile, resources, after=after, root=root))
    try:
        # A refusal would otherwise be printed here a second time.
        with plain_shell(), redirect_stderr(io.StringIO()), executor.batch():
            jobs: list[submitit.Job[object]] = [executor.submit(function) for function in functions]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = " ".join(str(error).split()).removeprefix("sbatch: error: ")
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise UsageError(
                f"{ledger.folder} cannot take the jobs' files ({error.strerror}): make room, or set shared_folder to a disk that"
                " can be written, and submit again"
            ) from None
        if ledger.was_sent(array) and not _refused(error):
            raise Unanswered(said or "sbatch was killed") from None
        if trouble := trouble_in(str(error)):
            raise Unreachable(f"nothing was submitted: {trouble}") from None
        todo = "mend the profile, `igpt doctor` says more"
        if TOO_MANY.search(said):
            todo = "wait until jobs of yours have ended, or submit fewer at once"
        raise UsageError(f"the scheduler refuses it ({said}): {todo}") from None
    return str(jobs[0].job_id).partition("_")[0]


def _refused(error: Exception) -> bool:
    """Whether sbatch's end says for certain that it has submitted nothing."""
    code = error.__cause__.returncode if isinstance(error.__cause__, subprocess.CalledProcessError) else 0
    return code > 0 and REFUSED.search(str(error)) is not None and UNANSWERED.search(str(error)) is None


def python_command(profile: Profile) -> str:
    """What starts Python in a job; without srun the shell becomes it, so that the batch step's signal reaches it."""
    python = profile.python or shlex.quote(sys.executable)
    return python if profile.srun else f"exec {python}"


def job_parameters(
    array: Array, profile: Profile, resources: Resources, *, after: Iterable[str], root: Project
) -> dict[str, object]:
    """What submitit is given, from which it writes the sbatch file."""
    grace = profile.signal_seconds
    options: dict[str, object] = {"requeue": True, **profile.gpu_options(resources), **resources.options}
    options["chdir"] = str(Project.here().root)  # from wherever it is submitted
    if not profile.srun:
        options["signal"] = f"B:USR2@{grace}"
    waits = dependency(after)
    wanted = {
        "job_name": array.title,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
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
        "OMP_NUM_THREADS": str(resources.cpus),
        "SRUN_CPUS_PER_TASK": str(resources.cpus),  # from 22.05 on, srun forgets sbatch's, and binds a task to one core
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


def call(*command: str, seconds: float = SECONDS) -> str:
    """What a command of the scheduler prints. Raises UsageError when it refuses, Unreachable when it could not be asked."""
    try:
        with plain_shell():
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except FileNotFoundError:
        raise Unreachable(NO_SCHEDULER) from None
    except subprocess.TimeoutExpired as error:
        said = error.stderr.decode(errors="replace") if error.stderr else ""
        raise Unreachable(trouble_in(said) or trouble_in(f"{command[0]}: timed out after {seconds:g} s")) from None
    if done.returncode:
        if trouble := trouble_in(done.stderr):
            raise Unreachable(trouble)
        said = " ".join(done.stderr.rpartition("fatal: ")[2].split())
        raise UsageError(f"{command[0]} refuses ({said}): see whether the scheduler is up, `sinfo` says")
    return done.stdout


def trouble_in(said: str) -> str:
    """Why the scheduler could not be asked, from what a command of its printed; empty when it could."""
    for pattern, means in UNREACHABLE.items():
        lines = [line for line in said.splitlines() if re.search(pattern, line, re.IGNORECASE)]
        for line in [line for line in lines if "If munged is up" not in line] or lines:
            return f"{means} ({re.sub(r'^(.*? )?error: |^[a-z]+: ', '', line.strip())})"
    return ""


NO_SCHEDULER = (
    "there is no SLURM here: log in where sbatch is, or run slurm/local-cluster up; `igpt run` and `igpt submit --profile local`"
    " need none"
)
