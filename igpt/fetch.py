"""Files from the net: resumed, verified, and never in part under their name.

Knows addresses, sizes and checksums, and nothing of what the files mean. What has come of NAME lies in `.NAME.part`;
the note beside it says whose bytes they are, because only the same version at the same address may continue them
(RFC 9110, sections 13.1.5 and 14).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from igpt.errors import UsageError
from igpt.files import read_json, sync_folder, wait_for_lock, write_text

if TYPE_CHECKING:
    import requests

Report = Callable[[int, int | None], None]
Check = Callable[[Path], str]

OPENAI = "https://openaipublic.blob.core.windows.net/image-gpt"  # source: download.py of openai/image-gpt
PIECE = 1 << 20  # bytes asked of a connection at once
STEP = 1 << 16  # fewest bytes between two reports
NOT_FOUND = "HTTP 404"


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name on disk, its addresses (the official one first), and what is published of it.

    bytes : exact size, or None
    checksum : "md5:..." or "sha256:..." in lower-case hexadecimal, or None
    Raises ValueError for a name with a folder or a leading dot, and for what is not of these forms.
    """

    name: str
    addresses: tuple[str, ...]
    bytes: int | None
    checksum: str | None

    def __post_init__(self) -> None:
        plain = self.name and PurePosixPath(self.name).name == PureWindowsPath(self.name).name == self.name
        if not plain or self.name.startswith("."):  # names with a dot are those of parts, notes and locks
            raise ValueError(f"{self.name!r} is not a plain file name")
        if not self.addresses or any(urlsplit(address).scheme not in ("http", "https") for address in self.addresses):
            raise ValueError(f"{self.name} needs addresses of http or https, not {self.addresses}")
        if self.bytes is not None and self.bytes < 1:
            raise ValueError(f"{self.name} cannot have {self.bytes} bytes")
        if self.checksum is not None and not re.fullmatch("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", self.checksum):
            raise ValueError(f"{self.name} has the checksum {self.checksum!r}, which is neither md5:... nor sha256:...")


class Unavailable(UsageError):
    """A file that no address gives; ``is_missing`` when each of them says that it has none."""

    def __init__(self, sentence: str, *, is_missing: bool) -> None:
        super().__init__(sentence)
        self.is_missing = is_missing


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    report: Report = lambda done, total: None,
    check: Check = lambda path: "",
    patience: float = 30.0,
    attempts: int = 5,
    wait: float = 1.0,
) -> Path:
    """The path of the whole, verified file in ``folder``; without the net when it stands there already.

    report : called with the bytes that have come and the bytes in all (None while unknown)
    check : what is wrong with a file that has come whole, or nothing; such a file is set aside and never gets the name
    patience : seconds without a byte after which a connection counts as dead
    attempts : tries in a row without progress before an address is given up for the next
    wait : seconds before the second try, doubled before each further one
    While another process fetches the file, this one waits for it, and continues what has come when that process ends early.
    Raises Unavailable when no address gives a file; UsageError when one sends another file, when another file stands under
    the name, and for too little free space; OSError with its file's name when writing fails. What has come is kept for the
    next call, also when this one is stopped or killed.
    """
    path = folder / file.name
    if _stands(file, path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder / f".{file.name}.lock", f"{file.name} is being fetched by another process into {folder}"):
        if not _stands(file, path):  # that process may have finished it
            part = _Part(folder / f".{file.name}.part", folder / f".{file.name}.part.json")
            _check_space(file, part)
            _fetch_from_any(file, part, path, _Manner(report, check, patience, attempts, wait))
    return path


@dataclass(frozen=True)
class _Manner:
    """How to ask, as the arguments of `fetch` say it."""

    report: Report
    check: Check
    patience: float
    attempts: int
    wait: float


class _Cut(Exception):
    """A transfer that failed in a way that another try may mend."""


class _Refused(Exception):
    """An address that does not give the file, however often it is asked."""


@dataclass(frozen=True)
class _Part:
    """What has come of a file, and the note on whose bytes they are."""

    path: Path
    note: Path

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def origin(self) -> tuple[str | None, str | None]:
        """Address and validator of the bytes; nothing of either when the note is missing or damaged."""
        try:
            note = read_json(self.note)
            return str(note["address"]), str(note["validator"])
        except (OSError, ValueError, TypeError, KeyError):
            return None, None  # without a note the bytes belong to nobody, and the next answer starts over

    def start_over(self, address: str, validator: str | None) -> None:
        """Empty the part first: a kill in between must not leave old bytes under a new note."""
        with self.path.open("wb"):
            self.note.unlink(missing_ok=True)
        if validator:
            write_text(self.note, json.dumps({"address": address, "validator": validator}))

    def become(self, path: Path) -> None:
        """Give the bytes the name ``path``, durably; the note goes after them."""
        with self.path.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.path.replace(path)
        self.note.unlink(missing_ok=True)
        sync_folder(path.parent)


def _stands(file: RemoteFile, path: Path) -> bool:
    """Whether the file stands under ``path``. Raises UsageError when another one does."""
    if not path.exists():
        return False
    if fault := difference(file, path):
        raise UsageError(f"{path} {fault}: move it away, and the same command fetches it anew")
    return True


def difference(file: RemoteFile, path: Path) -> str:
    """How the file at ``path`` differs from what is published; empty if it does not."""
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"has {size:,} bytes instead of {file.bytes:,}"
    if file.checksum is not None:
        method = file.checksum.partition(":")[0]
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.new(method, usedforsecurity=False)).hexdigest()
        if f"{method}:{found}" != file.checksum:
            return f"has {method}:{found} instead of {file.checksum}"
    return ""


def _check_space(file: RemoteFile, part: _Part) -> None:
    """Raise UsageError when what is still to come does not fit on the disk."""
    missing = (file.bytes or 0) - part.size()
    free = shutil.disk_usage(part.path.parent).free
    if missing > free:
        raise UsageError(
            f"{file.name} needs {missing:,} more bytes and {part.path.parent} has {free:,} free: "
            f"free {missing - free:,} bytes, then the same command continues"
        )


def _fetch_from_any(file: RemoteFile, part: _Part, path: Path, manner: _Manner) -> None:
    """Put the file under ``path``, from the first address that gives it. Raises UsageError when none does."""
    wrong = path.with_name(f"{file.name}.wrong")
    if file.bytes is not None and part.size() >= file.bytes and difference(file, part.path):
        part.become(wrong)
    failures, changed, missing = [], False, True
    begun, _ = part.origin()
    for address in sorted(file.addresses, key=lambda address: address != begun):  # only where it began can it go on
        try:
            _fetch_from(address, file, part, manner)
        except _Refused as refused:
            failures.append(f"{address}: {refused}")
            missing &= str(refused) == NOT_FOUND
            continue
        fault = difference(file, part.path) or manner.check(part.path)
        if not fault:
            manner.report(part.size(), part.size())
            return part.become(path)
        part.become(wrong)
        failures.append(f"{address}: what came {fault}")
        changed = True
    tried = f"{file.name} could not be fetched ({'; '.join(failures)})"
    if changed:
        raise UsageError(
            f"{tried}: either a proxy on the way or the site has changed the file, which is kept as {wrong}; "
            "look into it, then the same command tries again"
        )
    again = "what has come is kept, and the same command continues" if part.size() else "the same command tries again"
    raise Unavailable(f"{tried}: {again}", is_missing=missing)


def _fetch_from(address: str, file: RemoteFile, part: _Part, manner: _Manner) -> None:
    """Have in the part all that ``address`` sends. Raises _Refused when that leads nowhere."""
    most = part.size() if part.origin()[0] == address else 0  # ever: always to start over is no progress
    tries = 0
    while part.size() != file.bytes:  # a server may break off after the last byte
        try:
            return _transfer(address, file, part, manner)
        except _Cut as cut:
            most, tries = (part.size(), 0) if part.size() > most else (most, tries + 1)
            if tries >= manner.attempts:
                raise _Refused(f"{cut}, after {tries} tries in a row without progress") from cut
            time.sleep(manner.wait * 2 ** max(tries - 1, 0))


def _transfer(address: str, file: RemoteFile, part: _Part, manner: _Manner) -> None:
    """Continue the part, or start it over, with what ``address`` answers to one request; _Cut when the end is missing."""
    answer, total = _ask_for_rest(address, file, part, manner)
    with answer:
        if answer.status_code == 416:  # nothing is missing
            return
        if answer.status_code == 200:
            if part.size() and file.bytes is not None and total not in (None, file.bytes):
                # a proxy's page of excuses must not cost what has come
                raise _Refused(f"offers {total:,} bytes instead of {file.bytes:,}")
            part.start_over(address, _validator(answer))
        limit = file.bytes + 1 if file.bytes else sys.maxsize  # one more shows that it is another file
        limit = limit if total is None else min(limit, total)
        pieces = _pieces(answer, limit - part.size(), manner.patience)
        size = _append(part, pieces, lambda size: manner.report(size, total or file.bytes))
    if total is None and not answer.raw.chunked:
        total = file.bytes  # the body ends with the connection, which a cut does as well
    if total is not None and size < min(limit, total):
        raise _Cut(f"the connection ended after {size:,} of {total:,} bytes")


def _ask_for_rest(address: str, file: RemoteFile, part: _Part, manner: _Manner) -> tuple[requests.Response, int | None]:
    """An answer to take in, and the bytes it will make in all.

    Its status is 206 when it continues the part, 200 when it is the whole, 416 when the part is the whole.
    Raises _Cut and _Refused for every other.
    """
    size, (origin, validator) = part.size(), part.origin()
    if size and origin == address and validator:
        answer = _ask(address, {"Range": f"bytes={size}-", "If-Range": validator}, manner.patience)
        first, total = _content_range(answer)
        if answer.status_code == 206 and first == size and _validator(answer) in (validator, None):
            return answer, total
        if answer.status_code == 416 and total == size and not difference(file, part.path):
            return answer, total
        if answer.status_code not in (206, 416):
            return answer, _whole(answer)
        answer.close()  # not the range that was asked for, or of another version
    answer = _ask(address, {}, manner.patience)
    return answer, _whole(answer)


def _ask(address: str, headers: dict[str, str], patience: float) -> requests.Response:
    """The head of an answer, its body still to be read."""
    import requests

    try:
        # identity: sizes, ranges and checksums are those of the file, not of a compressed copy
        return requests.get(address, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=patience)
    except requests.Timeout as error:
        raise _Cut(f"no answer within {patience:g} s") from error
    except requests.ConnectionError as error:
        raise _Cut(f"no connection ({type(error).__name__})") from error
    except requests.RequestException as error:
        raise _Refused(f"no way to it ({type(error).__name__})") from error


def _whole(answer: requests.Response) -> int | None:
    """Bytes announced of an answer that is the whole file, if any. Raises _Cut or _Refused when its status is not 200."""
    status = answer.status_code
    if status != 200:
        answer.close()
        raise (_Cut if status >= 500 or status == 429 else _Refused)(f"HTTP {status}")
    length: int | None = answer.raw.length_remaining
    return length


def _content_range(answer: requests.Response) -> tuple[int | None, int | None]:
    """First byte of the range in an answer, and bytes of the whole file; None for what it leaves open."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    first, total = found.groups() if found else (None, None)
    return int(first) if first else None, int(total) if total and total != "*" else None


def _validator(answer: requests.Response) -> str | None:
    """What names the version of an answer: its strong ETag, else its date (a weak ETag may not stand in If-Range)."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")


def _pieces(answer: requests.Response, most: int, patience: float) -> Iterator[bytes]:
    """What a body sends as it comes, up to ``most`` bytes. Raises _Cut when the connection fails."""
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    while most:
        try:
            # read1, for read would throw away what came of a piece before the connection failed
            piece = answer.raw.read1(min(PIECE, most), decode_content=False)
        except ReadTimeoutError as error:
            raise _Cut(f"not a byte within {patience:g} s") from error
        except HTTPError as error:
            raise _Cut("the connection broke off") from error
        if not piece:
            return
        most -= len(piece)
        yield piece


def _append(part: _Part, pieces: Iterator[bytes], report: Callable[[int], None]) -> int:
    """Add the pieces to the part; its size. An OSError in writing names the part, which keeps what fitted."""
    size = reported = part.size()
    try:
        with part.path.open("ab") as stream:
            for piece in pieces:
                stream.write(piece)
                size += len(piece)
                if size - reported >= STEP:
                    stream.flush()  # what is reported outlives a kill
                    report(size)
                    reported = size
    except OSError as error:
        error.filename = error.filename or str(part.path)  # a full disk does not say where
        raise
    return size
