from __future__ import annotations

import errno
import gzip
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import PATIENCE, wait_until
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from official import Publish, cifar10_files, imagenet_folders, md5, pictures, refusal, tar_of, tiny_imagenet, tree, write

from igpt.data import DATASETS, fetching, load_split
from igpt.data.fetching import dataset_lines, fetch_dataset, unpack
from igpt.errors import UsageError

FILES = cifar10_files(pictures(20), pictures(10, seed=1))
ROOT = "cifar-10-batches-py"
ARCHIVE = tar_of([(f"{ROOT}/{name}", content) for name, content in FILES.items()], "gz")
NAME = "cifar-10-python.tar.gz"


@dataclass
class Site:
    """A web server on this machine; ``cut`` ends its next answer after so many bytes."""

    content: bytes = ARCHIVE
    cut: int | None = None
    asked: list[str | None] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.asked.append(asked)
            first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", str(len(site.content) - first))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(site.content) - 1}/{len(site.content)}")
            self.end_headers()
            end, site.cut = site.cut, None
            with suppress(ConnectionError):  # who asked may have been interrupted
                self.wfile.write(site.content[first:end])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        site.address = f"http://127.0.0.1:{server.server_port}/{NAME}"
        yield site
        server.shutdown()


def publish_at(publish: Publish, site: Site, archive: bytes = ARCHIVE) -> None:
    publish("cifar10", files=FILES, archive=archive, address=site.address, train=20, test=10)


def test_a_data_set_is_fetched_verified_unpacked_and_its_archive_removed(home: Path, publish: Publish, site: Site) -> None:
    publish_at(publish, site)
    told: list[int] = []
    assert fetch_dataset("cifar10", report=lambda done, total: told.append(done)) == home / ROOT
    assert tree(home) == {f"{ROOT}/{name}": content for name, content in FILES.items()}
    assert told[-1] == len(ARCHIVE)
    assert len(load_split("cifar10", "train")) == 18
    fetch_dataset("cifar10")
    assert site.asked == [None]  # what is here is not asked for


def test_an_interrupted_fetch_continues(home: Path, publish: Publish, site: Site) -> None:
    publish_at(publish, site)
    site.cut = 70_000

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_dataset("cifar10", report=stop)
    assert not (home / ROOT).exists() and not (home / NAME).exists()
    size = (home / f".{NAME}.part").stat().st_size
    assert fetch_dataset("cifar10") == home / ROOT
    assert 0 < size < len(ARCHIVE) and site.asked == [None, f"bytes={size}-"]
    assert len(tree(home)) == len(FILES)


def test_a_connection_that_breaks_off_is_continued(home: Path, publish: Publish, site: Site) -> None:
    publish_at(publish, site)
    site.cut = 20_000
    fetch_dataset("cifar10")
    assert site.asked == [None, "bytes=20000-"] and len(tree(home)) == len(FILES)


def test_an_archive_that_stands_there_already_is_unpacked_only(home: Path, publish: Publish, site: Site) -> None:
    publish_at(publish, site)
    write(home, {NAME: ARCHIVE, f".{ROOT}.part/data_batch_1": b"of a killed one"})
    fetch_dataset("cifar10")
    assert not site.asked and tree(home) == {f"{ROOT}/{name}": content for name, content in FILES.items()}


def test_a_download_with_another_sum_is_set_aside(home: Path, publish: Publish, site: Site) -> None:
    publish_at(publish, site)
    damaged = bytearray(ARCHIVE)
    damaged[5000] ^= 1
    site.content = bytes(damaged)
    assert f"instead of md5:{md5(ARCHIVE)}" in refusal(fetch_dataset, "cifar10")
    assert not (home / ROOT).exists()
    site.content = ARCHIVE
    fetch_dataset("cifar10")
    assert (home / ROOT / "data_batch_1").read_bytes() == FILES["data_batch_1"]


def test_tiny_imagenet_comes_as_a_zip(home: Path, publish: Publish, site: Site) -> None:
    files = tiny_imagenet()
    site.content = zip_of([(f"tiny-imagenet-200/{name}", content) for name, content in files.items()])
    publish("tiny-imagenet", archive=site.content, address=site.address, train=9, test=6, classes=3)
    assert tree(fetch_dataset("tiny-imagenet")) == files
    assert len(load_split("tiny-imagenet", "test")) == 6


def test_imagenet_is_refused_with_what_to_put_where(home: Path) -> None:
    text = refusal(fetch_dataset, "imagenet")
    for words in ("ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar", "image-net.org", "train/ and val/", str(home / "imagenet")):
        assert words in text
    write(home / "imagenet", imagenet_folders())
    assert fetch_dataset("imagenet") == home / "imagenet"
    assert "nothing to fetch" in refusal(fetch_dataset, "digits")
    assert "no data set 'mnist'" in refusal(fetch_dataset, "mnist")


def test_a_folder_that_is_something_else_is_left_alone(home: Path, publish: Publish, site: Site) -> None:
    publish_at(publish, site)
    write(home / ROOT, {"thesis.txt": b"years of work"})
    assert "move it away, and the same command fetches it" in refusal(fetch_dataset, "cifar10")
    assert tree(home) == {f"{ROOT}/thesis.txt": b"years of work"} and not site.asked


def test_a_second_fetch_waits_and_does_not_disturb_the_first(home: Path, publish: Publish, site: Site) -> None:
    publish_at(publish, site)
    write(home, {f".{ROOT}.part/data_batch_1": b"theirs", NAME: ARCHIVE})
    with redirect_stderr(io.StringIO()) as said, ThreadPoolExecutor(1) as pool:
        with FileLock(home / f".{ROOT}.lock"):
            second = pool.submit(fetch_dataset, "cifar10")
            wait_until(lambda: said.getvalue().endswith("\n"))
            assert (
                said.getvalue()
                == f"igpt: CIFAR-10 is being fetched by another process into {home / ROOT}: waiting until it is done\n"
            )
            assert tree(home) == {f".{ROOT}.part/data_batch_1": b"theirs", NAME: ARCHIVE} and not second.done()
        second.result(PATIENCE)
    assert len(tree(home)) == len(FILES)


def test_the_list_says_what_is_here(home: Path, publish: Publish, site: Site) -> None:
    publish_at(publish, site)
    assert [row[0] for row in dataset_lines()] == list(DATASETS)
    assert [row[3] for row in dataset_lines()] == ["here", *["not here"] * 6]
    write(home / ROOT, FILES)
    assert dataset_lines()[1][3] == "here" and dataset_lines()[5][2] == "155 GB, by hand"


# Unpacking, without a sum before it


def zip_of(members: list[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def entry(name: str, kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def unpack_bytes(folder: Path, content: bytes, *, limit: int = 1 << 20) -> None:
    """Unpack an archive as ``folder / "set"``."""
    (folder / "archive").write_bytes(content)
    unpack(folder / "archive", folder / "set", limit=limit)


def refused_without_a_trace(folder: Path, content: bytes, *, limit: int = 1 << 20) -> str:
    text = refusal(unpack_bytes, folder, content, limit=limit)
    assert tree(folder) == {"archive": content} and [path.name for path in folder.iterdir() if path.is_dir()] == []
    assert text.startswith(str(folder / "archive"))
    return text


GOOD = [("set/a", b"a" * 700), ("set/b/c", b"c" * 1500), ("set/d", b"")]
BAD_NAMES = ["../x", "set/../../x", "set/b/../../../x", "set/..", "/tmp/igpt-x", "/set/x", "x", "other/x", "set/a/x", "set\\x"]


@pytest.fixture(params=[True, False], ids=["filters", "no filters"])
def tarfile_of_any_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python's tarfile, and that of 3.11.2, which Debian 12 has and which knows no filter."""
    if not request.param:
        extract = tarfile.TarFile.extractall
        monkeypatch.delattr(tarfile, "data_filter")
        monkeypatch.setattr(
            tarfile.TarFile, "extractall", lambda tar, path, members: extract(tar, path, members, filter="fully_trusted")
        )


@pytest.mark.usefixtures("tarfile_of_any_python")
def test_an_archive_is_unpacked_by_any_python(tmp_path: Path) -> None:
    unpack_bytes(tmp_path, tar_of(GOOD))
    assert tree(tmp_path / "set") == {name.removeprefix("set/"): content for name, content in GOOD}


@pytest.mark.usefixtures("tarfile_of_any_python")
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_member_outside_the_folder_comes_to_nothing(tmp_path: Path, name: str) -> None:
    for content in (tar_of([*GOOD, (name, b"x")]), zip_of([*GOOD, (name, b"x")])):
        with suppress(UsageError):
            unpack_bytes(tmp_path, content)
        assert {*tree(tmp_path)} <= {"archive", "set/a", "set/b/c", "set/d", "set/x", "set/b/x", "set/set\\x", "set/tmp/igpt-x"}
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
    assert not Path("/tmp/igpt-x").exists() and not (tmp_path.parent / "x").exists()


LINKS = [
    entry("set/link", tarfile.SYMTYPE, "/etc/passwd"),
    entry("set/link", tarfile.SYMTYPE, "a"),
    entry("set/b", tarfile.SYMTYPE, ".."),
    entry("set/link", tarfile.LNKTYPE, "set/a"),
    entry("set/link", tarfile.LNKTYPE, "/etc/passwd"),
    entry("set/pipe", tarfile.FIFOTYPE),
    entry("set/null", tarfile.CHRTYPE),
    entry("set/disk", tarfile.BLKTYPE),
    entry("set/holes", tarfile.GNUTYPE_SPARSE),
]


@pytest.mark.parametrize("info", LINKS, ids=lambda info: f"{info.type!r} {info.linkname}")
def test_a_tar_with_links_devices_or_holes_is_refused(tmp_path: Path, info: tarfile.TarInfo) -> None:
    refused_without_a_trace(tmp_path, tar_of([*GOOD, (info, b"")]))


def test_a_sparse_member_of_a_pax_tar_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("set/holes")
    info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0", "GNU.sparse.name": "set/holes"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    refused_without_a_trace(tmp_path, out.getvalue())


@pytest.mark.parametrize("form", ["tar", "gz", "zip"])
def test_more_than_the_limit_is_refused_before_it_is_written(tmp_path: Path, form: str) -> None:
    members = [("set/a", b"a"), ("set/bomb", bytes(3 << 20))]
    content = zip_of(members) if form == "zip" else tar_of(members, "gz" if form == "gz" else "")
    assert "unpacks to more than 1,048,576 bytes" in refused_without_a_trace(tmp_path, content)
    unpack_bytes(tmp_path, content, limit=4 << 20)


TAR = tar_of(GOOD)
FORMS = {"tar": TAR, "gz": gzip.compress(TAR, mtime=0), "zip": zip_of(GOOD)}
ENDS = {"tar": 512 * 9, "gz": len(FORMS["gz"]), "zip": len(FORMS["zip"])}  # bytes that are needed


@settings(deadline=None, max_examples=150)
@given(form=st.sampled_from(sorted(FORMS)), data=st.data())
def test_a_damaged_archive_is_unpacked_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(FORMS[form])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, ENDS[form] - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack_bytes(folder, bytes(content))
        assert (folder / "set").is_dir()
    except UsageError as error:
        assert "\n" not in str(error)
        assert [path.name for path in folder.iterdir()] == ["archive"]
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") in (["archive"], ["archive", "set"])


@pytest.mark.parametrize("content", [b"", b"words", b"\x1f\x8b", b"PK\x05\x06", bytes(2048), b"<!DOCTYPE html>" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    refused_without_a_trace(tmp_path, content)


def test_what_an_earlier_unpacking_left_is_not_mixed_in(tmp_path: Path) -> None:
    write(tmp_path / ".set.part", {"stray": b"of an earlier one"})
    unpack_bytes(tmp_path, TAR)
    assert tree(tmp_path / "set") == {"a": b"a" * 700, "b/c": b"c" * 1500, "d": b""}
    assert not (tmp_path / ".set.part").exists()


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_what_macos_and_windows_leave_in_an_archive_is_left_out(tmp_path: Path, form: str) -> None:
    dirt = ["__MACOSX/set/._a", "__MACOSX/x", "set/._a", "set/b/.DS_Store", "._set", "set/Thumbs.db", "set/b/desktop.ini"]
    members: list[tuple[str, bytes]] = [*((name, b"\0\5\26\7") for name in dirt), *GOOD]
    unpack_bytes(tmp_path, tar_of(members) if form == "tar" else zip_of([*members]))
    assert tree(tmp_path / "set") == {"a": b"a" * 700, "b/c": b"c" * 1500, "d": b""}


@pytest.mark.parametrize("at", ["fetch", "unpack"])
def test_a_disk_that_is_full_is_said_in_a_sentence(home: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(fetching, "fetch", lambda *_, **__: home / "archive")
    monkeypatch.setattr(fetching, at, full)
    said = refusal(fetch_dataset, "cifar10")
    assert said.startswith(f"{home}") and said.endswith(
        "could not be written (No space left on device): free some room, and the same command continues"
    )
