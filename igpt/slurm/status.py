"""`igpt status`, `igpt logs`, `igpt cancel` and `igpt collect`: what became of what was submitted.

Whether a stage is done is read from its record, never from the scheduler's word; why one is not, from what its job
said, from what the scheduler wrote into its log, or from the queue. One question to the scheduler a look.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from igpt.errors import StageError, UsageError
from igpt.project import Project
from igpt.results.record import usable_record, write_record
from igpt.results.store import record_path
from igpt.run.folder import read_progress, run_folder
from igpt.run.local import publishable_stages
from igpt.slurm.ledger import (
    BY_SCANCEL,
    DISK_WAS_FULL,
    MEMORY,
    NODE,
    Array,
    Ledger,
    arrays_of,
    clock,
    homes,
    last_word,
    member_word,
    scheduler_word,
    user,
)
from igpt.slurm.scheduler import HIDDEN, Queue, Queued, cancel, look, may_arrive, number_of, settle, settled_by
from igpt.slurm.targets import Jobs, chosen, chosen_now
from igpt.text import visible

WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
REASONS = {  # the scheduler's most usual words, in others
    "Dependency": "for what it stands on",
    "Resources": "for free resources",
    "Priority": "its turn",
    "BeginTime": "for its start time",
    "JobArrayTaskLimit": "for others of its array",
    "ReqNodeNotAvail": "for a node",
}
ENDS = {"OUT_OF_MEMORY": MEMORY, "NODE_FAIL": NODE, "PREEMPTED": "preempted"}  # and how it says that a job has ended
AGAIN = ": queued again"
EVERY = 10.0  # seconds between two looks, for the scheduler's sake


@dataclass(frozen=True)
class Row:
    """One job as a person wants to know it. Hours are GPU-hours; ``planned`` is an H100's."""

    name: str
    job: str
    state: str
    why: str
    cell: str
    step: str
    loss: str
    left: str
    used: float
    planned: float


def status_text(targets: list[str], *, every: bool) -> str:
    """A table of the jobs; the finished ones only counted unless ``every``."""
    found = [row for ledger, jobs in chosen(_ledgers(), targets) for row in _rows(ledger, jobs)]
    if not found:
        return "no job was submitted from here: `igpt submit TARGETS --profile NAME` does"
    shown = [row for row in found if every or row.state != "done"]
    table = [(r.state, r.job, r.name, r.cell, r.step, r.loss, r.left, f"{r.used:.2f} / {r.planned:.2f}", r.why) for r in shown]
    heads = ("State", "Job", "Stage", "Cell", "Step", "Loss", "Left", "GPU-hours", "")
    counts = [f"{n} {state}" for state in STATES if (n := sum(row.state == state for row in found))]
    used, planned = sum(row.used for row in found), sum(row.planned for row in found)
    said = f"{len(found)} jobs: {', '.join(counts)}; {used:.2f} GPU-hours used, {planned:.2f} planned"
    return "\n".join(
        [*([tabulate([map(visible, row) for row in table], heads, disable_numparse=True), ""] if shown else []), said]
    )


FULL = 2**20  # bytes that are as good as none
STATES = ("done", "running", "queued", "held", "stopped", "failed", "cancelled", "lost", "unknown")


def watch_status(targets: list[str], *, every: bool) -> Iterator[str]:
    """The status again and again, until nothing is queued or running."""
    while True:
        text = status_text(targets, every=every)
        yield text
        if not re.search(r"\d (running|queued)\b", text.splitlines()[-1]):
            return
        time.sleep(EVERY)


def rows(ledger: Ledger, targets: list[str]) -> list[Row]:
    """One row a stage, by its last job; one question to the scheduler."""
    return [row for _, jobs in chosen([ledger], targets) for row in _rows(ledger, jobs)]


def _rows(ledger: Ledger, jobs: Jobs) -> list[Row]:
    """The same of jobs of one folder."""
    unfinished = arrays_of(
        each for folder, each in jobs.items() if not ledger.finished(folder) or _says(ledger, *each) == "running"
    )
    try:
        queue: Queue | None = look(ledger, unfinished)
    except UsageError:
        queue = None  # the login node of another cluster, say: what the jobs wrote is still to be read
    if queue is not None:
        jobs = _with_numbers(ledger, jobs, queue)
    return [_row(ledger, array, index, queue) for array, index in jobs.values()]


def _ledgers() -> list[Ledger]:
    """Those of all folders that jobs of this checkout may lie in."""
    return [Ledger(home) for home in homes(Project.here())]


def _with_numbers(ledger: Ledger, jobs: Jobs, queue: Queue) -> Jobs:
    """The jobs, those with their numbers whose submission has arrived without an answer."""
    unnumbered = [array for array in arrays_of(jobs.values()) if array.job is None]
    arrived = {array.token: number for array in unnumbered if (number := number_of(ledger, array, queue))}
    if not arrived:
        return jobs
    with suppress(UsageError, OSError), ledger.alone(patience=0):  # or the submission at work writes them down itself
        settle(ledger, [array for array in unnumbered if array.token in arrived], queue)
    return {
        folder: (array.model_copy(update={"job": arrived.get(array.token, array.job)}), index)
        for folder, (array, index) in jobs.items()
    }


def _says(ledger: Ledger, array: Array, index: int) -> str:
    """The state that a job itself said last; empty before its first word."""
    mark = ledger.mark(array.token, index)
    return mark.state if mark else ""


def _row(ledger: Ledger, array: Array, index: int, queue: Queue | None) -> Row:
    """One stage's row."""
    listed = array.stages[index]
    folder = ledger.home.runs / listed.folder
    job = queue.find(array, index) if queue else None
    if job is not None and job.over and job.state not in ("COMPLETED", "FAILED"):  # which say no more than the job itself
        with suppress(OSError):  # of another user, or a full disk
            ledger.keep_end(array.token, index, job.state)
    mark = ledger.mark(array.token, index)
    state, why = _state(ledger, array, index, job, queue)
    progress = read_progress(folder)
    done, total = progress.get("done", 0), progress.get("total", 0)
    left = ""
    if state == "running" and done and progress.get("seconds"):
        left = _clock(progress["seconds"] * (total - done) / done)
    return Row(
        name=listed.name,
        job=array.job_of(index) or "-",
        state=state,
        why=why,
        cell=_cell(folder) if state == "running" else "",
        step=f"{done:,.0f} of {total:,.0f}" if total and state != "done" else "",
        loss=_loss(folder),
        left=left,
        used=(mark.seconds if mark else 0.0) * array.gpus * array.nodes / 3600,
        planned=listed.planned,
    )


def _state(ledger: Ledger, array: Array, index: int, job: Queued | None, queue: Queue | None) -> tuple[str, str]:
    """A job's state, one of `STATES`, and why it is so."""
    mark = ledger.mark(array.token, index)
    folder = array.stages[index].folder
    if ledger.finished(folder):
        ending = job is not None and not job.over and mark is not None and mark.state == "running"
        return ("running", "its record stands") if ending else ("done", "")
    if job is not None and job.state == HIDDEN:
        return ("running" if mark is not None and mark.state == "running" else "queued"), job.reason
    if job is not None and job.state in WAITING:
        if job.held:
            return "held", job.held
        if mark is not None and mark.state == "stopped":
            return "queued", f"{mark.why.removesuffix(AGAIN)}{AGAIN}"
        return "queued", f"waits {REASONS.get(job.reason, job.reason)}".strip()
    if job is not None and not job.over:
        return "running", f"session {mark.sessions}" if mark and mark.sessions > 1 else ""
    if damaged := ledger.damaged(folder):
        return "failed", f"{damaged} is not a valid record; `igpt resume` sets it aside and runs the stage again"
    if mark is not None and mark.state in ("failed", "cancelled"):
        return mark.state, mark.why
    if mark is not None and mark.state == "done":
        return "lost", "its record is gone; `igpt resume` runs it again"
    if array.job is None and ledger.busy():
        return "queued", "is being submitted"
    if array.job is None and queue is not None:
        return _unanswered(ledger, array, queue)
    end = job.state if job is not None else ledger.end(array.token, index)
    if queue is None and not end:
        return "unknown", "the scheduler does not answer"
    return _ended(ledger, array, index, end)


def _ended(ledger: Ledger, array: Array, index: int, end: str) -> tuple[str, str]:
    """The same of a job that is over and has neither a record nor a last word of its own; ``end`` is the scheduler's word."""
    mark = ledger.mark(array.token, index)
    log = ledger.log(array, index)
    said = scheduler_word(log)
    if not said and shutil.disk_usage(ledger.folder).free < FULL:  # where neither log nor mark could be written
        said = DISK_WAS_FULL
    if said == BY_SCANCEL or (end == "CANCELLED" and not said.startswith("killed")):
        return "cancelled", BY_SCANCEL
    if end == "TIMEOUT":
        return "lost", "its time limit came before it could stop; `igpt resume` continues it"
    if mark is not None and mark.state == "stopped" and not said:
        why = member_word(log)
        return ("failed", why) if why else ("stopped", f"{mark.why}; `igpt resume` continues it")
    why = said or ENDS.get(end) or last_word(log) or end.lower() or "it ended without a message"
    return "lost", f"{why}; `igpt resume` continues it"


def _unanswered(ledger: Ledger, array: Array, queue: Queue) -> tuple[str, str]:
    """The state of a job that the scheduler does not know, and whose submission had no answer or was cut off."""
    if may_arrive(ledger, array, queue):
        until = clock(settled_by(array, queue))
        return "unknown", f"its submission had no answer: run the same `igpt submit` after {until}"
    return "lost", "its submission was cut off and has not arrived; `igpt resume` submits it"


def _cell(folder: Path) -> str:
    """Which cell of how many the notebook is at, as papermill keeps it while it works."""
    parts = sorted(folder.glob(".notebook.*.part.ipynb"), key=lambda path: path.stat().st_mtime)
    try:
        cells = [cell for cell in json.loads(parts[-1].read_text())["cells"] if cell["cell_type"] == "code"]
        begun = sum(cell["metadata"].get("papermill", {}).get("status") in ("running", "completed") for cell in cells)
    except (IndexError, OSError, ValueError, KeyError, TypeError):
        return ""
    return f"{begun} of {len(cells)}"


def _loss(folder: Path) -> str:
    """The last loss of training, in nats per token."""
    try:
        return f"{json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])['loss']:.4f}"
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return ""


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def log_lines(target: str, *, follow: bool) -> Iterator[str]:
    """What the jobs of a target wrote, and with ``follow`` what they write from now until they end."""
    found = chosen(_ledgers(), [target])
    if not found:
        raise UsageError(f"nothing was submitted under {target!r}: `igpt status` lists what was")
    places: dict[Path, int] = {}
    while True:
        for ledger, (array, index) in ((ledger, each) for ledger, jobs in found for each in jobs.values()):
            for path in (ledger.log(array, index, "out"), ledger.log(array, index)):
                if path is not None:
                    yield from _news(path, array.stages[index].name, places)
            failed = ledger.home.runs / array.stages[index].folder / "failed.ipynb"
            if failed.exists() and failed not in places:
                places[failed] = 0
                yield f"== the notebook as far as it came: {failed}"
        if not follow or not any(_at_work(row) for ledger, jobs in found for row in _rows(ledger, jobs)):
            return
        time.sleep(min(EVERY, 2.0))


def _at_work(row: Row) -> bool:
    """Whether a job is queued or running."""
    return row.state in ("queued", "running")


def _news(path: Path, name: str, places: dict[Path, int]) -> Iterator[str]:
    """A log's lines since the last time, under its name."""
    with path.open(errors="replace") as stream:
        stream.seek(places.get(path, 0))
        lines = stream.read().splitlines()
        if lines:
            yield visible(f"== {name}: {path}")
            yield from map(visible, lines)
        places[path] = stream.tell()


def cancel_targets(targets: list[str]) -> str:
    """Cancel the queued and running jobs of the targets; all when there are none. What to say of it."""
    count, left = 0, list[str]()
    for ledger, jobs in chosen(_ledgers(), targets):
        with ledger.alone():
            mine = chosen_now(ledger, jobs, targets)
            arrays = arrays_of(mine.values())
            queue = look(ledger, arrays)
            settle(ledger, [array for array in arrays if number_of(ledger, array, queue)], queue)
            active = {job.job: each for each in mine.values() if (job := queue.active(*each)) and job.state != HIDDEN}
            cancel(active)
            for array, index in [*active.values(), *(each for each in mine.values() if _forgotten(ledger, *each, queue))]:
                ledger.keep_end(array.token, index, "CANCELLED")
            count += len(active)
            left += _not_cancelled(ledger, mine, queue)
    done = (
        f"{count} jobs cancelled; `igpt resume` queues them again" if count else "nothing to cancel: no job is queued or running"
    )
    return "; ".join([done, *left[:1], *([f"and {len(left) - 1} more like it"] if len(left) > 1 else [])])


def _forgotten(ledger: Ledger, array: Array, index: int, queue: Queue) -> bool:
    """Whether one's own job has left the queue before it began, as by scancel, and the queue does not know it any more.

    That is kept for others, who may not see the queue.
    """
    mine = array.job is not None and array.owner == user() and not ledger.finished(array.stages[index].folder)
    silent = ledger.mark(array.token, index) is None and ledger.log(array, index) is None
    return mine and silent and queue.find(array, index) is None


def _not_cancelled(ledger: Ledger, jobs: Jobs, queue: Queue) -> Iterator[str]:
    """Words on the jobs that may be at work and cannot be cancelled: hidden ones of others, and submissions without an answer."""
    for array, index in jobs.values():
        if (job := queue.find(array, index)) and job.state == HIDDEN:
            yield f"{array.stages[index].name} is job {job.job}, {job.reason}"
    for array in arrays_of(jobs.values()):
        if array.job is None and not number_of(ledger, array, queue) and may_arrive(ledger, array, queue):
            yield f"{array.stages[0].name} may be queued and was not cancelled: its submission had no answer"


def collect() -> str:
    """Copy the records of finished stages into the book: those that a run here would publish, where the code is as it was.

    What to say of it. Raises StageError naming the records that are not accepted.
    """
    project = Project.here()
    plan = publishable_stages(project)
    taken = fresh = 0
    refused = []
    for planned in plan:
        if planned.state == "fresh":
            fresh += 1
            continue
        for home in homes(project):
            path = run_folder(home, planned.stage, planned.signature) / "record.json"
            record = usable_record(path)
            if record is None:
                continue
            if record.signature != planned.signature.digest or record.stage != planned.stage.name:
                refused.append(f"{path} is not of this stage")
                continue
            write_record(record_path(project, planned.stage), record)
            taken += 1
            break
    pending = len(plan) - taken - fresh
    said = f"{taken} records collected, {fresh} were there, {pending} of the book's {len(plan)} stages have none of this code"
    if refused:
        raise StageError(f"{said}; not accepted: {'; '.join(refused)}")
    return said
