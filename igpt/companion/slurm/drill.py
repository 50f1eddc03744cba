"""`igpt drill`: that a training killed by the scheduler ends as one that was left alone, shown on the cluster itself."""

from __future__ import annotations

import random
import secrets
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from igpt.companion.results.plan import Plan, make_plan
from igpt.companion.results.record import Record, Value, read_record, write_record
from igpt.companion.results.signature import Signer
from igpt.companion.run.folder import read_progress, run_folder
from igpt.companion.slurm.ledger import Ledger
from igpt.companion.slurm.profile import Profile, find_profile
from igpt.companion.slurm.scheduler import call, require
from igpt.companion.slurm.snapshot import check_clean, take_snapshot
from igpt.companion.slurm.status import Row, rows
from igpt.companion.slurm.submit import carry_out, prepare
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.project import Project

STAGE = Stage.of("pretrain", model="tiny-s")
EARLIEST, LATEST = 0.1, 0.8  # of the training, between which it is killed
EVERY = 0.1  # seconds between two looks at the run folder
EVERY_QUEUE = 5.0  # and at the queue


def run_drill(profile_name: str, *, seed: int | None) -> str:
    """Train twice, kill one of the two at a random step, compare; what to say of it. Its record goes into the book.

    Raises UsageError for a profile without a scheduler or a checkout with changes, StageError when a job fails or the
    two differ.
    """
    project = Project.here()
    profile = find_profile(project, profile_name)
    if profile.scheduler == "local":
        raise UsageError("a drill needs a scheduler that kills jobs: give another profile, local-cluster for one on this machine")
    # On a GPU last digits may differ, as between any two trainings there.
    without = profile.resources(STAGE).model_copy(update={"gpus": 0})
    profile = profile.model_copy(update={"stages": {**profile.stages, STAGE.notebook: without}})
    require()
    code = check_clean(project, dirty=False)
    plan = make_plan([STAGE], Signer(project.notebooks), lambda stage: None)  # whatever has been trained here already
    base = profile.home(project).runs / ".drill" / secrets.token_hex(4)
    alone, killed = (Project(base / name) for name in ("left-alone", "killed"))
    for home in (alone, killed):
        carry_out(prepare(profile_name, profile, plan, Ledger(home)), Ledger(home), take_snapshot(project, home, code))
    _say(f"two jobs are submitted; what they leave lies in {base}")
    draw = random.Random(seed)
    step = _kill(killed, plan, draw.uniform(EARLIEST, LATEST))
    for home in (killed, alone):
        _wait(home)
    first, second = (_record(home, plan) for home in (alone, killed))
    differing = _differing(_folder(alone, plan), _folder(killed, plan))
    if first.values != second.values or first.series != second.series:
        differing.append("record.json")
    record = _drill_record(second, Path(profile_name).stem, profile, step, equal=not differing)
    write_record(project.records / "drill" / f"{Path(profile_name).stem}.json", record)
    if differing:
        raise StageError(f"killed after step {step} it ended otherwise than left alone: {', '.join(differing)} differ in {base}")
    return f"killed after step {step:,} by the scheduler, it continued and ended equal to the bit; its record is in the book"


def _kill(home: Project, plan: Plan, part: float) -> int:
    """Have the scheduler kill and queue again the training, once it is so far; the last step it had reported."""
    folder = _folder(home, plan)
    asked = 0.0
    while True:
        progress = read_progress(folder)
        if progress.get("total") and progress["done"] >= part * progress["total"]:
            break
        if Ledger(home).finished(folder.name):
            raise StageError("the training ended before it could be killed: run the drill again")
        if time.monotonic() - asked > EVERY_QUEUE:
            asked = time.monotonic()
            _check(home)
        time.sleep(EVERY)
    array, index = Ledger(home).latest()[folder.name]
    call("scontrol", "requeue", str(array.job_of(index)))
    _say(f"killed after step {progress['done']:,.0f}; the scheduler queues it again")
    return int(progress["done"])


def _wait(home: Project) -> None:
    """Until all jobs of a folder are done."""
    while any(row.state != "done" for row in _check(home)):
        time.sleep(EVERY_QUEUE)


def _check(home: Project) -> list[Row]:
    """The jobs of a folder. Raises StageError when one of them will not end by itself."""
    found = rows(Ledger(home), [])
    for row in found:
        if row.state in ("failed", "cancelled", "lost", "stopped", "held"):
            raise StageError(f"{row.name} is {row.state} ({row.why}): its logs in {home.runs / '.jobs'} say more")
    return found


def _folder(home: Project, plan: Plan) -> Path:
    """Where the training works."""
    planned = next(p for p in plan if p.stage.notebook == STAGE.notebook)
    return run_folder(home, planned.stage, planned.signature)


def _record(home: Project, plan: Plan) -> Record:
    """What the training found."""
    record = read_record(_folder(home, plan) / "record.json")
    assert record is not None
    return record


def _differing(first: Path, second: Path) -> list[str]:
    """Files of weights that are not the same to the bit, or in one of two folders only."""
    names = {path.relative_to(folder) for folder in (first, second) for path in folder.glob("weights-*/*")}
    if not names:
        raise StageError(f"{first} holds no weights to compare")
    return sorted(str(n) for n in names if _bytes(first / n) != _bytes(second / n))


def _bytes(path: Path) -> bytes | None:
    """A file's content; None when there is none."""
    return path.read_bytes() if path.exists() else None


def _drill_record(trained: Record, name: str, profile: Profile, step: int, *, equal: bool) -> Record:
    """What the drill found, with the receipt of the run that was killed."""
    total = trained.series["losses"][-1]["step"]
    values = {
        "equal": Value(value=float(equal), unit="1 when all weights are equal to the bit"),
        "killed": Value(value=float(step), unit="steps"),
        "steps": Value(value=float(str(total)), unit="steps"),
    }
    command = f"igpt drill --profile {name}"
    receipt = trained.receipt.model_copy(update={"command": command, "finished": datetime.now(UTC).isoformat(timespec="seconds")})
    return trained.model_copy(
        update={
            "stage": f"drill,profile={name}",
            "parameters": {**trained.parameters, "profile": name, "srun": profile.srun},
            "values": values,
            "series": {},
            "receipt": receipt,
        }
    )


def _say(line: str) -> None:
    """A line of progress, on stderr."""
    print(line, file=sys.stderr, flush=True)
