"""Data sets from their official addresses: fetched, verified, unpacked; and checked once they are here."""

from __future__ import annotations

import errno
import hashlib
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from igpt.data import cifar, stl
from igpt.data.cards import DATASETS, Archive, by_hand, check_present, data_card, data_files, data_folder, data_home, is_present
from igpt.data.jpegs import class_ids, open_jpegs
from igpt.data.splits import held_out, index_digest, load_official
from igpt.errors import UsageError
from igpt.fetch import RemoteFile, fetch
from igpt.files import check_place, is_litter, sync_folder, wait_for_lock

Report = Callable[[int, int | None], None]
DAMAGE = (  # what reading an archive raises when it is not whole, or its members lie in each other's place
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError),
    *(ValueError, OverflowError, MemoryError, struct.error, FileExistsError, NotADirectoryError, IsADirectoryError),
)


def fetch_dataset(name: str, *, report: Report = lambda done, total: None) -> Path:
    """The folder of a data set, downloaded from its official address, verified and unpacked; at once if it is there.

    The archive is removed once its content stands. While another process fetches the same set, this one waits for it,
    and continues when that process ends before the set stands. Raises UsageError for a data set that may only be had from its
    owner, saying what to put where; otherwise as `igpt.fetch.fetch` does, and for an archive that is not as it should be.
    """
    if name == "digits":
        raise UsageError("the digits come with scikit-learn: there is nothing to fetch")
    card, files, folder = data_card(name), data_files(name), data_folder(name)
    if is_present(name):
        return folder
    if folder.exists():
        raise UsageError(f"{folder} is there and is not {card.title} as published: move it away, and the same command fetches it")
    if not all(archive.addresses for archive in files.archives):
        raise UsageError(f"{card.title} may be had from its owner only, under {card.terms}: {by_hand(name)}")
    check_place(folder, is_folder=True)
    data_home().mkdir(parents=True, exist_ok=True)
    held = f"{card.title} is being fetched by another process into {folder}"
    with wait_for_lock(folder.with_name(f".{folder.name}.lock"), held):
        for archive in files.archives if not is_present(name) else ():  # that process may have finished it
            remote = RemoteFile(archive.name, archive.addresses, archive.bytes, archive.checksum)
            path = fetch(remote, data_home(), report=report)
            unpack(path, folder, limit=files.unpacked_bytes)
            path.unlink()
    return folder


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
    lines = []
    if name != "digits":
        files, folder = data_files(name), data_folder(name)
        for file, md5 in files.files.items():
            cifar.checked_bytes(folder / file, md5)
        if files.files:
            lines.append(f"{len(files.files)} files have their published MD5 sums")
        for archive in files.archives:
            if (folder / archive.name).is_file():
                lines.append(_check_archive(folder / archive.name, archive))
    for split in ("train", "test"):
        if name == "imagenet":
            jpegs = open_jpegs(name, split)
            count, labels, first = len(jpegs), jpegs.labels, np.asarray(jpegs.picture(0))
        else:
            found = load_official(name, split)
            count, labels, first = len(found), found.labels, found.images[0]
        least, most = np.bincount(labels, minlength=card.classes).min(), np.bincount(labels, minlength=card.classes).max()
        expected = card.train if split == "train" else card.test
        if count != expected or len(np.unique(labels)) != card.classes:
            raise UsageError(f"{card.title} has {count:,} {split} images, {expected:,} were published: restore what is missing")
        height, width = first.shape[:2]
        lines.append(
            f"{split}: {count:,} images of {card.classes:,} classes, {least:,} to {most:,} a class;"
            f" the first is {height} x {width}, of class {labels[0]} ({class_names(name)[labels[0]]}), mean {first.mean():.1f}"
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


def class_names(name: str) -> list[str]:
    """The classes' names, by label; WordNet ids for ImageNet and Tiny ImageNet."""
    match name:
        case "digits":
            return [str(digit) for digit in range(10)]
        case "cifar10" | "cifar100":
            return cifar.read_names(name)
        case "stl10":
            return stl.read_names(name)
    return class_ids(name)


def dataset_lines() -> list[tuple[str, str, str, str, str]]:
    """One row a data set: name, images, download, whether it is here, where it lies or goes; terms are apart."""
    rows = []
    for name, card in DATASETS.items():
        if name == "digits":
            rows.append((name, f"{card.train + card.test:,}", "none", "here", "in scikit-learn"))
            continue
        archives = data_files(name).archives
        size = sum(archive.bytes for archive in archives) / 1e9
        how = f"{size:.2f} GB" if all(a.addresses for a in archives) else f"{size:.0f} GB, by hand"
        here = "here" if is_present(name) else "not here"
        rows.append((name, f"{card.train + card.test:,}", how, here, str(data_folder(name))))
    return rows
