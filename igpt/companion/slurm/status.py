"""`igpt status`, `igpt logs`, `igpt cancel` and `igpt collect`: the state and results of submitted jobs.

A stage is done if its record is valid, whatever SLURM reports. Why a stage is not done is read from its job's status, from
SLURM's messages in the job's log, or from the queue. SLURM is queried once per look.
"""

from __future__ import annotations

import json
import math
import shutil
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tabulate import tabulate

from igpt.companion.results.record import usable_record, write_record
from igpt.companion.results.store import record_path
from igpt.companion.run.folder import read_progress, run_folder
from igpt.companion.run.local import publishable_stages
from igpt.companion.slurm.job_log import (
    BY_SCANCEL,
    DISK_WAS_FULL,
    MEMORY,
    NODE,
    last_line,
    other_nodes_last_line,
    scheduler_reason,
)
from igpt.companion.slurm.ledger import FINAL, QUEUED_AGAIN, Job, clock, one_per_array, run_roots, user
from igpt.companion.slurm.scheduler import (
    HIDDEN,
    NO_SCHEDULER,
    Queue,
    Queued,
    accounted,
    cancel,
    look,
    may_arrive,
    number_of,
    settle,
    settled_by,
)
from igpt.companion.slurm.targets import chosen_jobs, chosen_ledgers, locked_jobs
from igpt.errors import StageError, UsageError
from igpt.project import Project
from igpt.text import counted, visible

STATES = ("done", "running", "queued", "held", "stopped", "failed", "cancelled", "lost", "unknown")
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
REASONS = {"OUT_OF_MEMORY": MEMORY, "NODE_FAIL": NODE, "PREEMPTED": "preempted"}  # by SLURM state
EVERY = 10.0  # seconds between queries of SLURM
ANSWER = 10.0  # time limit of a query in seconds: squeue gives up after nine if the controller is down
ACCOUNTING = 2.0  # time limit of a query of the accounting, in seconds
FRESH = 120.0  # maximum age in seconds of a status "running"; a running job renews it every 30 seconds
WIDTH = 80  # columns
FULL = 2**20  # a disk with fewer free bytes counts as full


@dataclass(frozen=True)
class Row:
    """A job as `igpt status` shows it. The fields are the keys of the JSON output; the chapter on clusters explains them."""

    stage: str
    job: str | None
    state: str
    why: str
    node: str | None
    elapsed_seconds: float
    folder: Path
    log: Path | None
    cell: str | None
    steps_done: float | None
    steps_total: float | None
    loss: float | None
    seconds_left: float | None
    gpu_hours_used: float
    gpu_hours_planned: float


@dataclass(frozen=True)
class Look:
    """The jobs at one time; ``trouble`` is why SLURM could not be queried, or None."""

    rows: list[Row]
    trouble: str | None

    @property
    def at_work(self) -> bool:
        """Whether any job is or may be queued or running."""
        waited_for = ("queued", "running", *(["unknown"] if self.trouble and NO_SCHEDULER not in self.trouble else []))
        return any(row.state in waited_for for row in self.rows)


def status_text(targets: list[str], *, every: bool) -> str:
    """A table of the jobs; finished jobs are only counted unless ``every``."""
    return _text(look_at(chosen_jobs(targets)), every=every)


def watch_status(targets: list[str], *, every: bool) -> Iterator[str]:
    """The status, repeated until no job is queued or running."""
    while True:
        seen = look_at(chosen_jobs(targets))
        yield _text(seen, every=every)
        if not seen.at_work:
            return
        time.sleep(EVERY)


def status_json(targets: list[str]) -> str:
    """All jobs as one JSON document."""
    seen = look_at(chosen_jobs(targets))
    content = {"version": 1, "trouble": seen.trouble, "jobs": [asdict(row) for row in seen.rows]}
    return json.dumps(content, indent=1, allow_nan=False, default=str)


def _text(seen: Look, *, every: bool) -> str:
    if not seen.rows:
        return "no job was submitted from here: `igpt submit TARGETS --profile NAME` does"
    shown = [row for row in seen.rows if every or row.state != "done"]
    cells = [
        tuple(map(visible, (row.state, row.job or "-", _clock(row.elapsed_seconds) if row.elapsed_seconds else "", row.stage)))
        for row in shown
    ]
    header, rule, *lines = tabulate(cells or [[""] * 4], ("State", "Job", "Elapsed", "Stage"), disable_numparse=True).splitlines()
    table = [header, rule, *(part for line, row in zip(lines, shown, strict=False) for part in (line.rstrip(), *_details(row)))]
    counts = [f"{n} {state}" for state in STATES if (n := sum(row.state == state for row in seen.rows))]
    used, planned = sum(row.gpu_hours_used for row in seen.rows), sum(row.gpu_hours_planned for row in seen.rows)
    sums = f"{counted(len(seen.rows), 'job')}: {', '.join(counts)}; {used:.2f} GPU-hours used, {planned:.2f} planned"
    return "\n".join([*([*table, ""] if shown else []), *([*_wrapped(seen.trouble), ""] if seen.trouble else []), sums])


def _details(row: Row) -> list[str]:
    """The lines below a job's line in the table."""
    node = (f"on {row.node}" if row.state == "running" else f"last on {row.node}") if row.node else ""
    details = [
        row.why,
        node,
        f"cell {row.cell}" if row.cell else "",
        f"step {row.steps_done:,.0f} of {row.steps_total:,.0f}" if row.steps_total and row.state != "done" else "",
        f"loss {row.loss:.4f}" if row.loss is not None else "",
        f"{_clock(row.seconds_left)} left" if row.seconds_left is not None else "",
        f"{row.gpu_hours_used:.2f} of {row.gpu_hours_planned:.2f} GPU-hours" if row.gpu_hours_used else "",
    ]
    here = Path.cwd()
    folder = str(row.folder.relative_to(here) if row.folder.is_relative_to(here) else row.folder)
    lines = [visible("; ".join(filter(None, details))), visible(folder) if row.folder.exists() else ""]
    return [part for line in lines if line for part in _wrapped(line, "  ")]


def _wrapped(line: str, indent: str = "") -> list[str]:
    """Wrap a line to the table's width, without breaking words or paths."""
    return textwrap.wrap(
        line,
        WIDTH,
        initial_indent=indent,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def look_at(jobs: list[Job]) -> Look:
    """One row per job. If SLURM's controller does not answer, the accounting is queried instead."""
    open_jobs = [job for job in jobs if not job.finished or job.state == "running"]
    queue: Queue | None = None
    trouble = None
    try:
        queue = look(open_jobs, seconds=ANSWER)
    except UsageError as error:  # for example on another cluster's login node; files of the jobs can still be read
        trouble, unlisted = f"the scheduler could not be asked: {error}", open_jobs
    else:
        jobs = _with_numbers(jobs, queue)
        ended = [job for job in jobs if job.number and not queue.find(job) and not job.end and job.state not in FINAL]
        unlisted = [job for job in ended if not job.finished]
    accounting = accounted(unlisted, seconds=ACCOUNTING)
    return Look([_row(job, queue, accounting) for job in jobs], trouble)


def _with_numbers(jobs: list[Job], queue: Queue) -> list[Job]:
    """The jobs, with the ids of those whose submission has arrived without an answer."""
    numbers: dict[str, str] = {}
    for job in one_per_array(job for job in jobs if job.array.job is None):
        if number := number_of(job, queue):
            numbers[job.array.token] = number
            with suppress(UsageError, OSError), job.ledger.alone(patience=0):  # if locked, the running submission writes it
                settle([job], queue)
    return [
        replace(job, array=job.array.model_copy(update={"job": numbers[job.array.token]})) if job.array.token in numbers else job
        for job in jobs
    ]


def _row(job: Job, queue: Queue | None, accounting: Queue) -> Row:
    """The row of a job. ``accounting`` has jobs that the queue no longer lists."""
    status = job.status
    queued, recorded = queue.find(job) if queue else None, accounting.find(job)
    if queued is None and recorded is not None and (recorded.over or (queue is None and job.state not in FINAL)):
        queued = recorded  # the accounting may miss ends: "running" there counts only without other evidence
    # For COMPLETED and FAILED the job's own status is more precise.
    if queued is not None and queued.over and queued.state not in ("COMPLETED", "FAILED"):
        with suppress(OSError):  # another user's folder, or a full disk
            job.keep_end(queued.state)
    state, why = _state(job, queued, queue)
    progress = read_progress(job.folder)
    done, total, seconds = (_number(progress.get(name)) or 0.0 for name in ("done", "total", "seconds"))
    working_seconds = status.seconds if status else 0.0
    return Row(
        stage=job.name,
        job=job.number,
        state=state,
        why=why,
        node=(queued.node if queued is not None and state == "running" else "") or (status.host if status else "") or None,
        elapsed_seconds=max(working_seconds, queued.seconds if queued is not None else 0.0),
        folder=job.folder,
        log=job.log_path(),
        cell=_cell(job.folder) if state == "running" else None,
        steps_done=done if total else None,
        steps_total=total or None,
        loss=_loss(job.folder),
        seconds_left=seconds * (total - done) / done if state == "running" and done and seconds else None,
        gpu_hours_used=working_seconds * job.array.gpus * job.array.nodes / 3600,
        gpu_hours_planned=job.listed.planned,
    )


def _state(job: Job, queued: Queued | None, queue: Queue | None) -> tuple[str, str]:
    """The state of a job, one of `STATES`, and the reason."""
    status = job.status
    if job.finished:
        ending = queued is not None and not queued.over and job.state == "running"
        return ("running", "its results are written and it is ending") if ending else ("done", "")
    if queued is not None and queued.state == HIDDEN:
        return ("running" if job.state == "running" else "queued"), queued.reason
    if queued is not None and queued.state in WAITING:
        if queued.held:
            return "held", queued.held
        again = status is not None and status.state == "stopped"
        return "queued", f"{status.why.removesuffix(QUEUED_AGAIN)}{QUEUED_AGAIN}" if status and again else queued.waits
    if queued is not None and not queued.over:
        return "running", f"session {status.sessions}" if status and status.sessions > 1 else ""
    if damaged := job.damaged_record:
        return "failed", f"{damaged} is not a valid record; `igpt resume` sets it aside and runs the stage again"
    if status is not None and status.state == "done":
        return "lost", "its record is gone; `igpt resume` runs it again"
    if status is not None and status.state in FINAL:
        return status.state, status.why
    if job.array.job is None and job.ledger.busy():
        return "queued", "is being submitted"
    if job.array.job is None and queue is not None:
        if may_arrive(job, queue):
            deadline = clock(settled_by(job, queue))
            return "unknown", f"its submission had no answer: run the same `igpt submit` after {deadline}"
        return "lost", "its submission was cut off and has not arrived; `igpt resume` submits it"
    end = queued.state if queued is not None else job.end
    if queue is not None or end:
        return _ended(job, end)
    since = clock(job.last_sign)  # the time of its last status
    if status is None:
        return "unknown", f"submitted at {since}{'' if job.number else ', without an answer'}; no status of it yet"
    fresh = status.state == "running" and time.time() - job.last_sign < FRESH
    return ("running" if fresh else "unknown"), f"{status.why or status.state} at {since}, its last status"


def _ended(job: Job, end: str) -> tuple[str, str]:
    """State and reason of a job that ended without a record or a final status; ``end`` is its SLURM state."""
    status, log = job.status, job.log()
    reason = scheduler_reason(log)
    if not reason and shutil.disk_usage(job.ledger.folder).free < FULL:  # neither log nor status could then be written
        reason = DISK_WAS_FULL
    if reason == BY_SCANCEL or (end == "CANCELLED" and reason != MEMORY):
        return "cancelled", BY_SCANCEL
    if end == "TIMEOUT":
        return "lost", "its time limit came before it could stop; `igpt resume` continues it"
    if status is not None and status.state == "stopped" and not reason:
        why = other_nodes_last_line(log)
        return ("failed", why) if why else ("stopped", f"{status.why}; `igpt resume` continues it")
    if not end and job.never_began:
        return "lost", "it left the queue before it began, perhaps cancelled; `igpt resume` queues it again"
    why = reason or REASONS.get(end) or last_line(log) or end.lower() or "it ended without a message"
    return "lost", f"{why}; `igpt resume` continues it"


def _cell(folder: Path) -> str | None:
    """The running notebook cell, as "3 of 12", from the notebook that papermill saves; None if unknown."""
    parts = sorted(folder.glob(".notebook.*.part.ipynb"), key=lambda path: path.stat().st_mtime)
    try:
        cells = [cell for cell in json.loads(parts[-1].read_text())["cells"] if cell["cell_type"] == "code"]
        begun = sum(cell["metadata"].get("papermill", {}).get("status") in ("running", "completed") for cell in cells)
    except (IndexError, OSError, ValueError, KeyError, TypeError):
        return None
    return f"{begun} of {len(cells)}"


def _loss(folder: Path) -> float | None:
    """The last training loss, in nats per token; None if there is none."""
    try:
        return _number(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None


def _number(value: object) -> float | None:
    """``value`` as a float if it is a finite number; else None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def log_lines(target: str, *, follow: bool) -> Iterator[str]:
    """The log lines of a target's jobs; with ``follow`` also new lines until the jobs end."""
    read: dict[Path, int] = {}  # bytes read of each log
    reported: set[str] = set()  # stages whose empty log was reported
    while True:
        if not (jobs := chosen_jobs([target])):
            raise UsageError(f"nothing was submitted under {target!r}: `igpt status` lists what was")
        for job in jobs:
            logs = [path for path in (job.log("out"), job.log()) if path is not None]
            yield from (line for path in logs for line in _news(path, job.name, read))
            if not any(read.get(path) for path in logs) and job.name not in reported:
                reported.add(job.name)
                yield visible(f"== {job.name}: {_nothing(job)}")
            failed = job.folder / "failed.ipynb"
            if failed.exists() and failed not in read:
                read[failed] = 0
                yield f"== the notebook up to its failure: {failed}"
        if not follow or not look_at(jobs).at_work:
            return
        time.sleep(min(EVERY, 2.0))


def _nothing(job: Job) -> str:
    """Why a job has no log lines, and the path of its log."""
    path = job.log_path()
    if path is not None and not path.exists() and (job.status or job.finished):
        return f"its log is gone; it was {path}"
    return f"nothing yet; what it writes will be in {path or job.logs}"


def _news(path: Path, name: str, read: dict[Path, int]) -> Iterator[str]:
    """The new lines of a log, after a heading with the stage's name."""
    with path.open(errors="replace") as stream:
        stream.seek(read.get(path, 0))
        lines = stream.read().splitlines()
        read[path] = stream.tell()
    if lines:
        yield visible(f"== {name}: {path}")
        yield from map(visible, lines)


def cancel_targets(targets: list[str]) -> str:
    """Cancel the queued and running jobs of the targets, by default all; a summary."""
    count, not_cancelled = 0, list[str]()
    for ledger in chosen_ledgers(targets):
        with locked_jobs(ledger, targets) as jobs:
            queue = look(jobs)
            settle((job for job in jobs if number_of(job, queue)), queue)
            active = {queued.number: job for job in jobs if (queued := queue.active(job)) and queued.state != HIDDEN}
            cancel(active)
            # Own jobs that left the queue before they started, as by scancel: recorded for users who cannot see the queue.
            own_jobs = (job for job in jobs if job.number and job.array.owner == user() and not job.finished)
            unstarted = [job for job in own_jobs if job.never_began and queue.find(job) is None]
            for job in [*active.values(), *unstarted]:
                job.keep_end("CANCELLED")
            count += len(active)
            not_cancelled += _not_cancelled(jobs, queue)
    summary = f"{counted(count, 'job')} cancelled; `igpt resume` queues them again"
    others = [f"and {len(not_cancelled) - 1} more like it"] if len(not_cancelled) > 1 else []
    return "; ".join([summary if count else "nothing to cancel: no job is queued or running", *not_cancelled[:1], *others])


def _not_cancelled(jobs: list[Job], queue: Queue) -> Iterator[str]:
    """A sentence per job that may be active and cannot be cancelled: hidden jobs, and submissions without an answer."""
    for job in jobs:
        if (queued := queue.find(job)) and queued.state == HIDDEN:
            yield f"{job.name} is job {queued.number}, {queued.reason}"
    for job in one_per_array(jobs):
        if job.array.job is None and not number_of(job, queue) and may_arrive(job, queue):
            yield f"{job.name} may be queued and was not cancelled: its submission had no answer"


def collect() -> str:
    """Copy the records of finished stages that `igpt run` would publish into the book; a summary.

    Raises StageError that names records which do not belong to their stage.
    """
    project = Project.here()
    plan = publishable_stages(project)
    taken = fresh = 0
    refused = []
    for planned in plan:
        if planned.state == "fresh":
            fresh += 1
            continue
        for root in run_roots(project):
            path = run_folder(root, planned.stage, planned.signature) / "record.json"
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
    result = f"{counted(taken, 'record')} collected, {fresh} there already, {pending} of the book's {len(plan)} stages pending"
    if refused:
        raise StageError(f"{result}; not accepted: {'; '.join(refused)}")
    return result
