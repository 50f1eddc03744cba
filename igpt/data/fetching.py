"""Data sets from their official addresses: fetched, verified, unpacked; and checked once they are here."""

from __future__ import annotations

import errno
import hashlib
import lzma
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from igpt.data.cards import DATASETS, by_hand, check_present, data_card, data_home, is_present
from igpt.data.dataset import Archive, DataSet, checked_bytes, index_digest
from igpt.data.imagenet_tokens import check_released
from igpt.data.splits import held_out
from igpt.errors import UsageError
from igpt.fetch import RemoteFile, Unavailable, fetch
from igpt.files import check_writable, is_litter, refuse_full_disk, sync_folder, wait_for_lock

Report = Callable[[int, int | None], None]
DAMAGE = (  # what reading an archive raises when it is not whole, or its members lie in each other's place
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError),
    *(ValueError, OverflowError, MemoryError, struct.error, FileExistsError, NotADirectoryError, IsADirectoryError),
)


def fetch_dataset(name: str, *, report: Report = lambda done, total: None) -> Path:
    """The folder of a data set, downloaded from its official address, verified and unpacked; at once if it is there.

    The archive is removed once its content stands. While another process fetches the same set, this one waits for it,
    and continues when that process ends before the set stands. Files that only come along, and cannot be had, are said on
    stderr. Raises UsageError for a data set that may only be had from its owner, saying what to put where; for a full disk,
    where what has come is kept; otherwise as `igpt.fetch.fetch` does, and for an archive that is not as it should be.
    """
    card = data_card(name)
    if not card.subfolder:
        raise UsageError(f"{card.short} come with scikit-learn: there is nothing to fetch")
    if card.loose:
        _fetch_loose(card, report)
    elif not is_present(name):
        with refuse_full_disk(card.folder):
            _fetch_archives(card, report)
    return card.folder


def _fetch_loose(card: DataSet, report: Report) -> None:
    """Have a data set's single files, then those beside them as far as they can be had."""

    def have(address: str) -> None:
        name = address.rpartition("/")[2]
        with refuse_full_disk(card.folder / name):
            fetch(RemoteFile(name, (address,), None, None), card.folder, report=report)

    for address in card.loose:
        have(address)
    for address in card.beside:
        try:
            have(address)
        except UsageError as error:
            print(f"igpt: {card.title} is usable without: {error}", file=sys.stderr)
            if not (isinstance(error, Unavailable) and error.is_missing):
                break  # no network, say, which would be waited for again with each file


def _fetch_archives(card: DataSet, report: Report) -> None:
    """Have a data set out of its archives, verified and unpacked."""
    if card.folder.exists():
        raise UsageError(
            f"{card.folder} is there and is not {card.title} as published: move it away, and the same command fetches it"
        )
    if not all(archive.addresses for archive in card.archives):
        raise UsageError(f"{card.title} may be had from its owner only, under {card.terms}: {by_hand(card.name)}")
    check_writable(card.folder, is_folder=True)
    data_home().mkdir(parents=True, exist_ok=True)
    held = f"{card.title} is being fetched by another process into {card.folder}"
    with wait_for_lock(card.folder.with_name(f".{card.folder.name}.lock"), held):
        for archive in card.archives if not is_present(card.name) else ():  # that process may have finished it
            remote = RemoteFile(archive.name, archive.addresses, archive.bytes, archive.checksum)
            path = fetch(remote, data_home(), report=report)
            unpack(path, card.folder, limit=card.unpacked_bytes)
            path.unlink()


def unpack(path: Path, folder: Path, *, limit: int) -> None:
    """Unpack an archive, tar or zip, that holds one folder, as ``folder``; whole or not at all.

    limit : bytes that its files may have together
    Raises UsageError for a member outside that folder, one that is neither file nor folder, more bytes than the
    limit, and an archive that is damaged or cut short.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    total = 0
    try:
        for member, size, stream in _members(path):
            total += size
            if total > limit:
                raise UsageError(f"{path} unpacks to more than {limit:,} bytes, which the published one does not: get it again")
            place = PurePosixPath(member)
            if (
                place.is_absolute()
                or ".." in place.parts
                or "\\" in member
                or place.parts[:1] != (folder.name,)
                or len(place.parts) < 2
            ):
                raise UsageError(f"{path} has a member {member!r}, which the published one has not: get it again")
            target = part.joinpath(*place.parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with _named(target), target.open("xb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            if target.stat().st_size != size:
                raise UsageError(f"{path} is cut short at {member}: get it again")
        if not any(part.iterdir()):
            raise UsageError(f"{path} is an archive of nothing: get it again")
        part.replace(folder)
        sync_folder(folder.parent)
    except DAMAGE as error:
        says = str(error).partition("\n")[0].rstrip(":") or type(error).__name__  # tarfile lists all that it tried
        raise UsageError(f"{path} is damaged ({says}): get it again") from None
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # how gzip says it, and zipfile of a place before the file's beginning
            raise UsageError(f"{path} is damaged ({error}): get it again") from None
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Let a full disk say where it is full; by itself it does not, and would look like a bug of ours."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(target)
        raise


def _members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of an archive's files but for litter. Raises UsageError for what is neither file nor folder."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if is_litter(info.filename):
                    continue
                kind = info.external_attr >> 28  # of a Unix mode: 8 is a file, 4 a folder, 0 unsaid
                if kind not in (0, 4, 8):
                    raise UsageError(f"{path} has a link {info.filename!r}, which the published one has not: get it again")
                if not info.is_dir():
                    with archive.open(info) as stream:
                        yield info.filename, info.file_size, stream
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isdir() or is_litter(member.name):
                continue
            if not member.isreg() or member.issparse():
                raise UsageError(f"{path} has a link or device {member.name!r}, which the published one has not: get it again")
            content = tar.extractfile(member)
            assert content is not None
            yield member.name, member.size, content
        _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError unless the tar was read to its end mark; tarfile takes a damaged or missing header for it.

    What follows the mark is read as well, for gzip's own sum stands behind it.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it has no end")
    while tar.fileobj.read(1 << 20):
        pass


def check_dataset(name: str) -> list[str]:
    """What a look at a whole data set finds, line by line: sums, counts, the split, a decoded image.

    Raises UsageError for the first thing that is not as published.
    """
    card = data_card(name)
    check_present(name)
    if card.read is None:
        return list(check_released(card))
    lines = []
    for file, md5 in card.files.items():
        checked_bytes(card.folder / file, md5)
    if card.files:
        lines.append(f"{len(card.files)} files have their published MD5 sums")
    for archive in card.archives:
        if (card.folder / archive.name).is_file():
            lines.append(_check_archive(card.folder / archive.name, archive))
    for split in ("train", "test"):
        pictures, labels = card.read(card, split)
        count, first = len(labels), pictures[0] if isinstance(pictures, np.ndarray) else np.asarray(pictures.picture(0))
        least, most = np.bincount(labels, minlength=card.classes).min(), np.bincount(labels, minlength=card.classes).max()
        expected = card.train if split == "train" else card.test
        if count != expected or len(np.unique(labels)) != card.classes:
            raise UsageError(f"{card.title} has {count:,} {split} images, {expected:,} were published: restore what is missing")
        height, width = first.shape[:2]
        lines.append(
            f"{split}: {count:,} images of {card.classes:,} classes, {least:,} to {most:,} a class;"
            f" the first is {height} x {width}, of class {labels[0]} ({card.names(card)[labels[0]]}), mean {first.mean():.1f}"
        )
    if card.split:
        digest = index_digest(held_out(name))
        if digest != card.split:
            raise UsageError(
                f"the held-out part of {card.title} has SHA-256 {digest}, not {card.split}: install this package again"
            )
        lines.append(f"held out: {card.validation:,} of train, SHA-256 {digest[:12]}, as signed")
    return lines


def _check_archive(path: Path, archive: Archive) -> str:
    """What an archive that is read in place is like."""
    method, _, expected = archive.checksum.partition(":")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.new(method, usedforsecurity=False)).hexdigest()
    if path.stat().st_size != archive.bytes or found != expected:
        raise UsageError(f"{path} is not the published file (MD5 {found}, published is {expected}): get it again")
    return f"{archive.name} has its published MD5 sum"


def dataset_lines() -> list[tuple[str, str, str, str, str]]:
    """One row a data set: name, images, download, whether it is here, where it lies or goes; terms are apart."""
    rows = []
    for name, card in DATASETS.items():
        here = "here" if is_present(name) else "not here"
        rows.append(
            (
                name,
                card.count(card.train + card.test),
                download(card),
                here,
                str(card.folder) if card.subfolder else "in scikit-learn",
            )
        )
    return rows


def download(card: DataSet) -> str:
    """How much is to be downloaded, and by whom."""
    if not card.subfolder:
        return "none"
    if card.loose:
        return f"at least {card.loose_bytes / 1e9:.1f} GB"
    size = sum(archive.bytes for archive in card.archives) / 1e9
    return f"{size:.2f} GB" if all(archive.addresses for archive in card.archives) else f"{size:.0f} GB, by hand"
