"""Downloads: resumed, verified and atomic.

Depends on addresses, sizes and checksums only, not on the files' content. The bytes received of NAME are in `.NAME.part`;
a note beside it records their address and version. A transfer is resumed only from the same address at the same version
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
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.errors import UsageError
from igpt.files import read_json, sync_folder, wait_for_lock, write_text

if TYPE_CHECKING:
    import requests

Report = Callable[[int, int | None], None]
Check = Callable[[Path], str]

OPENAI = "https://openaipublic.blob.core.windows.net/image-gpt"  # source: download.py of openai/image-gpt
PIECE = 1 << 20  # bytes read from a connection at once
STEP = 1 << 16  # minimum bytes between two reports
NOT_FOUND = "HTTP 404"


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name on disk, its addresses (the official one first), its size and its checksum.

    bytes : exact size, or None if not published
    checksum : "md5:..." or "sha256:..." in lower-case hexadecimal, or None if not published
    """

    name: str
    addresses: tuple[str, ...]
    bytes: int | None
    checksum: str | None


class Unavailable(UsageError):
    """No address serves the file; ``is_missing`` is True if all of them respond with HTTP 404."""

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
    """Download a file into ``folder``, verify it, and return its path; a verified file already there is not downloaded.

    report : called with the bytes received and the total bytes (None while unknown)
    check : returns the fault of a completely received file, or an empty string; a faulty file is set aside
    patience : seconds without a byte after which a connection times out
    attempts : attempts in a row without progress before the next address is tried
    wait : seconds before the second attempt, doubled before each further one
    While another process downloads the file, this call waits, and resumes the download if that process ends early.
    Raises Unavailable when no address serves the file; UsageError when a received file or one already there differs from
    the published one, and for too little free space; OSError, with the file's name, when writing fails. The bytes received
    are kept for the next call, even if this process is killed.
    """
    path = folder / file.name
    if _is_here(file, path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder / f".{file.name}.lock", f"{file.name} is being fetched by another process into {folder}"):
        if not _is_here(file, path):  # the other process may have finished it
            _Part(file, folder / f".{file.name}.part", report, check, patience, attempts, wait).complete(path)
    return path


def difference(file: RemoteFile, path: Path) -> str:
    """How the file at ``path`` differs from the published size and checksum; empty if it does not."""
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
    """Whether the published file is at ``path``. Raises UsageError when a different file is there."""
    if not path.exists():
        return False
    if fault := difference(file, path):
        raise UsageError(f"{path} {fault}: move it away, and the same command fetches it anew")
    return True


class _Cut(Exception):
    """A transfer failed; a retry may succeed."""


class _Refused(Exception):
    """An address does not serve the file; a retry does not help."""


@dataclass(frozen=True)
class _Part:
    """A partly received file, and the transfer of the rest; the fields are parameters of `fetch`."""

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
        """Address and validator of the bytes received; both None, to start over, when the note is missing or damaged."""
        try:
            note = read_json(self.note)
            return str(note["address"]), str(note["validator"])
        except (OSError, ValueError, TypeError, KeyError):
            return None, None

    def start_over(self, address: str, validator: str | None) -> None:
        """Empty the part, then write its note: a kill in between must not leave old bytes with a new note."""
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
        """Write the file to ``path``, from the first address that serves it. Raises UsageError when none does."""
        file, rejected = self.file, path.with_name(f"{self.file.name}.wrong")
        needed, free = (file.bytes or 0) - self.size(), shutil.disk_usage(path.parent).free
        if needed > free:
            raise UsageError(
                f"{file.name} needs {needed:,} more bytes and {path.parent} has {free:,} free: "
                f"free {needed - free:,} bytes, then the same command continues"
            )
        if file.bytes is not None and self.size() >= file.bytes and difference(file, self.path):
            self.become(rejected)
        failures, changed, all_missing = [], False, True
        origin, _ = self.origin()
        for address in sorted(file.addresses, key=lambda address: address != origin):  # the part's own address first, to resume
            try:
                self._receive(address)
            except _Refused as refused:
                failures.append(f"{address}: {refused}")
                all_missing &= str(refused) == NOT_FOUND
                continue
            fault = difference(file, self.path) or self.check(self.path)
            if not fault:
                self.report(self.size(), self.size())
                return self.become(path)
            self.become(rejected)
            failures.append(f"{address}: what came {fault}")
            changed = True
        failure = f"{file.name} could not be fetched ({'; '.join(failures)})"
        if changed:
            raise UsageError(
                f"{failure}: either a proxy on the way or the site has changed the file, which is kept as {rejected}; "
                "look into it, then the same command tries again"
            )
        advice = "what has come is kept, and the same command continues" if self.size() else "the same command tries again"
        raise Unavailable(f"{failure}: {advice}", is_missing=all_missing)

    def _receive(self, address: str) -> None:
        """Receive the rest of the file from ``address``, with retries. Raises _Refused when they fail."""
        largest = self.size() if self.origin()[0] == address else 0  # of all attempts: starting over each time is no progress
        tries = 0
        while self.size() != self.file.bytes:  # a connection may fail after the last byte
            try:
                return self._transfer(address)
            except _Cut as cut:
                largest, tries = (self.size(), 0) if self.size() > largest else (largest, tries + 1)
                if tries >= self.attempts:
                    raise _Refused(f"{cut}, after {tries} tries in a row without progress") from cut
                time.sleep(self.wait * 2 ** max(tries - 1, 0))

    def _transfer(self, address: str) -> None:
        """Resume the part, or start over, with one request. Raises _Cut when the response is incomplete."""
        answer, total = self._ask_for_rest(address)
        published = self.file.bytes
        with answer:
            if answer.status_code == 416:  # nothing is missing
                return
            if answer.status_code == 200:
                if self.size() and published is not None and total not in (None, published):
                    # a proxy's error page must not discard the bytes received
                    raise _Refused(f"offers {total:,} bytes instead of {published:,}")
                self.start_over(address, _validator(answer))
            limit = published + 1 if published else sys.maxsize  # one byte more reveals a different file
            limit = limit if total is None else min(limit, total)
            size = self._append(self._pieces(answer, limit - self.size()), total or published)
        if total is None and not answer.raw.chunked:
            total = published  # without a length, the end of the body and a lost connection look alike
        if total is not None and size < min(limit, total):
            raise _Cut(f"the connection ended after {size:,} of {total:,} bytes")

    def _ask_for_rest(self, address: str) -> tuple[requests.Response, int | None]:
        """Request the missing bytes: the response, and the size of the whole file (None if unknown).

        Status 206: the rest of the part; 200: the whole file; 416: the part is complete.
        Raises _Cut or _Refused for any other status.
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
            answer.close()  # a different range, or a different version
        answer = self._ask(address, {})
        return answer, _whole(answer)

    def _ask(self, address: str, headers: dict[str, str]) -> requests.Response:
        """Send a GET request: the response, whose body is not read yet."""
        import requests

        headers = {"Accept-Encoding": "identity", **headers}  # published sizes and checksums are of the uncompressed file
        try:
            return requests.get(address, headers=headers, stream=True, timeout=self.patience)
        except requests.Timeout as error:
            raise _Cut(f"no answer within {self.patience:g} s") from error
        except requests.ConnectionError as error:
            raise _Cut(f"no connection ({type(error).__name__})") from error
        except requests.RequestException as error:
            raise _Refused(f"no way to it ({type(error).__name__})") from error

    def _pieces(self, answer: requests.Response, most: int) -> Iterator[bytes]:
        """The pieces of a response's body, up to ``most`` bytes in total. Raises _Cut when the connection fails."""
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        while most:
            try:
                # read1, since read drops the bytes of a piece received before a connection fails
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
        """Append the pieces to the part; return its size. An OSError of writing gets the part's name; written bytes are kept."""
        size = reported = self.size()
        try:
            with self.path.open("ab") as stream:
                for piece in pieces:
                    stream.write(piece)
                    size += len(piece)
                    if size - reported >= STEP:
                        stream.flush()  # reported bytes survive a kill
                        self.report(size, total)
                        reported = size
        except OSError as error:
            error.filename = error.filename or str(self.path)  # the error of a full disk has no file name
            raise
        return size


def _whole(answer: requests.Response) -> int | None:
    """The announced length of a response with the whole file, if any. Raises _Cut or _Refused if its status is not 200."""
    status = answer.status_code
    if status != 200:
        answer.close()
        raise (_Cut if status >= 500 or status == 429 else _Refused)(f"HTTP {status}")
    length: int | None = answer.raw.length_remaining
    return length


def _content_range(answer: requests.Response) -> tuple[int | None, int | None]:
    """First byte of a response's range, and size of the whole file, from its Content-Range; None for missing ones."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total and total != "*" else None


def _validator(answer: requests.Response) -> str | None:
    """A response's validator: its strong ETag, else its Last-Modified (If-Range does not allow a weak ETag)."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")
