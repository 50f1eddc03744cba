"""`igpt clean`: list or delete old runs and snapshots, in this checkout and in shared folders.

Only files under ``runs`` are considered, and no files of other users. A folder is renamed before it is deleted, so that an
interrupted deletion leaves no partial run folder.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from tabulate import tabulate

from igpt.companion.results.notebooks import near_misses
from igpt.companion.results.record import Record, read_record
from igpt.companion.results.signature import Signer
from igpt.companion.run.folder import folder_record
from igpt.companion.run.targets import parameters_of
from igpt.companion.slurm.ledger import FINAL, Job, Ledger, run_roots
from igpt.companion.slurm.scheduler import ENDED_FOR_GOOD, Queue, look, may_arrive, number_of
from igpt.companion.slurm.status import ANSWER
from igpt.companion.stage import Literal, Stage
from igpt.errors import StageError, UsageError
from igpt.files import try_lock
from igpt.project import Project
from igpt.text import visible

KINDS = {  # what may be deleted, by kind
    "stale": "finished runs of other code or data",
    "failed": "failed runs that hold no work",
    "snapshots": "code of jobs that are all finished",
    "parts": "what killed processes left half-written",
    "unfinished": "what would be continued; goes only when named",
}
FRESH, PUBLISHED = "runs whose records are fresh", "runs that published records speak of"  # kinds that are kept
AT_WORK, READ, OTHERS = "runs at work", "runs that what is at work, or is to be resumed, may read", "runs of other users"
UNKNOWN = "runs of stages that this checkout does not know"  # or whose notebook cannot be read
NEEDED = "snapshots that jobs need"
CODE = ".snapshots"
AWAY = ".clean-"  # prefix of a folder that is being deleted
RUN = re.compile(r"(?P<stage>.+)-(?P<digest>[0-9a-f]{12})")
NO_WORK = re.compile(r"\..*|progress\.json|stop|(failed|notebook)\.ipynb")  # files of a failed run that hold no work

Item = tuple[str, Path]  # kind and path


def clean(kinds: list[str], *, delete: bool) -> str:
    """Delete the items of these kinds, by default of all kinds but ``unfinished``; without ``delete`` only list them.

    Raises UsageError for an unknown kind, before anything is deleted, and StageError if some items could not be deleted.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"there is no kind {kind!r}{near_misses(kind, list(KINDS))}")
    project = Project.here()
    chosen = kinds or [kind for kind in KINDS if kind != "unfinished"]
    items, failures = list[Item](), list[str]()
    trouble, deleted, size = "", 0, 0
    for root in run_roots(project):
        ledger, moved = Ledger(root), list[Path]()
        with ledger.alone() if delete and ledger.folder.exists() else nullcontext():  # no submission may start to need them
            runs = Runs(project, ledger)
            trouble = trouble or runs.trouble
            items += (root_items := list(runs.items()))
            for kind, path in root_items if delete else []:
                if kind in chosen:
                    with _noting(path, failures):
                        moved += runs.take_away(kind, path)
        for path in moved:  # outside the lock, since it takes long
            with _noting(path, failures):
                size += size_of(path)
                delete_away(path)
            deleted += 1
    lines = [f"{deleted} deleted, {_text(size)}"] if delete else _report(items, kinds)
    if failures:
        raise StageError(
            f"{lines[0]}; {len(failures)} could not be deleted, {failures[0]} first: see who owns it, and run the same again"
        )
    warning = f"the scheduler could not be asked ({trouble}); so no job without a final status counts as ended"
    return "\n".join([*([warning, ""] if trouble else []), *lines])


@contextmanager
def _noting(path: Path, failures: list[str]) -> Iterator[None]:
    """Append an OSError to ``failures`` instead of raising it."""
    try:
        yield
    except OSError as error:
        failures.append(f"{path} ({error.strerror})")


class Runs:
    """The runs and snapshots of one run root, classified by what a checkout and the jobs of the run root still need.

    code : the checkout whose notebooks, code and published records determine what is fresh
    """

    def __init__(self, code: Project, ledger: Ledger) -> None:
        self._code, self._signer, self._published = code, Signer(code.notebooks), _published(code)
        self._runs = ledger.run_root.runs
        self.trouble = ""  # why the scheduler could not be asked
        open_jobs = [job for job in ledger.jobs() if not job.finished or job.state == "running"]
        queue = None
        try:
            queue = look(open_jobs, seconds=ANSWER)
        except UsageError as error:
            self.trouble = str(error)
        working = [job for job in open_jobs if _may_work(job, queue)]
        resumable = [job for job in ledger.latest().values() if not job.finished]
        self._snapshots = {Path(job.array.snapshot).name for job in [*working, *resumable]}
        self._at_work = {job.listed.folder for job in working}
        busy = {folder.name for folder in self._folders() if self._is_busy(folder)} | self._at_work
        # A job or process of other code may read parents that count as stale in this checkout.
        self._others_read = any(not self._is_current(name) for name in busy)
        self._to_be_read = {stage.name for job in resumable for stage in self._ancestors(job.listed.folder)}

    def items(self) -> Iterator[Item]:
        """All runs, snapshots and partial files with their kinds, also those to be kept."""
        for folder in self._folders():
            kind = self.kind(folder)
            yield kind, folder
            if kind in (FRESH, PUBLISHED, READ, UNKNOWN):  # the parts of an unfinished run are removed when it is resumed
                parts = [*folder.rglob(".*.part"), *folder.glob(".notebook.*.part.ipynb"), *folder.glob(".kernel.*.log")]
                yield from (("parts", path) for path in sorted(parts))
        yield from (("parts", path) for path in sorted(self._runs.glob(f"{AWAY}*")) if _is_ours(path))
        for path in sorted((self._runs / CODE).iterdir()) if (self._runs / CODE).is_dir() else []:
            stays = path.name in self._snapshots or not _is_ours(path)
            yield NEEDED if stays else "parts" if path.name.startswith(".") else "snapshots", path

    def kind(self, folder: Path, *, held: bool = False) -> str:
        """The kind of a run folder. ``held``: this process holds its lock and has checked the other locks."""
        if not _is_ours(folder):
            return OTHERS
        if folder.name in self._at_work or (not held and any(map(_locked, _locks(folder)))):
            return AT_WORK
        record = _record(folder)
        if record is None:
            return "failed" if all(NO_WORK.fullmatch(path.name) for path in folder.iterdir()) else "unfinished"
        current = self._digest(record.stage.partition(",")[0], record.parameters)
        if current == record.signature:
            return FRESH
        signatures = self._published.get(record.stage, set())
        if signatures is None or record.signature in signatures:
            return PUBLISHED
        if current is None:
            return UNKNOWN
        return READ if self._others_read or record.stage in self._to_be_read else "stale"

    def take_away(self, kind: str, path: Path) -> list[Path]:
        """Rename an item, which removes it atomically; the paths to delete then. Empty if the item is now in use."""
        if path.name.startswith(AWAY):
            return [path]
        away = self._runs / f"{AWAY}{secrets.token_hex(4)}"
        if path.parent.name == CODE:
            return [path.rename(away)]
        folder = self._runs / path.relative_to(self._runs).parts[0]
        lock = try_lock(folder / ".lock")
        if lock is None:
            return []
        with lock:
            in_use = any(_locked(other) for other in _locks(folder) if other != folder / ".lock")
            if in_use or not path.exists() or (path == folder and self.kind(folder, held=True) != kind):
                return []
            return [path.rename(away)]

    def _folders(self) -> list[Path]:
        """The run folders, sorted; links and all other files in ``runs`` are ignored."""
        paths = self._runs.iterdir() if self._runs.is_dir() else iter(())
        return sorted(path for path in paths if RUN.fullmatch(path.name) and path.is_dir() and not path.is_symlink())

    def _is_busy(self, folder: Path) -> bool:
        """Whether a process may be working in a folder; the locks of other users cannot always be tested."""
        return any(map(_locked, _locks(folder))) and (_is_ours(folder) or _record(folder) is None)

    def _is_current(self, name: str) -> bool:
        """Whether a run folder's name has the signature that its stage has in this checkout."""
        parts = RUN.fullmatch(name)
        notebook, *words = Stage.words(parts["stage"]) if parts else [""]
        try:
            digest = self._digest(notebook, parameters_of(self._code, notebook, words))
        except UsageError:
            return False
        return parts is not None and digest is not None and digest.startswith(parts["digest"])

    def _ancestors(self, name: str) -> Iterator[Stage]:
        """All ancestors of a run folder's stage in this checkout; empty for an unknown stage."""
        notebook, *words = Stage.words(name.rpartition("-")[0])
        with suppress(UsageError):
            queue = [Stage.of(notebook, **parameters_of(self._code, notebook, words))]
            while queue:
                parents = self._signer.parents(queue.pop()).values()
                queue += parents
                yield from parents

    def _digest(self, notebook: str, parameters: dict[str, Literal]) -> str | None:
        """The current signature of a stage; None if it cannot be signed."""
        try:
            return self._signer.sign(Stage.of(notebook, **parameters)).digest
        except UsageError:
            return None


def _may_work(job: Job, queue: Queue | None) -> bool:
    """Whether a job is or may be queued or running. Without a queue, every job without a final state counts."""
    if queue is not None:
        unknown = job.array.job is None and not number_of(job, queue)
        return queue.active(job) is not None or (unknown and may_arrive(job, queue))
    return job.state not in FINAL and job.end not in ENDED_FOR_GOOD


def _record(folder: Path) -> Record | None:
    """The record of a run folder; None if it is missing or not valid."""
    try:
        return folder_record(folder)
    except UsageError:
        return None


def _published(code: Project) -> dict[str, set[str] | None]:
    """The signatures of published records by stage; None if the stage's record cannot be read."""
    published: dict[str, set[str] | None] = {}
    for path in code.records.glob("*/*.json"):
        try:
            record = read_record(path)
        except UsageError:
            published[path.stem] = None
            continue
        signatures = published.setdefault(record.stage, set()) if record else None
        if record and signatures is not None:
            signatures.add(record.signature)
    return published


def _is_ours(path: Path) -> bool:
    """Whether this user owns a path."""
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _locks(folder: Path) -> list[Path]:
    """The existing lock files of a run folder: its own, and those of kernels, training and features."""
    return [*folder.glob(".kernel.*.log"), *folder.rglob(".*lock")]


def _locked(path: Path) -> bool:
    """Whether another process holds a lock; True if that cannot be determined."""
    try:
        lock = try_lock(path)
    except OSError:
        return True
    if lock is None:
        return True
    lock.lock.release()
    return False


def delete_away(path: Path) -> None:
    """Delete a renamed item. The next `igpt clean` completes an interrupted deletion."""
    with suppress(FileNotFoundError):  # another `igpt clean` deletes it too
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def size_of(path: Path) -> int:
    """Bytes on disk of a file or folder; links are not followed."""
    size = 0
    with suppress(OSError):  # deleted meanwhile
        for each in [path, *path.rglob("*")]:
            size += each.lstat().st_blocks * 512
    return size


def _report(items: list[Item], kinds: list[str]) -> list[str]:
    """The report: a table of counts and sizes by kind, or each path of the named kinds."""
    sizes = {path: size_of(path) for _, path in items}
    by_kind = {kind: [sizes[path] for k, path in items if k == kind] for kind in dict.fromkeys([*KINDS, *(k for k, _ in items)])}
    if kinds:
        chosen = [path for kind in KINDS if kind in kinds for k, path in items if k == kind]
        lines = [f"{_text(sizes[path]):>10}  {visible(str(path))}" for path in chosen]
    else:
        chosen = [path for kind, path in items if kind in KINDS and kind != "unfinished"]
        rows = [
            (kind, len(by_kind[kind]), _text(sum(by_kind[kind])), meaning) for kind, meaning in KINDS.items() if by_kind[kind]
        ]
        heads = ("Kind", "Number", "Size", "What")
        lines = [tabulate(rows, heads, disable_numparse=True, colalign=("left", "right", "right")), ""] if rows else []
        kept = {kind: kind_sizes for kind, kind_sizes in by_kind.items() if kind not in KINDS}
        lines += [f"kept: {len(kind_sizes)} {kind}, {_text(sum(kind_sizes))}" for kind, kind_sizes in kept.items()]
    words = " ".join(["igpt clean", *kinds, "--delete"])
    size = _text(sum(sizes[path] for path in chosen))
    return [*lines, f"{size} can go; `{words}` deletes it" if chosen else "there is nothing to delete"]


def _text(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
