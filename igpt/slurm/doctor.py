"""`igpt doctor`: what would go wrong on a cluster, asked before the queue finds it out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from igpt.errors import UsageError
from igpt.machine import gpus
from igpt.project import Project
from igpt.slurm.ledger import Array, Ledger, homes
from igpt.slurm.profile import Profile, find_profile
from igpt.slurm.scheduler import call, job_parameters, require
from igpt.slurm.snapshot import check_clean

FREE_GIB = 5.0  # below which a folder is said to be nearly full


def examine(profile_name: str) -> tuple[str, int]:
    """One line a question, and the exit code: 0 when nothing is wrong, 1 otherwise. Raises UsageError for a bad profile."""
    project = Project.here()
    profile = find_profile(project, profile_name)
    questions: list[tuple[str, Callable[[], str]]] = [
        ("checkout", lambda: check_clean(project, dirty=False)[:12]),
        ("shared folder", lambda: _folder(profile.home(project).runs)),
        ("records", lambda: _unread(project)),
    ]
    if profile.scheduler == "slurm":
        questions += [("scheduler", _answers)]
        further: list[tuple[str, Callable[[], str]]] = [
            ("array size", lambda: _array_size(profile)),
            ("queue again", _requeue),
            ("accounting", _accounting),
            ("python", lambda: _python(profile)),
            *((f"a job of {name}", partial(_try, project, profile, name)) for name in profile.stages),
        ]
    else:
        questions += [("this machine", lambda: f"{os.cpu_count()} cores, {len(gpus())} GPUs")]
        further = []
    lines, wrong = _ask(questions)
    if not any(line.startswith("wrong  scheduler") for line in lines):  # or each would only say so again
        more, also = _ask(further)
        lines, wrong = lines + more, wrong + also
    lines.append(f"{wrong} of {len(lines)} answers are wrong" if wrong else "nothing is wrong")
    return "\n".join(lines), int(bool(wrong))


def _ask(questions: list[tuple[str, Callable[[], str]]]) -> tuple[list[str], int]:
    """A line an answer, and how many of them are wrong."""
    lines, wrong = [], 0
    for what, ask in questions:
        try:
            lines.append(f"ok     {what}: {ask()}")
        except (UsageError, OSError) as error:
            wrong += 1
            lines.append(f"wrong  {what}: {error}")
    return lines, wrong


def _folder(runs: Path) -> str:
    """Whether the folder of runs can be written and locked, and how much fits into it."""
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=runs, prefix=".doctor") as stream:
        stream.write(b"x")
        os.fsync(stream.fileno())
    with Ledger(Project(runs.parent)).alone():
        pass
    stat = os.statvfs(runs)
    free = stat.f_bavail * stat.f_frsize / 2**30
    if free < FREE_GIB:
        raise UsageError(f"{runs} has {free:.1f} GiB left: free some, or set shared_folder to another disk")
    return f"{runs} can be written and locked, {free:,.0f} GiB are free"


def _unread(project: Project) -> str:
    """Whether the files about jobs can be read, and the records that they left."""
    ledgers = [Ledger(home) for home in homes(project)]
    damaged = [path for ledger in ledgers for folder in ledger.latest() if (path := ledger.damaged(folder))]
    if damaged:
        raise UsageError(f"{damaged[0]} is not a valid record ({len(damaged)} in all): `igpt resume` runs their stages again")
    return f"{sum(len(ledger.arrays()) for ledger in ledgers)} arrays were submitted from here"


def _answers() -> str:
    """The scheduler's version, and what its controller says of its nodes."""
    require()
    states = [line for line in call("sinfo", "-h", "-o", "%D %T").splitlines() if line]
    return f"{call('sinfo', '--version').strip()}, {', '.join(states)} nodes"


def _settings() -> dict[str, str]:
    """The scheduler's settings by name."""
    return dict(re.findall(r"^(\w+)\s*= (.*)$", call("scontrol", "show", "config"), re.MULTILINE))


def _array_size(profile: Profile) -> str:
    """Whether the cluster takes arrays as large as the profile makes them."""
    most = int(_settings().get("MaxArraySize", "1001")) - 1
    if profile.array_size > most:
        raise UsageError(f"array_size is {profile.array_size} and the cluster takes {most}: lower it in the profile")
    return f"{profile.array_size} of at most {most}"


def _requeue() -> str:
    """How jobs are queued again; jobs ask for it by themselves."""
    held = re.search(r"cred_expire=(\d+)", _settings().get("AuthInfo", ""))
    return f"waits some {held[1] if held else 120} seconds each time"


def _accounting() -> str:
    """Whether sacct answers. It is never needed, so nothing is wrong without it."""
    try:
        done = subprocess.run(["sacct", "-n", "-X", "-S", "now"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "none, which is no trouble: jobs say themselves what becomes of them"
    return "there" if done.returncode == 0 else "none, which is no trouble: jobs say themselves what becomes of them"


def _python(profile: Profile) -> str:
    """The Python that jobs start; whether it is at the same place elsewhere only a job can tell."""
    if profile.python:
        return f"{profile.python} (tried by the jobs only)"
    return f"{sys.executable} (it must lie at the same place on the nodes)"


def _try(project: Project, profile: Profile, notebook: str) -> str:
    """Whether the scheduler would take such a job, and when it would start: asked without submitting."""
    resources = profile.stages[notebook]
    array = Array(
        token="doctor", number=0, job=None, profile="", snapshot="", submitted="", by="", gpus=0, nodes=1, minutes=1, stages=()
    )
    from submitit.slurm.slurm import _make_sbatch_string

    with tempfile.TemporaryDirectory() as folder:
        parameters = job_parameters(array, profile, resources, after=(), root=project)
        script = Path(folder) / "job.sh"
        script.write_text(_make_sbatch_string("true", folder, **parameters))  # type: ignore[arg-type]
        done = subprocess.run(["sbatch", "--test-only", str(script)], capture_output=True, text=True, timeout=60)
    said = " ".join(done.stderr.split()).removeprefix("sbatch: ").removeprefix("allocation failure: ")
    if done.returncode:
        raise UsageError(f"{said}: mend the profile")
    start = re.search(r"to start at (\S+)", said)
    return f"would start at {start[1]}" if start else said
