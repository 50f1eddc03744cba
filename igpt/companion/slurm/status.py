"""`igpt status`, `igpt logs`, `igpt cancel` and `igpt collect`: what became of what was submitted.

Whether a stage is done is read from its record, never from the scheduler's word; why one is not, from what its job
said, from what the scheduler wrote into its log, or from the queue. One question to the scheduler a look.
"""

from __future__ import annotations

import json
import math
import shutil
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from igpt.companion.results.record import usable_record, write_record
from igpt.companion.results.store import record_path
from igpt.companion.run.folder import read_progress, run_folder
from igpt.companion.run.local import publishable_stages
from igpt.companion.slurm.ledger import (
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
from igpt.companion.slurm.targets import Jobs, chosen, chosen_now
from igpt.errors import StageError, UsageError
from igpt.project import Project
from igpt.text import counted, visible

WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
ENDS = {"OUT_OF_MEMORY": MEMORY, "NODE_FAIL": NODE, "PREEMPTED": "preempted"}  # and how it says that a job has ended
AGAIN = ": queued again"
EVERY = 10.0  # seconds between two looks, for the scheduler's sake
ANSWER = 10.0  # seconds that a look has: a controller that is down is known as such after nine
ACCOUNTING = 2.0  # and that the accounting has, in its place
FRESH = 120.0  # seconds for which a job's own word that it runs counts; it says so every half a minute
WIDTH = 80  # columns
FINAL = ("done", "failed", "cancelled")  # words of a job after which it says nothing more


@dataclass(frozen=True)
class Row:
    """One job as a person wants to know it.

    node : where it runs, or ran last
    elapsed : seconds that it has run, in all its sessions
    done, total : steps; both 0 where it counts none
    loss : the last of its training, in nats per token; left : seconds. None while unknown
    used, planned : GPU-hours; the planned ones are an H100's
    """

    name: str
    job: str
    state: str
    why: str
    node: str
    elapsed: float
    folder: Path
    cell: str
    done: float
    total: float
    loss: float | None
    left: float | None
    used: float
    planned: float
    log: Path | None


@dataclass(frozen=True)
class Look:
    """The jobs at one moment; ``unasked`` says why the scheduler could not be asked, if it could not."""

    rows: list[Row]
    unasked: str = ""
    retry: bool = False  # whether it may be asked later, since there is one

    @property
    def at_work(self) -> bool:
        """Whether there is something to wait for."""
        return any(row.state in ("queued", "running") or (self.retry and row.state == "unknown") for row in self.rows)


def status_text(targets: list[str], *, every: bool) -> str:
    """A table of the jobs; the finished ones only counted unless ``every``."""
    return _text(_look(targets), every=every)


def _text(seen: Look, *, every: bool) -> str:
    """The same of a look."""
    if not seen.rows:
        return "no job was submitted from here: `igpt submit TARGETS --profile NAME` does"
    shown = [row for row in seen.rows if every or row.state != "done"]
    cells = [(row.state, row.job, _clock(row.elapsed) if row.elapsed else "", row.name) for row in shown]
    head, rule, *lines = tabulate(
        [map(visible, row) for row in cells] or [[""] * 4], ("State", "Job", "Elapsed", "Stage"), disable_numparse=True
    ).splitlines()
    table = [head, rule, *(line for job, row in zip(lines, shown, strict=False) for line in (job.rstrip(), *_details(row)))]
    counts = [f"{n} {state}" for state in STATES if (n := sum(row.state == state for row in seen.rows))]
    used, planned = sum(row.used for row in seen.rows), sum(row.planned for row in seen.rows)
    said = f"{counted(len(seen.rows), 'job')}: {', '.join(counts)}; {used:.2f} GPU-hours used, {planned:.2f} planned"
    return "\n".join([*([*table, ""] if shown else []), *([*_wrapped(seen.unasked), ""] if seen.unasked else []), said])


def _details(row: Row) -> list[str]:
    """What is to be said of a job beside its line in the table, in lines of their own."""
    words = [
        row.why,
        f"on {row.node}" if row.node and row.state == "running" else f"last on {row.node}" if row.node else "",
        f"cell {row.cell}" if row.cell else "",
        f"step {row.done:,.0f} of {row.total:,.0f}" if row.total and row.state != "done" else "",
        f"loss {row.loss:.4f}" if row.loss is not None else "",
        f"{_clock(row.left)} left" if row.left is not None else "",
        f"{row.used:.2f} of {row.planned:.2f} GPU-hours" if row.used else "",
        _near(row.folder) if row.folder.exists() else "",
    ]
    lines = [""]
    for word in filter(None, map(visible, words)):
        longer = f"{lines[-1]}; {word}" if lines[-1] else f"  {word}"
        lines = [*lines[:-1], longer] if len(longer) <= WIDTH or not lines[-1] else [*lines, f"  {word}"]
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    """A line as lines of the table's width; words and paths stay whole."""
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _near(path: Path) -> str:
    """A path as one types it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def status_json(targets: list[str]) -> str:
    """All of the jobs as one JSON document; the chapter on clusters says what its keys mean."""
    seen = _look(targets)
    jobs = [
        {
            "stage": row.name,
            "job": row.job if row.job != "-" else None,
            "state": row.state,
            "why": row.why,
            "node": row.node or None,
            "elapsed_seconds": row.elapsed,
            "folder": str(row.folder),
            "log": str(row.log) if row.log else None,
            "cell": row.cell or None,
            "steps_done": row.done if row.total else None,
            "steps_total": row.total or None,
            "loss": row.loss,
            "seconds_left": row.left,
            "gpu_hours_used": row.used,
            "gpu_hours_planned": row.planned,
        }
        for row in seen.rows
    ]
    return json.dumps({"version": 1, "trouble": seen.unasked or None, "jobs": jobs}, indent=1, allow_nan=False)


FULL = 2**20  # bytes that are as good as none
STATES = ("done", "running", "queued", "held", "stopped", "failed", "cancelled", "lost", "unknown")


def watch_status(targets: list[str], *, every: bool) -> Iterator[str]:
    """The status again and again, until nothing is queued or running."""
    while True:
        seen = _look(targets)
        yield _text(seen, every=every)
        if not seen.at_work:
            return
        time.sleep(EVERY)


def rows(ledger: Ledger, targets: list[str]) -> list[Row]:
    """One row a stage, by its last job; one question to the scheduler."""
    return _rows(chosen([ledger], targets)).rows


def _look(targets: list[str]) -> Look:
    """The chosen jobs of all folders."""
    return _rows(chosen(_ledgers(), targets))


def _rows(found: Sequence[tuple[Ledger, Jobs]]) -> Look:
    """A row each job. Where the scheduler does not answer, it is asked once only, and the accounting in its place."""
    seen: list[tuple[Ledger, Jobs, Queue | None]] = []
    trouble: UsageError | None = None
    for ledger, jobs in found:
        unfinished = _unfinished(ledger, jobs)
        queue = None
        if trouble is None or not unfinished:
            try:
                queue = look(ledger, unfinished, seconds=ANSWER)
                jobs = _with_numbers(ledger, jobs, queue)
            except UsageError as error:  # the login node of another cluster, say: what the jobs wrote is still to be read
                trouble = error
        seen.append((ledger, jobs, queue))
    silent = [array for ledger, jobs, queue in seen for array in _without_a_word(ledger, jobs, queue)]
    known = accounted(silent, seconds=ACCOUNTING)
    made = [_row(ledger, array, index, queue, known) for ledger, jobs, queue in seen for array, index in jobs.values()]
    retry = trouble is not None and str(trouble) != NO_SCHEDULER
    return Look(made, f"the scheduler could not be asked: {trouble}" if trouble else "", retry)


def _unfinished(ledger: Ledger, jobs: Jobs) -> list[Array]:
    """Arrays of which something may be queued or running."""
    return arrays_of(each for folder, each in jobs.items() if not ledger.finished(folder) or _says(ledger, *each) == "running")


def _without_a_word(ledger: Ledger, jobs: Jobs, queue: Queue | None) -> list[Array]:
    """Arrays of which the accounting alone may know what became of them."""
    if queue is None:
        return _unfinished(ledger, jobs)
    open_ = [each for folder, each in jobs.items() if not ledger.finished(folder) and _says(ledger, *each) not in FINAL]
    return arrays_of(each for each in open_ if each[0].job and not ledger.end(each[0].token, each[1]) and not queue.find(*each))


def _silent(ledger: Ledger, array: Array, index: int) -> bool:
    """Whether a job has never said or written anything."""
    return ledger.mark(array.token, index) is None and ledger.log(array, index) is None


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


def _row(ledger: Ledger, array: Array, index: int, queue: Queue | None, known: Queue) -> Row:
    """One stage's row. ``known`` is what the accounting says where the queue does not know."""
    listed = array.stages[index]
    folder = ledger.home.runs / listed.folder
    mark = ledger.mark(array.token, index)
    job, kept = queue.find(array, index) if queue else None, known.find(array, index)
    if job is None and kept is not None:
        # The accounting misses ends: that a job is at work counts where nobody else says otherwise.
        ended = mark is not None and mark.state in FINAL
        job = kept if kept.over or (queue is None and not ended) else None
    if job is not None and job.over and job.state not in ("COMPLETED", "FAILED"):  # which say no more than the job itself
        with suppress(OSError):  # of another user, or a full disk
            ledger.keep_end(array.token, index, job.state)
    state, why = _state(ledger, array, index, job, queue)
    progress = read_progress(folder)
    done, total = (_number(progress.get(name)) or 0.0 for name in ("done", "total"))
    left = None
    if state == "running" and done and (seconds := _number(progress.get("seconds"))):
        left = seconds * (total - done) / done
    said = mark.seconds if mark else 0.0
    return Row(
        name=listed.name,
        job=array.job_of(index) or "-",
        state=state,
        why=why,
        node=(job.node if job is not None and state == "running" else "") or (mark.host if mark else ""),
        elapsed=max(said, job.seconds if job is not None else 0.0),
        folder=folder,
        cell=_cell(folder) if state == "running" else "",
        done=done,
        total=total,
        loss=_loss(folder),
        left=left,
        used=said * array.gpus * array.nodes / 3600,
        planned=listed.planned,
        log=ledger.log_path(array, index),
    )


def _state(ledger: Ledger, array: Array, index: int, job: Queued | None, queue: Queue | None) -> tuple[str, str]:
    """A job's state, one of `STATES`, and why it is so."""
    mark = ledger.mark(array.token, index)
    folder = array.stages[index].folder
    if ledger.finished(folder):
        ending = job is not None and not job.over and mark is not None and mark.state == "running"
        return ("running", "its results are written and it is ending") if ending else ("done", "")
    if job is not None and job.state == HIDDEN:
        return ("running" if mark is not None and mark.state == "running" else "queued"), job.reason
    if job is not None and job.state in WAITING:
        if job.held:
            return "held", job.held
        if mark is not None and mark.state == "stopped":
            return "queued", f"{mark.why.removesuffix(AGAIN)}{AGAIN}"
        return "queued", job.waits
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
        return _last_said(ledger, array, index)
    return _ended(ledger, array, index, end)


def _last_said(ledger: Ledger, array: Array, index: int) -> tuple[str, str]:
    """The same from what a job said last, where nobody else can be asked."""
    mark, since = ledger.mark(array.token, index), ledger.last_sign(array, index)
    if mark is None:
        return "unknown", f"submitted at {clock(since)}{'' if array.job else ', without an answer'}; it has said nothing yet"
    if mark.state == "running":
        return ("running" if time.time() - since < FRESH else "unknown"), f"running, as it said at {clock(since)}"
    return "unknown", f"{mark.why}, as it said at {clock(since)}"


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
    if not end and _silent(ledger, array, index):
        return "lost", "not in the queue any more, and it never began: cancelled, perhaps; `igpt resume` queues it again"
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


def _loss(folder: Path) -> float | None:
    """The last loss of training, in nats per token."""
    try:
        return _number(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None


def _number(found: object) -> float | None:
    """A finite number; None for anything else that a file may hold in its place."""
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


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
    told: set[str] = set()  # stages of which it was said that there is nothing
    while True:
        for ledger, (array, index) in ((ledger, each) for ledger, jobs in found for each in jobs.values()):
            name = array.stages[index].name
            logs = [path for path in (ledger.log(array, index, "out"), ledger.log(array, index)) if path is not None]
            news = [line for path in logs for line in _news(path, name, places)]
            yield from news
            if not any(places.get(path) for path in logs) and name not in told:
                told.add(name)
                yield visible(f"== {name}: {_nothing(ledger, array, index)}")
            failed = ledger.home.runs / array.stages[index].folder / "failed.ipynb"
            if failed.exists() and failed not in places:
                places[failed] = 0
                yield f"== the notebook as far as it came: {failed}"
        if not follow or not _rows(found).at_work:
            return
        time.sleep(min(EVERY, 2.0))
        found = [(ledger, chosen_now(ledger, jobs, [target])) for ledger, jobs in found]


def _nothing(ledger: Ledger, array: Array, index: int) -> str:
    """Why there is nothing to print of a job, and where it will be."""
    path = ledger.log_path(array, index)
    if path is None:
        return f"nothing yet; its submission had no answer, and its log will be in {ledger.logs(array.token)}"
    if not path.exists() and (ledger.mark(array.token, index) or ledger.finished(array.stages[index].folder)):
        return f"its log is gone; it was {path}"
    return f"nothing yet; what it writes will be in {path}"


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
        f"{counted(count, 'job')} cancelled; `igpt resume` queues them again"
        if count
        else "nothing to cancel: no job is queued or running"
    )
    return "; ".join([done, *left[:1], *([f"and {len(left) - 1} more like it"] if len(left) > 1 else [])])


def _forgotten(ledger: Ledger, array: Array, index: int, queue: Queue) -> bool:
    """Whether one's own job has left the queue before it began, as by scancel, and the queue does not know it any more.

    That is kept for others, who may not see the queue.
    """
    mine = array.job is not None and array.owner == user() and not ledger.finished(array.stages[index].folder)
    return mine and _silent(ledger, array, index) and queue.find(array, index) is None


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
    missing = f"{pending} of the book's {len(plan)} stages have none of this code"
    said = f"{counted(taken, 'record')} collected, {fresh} there already, {missing}"
    if refused:
        raise StageError(f"{said}; not accepted: {'; '.join(refused)}")
    return said
