"""Why a job ended, from its log: the only evidence where there is no accounting."""

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
    """Why the scheduler ended a job, from what it wrote into the job's log; empty when it gives no reason."""
    lines = _last_lines(log)
    theirs = [line.lower() for line in lines if _SCHEDULERS.match(line)]
    for words, why in _REASONS.items():
        if any(words in line for line in theirs):
            return why
    if any("No space left on device" in line for line in lines):  # so the job could not write its status
        return DISK_WAS_FULL
    # Of the batch script; a step is cancelled for other reasons too. A requeued job's line has a reason.
    ends = [line for line in theirs if re.search(r"\*\*\* job \S+ on \S+ cancelled at", line)]
    return BY_SCANCEL if ends and "due to" not in ends[-1] else ""


def last_line(log: Path | None) -> str:
    """What a job's processes wrote last before they ended by themselves, else how srun reports their end."""
    lines = _last_lines(log)
    ends = [end for end in map(_TASK.match, lines) if end and end[3] != "Terminated"]
    if ends and log is not None:
        own = _own_line(_last_lines(_log_of_task(log, ends[-1][2]))) if ends[-1][3].startswith("Exited") else ""
        return own or ends[-1][1]
    own = _own_line(lines)
    theirs = [line.partition("error: ")[2] for line in lines if _SCHEDULERS.match(line) and "***" not in line]
    return own if _MISHAP.search(own) else theirs[-1] if theirs else ""


def other_nodes_last_line(log: Path | None) -> str:
    """As `last_line`, if a node other than the first ended first and by itself; empty otherwise."""
    lines = _last_lines(log)
    ends = [end for end in map(_TASK.match, lines) if end and end[3].startswith("Exited")]
    if log is None or not ends or ends[0][2] == "0" or any("*** JOB" in line for line in lines):
        return ""
    return _own_line(_last_lines(_log_of_task(log, ends[0][2]))) or ends[0][1]


def _log_of_task(log: Path, task: str) -> Path:
    return log.with_name(log.name.replace("_0_log", f"_{task}_log"))


def _last_lines(log: Path | None) -> list[str]:
    if log is None or not log.exists():
        return []
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8000))
        return stream.read().decode(errors="replace").splitlines()


def _own_line(lines: list[str]) -> str:
    """The last line that is the job's own: not of srun, not of submitit, and not that the job was ended."""
    own = [line for line in lines if line.strip() and not re.match(r"srun: |submitit |slurmstepd.*\*\*\*", line)]
    return re.sub(r"^slurmstepd\S*: error: ", "", own[-1]).strip() if own else ""
