"""Files from the network: resumed, verified, and atomic.

Knows addresses, sizes and checksums, and nothing of what the files mean. What was received of NAME is in `.NAME.part`, and
a note beside it has its address and version: only the same version from the same address continues it (RFC 9110, sections
13.1.5 and 14).
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
from pathlib import Path
from typing import TYPE_CHECKING

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
    """

    name: str
    addresses: tuple[str, ...]
    bytes: int | None
    checksum: str | None


class Unavailable(UsageError):
    """No address gives the file; ``is_missing`` if all of them answer that they do not have it."""

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
    """The path of the whole, verified file in ``folder``; the network is not used if it is there already.

    report : called with the bytes received and the bytes in all (None while unknown)
    check : says what is wrong with a file that was received whole, or nothing; a wrong file is set aside
    patience : seconds without a byte after which a connection counts as dead
    attempts : tries in a row without progress before an address is given up for the next
    wait : seconds before the second try, doubled before each further one
    While another process fetches the file, this one waits for it, and resumes if that process ends early.
    Raises Unavailable when no address gives a file; UsageError when one sends another file, when another file has the name,
    and for too little free space; OSError with its file's name when writing fails. What was received is kept for the next
    call, even if this one is killed.
    """
    path = folder / file.name
    if _is_here(file, path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder / f".{file.name}.lock", f"{file.name} is being fetched by another process into {folder}"):
        if not _is_here(file, path):  # that process may have finished it
            _Part(file, folder / f".{file.name}.part", report, check, patience, attempts, wait).complete(path)
    return path


def difference(file: RemoteFile, path: Path) -> str:
    """How the file at ``path`` differs from what is published; empty if it does not."""
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"has {size:,} bytes instead of {file.bytes:,}"
    if file.checksum is not None:
        method = file.checksum.partition(":")[0]
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.new(method, usedforsecurity=False)).hexdigest()
        if f"{method}:{digest}" != file.checksum:
            return f"has {method}:{digest} instead of {file.checksum}"
    return ""


def _is_here(file: RemoteFile, path: Path) -> bool:
    """Whether the file is at ``path``. Raises UsageError when another one is."""
    if not path.exists():
        return False
    if fault := difference(file, path):
        raise UsageError(f"{path} {fault}: move it away, and the same command fetches it anew")
    return True


class _Cut(Exception):
    """A transfer failed; another try may help."""


class _Refused(Exception):
    """An address does not give the file, however often it is asked."""


@dataclass(frozen=True)
class _Part:
    """What was received of a file, and how to get the rest; the fields are those of `fetch`."""

    file: RemoteFile
    path: Path
    report: Report
    check: Check
    patience: float
    attempts: int
    wait: float

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def origin(self) -> tuple[str | None, str | None]:
        """Address and validator of the bytes; two None when the note is missing or damaged, and the transfer starts over."""
        try:
            note = read_json(self.note)
            return str(note["address"]), str(note["validator"])
        except (OSError, ValueError, TypeError, KeyError):
            return None, None

    def start_over(self, address: str, validator: str | None) -> None:
        """Empty the part first: a kill in between must not leave old bytes under a new note."""
        with self.path.open("wb"):
            self.note.unlink(missing_ok=True)
        if validator:
            write_text(self.note, json.dumps({"address": address, "validator": validator}))

    def become(self, path: Path) -> None:
        """Rename the part to ``path``, durably; then remove the note."""
        with self.path.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.path.replace(path)
        self.note.unlink(missing_ok=True)
        sync_folder(path.parent)

    def complete(self, path: Path) -> None:
        """Write the file to ``path``, from the first address that gives it. Raises UsageError when none does."""
        file, wrong = self.file, path.with_name(f"{self.file.name}.wrong")
        lacking, free = (file.bytes or 0) - self.size(), shutil.disk_usage(path.parent).free
        if lacking > free:
            raise UsageError(
                f"{file.name} needs {lacking:,} more bytes and {path.parent} has {free:,} free: "
                f"free {lacking - free:,} bytes, then the same command continues"
            )
        if file.bytes is not None and self.size() >= file.bytes and difference(file, self.path):
            self.become(wrong)
        failures, changed, missing = [], False, True
        begun, _ = self.origin()
        for address in sorted(file.addresses, key=lambda address: address != begun):  # resume where it began
            try:
                self._receive(address)
            except _Refused as refused:
                failures.append(f"{address}: {refused}")
                missing &= str(refused) == NOT_FOUND
                continue
            fault = difference(file, self.path) or self.check(self.path)
            if not fault:
                self.report(self.size(), self.size())
                return self.become(path)
            self.become(wrong)
            failures.append(f"{address}: what came {fault}")
            changed = True
        tried = f"{file.name} could not be fetched ({'; '.join(failures)})"
        if changed:
            raise UsageError(
                f"{tried}: either a proxy on the way or the site has changed the file, which is kept as {wrong}; "
                "look into it, then the same command tries again"
            )
        again = "what has come is kept, and the same command continues" if self.size() else "the same command tries again"
        raise Unavailable(f"{tried}: {again}", is_missing=missing)

    def _receive(self, address: str) -> None:
        """Receive all that ``address`` sends, in several tries. Raises _Refused when that fails."""
        most = self.size() if self.origin()[0] == address else 0  # ever: always to start over is no progress
        tries = 0
        while self.size() != self.file.bytes:  # a server may break off after the last byte
            try:
                return self._transfer(address)
            except _Cut as cut:
                most, tries = (self.size(), 0) if self.size() > most else (most, tries + 1)
                if tries >= self.attempts:
                    raise _Refused(f"{cut}, after {tries} tries in a row without progress") from cut
                time.sleep(self.wait * 2 ** max(tries - 1, 0))

    def _transfer(self, address: str) -> None:
        """Continue the part, or start it over, with one request. Raises _Cut when the end is missing."""
        answer, total = self._ask_for_rest(address)
        published = self.file.bytes
        with answer:
            if answer.status_code == 416:  # nothing is missing
                return
            if answer.status_code == 200:
                if self.size() and published is not None and total not in (None, published):
                    # a proxy's error page must not cost what was received
                    raise _Refused(f"offers {total:,} bytes instead of {published:,}")
                self.start_over(address, _validator(answer))
            limit = published + 1 if published else sys.maxsize  # one more shows that it is another file
            limit = limit if total is None else min(limit, total)
            size = self._append(self._pieces(answer, limit - self.size()), total or published)
        if total is None and not answer.raw.chunked:
            total = published  # the body ends with the connection, as it does when it is cut
        if total is not None and size < min(limit, total):
            raise _Cut(f"the connection ended after {size:,} of {total:,} bytes")

    def _ask_for_rest(self, address: str) -> tuple[requests.Response, int | None]:
        """An answer, and the bytes of the whole file.

        Its status is 206 when it continues the part, 200 when it is the whole, 416 when the part is the whole.
        Raises _Cut and _Refused for every other.
        """
        size, (origin, validator) = self.size(), self.origin()
        if size and origin == address and validator:
            answer = self._ask(address, {"Range": f"bytes={size}-", "If-Range": validator})
            first, total = _content_range(answer)
            if answer.status_code == 206 and first == size and _validator(answer) in (validator, None):
                return answer, total
            if answer.status_code == 416 and total == size and not difference(self.file, self.path):
                return answer, total
            if answer.status_code not in (206, 416):
                return answer, _whole(answer)
            answer.close()  # another range, or another version
        answer = self._ask(address, {})
        return answer, _whole(answer)

    def _ask(self, address: str, headers: dict[str, str]) -> requests.Response:
        """The head of an answer; its body is still to be read."""
        import requests

        headers = {"Accept-Encoding": "identity", **headers}  # sizes and checksums are not those of a compressed copy
        try:
            return requests.get(address, headers=headers, stream=True, timeout=self.patience)
        except requests.Timeout as error:
            raise _Cut(f"no answer within {self.patience:g} s") from error
        except requests.ConnectionError as error:
            raise _Cut(f"no connection ({type(error).__name__})") from error
        except requests.RequestException as error:
            raise _Refused(f"no way to it ({type(error).__name__})") from error

    def _pieces(self, answer: requests.Response, most: int) -> Iterator[bytes]:
        """The pieces of a body as they come, up to ``most`` bytes. Raises _Cut when the connection fails."""
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        while most:
            try:
                # read1, for read would throw away what came of a piece before the connection failed
                piece = answer.raw.read1(min(PIECE, most), decode_content=False)
            except ReadTimeoutError as error:
                raise _Cut(f"not a byte within {self.patience:g} s") from error
            except HTTPError as error:
                raise _Cut("the connection broke off") from error
            if not piece:
                return
            most -= len(piece)
            yield piece

    def _append(self, pieces: Iterator[bytes], total: int | None) -> int:
        """Add the pieces to the part; its size. An OSError in writing names the part, which keeps what fitted."""
        size = reported = self.size()
        try:
            with self.path.open("ab") as stream:
                for piece in pieces:
                    stream.write(piece)
                    size += len(piece)
                    if size - reported >= STEP:
                        stream.flush()  # what is reported outlives a kill
                        self.report(size, total)
                        reported = size
        except OSError as error:
            error.filename = error.filename or str(self.path)  # a full disk does not say where
            raise
        return size


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
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total and total != "*" else None


def _validator(answer: requests.Response) -> str | None:
    """What names the version of an answer: its strong ETag, else its date (a weak ETag may not stand in If-Range)."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")
