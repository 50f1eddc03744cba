"""What was submitted and what became of it: a file per array, and a status file per job.

They are in ``runs/.jobs`` of the run root, the folder that all nodes write, so every user and every login node sees the same.
An array's file is written before the scheduler is asked and completed afterwards: no job is ever without one.
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
FINAL = ("done", "failed", "cancelled")  # states after which a job writes no other
QUEUED_AGAIN = ": queued again"  # how the reason of a stopped job ends that will continue
PATIENCE = 120.0  # seconds that one submission waits for another


class Listed(Strict):
    """One stage of an array: its name, its folder under ``runs``, and its planned GPU-hours."""

    name: str
    folder: str
    planned: float


class Array(Strict):
    """One job array, or one job. ``job`` is the scheduler's number; None until it is known.

    number : counts up from array to array, since the clocks of login nodes differ
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


class JobStatus(Strict):
    """What a job has written about itself. ``seconds`` are those of all its sessions so far."""

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
        """Where they are."""
        return self.run_root.runs / ".jobs"

    def arrays(self) -> list[Array]:
        """All arrays, oldest first. Raises UsageError for a file that does not describe one."""
        arrays = []
        for path in self.folder.glob("*.json"):
            try:
                arrays.append(Array.model_validate_json(path.read_bytes()))
            except FileNotFoundError:
                pass  # withdrawn since
            except ValueError:
                raise UsageError(f"{path} does not describe jobs: move it away; its jobs are then unknown to igpt") from None
        return sorted(arrays, key=lambda array: (array.number, array.token))

    def jobs(self) -> list[Job]:
        """All jobs, oldest first."""
        return [Job(self, array, index) for array in self.arrays() for index in range(len(array.stages))]

    def latest(self) -> dict[str, Job]:
        """The last job of each stage, by the stage's folder."""
        return {job.listed.folder: job for job in self.jobs()}

    def latest_in(self, folders: set[str]) -> list[Job]:
        """The last jobs of the stages with these folders."""
        return [job for folder, job in self.latest().items() if folder in folders]

    def write(self, array: Array) -> None:
        """Keep an array as it now is."""
        write_text(self.folder / f"{array.token}.json", json.dumps(array.model_dump(), indent=1) + "\n")

    def withdraw(self, array: Array) -> None:
        """Forget an array that the scheduler has refused."""
        (self.folder / f"{array.token}.json").unlink(missing_ok=True)

    def busy(self) -> bool:
        """Whether a submission is at work; False where this user may not lock."""
        try:
            with self.alone(patience=0.2):
                return False
        except UsageError:
            return True
        except OSError:
            return False

    @contextmanager
    def alone(self, patience: float = PATIENCE) -> Iterator[None]:
        """Allow one submission at a time. Raises UsageError when another takes longer than ``patience`` seconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=patience, mode=0o666):
                yield
        except Timeout:
            raise UsageError(
                f"another submission has been at work in {self.folder} for minutes: wait for it, or end it"
            ) from None


@dataclass(frozen=True)
class Job:
    """One job of an array: the one that runs the stage at ``index``."""

    ledger: Ledger
    array: Array
    index: int

    @property
    def listed(self) -> Listed:
        """The stage."""
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
        """The scheduler's number; None until it is known."""
        return self.array.job_of(self.index)

    @property
    def logs(self) -> Path:
        """Where the array's jobs write."""
        return self.ledger.folder / self.array.token

    @property
    def profile_path(self) -> Path:
        """The profile with which it was submitted, for when the profile's own file is gone."""
        return self.logs / "profile.json"

    @property
    def was_sent(self) -> bool:
        """Whether sbatch may have been called: submitit writes the script just before."""
        return any(self.logs.glob(".submission_file_*.sh"))

    @property
    def words(self) -> set[str | None]:
        """What names it on the command line: its stage, its notebook, its number and its array's."""
        return {self.name, self.name.partition(",")[0], self.array.job, self.number}

    @property
    def finished(self) -> bool:
        """Whether a valid record of the stage's signature is in its folder."""
        try:
            return folder_record(self.folder) is not None
        except UsageError:
            return False

    @property
    def damaged_record(self) -> Path | None:
        """The file in the place of the record, if it is not a valid one."""
        path = self.folder / "record.json"
        return path if path.exists() and not self.finished else None

    @property
    def status(self) -> JobStatus | None:
        """Its last status; None before its first, and for a damaged file."""
        try:
            return JobStatus.model_validate_json(self.status_path.read_bytes())
        except (OSError, ValueError):
            return None

    @property
    def status_path(self) -> Path:
        """The file in which it writes its status."""
        return self.logs / f"mark-{self.index}.json"

    @property
    def state(self) -> str:
        """The state that it wrote last; empty before its first."""
        status = self.status
        return status.state if status else ""

    @property
    def last_sign(self) -> float:
        """When it was submitted or last wrote its status: seconds of the epoch."""
        with suppress(OSError):
            return max(self.array.since, self.status_path.stat().st_mtime)
        return self.array.since

    @property
    def end(self) -> str:
        """The scheduler's last state of it, in SLURM's own word; empty when igpt never saw that it had ended."""
        try:
            return (self.logs / f"end-{self.index}").read_text()
        except (OSError, ValueError):
            return ""

    def keep_end(self, state: str) -> None:
        """Keep the scheduler's last state, which the scheduler forgets after minutes."""
        if self.end != state:
            write_text(self.logs / f"end-{self.index}", state)

    def log_path(self, kind: Literal["out", "err"] = "err") -> Path | None:
        """Where its log is or will be; None before it has a number."""
        return self.logs / f"{self.number}_0_log.{kind}" if self.number else None

    def log(self, kind: Literal["out", "err"] = "err") -> Path | None:
        """Its log, if it has written one."""
        path = self.log_path(kind)
        return path if path is not None and path.exists() else None


def new_array(stages: Sequence[Listed], asked: Resources, *, number: int, profile: str, snapshot: Project) -> Array:
    """An array before the scheduler knows of it."""
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
    """The first of the jobs of each array."""
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.array.token, job)
    return list(first.values())


def user() -> str:
    """The user as the scheduler sees it: by the process, not by the environment."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def clock(seconds: float) -> str:
    """A time of the epoch, for a sentence."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def run_roots(project: Project) -> list[Project]:
    """Where jobs of this checkout may be: the checkout, the shared folders it submitted to, and those of its profiles."""
    roots = {project.runs.resolve(): project}
    for root in [*_remembered(project), *shared_run_roots(project)]:
        with suppress(OSError):  # of a disk that is away, or of another user
            if Ledger(root).folder.is_dir():
                roots.setdefault(root.runs.resolve(), root)
    return list(roots.values())


def _remembered(project: Project) -> list[Project]:
    """Shared folders that this checkout has submitted to."""
    path = project.runs / ".shared-folders"
    return [Project(Path(line)) for line in (path.read_text().splitlines() if path.exists() else [])]


def remember_run_root(project: Project, run_root: Project) -> None:
    """Have `igpt status` and the like look into a shared folder, whatever becomes of the profile."""
    known = _remembered(project)
    if run_root not in [project, *known]:
        write_text(project.runs / ".shared-folders", "".join(f"{each.root}\n" for each in [*known, run_root]))
