from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import PATIENCE, wait_until
from filelock import FileLock

from igpt.errors import UsageError
from igpt.fetch import RemoteFile, Unavailable, fetch

CONTENT = random.Random(0).randbytes(300_000)
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
DATE = {"Last-Modified": "Tue, 24 Nov 2026 11:28:29 GMT"}


@dataclass(frozen=True)
class Answer:
    """How one request is answered: ``content`` up to byte ``cut``, then the end of the connection or a stall."""

    content: bytes = CONTENT
    cut: int | None = None
    stalls: bool = False
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    ranges: bool = True
    says: int | None = None  # announced in place of the length
    framing: str = "length"  # or "chunked", or "none"

    def begin(self, asked: dict[str, str]) -> tuple[int, int, dict[str, str]]:
        """Status, first byte and headers of the answer to a request with the headers ``asked``."""
        wanted = re.fullmatch(r"bytes=(\d+)-", asked.get("Range", ""))
        validator = asked.get("If-Range", "none").removeprefix("W/")
        if not (wanted and self.ranges and self.status == 200 and validator in self.headers.values()):
            return self.status, 0, self.headers
        first, size = int(wanted[1]), len(self.content)
        at = f"{first}-{size - 1}" if first < size else "*"
        return 206 if first < size else 416, first, {"Content-Range": f"bytes {at}/{size}", **self.headers}


class Server(ThreadingHTTPServer):
    """Gives the answers of its script, then plain ones; keeps what was asked and how many bytes it sent."""

    def __init__(self, *script: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.sent, self.over = list(script), [], 0, threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/file"

    def has_sent(self, size: int) -> bool:
        """Whether it sent as many bytes, which its thread notes a moment after they have arrived."""
        wait_until(lambda: self.sent == size, said=lambda: f"{self.sent} bytes of {size} were sent")
        return True

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.asked]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(dict(self.headers))
        answer = self.server.script.pop(0) if self.server.script else Answer()
        status, first, headers = answer.begin(self.server.asked[-1])
        body = answer.content[first : answer.cut] if status in (200, 206) else b""
        if answer.framing == "length":
            headers = {**headers, "Content-Length": str(answer.says or (len(answer.content) - first if body else 0))}
        elif answer.framing == "chunked":
            headers = {**headers, "Transfer-Encoding": "chunked"}
            body = b"%x\r\n%s\r\n" % (len(body), body) + (b"0\r\n\r\n" if answer.cut is None else b"")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            return  # who asked has seen enough
        self.server.sent += len(body)
        if answer.stalls:
            self.server.over.wait()


Start = Callable[..., Server]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as ends:

        def begin(*script: Answer) -> Server:
            server = ends.enter_context(Server(*script))
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            ends.callback(server.shutdown)
            ends.callback(server.over.set)
            return server

        yield begin


def remote(*servers: Server | str, size: int | None = len(CONTENT), checksum: str | None = CHECKSUM) -> RemoteFile:
    return RemoteFile("data.bin", tuple(s if isinstance(s, str) else s.address for s in servers), size, checksum)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def failure(file: RemoteFile, folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        fetch(file, folder, wait=0)
    assert "\n" not in str(caught.value) and ". " not in str(caught.value)  # one sentence
    return str(caught.value)


def test_a_file_stands_alone_under_its_name_and_its_progress_is_told(tmp_path: Path, start: Start) -> None:
    server, told = start(), []
    path = fetch(remote(server), tmp_path / "deep", report=lambda done, total: told.append((done, total)))
    assert path == tmp_path / "deep" / "data.bin" and path.read_bytes() == CONTENT and left(path.parent) == ["data.bin"]
    assert told[-1] == (len(CONTENT), len(CONTENT)) and {total for _, total in told} == {len(CONTENT)}
    assert all(after[0] - before[0] >= 1 << 16 for before, after in itertools.pairwise(told[:-1]))
    assert server.asked[0]["Accept-Encoding"] == "identity" and server.ranges() == [None]


@pytest.mark.parametrize("validator", [{"ETag": '"one"'}, {"ETag": 'W/"one"', **DATE}])  # a weak tag continues nothing
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_cut_is_continued(tmp_path: Path, start: Start, size: int | None, validator: dict[str, str]) -> None:
    server = start(Answer(cut=100_000, headers=validator), Answer(headers=validator))
    assert fetch(remote(server, size=size), tmp_path, wait=0).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=100000-"] and server.has_sent(len(CONTENT))
    assert server.asked[1]["If-Range"] == list(validator.values())[-1] and left(tmp_path) == ["data.bin"]


OTHER_RANGE = Answer(status=206, headers={"Content-Range": "bytes 7-299999/300000"})
OTHER_VERSION = Answer(status=206, headers={"Content-Range": "bytes 100000-299999/300000", "ETag": '"two"'})  # despite If-Range


@pytest.mark.parametrize(
    "answer", [Answer(ranges=False), Answer(headers={"ETag": '"two"'}), OTHER_RANGE, OTHER_VERSION, Answer(status=416)]
)
def test_what_cannot_be_continued_starts_over(tmp_path: Path, start: Start, answer: Answer) -> None:
    server = start(Answer(content=b"x" * 300_000, cut=100_000), answer)  # the old bytes would show
    assert fetch(remote(server), tmp_path, wait=0).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=100000-", None][: len(server.asked)] and not (tmp_path / "data.bin.wrong").exists()


def test_bytes_without_a_validator_or_a_readable_note_are_not_continued(tmp_path: Path, start: Start) -> None:
    server = start(Answer(cut=100_000, headers={}), Answer(cut=200_000), Answer(status=404))
    failure(remote(server), tmp_path)
    assert left(tmp_path) == [".data.bin.part", ".data.bin.part.json"]
    (tmp_path / ".data.bin.part.json").write_text("[")
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [None, None, "bytes=200000-", None]


def test_nothing_is_said_to_be_kept_where_nothing_came(tmp_path: Path, start: Start) -> None:
    assert failure(remote(start(Answer(status=404))), tmp_path).endswith("): the same command tries again")


def test_bytes_are_continued_where_they_began_before_any_other_address(tmp_path: Path, start: Start) -> None:
    first, second = start(*[Answer(status=404)] * 9), start(Answer(cut=100_000), Answer(status=403))
    assert "what has come is kept" in failure(remote(first, second), tmp_path)
    assert json.loads((tmp_path / ".data.bin.part.json").read_text())["address"] == second.address
    assert fetch(remote(first, second), tmp_path).read_bytes() == CONTENT
    assert len(first.asked) == 1 and second.ranges() == [None, "bytes=100000-", "bytes=100000-"]


def test_the_bytes_of_one_address_are_not_continued_from_another(tmp_path: Path, start: Start) -> None:
    steps = range(20_000, 160_000, 20_000)  # progress, though less than the first had sent
    first, second = start(Answer(cut=200_000), Answer(status=404)), start(*[Answer(cut=step) for step in steps])
    assert fetch(remote(first, second), tmp_path, wait=0).read_bytes() == CONTENT
    assert second.ranges() == [None, *[f"bytes={step}-" for step in steps]]  # although both have the same ETag


def test_a_whole_part_of_unknown_size_takes_the_servers_word_that_nothing_is_missing(tmp_path: Path, start: Start) -> None:
    server = start(Answer(says=400_000))  # then 416
    assert fetch(remote(server, size=None), tmp_path, wait=0).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=300000-"]


def test_a_whole_part_of_known_size_needs_no_net_and_one_too_long_is_set_aside(tmp_path: Path, start: Start) -> None:
    (tmp_path / ".data.bin.part").write_bytes(CONTENT)  # killed between the last byte and the new name
    assert fetch(remote("http://127.0.0.1:1"), tmp_path).read_bytes() == CONTENT
    (tmp_path / "data.bin").unlink()
    (tmp_path / ".data.bin.part").write_bytes(CONTENT + b"x")
    assert fetch(remote(start()), tmp_path).read_bytes() == CONTENT
    assert (tmp_path / "data.bin.wrong").read_bytes() == CONTENT + b"x"


@pytest.mark.parametrize("framing", ["chunked", "none"])
def test_without_a_length_the_end_counts_and_a_cut_is_seen_where_it_can_be(tmp_path: Path, start: Start, framing: str) -> None:
    server = start(Answer(framing=framing), Answer(framing=framing, cut=100_000))
    assert fetch(remote(server, size=None, checksum=None), tmp_path / "nothing published").read_bytes() == CONTENT
    assert fetch(remote(server, checksum=None), tmp_path / "size published", wait=0).read_bytes() == CONTENT
    assert server.ranges() == [None, None, "bytes=100000-"]


def test_an_announced_length_must_be_met_and_starting_over_is_no_progress(tmp_path: Path, start: Start) -> None:
    server = start(*[Answer(cut=100_000, ranges=False)] * 9)
    text = failure(remote(server, size=None, checksum=None), tmp_path)
    assert "the connection broke off, after 5 tries in a row" in text
    assert len(server.asked) == 6 and (tmp_path / ".data.bin.part").read_bytes() == CONTENT[:100_000]


LONG, OTHER = CONTENT + b"x" * 9, b"x" * 300_000


def test_bytes_after_the_announced_end_are_not_of_the_file(tmp_path: Path, start: Start) -> None:
    assert fetch(remote(start(Answer(LONG, says=300_000)), size=None), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "kept", "fault"),
    [
        (Answer(CONTENT[:1000]), 1000, "has 1,000 bytes instead of 300,000"),
        (Answer(LONG), 300_001, "has 300,001 bytes instead of 300,000"),  # stopped at the first byte too many
        (Answer(LONG, framing="none"), 300_001, "has 300,001 bytes instead of 300,000"),
        (Answer(OTHER), 300_000, f"has sha256:{hashlib.sha256(OTHER).hexdigest()} instead of {CHECKSUM}"),
    ],
    ids=["short", "long", "long unannounced", "other"],
)
def test_a_wrong_file_is_set_aside(tmp_path: Path, start: Start, answer: Answer, kept: int, fault: str) -> None:
    (tmp_path / "data.bin.wrong").write_bytes(b"an earlier one")
    text = failure(remote(start(answer)), tmp_path)
    assert all(words in text for words in (fault, str(tmp_path / "data.bin.wrong"), "either a proxy", "or the site has changed"))
    assert left(tmp_path) == ["data.bin.wrong"] and (tmp_path / "data.bin.wrong").read_bytes() == answer.content[:kept]
    mirror = start()
    assert fetch(remote(start(answer), mirror), tmp_path).read_bytes() == CONTENT and mirror.ranges() == [None]


def test_a_page_of_excuses_does_not_cost_what_has_come(tmp_path: Path, start: Start) -> None:
    server = start(Answer(cut=100_000), Answer(b"please log in", ranges=False))
    assert "offers 13 bytes instead of 300,000" in failure(remote(server), tmp_path)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT and server.ranges()[-1] == "bytes=100000-"


def test_a_server_that_stalls_is_asked_again_and_keeps_what_it_sent(tmp_path: Path, start: Start) -> None:
    server = start(Answer(cut=70_001, stalls=True))
    assert fetch(remote(server), tmp_path, wait=0, patience=2).read_bytes() == CONTENT  # the server stalls for ever
    assert server.ranges() == [None, "bytes=70001-"]


def test_waits_double_until_there_is_progress(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    busy = [Answer(status=status) for status in (503, 429, 500)]
    server = start(*busy, Answer(cut=100_000), *busy, Answer(status=503))
    with pytest.raises(UsageError, match="HTTP 503, after 4 tries in a row .* is kept, and the same command continues$"):
        fetch(remote(server), tmp_path, attempts=4, wait=2)
    assert waits == [2, 4, 8, 2, 2, 4, 8]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT and server.has_sent(len(CONTENT))


@pytest.mark.parametrize("status", [403, 404])
def test_a_missing_file_goes_straight_to_the_mirror(tmp_path: Path, start: Start, status: int) -> None:
    first, second = start(*[Answer(status=status)] * 9), start()
    assert fetch(remote(first, second), tmp_path).read_bytes() == CONTENT
    assert len(first.asked) == len(second.asked) == 1


def test_no_server_and_a_way_out_of_the_web_are_told_in_a_sentence(tmp_path: Path, start: Start) -> None:
    moved = start(Answer(status=302, headers={"Location": "file:///etc/hostname"}))
    text = failure(remote("http://127.0.0.1:1", moved), tmp_path)
    assert "no connection (ConnectionError), after 5 tries" in text and "no way to it (InvalidSchema)" in text


def test_a_file_that_stands_needs_no_net_and_another_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(CONTENT)
    assert fetch(remote("http://127.0.0.1:1"), tmp_path) == tmp_path / "data.bin" and left(tmp_path) == ["data.bin"]
    for other in (CONTENT[1:], OTHER):
        (tmp_path / "data.bin").write_bytes(other)
        assert re.search("data.bin has .*: move it away", failure(remote("http://127.0.0.1:1"), tmp_path))
        assert (tmp_path / "data.bin").read_bytes() == other


@pytest.mark.parametrize("finished", [True, False])
def test_a_second_process_waits_and_touches_nothing_meanwhile(tmp_path: Path, start: Start, finished: bool) -> None:
    server = start()
    (tmp_path / ".data.bin.part").write_bytes(b"theirs")
    code = f"from igpt.fetch import *; fetch({remote(server)}, Path({str(tmp_path)!r}))"
    with FileLock(tmp_path / ".data.bin.lock"):
        second = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        line = second.stderr.readline()
        assert line == f"igpt: data.bin is being fetched by another process into {tmp_path}: waiting until it is done\n"
        assert (tmp_path / ".data.bin.part").read_bytes() == b"theirs" and not server.asked
        if finished:
            (tmp_path / "data.bin").write_bytes(CONTENT)
    assert second.wait(PATIENCE) == 0
    assert (tmp_path / "data.bin").read_bytes() == CONTENT and len(server.asked) == (0 if finished else 1)


def test_a_killed_process_is_continued_from_what_it_told(tmp_path: Path, start: Start) -> None:
    server = start(Answer(cut=200_000, stalls=True))
    code = f"from igpt.fetch import *; fetch({remote(server)}, Path({str(tmp_path)!r}), report=lambda n, _: print(n, flush=True))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = int(process.stdout.readline())
        process.kill()
    size = (tmp_path / ".data.bin.part").stat().st_size
    assert size >= told >= 1 << 16 and not (tmp_path / "data.bin").exists()
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT and server.ranges() == [None, f"bytes={size}-"]


def test_an_interrupt_is_continued(tmp_path: Path, start: Start) -> None:
    def stop(done: int, total: int | None) -> None:
        assert (tmp_path / ".data.bin.part").stat().st_size == done  # what is told would outlive a kill
        raise KeyboardInterrupt

    server = start()
    with pytest.raises(KeyboardInterrupt):
        fetch(remote(server), tmp_path, report=stop)
    size = (tmp_path / ".data.bin.part").stat().st_size
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT and server.ranges() == [None, f"bytes={size}-"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is always full")
def test_a_full_disk_names_the_part_and_keeps_it(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server, real = start(Answer(cut=100_000), Answer(status=404)), Path.open
    failure(remote(server), tmp_path)
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: real(Path("/dev/full") if mode == "ab" else self, mode, *a, **k)
    )
    with pytest.raises(OSError, match="No space left") as caught:
        fetch(remote(server), tmp_path)
    assert caught.value.filename == str(tmp_path / ".data.bin.part")
    assert (tmp_path / ".data.bin.part").read_bytes() == CONTENT[:100_000]


def test_too_little_space_is_said_before_anything_is_asked(tmp_path: Path, start: Start) -> None:
    server = start()
    (tmp_path / ".data.bin.part").write_bytes(b"x" * 1000)
    assert "needs 999,999,999,999,999,000 more bytes" in failure(remote(server, size=10**18), tmp_path) and not server.asked


@pytest.mark.parametrize("seed", range(6))
def test_cuts_at_random_places_change_no_byte(tmp_path: Path, start: Start, seed: int) -> None:
    chance = random.Random(seed)
    cuts = sorted(chance.sample(range(1, len(CONTENT)), 8))
    server = start(
        *[Answer(cut=cut, ranges=chance.random() < 0.8, framing=chance.choice(["length", "chunked", "none"])) for cut in cuts]
    )
    assert fetch(remote(server), tmp_path, wait=0, attempts=1).read_bytes() == CONTENT
    assert len(server.asked) == len(cuts) + 1 and left(tmp_path) == ["data.bin"]


def test_what_does_not_pass_its_check_is_set_aside_and_never_gets_the_name(tmp_path: Path, start: Start) -> None:
    server, file = start(Answer(content=b"x" * 300_000)), []

    def check(path: Path) -> str:
        file.append(path.name)
        return "" if path.read_bytes() == CONTENT else "is of another model"

    with pytest.raises(UsageError, match=r"what came is of another model\): .* kept as .*data\.bin\.wrong") as caught:
        fetch(remote(server, size=None, checksum=None), tmp_path, wait=0, check=check)
    assert not isinstance(caught.value, Unavailable) and left(tmp_path) == ["data.bin.wrong"]
    assert fetch(remote(server, size=None, checksum=None), tmp_path, wait=0, check=check).read_bytes() == CONTENT
    assert file == [".data.bin.part"] * 2


@pytest.mark.parametrize(("statuses", "missing"), [((404, 404), True), ((404, 403), False), ((404, 200), None)])
def test_a_file_that_nobody_has_is_told_from_one_that_cannot_be_had(
    tmp_path: Path, start: Start, statuses: tuple[int, ...], missing: bool | None
) -> None:
    servers = [start(*[Answer(status=status)] * 9) for status in statuses]
    if missing is None:
        assert fetch(remote(*servers), tmp_path, wait=0).read_bytes() == CONTENT
        return
    with pytest.raises(Unavailable) as caught:
        fetch(remote(*servers), tmp_path, wait=0)
    assert caught.value.is_missing is missing
