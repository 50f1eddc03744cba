"""A stage's folder under ``runs/``: its path, its record, its progress and its lock."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt.companion.results.record import Record, read_record, usable_record
from igpt.companion.results.signature import Signature
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.files import read_json, remove_parts, try_lock, write_text
from igpt.project import Project

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy

# Environment variable in kernels started by `igpt run`: the path for the record, which is copied to the run folder once the
# notebook has succeeded. Such a kernel never empties a finished folder, since other processes may be reading it.
PLANNED = "IGPT_PLANNED"
STOP = "stop"  # a file in a stage's folder: training then writes a checkpoint and stops
ORPHAN = 5.0  # seconds to wait for a lock: a kernel ends about a second after its run was killed

_HELD: dict[Path, AcquireReturnProxy[Any]] = {}  # locks held by this process, so that a notebook can be rerun in the same kernel


def run_folder(project: Project, stage: Stage, signature: Signature) -> Path:
    """A stage's folder, named after the stage and the first digits of its signature."""
    return project.runs / _name(stage.name, signature.digest)


def _name(stage: str, digest: str) -> str:
    return f"{stage}-{digest[:12]}"


def folder_record(folder: Path, *, read: Callable[[Path], Record | None] = read_record) -> Record | None:
    """The record of a run folder if its stage and signature match the folder's name; else None.

    Raises as ``read`` does: by default UsageError for a file that is not a record.
    """
    record = read(folder / "record.json")
    return record if record is not None and folder.name == _name(record.stage, record.signature) else None


def finished_record(project: Project, stage: Stage, signature: Signature) -> Record | None:
    """The record of a finished stage; None if it is missing, damaged or of another signature."""
    record = folder_record(run_folder(project, stage, signature), read=usable_record)
    return record if record is not None and record.signature == signature.digest else None


def read_progress(folder: Path) -> dict[str, float]:
    """The last progress of a stage: ``done`` of ``total``, after ``seconds``; empty if there is none."""
    try:
        progress = read_json(folder / "progress.json")
    except (OSError, ValueError):
        return {}
    return progress if isinstance(progress, dict) else {}


def part_notebook(folder: Path, process: int | str) -> Path:
    """The partial notebook of a process in a run folder."""
    return folder / f".notebook.{process}.part.ipynb"


def kernel_log(folder: Path, process: int | str) -> Path:
    """The stderr of the process's kernel; the process holds a lock on this file while it is alive."""
    return folder / f".kernel.{process}.log"


def remove_leftovers(folder: Path) -> None:
    """Remove partial notebooks and kernel logs of killed runs, not those of running ones."""
    leftovers = [*folder.glob(".notebook.*.part.ipynb"), *folder.glob(".kernel.*.log")]
    for process in {path.name.split(".")[2] for path in leftovers}:
        if (lock := try_lock(kernel_log(folder, process))) is not None:
            with lock:
                part_notebook(folder, process).unlink(missing_ok=True)
                kernel_log(folder, process).unlink(missing_ok=True)


def hold(folder: Path) -> None:
    """Lock a folder until this process ends; remove an old stop file and the leftovers of killed runs.

    Raises UsageError if another process holds the lock.
    """
    if folder in _HELD:
        return
    owner = folder / ".owner"
    lock = _lock(folder)
    while lock is not None and not (folder / ".lock").exists():  # `igpt clean` has moved the folder meanwhile
        lock.lock.release()
        lock = _lock(folder)
    if lock is None:
        holder = owner.read_text() if owner.exists() else "another process"
        raise UsageError(f"{folder.name} is already being run by {holder}: wait for it, or stop it")
    _HELD[folder] = lock
    (folder / STOP).unlink(missing_ok=True)
    remove_leftovers(folder)
    remove_parts(folder, "**/.*.part")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(owner, f"process {os.getpid()} on {platform.node()} since {started}")


def _lock(folder: Path) -> AcquireReturnProxy[Any] | None:
    """Lock a folder, which is created if missing; None if another process holds the lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the folder was moved meanwhile
            return try_lock(folder / ".lock", seconds=ORPHAN)


def release(folder: Path) -> None:
    """Release this process's lock on a folder."""
    _HELD.pop(folder).lock.release()


def empty(folder: Path) -> None:
    """Delete the files of a run.

    The record is deleted first: it must never exist without its artifacts. Checkpoints and results of inner folders are next,
    since a later run would resume from them.
    """
    (folder / "record.json").unlink(missing_ok=True)
    for path in [*folder.rglob("checkpoint-*"), *folder.glob("*/finished.json")]:
        path.unlink()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("."):
            path.unlink()
