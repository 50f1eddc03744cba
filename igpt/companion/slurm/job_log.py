"""Why a job ended, from its log: the only source on clusters without accounting."""

from __future__ import annotations

import re
from pathlib import Path

MEMORY = "killed for memory: raise memory_gib in the profile"
NODE = "its node was lost"
DISK_WAS_FULL = "its disk was full: make room"
BY_SCANCEL = "by scancel"
_REASONS = {
    "exceeded job memory limit": MEMORY,
    "exceeded memory limit": MEMORY,
    "oom-kill": MEMORY,
    "due to time limit": "its time limit came",
    "due to preemption": "preempted",
    "due to node failure": NODE,
    "node fail": NODE,
}
_SCHEDULERS = re.compile(r"(slurmstepd\S*|srun): error: ")
_TASK = re.compile(r"srun: error: (\S+: tasks? (\d+)\S*: (.+))")
_MISHAP = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b|not found|No such file|denied|[Cc]annot")


def scheduler_reason(log: Path | None) -> str:
    """Why SLURM ended a job, from SLURM's messages in the job's log; empty if there is no reason."""
    lines = _last_lines(log)
    slurm_lines = [line.lower() for line in lines if _SCHEDULERS.match(line)]
    for words, why in _REASONS.items():
        if any(words in line for line in slurm_lines):
            return why
    if any("No space left on device" in line for line in lines):  # the job could then not write its status
        return DISK_WAS_FULL
    # Only cancelled jobs count: a step is cancelled for other reasons too. The line of a requeued job contains "due to".
    cancellations = [line for line in slurm_lines if re.search(r"\*\*\* job \S+ on \S+ cancelled at", line)]
    return BY_SCANCEL if cancellations and "due to" not in cancellations[-1] else ""


def last_line(log: Path | None) -> str:
    """The last line that a job's processes wrote before they exited, else srun's message about their exit."""
    lines = _last_lines(log)
    exits = [task_exit for task_exit in map(_TASK.match, lines) if task_exit and task_exit[3] != "Terminated"]
    if exits and log is not None:
        own = _own_line(_last_lines(_log_of_task(log, exits[-1][2]))) if exits[-1][3].startswith("Exited") else ""
        return own or exits[-1][1]
    own = _own_line(lines)
    slurm_errors = [line.partition("error: ")[2] for line in lines if _SCHEDULERS.match(line) and "***" not in line]
    return own if _MISHAP.search(own) else slurm_errors[-1] if slurm_errors else ""


def other_nodes_last_line(log: Path | None) -> str:
    """The last line of the task that exited first, if it ran on a node other than the first; else empty."""
    lines = _last_lines(log)
    exits = [task_exit for task_exit in map(_TASK.match, lines) if task_exit and task_exit[3].startswith("Exited")]
    if log is None or not exits or exits[0][2] == "0" or any("*** JOB" in line for line in lines):
        return ""
    return _own_line(_last_lines(_log_of_task(log, exits[0][2]))) or exits[0][1]


def _log_of_task(log: Path, task: str) -> Path:
    return log.with_name(log.name.replace("_0_log", f"_{task}_log"))


def _last_lines(log: Path | None) -> list[str]:
    if log is None or not log.exists():
        return []
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8000))
        return stream.read().decode(errors="replace").splitlines()


def _own_line(lines: list[str]) -> str:
    """The last line that the job itself wrote: not by srun or submitit, and not SLURM's notice of cancellation."""
    own = [line for line in lines if line.strip() and not re.match(r"srun: |submitit |slurmstepd.*\*\*\*", line)]
    return re.sub(r"^slurmstepd\S*: error: ", "", own[-1]).strip() if own else ""
