"""`igpt clean`: what old runs and snapshots take, in this checkout and in the shared folders; deleted only when asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from tabulate import tabulate

from igpt.companion.results.notebooks import near_misses
from igpt.companion.run.clean import FAILED, PARTS, STALE, UNFINISHED, Found, Runs, delete_away, is_ours, move_away, size_of
from igpt.companion.slurm.ledger import Array, Ledger, arrays_of, homes
from igpt.companion.slurm.scheduler import OVER, Queue, look, may_arrive, number_of
from igpt.companion.slurm.status import ANSWER, FINAL
from igpt.errors import StageError, UsageError
from igpt.project import Project
from igpt.text import visible

SNAPSHOTS, NEEDED = "snapshots", "snapshots that jobs need"
CODE = ".snapshots"
KINDS = {  # what may go, by the words that name it
    STALE: "finished runs of other code or data",
    FAILED: "failed runs that hold no work",
    SNAPSHOTS: "code of jobs that are all finished",
    PARTS: "what killed processes left half-written",
    UNFINISHED: "what would be continued; goes only when named",
}


def clean(kinds: list[str], *, delete: bool) -> str:
    """Delete what is of the kinds, all but the unfinished ones when there are none; or only say what that would be.

    Raises UsageError for an unknown kind before anything is deleted, StageError for what could not be deleted.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"there is no kind {kind!r}{near_misses(kind, list(KINDS))}")
    project = Project.here()
    wanted = kinds or [kind for kind in KINDS if kind != UNFINISHED]
    found, gone, failures = list[Found](), list[Found](), list[str]()
    trouble = ""
    for home in homes(project):
        ledger = Ledger(home)
        jobs = _Jobs(ledger)
        mine = [*Runs(project, home, jobs.folders, jobs.resumable).sort(), *_snapshots(home, jobs.snapshots)]
        found, trouble = found + mine, trouble or jobs.trouble
        if not delete:
            continue
        away = list[Path]()
        with ledger.alone() if ledger.folder.exists() else nullcontext():  # so that nobody submits what needs them now
            jobs = _Jobs(ledger)
            runs = Runs(project, home, jobs.folders, jobs.resumable)
            for each in mine:
                code = each.path.parent.name == CODE
                if each.kind not in wanted or (code and each.path.name in jobs.snapshots):
                    continue
                try:
                    taken = [move_away(each.path, home.runs)] if code else runs.take_away(each)
                except OSError as error:
                    failures.append(f"{each.path} ({error.strerror})")
                    continue
                away += taken
                gone += [each] if taken or not each.path.exists() else []
        for path in away:  # which takes its time, and keeps nobody from submitting
            try:
                delete_away(path)
            except OSError as error:
                failures.append(f"{path} ({error.strerror})")
    unasked = (
        f"the scheduler could not be asked ({trouble}); so every job that has not said itself that it has ended counts as at work"
    )
    said = [f"{len(gone)} deleted, {_size(gone)}"] if delete else _report(found, kinds)
    if failures:
        raise StageError(
            f"{said[0]}; {len(failures)} could not be deleted, {failures[0]} first: see who owns it, and run the same again"
        )
    return "\n".join([*([unasked, ""] if trouble else []), *said])


class _Jobs:
    """What the jobs of one folder need: their run folders while they are at work, and their code until they are finished."""

    def __init__(self, ledger: Ledger) -> None:
        arrays = ledger.arrays()
        every = [(array, index) for array in arrays for index in range(len(array.stages))]
        marks = {(array.token, index): ledger.mark(array.token, index) for array, index in every}
        running = {key for key, mark in marks.items() if mark is not None and mark.state == "running"}
        done = {name: ledger.finished(name) for name in {array.stages[index].folder for array, index in every}}
        asked = [each for each in every if not done[each[0].stages[each[1]].folder] or (each[0].token, each[1]) in running]
        self.trouble, queue = "", None
        try:
            queue = look(ledger, arrays_of(asked), seconds=ANSWER)
        except UsageError as error:
            self.trouble = str(error)
        working = [each for each in asked if _may_work(ledger, *each, queue)]
        latest = [each for folder, each in ledger.latest().items() if not done[folder]]  # `igpt resume` continues these
        self.folders = {array.stages[index].folder for array, index in working}
        self.resumable = {array.stages[index].folder for array, index in latest}
        self.snapshots = {Path(array.snapshot).name for array, _ in [*working, *latest]}


def _may_work(ledger: Ledger, array: Array, index: int, queue: Queue | None) -> bool:
    """Whether a job is queued or running, or may be as far as is known."""
    if queue is not None:
        unknown = array.job is None and not number_of(ledger, array, queue)
        return queue.active(array, index) is not None or (unknown and may_arrive(ledger, array, queue))
    mark = ledger.mark(array.token, index)
    ended = mark is not None and mark.state in FINAL
    return not ended and ledger.end(array.token, index) not in OVER - {"PREEMPTED", "NODE_FAIL"}  # then queued again, perhaps


def _snapshots(home: Project, needed: set[str]) -> Iterator[Found]:
    """The snapshots of one folder, also those in part: only who holds the ledger makes one."""
    folder = home.runs / CODE
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        stays = path.name in needed or not is_ours(path)
        yield Found(NEEDED if stays else PARTS if path.name.startswith(".") else SNAPSHOTS, path, size_of(path))


def _report(found: list[Found], kinds: list[str]) -> list[str]:
    """The kinds with their numbers and sizes; those that were named with each folder."""
    if kinds:
        chosen = [each for kind in KINDS for each in found if each.kind == kind and kind in kinds]
        lines = [f"{_size([each]):>10}  {visible(str(each.path))}" for each in chosen]
    else:
        chosen = [each for each in found if each.kind in KINDS and each.kind != UNFINISHED]
        table = [(kind, len(mine), _size(mine), said) for kind, said in KINDS.items() if (mine := _of(kind, found))]
        heads = ("Kind", "Number", "Size", "What")
        lines = [tabulate(table, heads, disable_numparse=True, colalign=("left", "right", "right"))] if table else []
        kept = [kind for kind in dict.fromkeys(each.kind for each in found) if kind not in KINDS]
        lines += [
            *([""] if table else []),
            *(f"kept: {len(_of(kind, found))} {kind}, {_size(_of(kind, found))}" for kind in kept),
        ]
    words = " ".join(["igpt clean", *kinds, "--delete"])
    return [*lines, f"{_size(chosen)} can go; `{words}` deletes it" if chosen else "there is nothing to delete"]


def _of(kind: str, found: list[Found]) -> list[Found]:
    return [each for each in found if each.kind == kind]


def _size(found: list[Found]) -> str:
    """What they take together."""
    size = sum(each.size for each in found)
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
