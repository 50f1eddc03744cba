from __future__ import annotations

import errno
import io
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, wait_until

from igpt.errors import UsageError
from igpt.files import (
    read_json,
    read_whole,
    remove_parts,
    try_lock,
    wait_for_lock,
    write_array,
    write_atomically,
    write_folder,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_stands_under_its_name_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "name", "grüße")
    assert (tmp_path / "deep" / "name").read_text() == "grüße"
    assert names(tmp_path / "deep") == ["name"]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "name", "old")
    with pytest.raises(RuntimeError), write_atomically(tmp_path / "name") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert (tmp_path / "name").read_text() == "old"
    assert names(tmp_path) == ["name"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_at_each_step_leaves_old_or_new_and_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_text(tmp_path / "name", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[call], fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "name", "new")
    assert (tmp_path / "name").read_text() == "old"
    assert names(tmp_path) == ["name"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is always full")
def test_a_full_disk_is_an_error_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "name", "old")
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r": real(Path("/dev/full"), mode))
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "name", "new" * 10_000)
    monkeypatch.undo()
    assert caught.value.filename == str(tmp_path / "name")  # the system does not say which file did not fit
    assert (tmp_path / "name").read_text() == "old"


def test_a_folder_stands_under_its_name_once_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / ".e.part").mkdir()  # of a process that was killed
    write_text(tmp_path / ".e.part" / "old", "old")
    with write_folder(tmp_path / "e") as part:
        assert names(part) == [] and not (tmp_path / "e").exists()
        write_text(part / "new", "new")
    assert names(tmp_path) == ["e"] and names(tmp_path / "e") == ["new"]


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_folder_whose_block_raises_is_not_there(tmp_path: Path, fault: type[BaseException]) -> None:
    with pytest.raises(fault), write_folder(tmp_path / "e") as part:
        write_text(part / "new", "new")
        raise fault
    assert names(tmp_path) == []


def test_what_came_under_a_folders_name_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, write_folder(tmp_path / "e") as part:
        write_text(part / "new", "new")
        write_text(tmp_path / "e" / "theirs", "kept")
    assert caught.value.filename == str(tmp_path / "e")
    assert names(tmp_path) == ["e"] and names(tmp_path / "e") == ["theirs"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is always full")
def test_an_array_that_does_not_fit_is_an_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r": real(Path("/dev/full"), mode))
    for size in (1, 100_000):
        with pytest.raises(OSError, match="No space left") as caught:
            write_array(tmp_path / "a.npy", np.zeros(size))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.npy"))
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.json.7.part", "weights/.b.npy.7.part", ".c.part/d", "a.json", "e.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_parts(tmp_path, "**/.*.part")
    assert names(tmp_path) == ["a.json", "e.part", "weights"]
    assert names(tmp_path / "weights") == []


def test_a_lock_that_is_held_is_said_or_waited_for(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "lock")
    assert first is not None and try_lock(tmp_path / "lock") is None and try_lock(tmp_path / "lock", seconds=0.01) is None
    # Not pytest's own capture, which loses what a thread writes while it is looked at.
    with redirect_stderr(io.StringIO()) as said, ThreadPoolExecutor(1) as pool:
        with first:
            waits = pool.submit(wait_for_lock, tmp_path / "lock", "it is being made by another process")
            wait_until(lambda: said.getvalue().endswith("\n"))
            assert said.getvalue() == "igpt: it is being made by another process: waiting until it is done\n"
            assert not waits.done()
        with waits.result(PATIENCE):
            assert try_lock(tmp_path / "lock") is None


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder_are_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match="folder is a folder: name a file to write"):
        write_text(tmp_path / "folder", "text")
    for write in (write_text, lambda path, _: write_folder(path).__enter__()):
        with pytest.raises(UsageError, match=r"deep/name cannot be written, since .*file is a file: name another path"):
            write(tmp_path / "file" / "deep" / "name", "text")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'[{"a": 1, "a": 1}]', "has a field twice"),
        (b"\xff", "can't decode"),
        (b"9" * 5000, "digits"),
        (b'"' + b"a" * 5000 + b'"', "it has 5,002 bytes, more than the 5,000"),
    ],
    ids=["empty", "lists", "objects", "twice", "bytes", "digits", "large"],
)
def test_json_that_cannot_be_read_is_a_value_error(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    most = 5000 if reason.startswith("it has") else 10**6
    with pytest.raises(ValueError, match=reason):
        read_json(tmp_path / "a.json", most=most)


def test_json_with_a_mark_of_its_bytes_order_is_read(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_text('{"a": "grüße"}', encoding)
        assert read_json(tmp_path / "a.json") == {"a": "grüße"}


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path, "it is a folder"), (tmp_path / "pipe", "it is no regular file")):
        with pytest.raises(ValueError, match=reason):
            read_whole(path, most=10)
