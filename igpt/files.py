"""Atomic writes, locks, and guarded reads: folders, pipes and oversized files are never opened."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from igpt.errors import UsageError

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy
    from numpy.typing import NDArray

LARGEST_JSON = 2**22  # bytes of a JSON file; lists of many classes or tensors take some hundred thousand
LFS = b"version https://git-lfs"  # the first bytes of git-lfs pointers
# Disk full, quota exceeded, file too large, file system read-only: never a bug of this package.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
LITTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin")  # in addition to hidden files
POLL = 0.5  # seconds between two attempts to take a lock that another process holds


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Context manager: a binary stream into a temporary file, which is renamed to ``path`` when the block ends.

    When the block raises, the temporary file is removed, and an existing file at ``path`` is unchanged. An OSError, such as
    that of a full disk, is raised with the file's name. Raises UsageError as `check_writable` does.
    """
    check_writable(path)
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
            error.filename = str(path)  # the error of a full disk has no file name
        raise
    sync_folder(path.parent)


@contextmanager
def refuse_full_disk(path: Path) -> Iterator[None]:
    """Context manager: raise UsageError for the OSError of a full disk, for writes to ``path`` that the same command resumes."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UsageError(
            f"{path} could not be written ({error.strerror}): free some room, and the same command continues"
        ) from None


def check_writable(path: Path, *, is_folder: bool = False) -> None:
    """Raise UsageError if ``path`` is a folder (unless a folder is to be written), or if one of its parents is a file."""
    if not is_folder and path.is_dir():
        raise UsageError(f"{path} is a folder: name a file to write")
    if files := [parent for parent in path.parents if parent.exists() and not parent.is_dir()]:
        raise UsageError(f"{path} cannot be written, since {files[0]} is a file: name another path")


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """Context manager: a temporary folder, which is renamed to ``folder`` when the block ends, and removed when it raises.

    An OSError (a full disk, or a folder created meanwhile) is raised with the folder's name.
    Raises UsageError while another process writes the same folder, and as `check_writable` does.
    """
    check_writable(folder, is_folder=True)
    part, lock = (folder.with_name(f".{folder.name}.{ending}") for ending in ("part", "lock"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    held = try_lock(lock)
    if held is None:
        raise UsageError(f"another process is writing {folder}: wait for it, or name another folder")
    with held:
        try:
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
            part.mkdir()
            yield part
            sync_folder(part)
            part.rename(folder)
        except OSError as error:
            if error.filename is None or Path(error.filename).is_relative_to(part):
                error.filename = str(folder)
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.unlink(missing_ok=True)
    sync_folder(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with write_atomically(path) as stream:
        stream.write(text.encode())


def write_rows(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows as CSV in UTF-8, atomically; names of files that are not UTF-8 keep their bytes."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    with write_atomically(path) as stream:
        stream.write(text.getvalue().encode(errors="surrogateescape"))


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a ``.npy`` file atomically."""
    import numpy as np

    content = io.BytesIO()  # numpy writes to a file in C, where a full disk has no errno or goes unnoticed
    np.save(content, array)
    with write_atomically(path) as stream:
        stream.write(content.getbuffer())


def file_size(path: Path) -> int:
    """Bytes of a regular file. Raises OSError as `Path.stat` does; ValueError for a folder, a pipe or another special file."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")  # opening a pipe would block
    return status.st_size


def read_whole(path: Path, *, most: int) -> bytes:
    """A file's content. Raises OSError as reading does; ValueError as `file_size`, and for more than ``most`` bytes."""
    if (size := file_size(path)) > most:
        raise ValueError(f"it has {size:,} bytes, more than the {most:,} that such a file can have")
    return path.read_bytes()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path, *, most: int = LARGEST_JSON) -> Any:
    """The content of a JSON file. Raises OSError as reading does; ValueError as `read_whole`, and for invalid JSON.

    A duplicate field is refused, since JSON parsers differ in which value they keep.
    """
    try:
        return json.loads(read_whole(path, most=most), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def cannot_read(path: Path, error: Exception, wrong: str = "is damaged", *, advice: str = "") -> UsageError:
    """The UsageError for a file whose reading raised ``error``; the file's first bytes may show a different format.

    wrong : description of a file that exists and has no other known format
    advice : the next step, instead of the default one
    """
    try:
        size = file_size(path)
        with path.open("rb") as stream:
            head = stream.read(64)
    except FileNotFoundError:
        return UsageError(f"{path} is missing: {advice or 'copy it again'}")
    except (OSError, ValueError) as read_error:
        reason = read_error.strerror if isinstance(read_error, OSError) else read_error
        return UsageError(f"{path} cannot be read ({reason}): {advice or 'put the file there, or name another'}")
    is_text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    if not size:
        wrong, usual = "is empty", "copy it again"
    elif head.startswith(LFS):
        wrong, usual = "is a pointer of git-lfs, not the file itself", "run `git lfs pull` in its repository"
    elif is_text and (path.suffix != ".json" or head.lstrip().startswith(b"<")):
        wrong, usual = f"is a text that begins with {head[:24].decode()!r}, perhaps a server's answer", "download it again"
    elif path.suffix != ".bin" and head.startswith(b"PK\x03\x04"):  # PyTorch's own files are zip archives
        wrong, usual = "is a zip archive, not the file itself", "unpack it first"
    elif path.suffix == ".npy" and not head.startswith(b"\x93NUMPY"):
        wrong, usual = "is no .npy file, by its first bytes", "give the file that numpy.save wrote"
    else:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        wrong, usual = f"{wrong} ({reason})", "copy it again"
    return UsageError(f"{path} {wrong}: {advice or usual}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary. Raises ValueError for a duplicate field."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("it has a field twice")
    return fields


def is_litter(path: str) -> bool:
    """Whether any part of a path is hidden, or a metadata file or folder of macOS, Windows or a file server.

    >>> [is_litter(name) for name in ("._a.png", "__MACOSX/train/a.png", "Thumbs.db", "train/a.png", "../a.png")]
    [True, True, True, False, False]
    """
    parts = path.lower().split("/")
    return any(part in LITTER or (part.startswith(".") and part not in (".", "..")) for part in parts)


def remove_parts(folder: Path, *patterns: str) -> None:
    """Remove temporary files of killed processes; the caller holds the lock under which they are written."""
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, which makes a rename in it durable; nothing on Windows, where folders cannot be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def try_lock(path: Path, *, seconds: float = 0) -> AcquireReturnProxy[Any] | None:
    """Take the lock file ``path``, until a ``with`` block over the result ends, or this process; None if it cannot be taken.

    seconds : how long to wait while another process holds it
    """
    from filelock import FileLock, Timeout

    try:
        return FileLock(path).acquire(timeout=seconds)
    except Timeout:
        return None


def wait_for_lock(path: Path, held: str) -> AcquireReturnProxy[Any]:
    """As `try_lock`, but wait as long as another process holds the lock.

    held : the beginning of the line printed on stderr before waiting
    """
    from filelock import FileLock

    from igpt.progress import tell

    lock = try_lock(path)
    if lock is None:
        tell(f"igpt: {held}: waiting until it is done")
        lock = FileLock(path).acquire(poll_interval=POLL)
    return lock
