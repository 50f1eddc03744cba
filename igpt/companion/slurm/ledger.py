"""What was submitted and what became of it: a small file for each array, and one for each of its jobs.

They lie under ``runs/.jobs`` of the folder that all nodes share, so every user of it, and every login node, sees the same.
An array's file is written before the scheduler is asked and completed afterwards: no job is ever without one.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from igpt.companion.run.folder import folder_record
from igpt.companion.slurm.profile import shared_homes
from igpt.errors import UsageError
from igpt.files import write_text
from igpt.project import Project

State = Literal["running", "done", "failed", "stopped", "cancelled"]
PATIENCE = 120.0  # seconds that one submission waits for another


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Listed(_Strict):
    """One stage of an array: its name, its folder under ``runs``, and GPU-hours as planned."""

    name: str
    folder: str
    planned: float


class Array(_Strict):
    """One array of jobs, or one job. ``job`` is the scheduler's number; None until it has given one.

    number : counts up from array to array; times would not do, since clocks differ
    """

    token: str
    number: int
    job: str | None
    profile: str
    snapshot: str
    submitted: str
    by: str
    gpus: int
    nodes: int
    minutes: int
    stages: tuple[Listed, ...]

    @property
    def owner(self) -> str:
        """The user who submitted it."""
        return self.by.rpartition(" on ")[0]

    @property
    def since(self) -> float:
        """When it was submitted, in seconds of the epoch; 0 when that cannot be read."""
        try:
            return datetime.fromisoformat(self.submitted).timestamp()
        except ValueError:
            return 0.0

    @property
    def title(self) -> str:
        """The jobs' name at the scheduler, by which they are found again."""
        return f"igpt-{self.token}"

    def job_of(self, index: int) -> str | None:
        """The scheduler's number of one of the jobs."""
        return self.job if self.job is None or len(self.stages) == 1 else f"{self.job}_{index}"


class JobStatus(_Strict):
    """What a job says of itself. ``seconds`` are those of all its sessions, as of the last word."""

    state: State
    why: str = ""
    host: str = ""
    sessions: int = 0
    seconds: float = 0.0


class Ledger:
    """The arrays of one shared folder."""

    def __init__(self, home: Project) -> None:
        self.home = home
        self.folder = home.runs / ".jobs"

    def arrays(self) -> list[Array]:
        """All of them, oldest first. Raises UsageError for a file that is not one."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                found.append(Array.model_validate_json(path.read_bytes()))
            except FileNotFoundError:
                pass  # withdrawn since
            except (ValidationError, ValueError):
                raise UsageError(f"{path} does not describe jobs: move it away; its jobs are then unknown to igpt") from None
        return sorted(found, key=lambda array: (array.number, array.token))

    def latest(self) -> dict[str, tuple[Array, int]]:
        """The last job of each stage, by the stage's folder."""
        return {listed.folder: (array, index) for array in self.arrays() for index, listed in enumerate(array.stages)}

    def finished(self, folder: str) -> bool:
        """Whether a stage is done, by its folder: a valid record of its signature stands there."""
        try:
            return folder_record(self.home.runs / folder) is not None
        except UsageError:
            return False

    def damaged(self, folder: str) -> Path | None:
        """The file in the place of a stage's record that is no valid one of it; None when there is no such file."""
        path = self.home.runs / folder / "record.json"
        return path if path.exists() and not self.finished(folder) else None

    def write(self, array: Array) -> None:
        """Keep an array as it now is."""
        write_text(self.folder / f"{array.token}.json", json.dumps(array.model_dump(), indent=1) + "\n")

    def withdraw(self, array: Array) -> None:
        """Forget an array that the scheduler has refused."""
        (self.folder / f"{array.token}.json").unlink(missing_ok=True)

    def logs(self, token: str) -> Path:
        """Where an array's jobs write."""
        return self.folder / token

    def profile_path(self, token: str) -> Path:
        """The profile with which an array was submitted, for when its own file has gone."""
        return self.logs(token) / "profile.json"

    def was_sent(self, array: Array) -> bool:
        """Whether sbatch can have been called for it: submitit writes the script just before."""
        return any(self.logs(array.token).glob(".submission_file_*.sh"))

    def number_on_disk(self, array: Array) -> str | None:
        """The scheduler's number of an array, from the names of logs that its jobs have written; None without any."""
        names = (path.name for path in self.logs(array.token).glob("*_log.*"))
        return next((number for name in sorted(names) if (number := name.partition("_")[0]).isdigit()), None)

    def last_sign(self, array: Array, index: int) -> float:
        """When a job last said anything, or was submitted: seconds of the epoch."""
        try:
            return max(array.since, self.mark_path(array.token, index).stat().st_mtime)
        except OSError:
            return array.since

    def mark_path(self, token: str, index: int) -> Path:
        """Where a job says what it does."""
        return self.logs(token) / f"mark-{index}.json"

    def mark(self, token: str, index: int) -> JobStatus | None:
        """What a job said last; None before its first word."""
        try:
            return JobStatus.model_validate_json(self.mark_path(token, index).read_bytes())
        except (OSError, ValueError):
            return None

    def keep_end(self, token: str, index: int, state: str) -> None:
        """Keep how the scheduler says that a job has ended, since it forgets that after minutes."""
        if self.end(token, index) != state:
            write_text(self._end_path(token, index), state)

    def end(self, token: str, index: int) -> str:
        """How the scheduler once said that a job has ended, in its own word; empty when it was not seen."""
        try:
            return self._end_path(token, index).read_text()
        except (OSError, ValueError):
            return ""

    def _end_path(self, token: str, index: int) -> Path:
        return self.logs(token) / f"end-{index}"

    def log(self, array: Array, index: int, kind: Literal["out", "err"] = "err") -> Path | None:
        """A job's log, if it has written one."""
        path = self.log_path(array, index, kind)
        return path if path is not None and path.exists() else None

    def log_path(self, array: Array, index: int, kind: Literal["out", "err"] = "err") -> Path | None:
        """Where a job's log is, or will be; None before the job has a number."""
        job = array.job_of(index)
        return self.logs(array.token) / f"{job}_0_log.{kind}" if job else None

    def busy(self) -> bool:
        """Whether a submission is at work; not, as far as is known, where this user may not lock."""
        try:
            with self.alone(patience=0.2):
                return False
        except UsageError:
            return True
        except OSError:
            return False

    @contextmanager
    def alone(self, patience: float = PATIENCE) -> Iterator[None]:
        """One submission at a time, or two of them could submit the same.

        patience : seconds to wait for another. Raises UsageError when it is at work for longer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=patience, mode=0o666):
                yield
        except Timeout:
            raise UsageError(
                f"another submission has been at work in {self.folder} for minutes: wait for it, or end it"
            ) from None


def user() -> str:
    """Who asks, as the scheduler sees it: by the process, not by what the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def clock(seconds: float) -> str:
    """A time of the epoch, for a sentence."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def arrays_of(jobs: Iterable[tuple[Array, int]]) -> list[Array]:
    """The arrays of some jobs, once each."""
    return list({array.token: array for array, _ in jobs}.values())


def homes(project: Project) -> list[Project]:
    """The folders that jobs of this checkout may lie in: its own, the shared ones it submitted from, and its profiles'."""
    found = {project.runs.resolve(): project}
    for home in [*_remembered(project), *shared_homes(project)]:
        with suppress(OSError):  # of a disk that is away, or of another user
            if Ledger(home).folder.is_dir():
                found.setdefault(home.runs.resolve(), home)
    return list(found.values())


def _remembered(project: Project) -> list[Project]:
    """Shared folders that this checkout has submitted from."""
    path = project.runs / ".shared-folders"
    return [Project(Path(line)) for line in (path.read_text().splitlines() if path.exists() else [])]


def remember_home(project: Project, home: Project) -> None:
    """Have `igpt status` and the like find what is submitted from a shared folder, whatever becomes of the profile."""
    known = _remembered(project)
    if home not in [project, *known]:
        write_text(project.runs / ".shared-folders", "".join(f"{each.root}\n" for each in [*known, home]))


def scheduler_word(log: Path | None) -> str:
    """Why the scheduler ended a job, from what it wrote into the job's log; empty when it gives no reason.

    The only evidence where there is no accounting.
    """
    lines = _last_lines(log)
    said = [line for line in lines if _SCHEDULERS.match(line)]
    for word, why in _WORDS.items():
        if any(word.lower() in line.lower() for line in said):
            return why
    if any("No space left on device" in line for line in lines):  # so that the job could not say so itself
        return DISK_WAS_FULL
    # Of the batch script; a step is cancelled for other reasons too. A requeued job's line has a reason.
    ends = [line for line in said if re.search(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT", line)]
    return BY_SCANCEL if ends and "DUE TO" not in ends[-1] else ""


def last_word(log: Path | None) -> str:
    """What a job's processes wrote last before they ended by themselves, else how srun says that they ended."""
    lines = _last_lines(log)
    ends = [found for line in lines if (found := _TASK.match(line)) and found[3] != "Terminated"]
    if not ends or log is None:
        own = _own_line(lines)
        said = [line.partition("error: ")[2] for line in lines if _SCHEDULERS.match(line) and "***" not in line]
        return own if _MISHAP.search(own) else said[-1] if said else ""
    own = _own_line(_last_lines(_log_of_task(log, ends[-1][2]))) if ends[-1][3].startswith("Exited") else ""
    return own or ends[-1][1]


def member_word(log: Path | None) -> str:
    """As `last_word`, where it was one of the further nodes that ended first by itself; empty otherwise."""
    lines = _last_lines(log)
    ends = [found for line in lines if (found := _TASK.match(line)) and found[3].startswith("Exited")]
    if log is None or not ends or ends[0][2] == "0" or any("*** JOB" in line for line in lines):
        return ""
    return _own_line(_last_lines(_log_of_task(log, ends[0][2]))) or ends[0][1]


def _log_of_task(log: Path, task: str) -> Path:
    """The log of another of a job's tasks."""
    return log.with_name(log.name.replace("_0_log", f"_{task}_log"))


def _last_lines(log: Path | None) -> list[str]:
    """The last lines of a log; none without it."""
    if log is None or not log.exists():
        return []
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8000))
        return stream.read().decode(errors="replace").splitlines()


def _own_line(lines: list[str]) -> str:
    """The last line that says what the job itself met: neither of srun's, nor of submitit's, nor that it was ended."""
    own = [line for line in lines if line.strip() and not re.match(r"srun: |submitit |slurmstepd.*\*\*\*", line)]
    return re.sub(r"^slurmstepd\S*: error: ", "", own[-1]).strip() if own else ""


MEMORY = "killed for memory: raise memory_gib in the profile"
NODE = "its node was lost"
DISK_WAS_FULL = "its disk was full: make room"
BY_SCANCEL = "by scancel"
_SCHEDULERS = re.compile(r"(slurmstepd\S*|srun): error: ")
_TASK = re.compile(r"srun: error: (\S+: tasks? (\d+)\S*: (.+))")
_MISHAP = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b|not found|No such file|denied|[Cc]annot")
_WORDS = {
    "exceeded job memory limit": MEMORY,
    "exceeded memory limit": MEMORY,
    "oom-kill": MEMORY,
    "DUE TO TIME LIMIT": "its time limit came",
    "DUE TO PREEMPTION": "preempted",
    "DUE TO NODE FAILURE": NODE,
    "NODE FAIL": NODE,
}
