"""One rule for every file: a final name means complete. Written beside, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from igpt.errors import UsageError


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content stands under ``path`` once the block ends well, and never in part.

    The temporary file lies beside ``path`` and is removed when the block raises; an OSError (a full disk,
    say) passes through with whatever stood under ``path`` before left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say where
        raise
    sync_folder(path.parent)


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """A folder to be filled, whose content stands under the name ``folder`` once the block ends well, and never in part.

    It lies beside ``folder`` until then and is removed when the block raises; one that a killed process left is cleared
    first. An OSError (a full disk, or something that stands under the name by then) passes through.
    Raises UsageError while another process writes the same folder.
    """
    from shutil import rmtree

    from filelock import FileLock, Timeout

    part, lock = (folder.with_name(f".{folder.name}.{ending}") for ending in ("part", "lock"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another process is writing {folder}: wait for it, or name another folder") from None
    with held:
        try:
            rmtree(part, ignore_errors=True)
            part.mkdir()
            yield part
            sync_folder(part)
            part.rename(folder)
        except OSError as error:
            if error.filename is None or Path(error.filename).is_relative_to(part):
                error.filename = str(folder)
            raise
        finally:
            rmtree(part, ignore_errors=True)
            lock.unlink(missing_ok=True)
    sync_folder(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 under ``path``, whole or not at all."""
    with write_atomically(path) as stream:
        stream.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
