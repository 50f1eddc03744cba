"""`igpt drill`: test on a cluster that training which the scheduler kills resumes to bit-identical weights."""

from __future__ import annotations

import random
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from igpt.companion.results.plan import make_plan
from igpt.companion.results.record import Record, Value, read_record, write_record
from igpt.companion.results.signature import Signer
from igpt.companion.run.folder import read_progress
from igpt.companion.slurm.ledger import Job, Ledger
from igpt.companion.slurm.profile import Profile, find_profile
from igpt.companion.slurm.scheduler import call, cancel, require
from igpt.companion.slurm.snapshot import check_clean, take_snapshot
from igpt.companion.slurm.status import Row, look_at
from igpt.companion.slurm.submit import carry_out, prepare
from igpt.companion.stage import Stage
from igpt.errors import StageError, UsageError
from igpt.progress import tell
from igpt.project import Project

STAGE = Stage.of("pretrain", model="tiny-s")
EARLIEST, LATEST = 0.1, 0.8  # fractions of the training between which it is killed
EVERY = 0.1  # seconds between polls of the run folder
EVERY_QUEUE = 5.0  # seconds between polls of the queue


def run_drill(profile_name: str, *, seed: int | None) -> str:
    """Train twice, kill one run at a random step, and compare the weights; a summary. Writes a record for the book.

    Raises UsageError for a profile without a scheduler or uncommitted changes, StageError if a job fails or the two
    runs differ.
    """
    project = Project.here()
    profile = find_profile(project, profile_name)
    if profile.scheduler == "local":
        raise UsageError("a drill needs a scheduler that kills jobs: give another profile, local-cluster for one on this machine")
    # On a GPU any two training runs may differ in the last digits.
    cpu_only = profile.resources(STAGE).model_copy(update={"gpus": 0})
    profile = profile.model_copy(update={"stages": {**profile.stages, STAGE.notebook: cpu_only}})
    require()
    code = check_clean(project, dirty=False)
    plan = make_plan([STAGE], Signer(project.notebooks), lambda stage: None)  # no records: all stages run
    base = profile.run_root(project).runs / ".drill" / secrets.token_hex(4)
    undisturbed, killed = ledgers = [Ledger(Project(base / name)) for name in ("left-alone", "killed")]
    try:
        for ledger in ledgers:
            carry_out(prepare(profile_name, profile, plan, ledger), take_snapshot(project, ledger.run_root, code))
        tell(f"submitted two trainings; their runs are in {base}")
        step = _kill(killed, random.Random(seed).uniform(EARLIEST, LATEST))
        while any(row.state != "done" for ledger in ledgers for row in _check(ledger)):
            time.sleep(EVERY_QUEUE)
    except BaseException:  # an interrupt too: no other command finds these jobs
        with suppress(UsageError):
            cancel(str(job.number) for ledger in ledgers for job in ledger.jobs() if job.number)
        raise
    first, second = (_training(ledger).folder for ledger in (undisturbed, killed))
    record, expected = read_record(second / "record.json"), read_record(first / "record.json")
    assert record is not None
    assert expected is not None
    differing = _differing_weights(first, second)
    if (record.values, record.series) != (expected.values, expected.series):
        differing.append("record.json")
    name = Path(profile_name).stem
    write_record(project.records / "drill" / f"{name}.json", _drill_record(record, name, profile, step, equal=not differing))
    if differing:
        raise StageError(f"the training killed after step {step:,} differs from the other: {', '.join(differing)} in {base}")
    return f"killed after step {step:,}, the training resumed and ended equal to the bit; its record is in the book"


def _training(ledger: Ledger) -> Job:
    """The training job."""
    return next(job for job in ledger.latest().values() if job.name.startswith(STAGE.notebook))


def _kill(ledger: Ledger, fraction: float) -> int:
    """Requeue the training through SLURM, which kills it, after a fraction of its steps; the last step it reported."""
    job = _training(ledger)
    checked = 0.0
    while True:
        progress = read_progress(job.folder)
        if progress.get("total") and progress["done"] >= fraction * progress["total"]:
            break
        if job.finished:
            raise StageError("the training ended before it could be killed: run the drill again")
        if time.monotonic() - checked > EVERY_QUEUE:
            checked = time.monotonic()
            _check(ledger)
        time.sleep(EVERY)
    call("scontrol", "requeue", str(job.number))
    tell(f"killed after step {progress['done']:,.0f}; the scheduler queues it again")
    return int(progress["done"])


def _check(ledger: Ledger) -> list[Row]:
    """The status rows of a ledger's jobs. Raises StageError for a job that has failed or cannot finish."""
    rows = look_at(list(ledger.latest().values())).rows
    for row in rows:
        if row.state in ("failed", "cancelled", "lost", "stopped", "held"):
            raise StageError(f"{row.stage} is {row.state} ({row.why}): its logs in {ledger.folder} say more")
    return rows


def _differing_weights(first: Path, second: Path) -> list[str]:
    """Names of weight files that are not bit-identical in both folders, or missing in one."""
    names = {path.relative_to(folder) for folder in (first, second) for path in folder.glob("weights-*/*")}
    if not names:
        raise StageError(f"{first} holds no weights to compare")
    both = [name for name in names if (first / name).exists() and (second / name).exists()]
    equal = {name for name in both if (first / name).read_bytes() == (second / name).read_bytes()}
    return sorted(map(str, names - equal))


def _drill_record(trained: Record, name: str, profile: Profile, step: int, *, equal: bool) -> Record:
    """The record of the drill, with the receipt of the killed run."""
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
