"""What lies in ``runs`` and is needed no more: sorted into kinds, measured, and removed folder by folder.

Nothing outside of ``runs`` is looked at, and of other users' folders nothing is touched. Who calls says what is still at work.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from igpt.companion.results.record import Record, read_record
from igpt.companion.results.signature import Signer
from igpt.companion.run.folder import folder_record, remove_leftovers
from igpt.companion.run.targets import parameters_of
from igpt.companion.stage import Literal, Stage
from igpt.errors import UsageError
from igpt.files import remove_parts, try_lock
from igpt.project import Project

STALE, FAILED, UNFINISHED, PARTS = "stale", "failed", "unfinished", "parts"  # what may go
FRESH, PUBLISHED = "runs whose records are fresh", "runs that published records speak of"  # and what stays
AT_WORK, READ, OTHERS = "runs at work", "runs that what is at work, or is to be resumed, may read", "runs of other users"
UNKNOWN = "runs of stages that this checkout does not know"  # or whose notebook cannot be read just now
AWAY = ".clean-"  # how a folder is called that is being deleted
RUN = re.compile(r"(?P<stage>.+)-(?P<digest>[0-9a-f]{12})")
NO_WORK = re.compile(r"\..*|progress\.json|stop|(failed|notebook)\.ipynb")  # what a failed run leaves besides its work


@dataclass(frozen=True)
class Found:
    """Something in ``runs``: its kind, where it is, and the bytes that it takes."""

    kind: str
    path: Path
    size: int


class Runs:
    """The runs of one folder, as a checkout's code sees them.

    code : the checkout whose notebooks, code and published records decide what is fresh
    at_work : names of run folders that jobs work in, or will
    resumable : names of those that jobs have left, and will work in when they are resumed
    """

    def __init__(self, code: Project, home: Project, at_work: Collection[str], resumable: Collection[str] = ()) -> None:
        self._signer = Signer(code.notebooks)
        self._code, self.runs = code, home.runs
        self._published = _published(code)
        self._at_work = set(at_work)
        names = {folder.name for folder in self._folders() if self._is_busy(folder)} | self._at_work
        # A job or process of other code reads the runs that its stage stands on, and these count as stale here.
        self._others_read = any(not self._is_current(name) for name in names)
        self._to_be_read = {stage.name for name in resumable for stage in self._ancestors(name)}  # of whatever code

    def sort(self) -> Iterator[Found]:
        """All that is there, also what stays."""
        for folder in self._folders():
            kind = self.kind(folder)
            yield Found(kind, folder, size_of(folder))
            if kind in (FRESH, PUBLISHED, READ, UNKNOWN):  # an unfinished one clears itself as it is continued
                yield from (Found(PARTS, path, size_of(path)) for path in _parts(folder))
        yield from (Found(PARTS, path, size_of(path)) for path in sorted(self.runs.glob(f"{AWAY}*")) if is_ours(path))

    def kind(self, folder: Path, *, held: bool = False) -> str:
        """What a run folder is; ``held`` by this process, which then has looked for others."""
        if not is_ours(folder):
            return OTHERS
        if folder.name in self._at_work or (not held and is_held(folder)):
            return AT_WORK
        record = _record(folder)
        if record is None:
            return FAILED if all(NO_WORK.fullmatch(path.name) for path in folder.iterdir()) else UNFINISHED
        current = self._digest(record.stage.partition(",")[0], record.parameters)
        if current == record.signature:
            return FRESH
        signatures = self._published.get(record.stage, set())
        if signatures is None or record.signature in signatures:
            return PUBLISHED
        if current is None:
            return UNKNOWN
        return READ if self._others_read or record.stage in self._to_be_read else STALE

    def take_away(self, found: Found) -> list[Path]:
        """Rename something, so that it is gone at once and whole; what is then to be deleted. Nothing if it is in use now."""
        if found.kind == PARTS and not found.path.name.startswith(AWAY):
            _remove_parts(found.path, self.runs)
            return []
        if found.kind == PARTS:
            return [found.path]
        lock = try_lock(found.path / ".lock")
        if lock is None:
            return []
        with lock:
            others = any(_locked(path) for path in _locks(found.path) if path != found.path / ".lock")
            if others or self.kind(found.path, held=True) != found.kind:
                return []
            return [move_away(found.path, self.runs)]

    def _folders(self) -> list[Path]:
        """The folders of runs; links and all else in ``runs`` are nobody's business."""
        found = self.runs.iterdir() if self.runs.is_dir() else iter(())
        return sorted(path for path in found if RUN.fullmatch(path.name) and path.is_dir() and not path.is_symlink())

    def _is_busy(self, folder: Path) -> bool:
        """Whether someone may be at work in a folder; another user's locks cannot always be tried."""
        return is_held(folder) and (is_ours(folder) or _record(folder) is None)

    def _is_current(self, name: str) -> bool:
        """Whether a run folder's name is what this checkout's code, data and packages would give it, as far as it can be read."""
        found = RUN.fullmatch(name)
        head, *words = Stage.words(found["stage"]) if found else [""]
        try:
            digest = self._digest(head, parameters_of(self._code, head, words))
        except UsageError:
            return False
        return found is not None and digest is not None and digest.startswith(found["digest"])

    def _ancestors(self, name: str) -> Iterator[Stage]:
        """The stages that a run folder's stage stands on, as this checkout has them; none of a stage that it does not know."""
        head, *words = Stage.words(name.rpartition("-")[0])
        with suppress(UsageError):
            queue = [Stage.of(head, **parameters_of(self._code, head, words))]
            while queue:
                parents = self._signer.parents(queue.pop()).values()
                queue += parents
                yield from parents

    def _digest(self, notebook: str, parameters: dict[str, Literal]) -> str | None:
        """The signature that a stage has now; None for one that cannot be signed."""
        try:
            return self._signer.sign(Stage.of(notebook, **parameters)).digest
        except UsageError:
            return None


def _record(folder: Path) -> Record | None:
    """The valid record of a run folder, if there is one."""
    try:
        return folder_record(folder)
    except UsageError:
        return None


def _published(code: Project) -> dict[str, set[str] | None]:
    """The signatures of published records, by stage; None for all of a stage, where its record cannot be read."""
    found: dict[str, set[str] | None] = {}
    for path in code.records.glob("*/*.json"):
        try:
            record = read_record(path)
        except UsageError:
            found[path.stem] = None
            continue
        signatures = found.setdefault(record.stage, set()) if record else None
        if record and signatures is not None:
            signatures.add(record.signature)
    return found


def is_ours(path: Path) -> bool:
    """Whether something is this user's own."""
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def is_held(folder: Path) -> bool:
    """Whether a live process holds a lock in a folder."""
    return any(_locked(path) for path in _locks(folder))


def _locks(folder: Path) -> list[Path]:
    """The lock files of a folder: its own, those of the processes that ran it, those of its training and its features."""
    first = [path for path in (folder / ".lock",) if path.exists()]
    return [*first, *folder.glob(".kernel.*.log"), *(path for path in folder.rglob(".*lock") if path not in first)]


def _locked(path: Path) -> bool:
    """Whether another process holds a lock; also if that cannot be known."""
    try:
        lock = try_lock(path)
    except OSError:
        return True
    if lock is None:
        return True
    lock.lock.release()
    return False


def _parts(folder: Path) -> list[Path]:
    """What killed processes left in a folder that nobody holds."""
    return [*sorted(folder.rglob(".*.part")), *folder.glob(".notebook.*.part.ipynb"), *folder.glob(".kernel.*.log")]


def _remove_parts(path: Path, runs: Path) -> None:
    """Remove what lies half-written in the run folder of ``path``, unless someone works there by now."""
    folder = runs / path.relative_to(runs).parts[0]
    lock = try_lock(folder / ".lock")
    if lock is not None:
        with lock:
            remove_leftovers(folder)
            remove_parts(folder, "**/.*.part")


def move_away(path: Path, runs: Path) -> Path:
    """Give a folder a name in ``runs`` under which nobody looks for it; the name."""
    away = runs / f"{AWAY}{secrets.token_hex(4)}"
    path.rename(away)
    return away


def delete_away(path: Path) -> None:
    """Delete what was moved away; a killed deletion is continued by the next."""
    with suppress(FileNotFoundError):  # of another that cleans
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def size_of(path: Path) -> int:
    """The bytes that something takes on disk, of files with several names once; links are not followed."""
    seen: set[tuple[int, int]] = set()

    def size(at: Path) -> int:
        with suppress(OSError):
            found = at.lstat()
            if (found.st_dev, found.st_ino) in seen:
                return 0
            seen.add((found.st_dev, found.st_ino))
            inside = at.iterdir() if at.is_dir() and not at.is_symlink() else iter(())
            return found.st_blocks * 512 + sum(map(size, inside))
        return 0

    return size(path)
