"""The ledger of submitted jobs: one file per array, and one status file per job.

The files are in ``runs/.jobs`` of the run root. All nodes share that folder, so all users and login nodes read the same
ledger. An array's file is written before the array is submitted and completed afterwards, so that every job has a file.
"""

from __future__ import annotations

import json
import os
import platform
import pwd
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from igpt.companion.run.folder import folder_record
from igpt.companion.slurm.profile import Resources, Strict, shared_run_roots
from igpt.errors import UsageError
from igpt.files import write_text
from igpt.project import Project

State = Literal["running", "done", "failed", "stopped", "cancelled"]
FINAL = ("done", "failed", "cancelled")  # states that a job does not leave
QUEUED_AGAIN = ": queued again"  # suffix of the reason of a stopped job that is requeued
PATIENCE = 120.0  # seconds that a submission waits for the lock


class Listed(Strict):
    """One stage of an array: its name, its folder under ``runs``, and its planned GPU-hours."""

    name: str
    folder: str
    planned: float


class Array(Strict):
    """One job array, or a single job. ``job`` is SLURM's job id; None until it is known.

    number : increases from array to array; orders arrays, since the clocks of login nodes differ
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
        """The user who submitted the array."""
        return self.by.rpartition(" on ")[0]

    @property
    def since(self) -> float:
        """Time of submission, in seconds since the epoch; 0 if it cannot be parsed."""
        try:
            return datetime.fromisoformat(self.submitted).timestamp()
        except ValueError:
            return 0.0

    @property
    def title(self) -> str:
        """The SLURM job name, by which the jobs are found again."""
        return f"igpt-{self.token}"

    def job_of(self, index: int) -> str | None:
        """The SLURM job id of the job at ``index``; None until it is known."""
        return self.job if self.job is None or len(self.stages) == 1 else f"{self.job}_{index}"


class JobStatus(Strict):
    """The status that a job writes. ``seconds`` is the working time of all its sessions so far."""

    state: State
    why: str = ""
    host: str = ""
    sessions: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Ledger:
    """The arrays of one run root, in files under ``folder``."""

    run_root: Project

    @property
    def folder(self) -> Path:
        """The folder of the ledger's files."""
        return self.run_root.runs / ".jobs"

    def arrays(self) -> list[Array]:
        """All arrays, oldest first. Raises UsageError for a file that does not describe an array."""
        arrays = []
        for path in self.folder.glob("*.json"):
            try:
                arrays.append(Array.model_validate_json(path.read_bytes()))
            except FileNotFoundError:
                pass  # withdrawn meanwhile
            except ValueError:
                raise UsageError(f"{path} does not describe jobs: move it away; its jobs are then unknown to igpt") from None
        return sorted(arrays, key=lambda array: (array.number, array.token))

    def jobs(self) -> list[Job]:
        """All jobs, oldest first."""
        return [Job(self, array, index) for array in self.arrays() for index in range(len(array.stages))]

    def latest(self) -> dict[str, Job]:
        """The latest job of each stage, by the name of the stage's folder."""
        return {job.listed.folder: job for job in self.jobs()}

    def write(self, array: Array) -> None:
        """Write an array's file."""
        write_text(self.folder / f"{array.token}.json", json.dumps(array.model_dump(), indent=1) + "\n")

    def withdraw(self, array: Array) -> None:
        """Delete the file of an array that the scheduler has refused."""
        (self.folder / f"{array.token}.json").unlink(missing_ok=True)

    def busy(self) -> bool:
        """Whether a submission holds the lock; False if this user may not lock the ledger."""
        try:
            with self.alone(patience=0.2):
                return False
        except UsageError:
            return True
        except OSError:
            return False

    @contextmanager
    def alone(self, patience: float = PATIENCE) -> Iterator[None]:
        """Lock the ledger for one submission. Raises UsageError if the lock is not free within ``patience`` seconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=patience, mode=0o666):
                yield
        except Timeout:
            raise UsageError(f"another submission has held {self.folder} for two minutes: wait for it, or end it") from None


@dataclass(frozen=True)
class Job:
    """One job of an array. It runs the stage at ``index``."""

    ledger: Ledger
    array: Array
    index: int

    @property
    def listed(self) -> Listed:
        """The entry of the job's stage."""
        return self.array.stages[self.index]

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.listed.name

    @property
    def folder(self) -> Path:
        """The stage's run folder."""
        return self.ledger.run_root.runs / self.listed.folder

    @property
    def number(self) -> str | None:
        """The SLURM job id; None until it is known."""
        return self.array.job_of(self.index)

    @property
    def logs(self) -> Path:
        """The folder of the array's logs and status files."""
        return self.ledger.folder / self.array.token

    @property
    def profile_path(self) -> Path:
        """A copy of the profile at submission, used if the profile's own file is deleted."""
        return self.logs / "profile.json"

    @property
    def was_sent(self) -> bool:
        """Whether sbatch may have been called: submitit writes the batch script just before."""
        return any(self.logs.glob(".submission_file_*.sh"))

    @property
    def words(self) -> set[str | None]:
        """The words that select the job on the command line: its stage, its notebook, its job id and its array's."""
        return {self.name, self.name.partition(",")[0], self.array.job, self.number}

    @property
    def finished(self) -> bool:
        """Whether the stage's folder has a valid record of the stage's signature."""
        try:
            return folder_record(self.folder) is not None
        except UsageError:
            return False

    @property
    def damaged_record(self) -> Path | None:
        """The path of the record if it exists and is not valid; else None."""
        path = self.folder / "record.json"
        return path if path.exists() and not self.finished else None

    @property
    def status(self) -> JobStatus | None:
        """The job's last status; None before its first, and for a damaged file."""
        try:
            return JobStatus.model_validate_json(self.status_path.read_bytes())
        except (OSError, ValueError):
            return None

    @property
    def status_path(self) -> Path:
        """The file to which the job writes its status."""
        return self.logs / f"mark-{self.index}.json"

    @property
    def state(self) -> str:
        """The state in the job's last status; empty before its first."""
        status = self.status
        return status.state if status else ""

    @property
    def last_sign(self) -> float:
        """Time of the last status, or of submission if that is later, in seconds since the epoch."""
        with suppress(OSError):
            return max(self.array.since, self.status_path.stat().st_mtime)
        return self.array.since

    @property
    def end(self) -> str:
        """The final SLURM state of the job, such as TIMEOUT; empty if igpt never observed its end."""
        try:
            return (self.logs / f"end-{self.index}").read_text()
        except (OSError, ValueError):
            return ""

    def keep_end(self, state: str) -> None:
        """Save the final SLURM state, which SLURM itself forgets after minutes."""
        if self.end != state:
            write_text(self.logs / f"end-{self.index}", state)

    def log_path(self, kind: Literal["out", "err"] = "err") -> Path | None:
        """The path of the job's log, whether it exists or not; None before the job has an id."""
        return self.logs / f"{self.number}_0_log.{kind}" if self.number else None

    def log(self, kind: Literal["out", "err"] = "err") -> Path | None:
        """The path of the job's log if it exists; else None."""
        path = self.log_path(kind)
        return path if path is not None and path.exists() else None

    @property
    def never_began(self) -> bool:
        """Whether the job has written neither a status nor a log."""
        return self.status is None and self.log() is None


def new_array(stages: Sequence[Listed], asked: Resources, *, number: int, profile: str, snapshot: Project) -> Array:
    """An array that is not submitted yet."""
    return Array(
        token=secrets.token_hex(6),
        number=number,
        job=None,
        profile=profile,
        snapshot=str(snapshot.root),
        submitted=datetime.now(UTC).isoformat(timespec="milliseconds"),
        by=f"{user()} on {platform.node()}",
        gpus=asked.gpus,
        nodes=asked.nodes,
        minutes=asked.minutes,
        stages=tuple(stages),
    )


def one_per_array(jobs: Iterable[Job]) -> list[Job]:
    """The first job of each array."""
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.array.token, job)
    return list(first.values())


def user() -> str:
    """The user's name by the process's user id, as SLURM determines it; environment variables are ignored."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def clock(seconds: float) -> str:
    """A time in seconds since the epoch as local date and time, for messages."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def run_roots(project: Project) -> list[Project]:
    """The run roots that may have jobs of this checkout: itself, shared folders it submitted to, and those of its profiles."""
    roots = {project.runs.resolve(): project}
    for root in [*_remembered(project), *shared_run_roots(project)]:
        with suppress(OSError):  # an unmounted disk, or a folder without permission
            if Ledger(root).folder.is_dir():
                roots.setdefault(root.runs.resolve(), root)
    return list(roots.values())


def _remembered(project: Project) -> list[Project]:
    """The shared folders to which this checkout has submitted."""
    path = project.runs / ".shared-folders"
    return [Project(Path(line)) for line in (path.read_text().splitlines() if path.exists() else [])]


def remember_run_root(project: Project, run_root: Project) -> None:
    """Remember a shared folder, so that `igpt status` reads it even after its profile is changed or deleted."""
    if run_root not in [project, *_remembered(project)]:
        project.runs.mkdir(parents=True, exist_ok=True)
        with (project.runs / ".shared-folders").open("a") as stream:  # appended: another submission may do so at once
            stream.write(f"{run_root.root}\n")
