"""What was submitted and what became of it: a small file for each array, and one for each of its jobs.

They lie under ``runs/.jobs`` of the folder that all nodes share, so every user of it, and every login node, sees the same.
An array's file is written before the scheduler is asked and completed afterwards: no job is ever without one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

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
    def title(self) -> str:
        """The jobs' name at the scheduler, by which they are found again."""
        return f"igpt-{self.token}"

    def job_of(self, index: int) -> str | None:
        """The scheduler's number of one of the jobs."""
        return self.job if self.job is None or len(self.stages) == 1 else f"{self.job}_{index}"


class Mark(_Strict):
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
                raise UsageError(f"{path} does not describe jobs: move it away, and `igpt status` no longer shows them") from None
        return sorted(found, key=lambda array: (array.number, array.token))

    def latest(self) -> dict[str, tuple[Array, int]]:
        """The last job of each stage, by the stage's folder."""
        return {listed.folder: (array, index) for array in self.arrays() for index, listed in enumerate(array.stages)}

    def finished(self, folder: str) -> bool:
        """Whether the record of a stage stands, by the stage's folder."""
        return (self.home.runs / folder / "record.json").exists()

    def write(self, array: Array) -> None:
        """Keep an array as it now is."""
        write_text(self.folder / f"{array.token}.json", json.dumps(array.model_dump(), indent=1) + "\n")

    def withdraw(self, array: Array) -> None:
        """Forget an array that the scheduler has refused."""
        (self.folder / f"{array.token}.json").unlink(missing_ok=True)

    def logs(self, token: str) -> Path:
        """Where an array's jobs write."""
        return self.folder / token

    def mark_path(self, token: str, index: int) -> Path:
        """Where a job says what it does."""
        return self.logs(token) / f"mark-{index}.json"

    def mark(self, token: str, index: int) -> Mark | None:
        """What a job said last; None before its first word."""
        try:
            return Mark.model_validate_json(self.mark_path(token, index).read_bytes())
        except (OSError, ValueError):
            return None

    def log(self, array: Array, index: int, kind: Literal["out", "err"] = "err") -> Path | None:
        """A job's log, if it has written one."""
        job = array.job_of(index)
        path = self.logs(array.token) / f"{job}_0_log.{kind}"
        return path if job and path.exists() else None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One submission at a time, or two of them could submit the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=PATIENCE, mode=0o666):
                yield
        except Timeout:
            raise UsageError(
                f"another submission has been at work in {self.folder} for minutes: wait for it, or end it"
            ) from None


def arrays_of(jobs: Iterable[tuple[Array, int]]) -> list[Array]:
    """The arrays of some jobs, once each."""
    return list({array.token: array for array, _ in jobs}.values())


def homes(project: Project) -> list[Project]:
    """The folders that this checkout has submitted from: its own, and the shared ones."""
    path = project.runs / ".shared-folders"
    return [project, *(Project(Path(line)) for line in (path.read_text().splitlines() if path.exists() else []))]


def remember_home(project: Project, home: Project) -> None:
    """Have `igpt status` and the like find what is submitted from a shared folder."""
    if home not in homes(project):
        known = [str(each.root) for each in homes(project)[1:]]
        write_text(project.runs / ".shared-folders", "".join(f"{root}\n" for root in [*known, home.root]))


def scheduler_word(log: Path | None) -> str:
    """Why the scheduler ended a job, from what it wrote into the job's log; empty when it says nothing.

    The only evidence where there is no accounting.
    """
    if log is None:
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8000))
        lines = stream.read().decode(errors="replace").splitlines()
    said = [line for line in lines if re.match(r"(slurmstepd\S*|srun): error", line)]
    for word, why in _WORDS.items():
        if any(word.lower() in line.lower() for line in said):
            return why
    if any("No space left on device" in line for line in lines):  # so that the job could not say so itself
        return DISK_WAS_FULL
    return said[-1].partition("error: ")[2].strip("* ") if said else ""


DISK_WAS_FULL = "its disk was full: make room"
_WORDS = {
    "exceeded job memory limit": "killed for memory: raise memory_gib in the profile",
    "exceeded memory limit": "killed for memory: raise memory_gib in the profile",
    "oom-kill": "killed for memory: raise memory_gib in the profile",
    "DUE TO TIME LIMIT": "its time limit came",
    "DUE TO PREEMPTION": "preempted",
    "DUE TO NODE FAILURE": "its node was lost",
    "NODE FAIL": "its node was lost",
}
