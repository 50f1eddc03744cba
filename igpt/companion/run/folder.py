"""A stage's folder under ``runs/``: where it lies, whether it is finished, how far it is, who holds it."""

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

# Set for the kernels that carry out a plan, to the file for their record, which counts once the notebook has ended well.
# Their notebook never empties a finished folder, which others may be reading.
PLANNED = "IGPT_PLANNED"

STOP = "stop"  # a file in a stage's folder: its training is to write a checkpoint and end

ORPHAN = 5.0  # seconds: a kernel looks every second whether its run was killed, and ends with it

_HELD: dict[Path, AcquireReturnProxy[Any]] = {}  # locks of this process, so that a notebook can be run again in one kernel


def run_folder(project: Project, stage: Stage, signature: Signature) -> Path:
    """Where a stage's artifacts lie: its name, and the start of its signature."""
    return project.runs / _name(stage.name, signature.digest)


def _name(stage: str, digest: str) -> str:
    """A run folder's name."""
    return f"{stage}-{digest[:12]}"


def folder_record(folder: Path, *, read: Callable[[Path], Record | None] = read_record) -> Record | None:
    """The record of a finished run folder: valid, and of the stage and signature that the folder has its name from.

    None when there is no such record. Raises as ``read`` does: by default UsageError for a file that is not a record.
    """
    record = read(folder / "record.json")
    return record if record is not None and folder.name == _name(record.stage, record.signature) else None


def finished_record(project: Project, stage: Stage, signature: Signature) -> Record | None:
    """The record of a finished run folder; None when the stage has not ended there, or its record is damaged."""
    record = folder_record(run_folder(project, stage, signature), read=usable_record)
    return record if record is not None and record.signature == signature.digest else None


def read_fraction(folder: Path) -> float | None:
    """How much of a running stage is done, 0 to 1; None before its first report."""
    progress = read_progress(folder)
    return progress["done"] / max(progress["total"], 1) if progress else None


def read_progress(folder: Path) -> dict[str, float]:
    """The last report, empty when there is none."""
    try:
        found = read_json(folder / "progress.json")
    except (OSError, ValueError):
        return {}  # progress decides nothing: without it the time left is unknown
    return found if isinstance(found, dict) else {}


def part_notebook(folder: Path, process: int | str) -> Path:
    """The notebook that a process carries out in a folder, as far as it is."""
    return folder / f".notebook.{process}.part.ipynb"


def kernel_log(folder: Path, process: int | str) -> Path:
    """What the kernel of such a process says on stderr; the process holds it locked for as long as it lives."""
    return folder / f".kernel.{process}.log"


def remove_leftovers(folder: Path) -> None:
    """Remove notebooks in part and kernel logs of runs that were killed; those of runs at work stay."""
    left = [*folder.glob(".notebook.*.part.ipynb"), *folder.glob(".kernel.*.log")]
    for process in {path.name.split(".")[2] for path in left}:
        lock = try_lock(kernel_log(folder, process))
        if lock is not None:
            with lock:
                part_notebook(folder, process).unlink(missing_ok=True)
                kernel_log(folder, process).unlink(missing_ok=True)


def hold(folder: Path) -> None:
    """Hold the folder's lock until this process ends; an earlier request to stop and killed runs' leftovers are removed."""
    if folder in _HELD:
        return
    owner = folder / ".owner"
    lock = _lock(folder)
    while lock is not None and not (folder / ".lock").exists():  # `igpt clean` has moved the folder away meanwhile
        lock.lock.release()
        lock = _lock(folder)
    if lock is None:
        who = owner.read_text() if owner.exists() else "another process"
        raise UsageError(f"{folder.name} is already being run by {who}: wait for it, or stop it")
    _HELD[folder] = lock
    (folder / STOP).unlink(missing_ok=True)
    remove_leftovers(folder)
    remove_parts(folder, "**/.*.part")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(owner, f"process {os.getpid()} on {platform.node()} since {started}")


def _lock(folder: Path) -> AcquireReturnProxy[Any] | None:
    """The lock of a folder, which is made where it is not there; None if another process holds it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the folder was moved away in between
            return try_lock(folder / ".lock", seconds=ORPHAN)


def release(folder: Path) -> None:
    """Let another process hold what this one has held."""
    _HELD.pop(folder).lock.release()


def empty(folder: Path) -> None:
    """Remove a run.

    The record goes first, so that it never stands without what it speaks of, then the checkpoints and what runs in folders
    of their own came to, so that no later run takes the rest for its own beginning.
    """
    (folder / "record.json").unlink(missing_ok=True)
    for path in [*folder.rglob("checkpoint-*"), *folder.glob("*/finished.json")]:
        path.unlink()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("."):
            path.unlink()
