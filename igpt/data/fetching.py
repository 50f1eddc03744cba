"""Download data sets from their official addresses, verify, unpack and check them."""

from __future__ import annotations

import errno
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from igpt.data.cards import DATASETS, by_hand, check_present, data_card, data_home, is_own, is_present
from igpt.data.dataset import Archive, DataSet, FittedPictures, checked_bytes, index_digest
from igpt.data.imagenet_tokens import check_released
from igpt.data.own import own_names
from igpt.data.splits import held_out
from igpt.errors import UsageError
from igpt.fetch import RemoteFile, Unavailable, difference, fetch
from igpt.files import check_writable, is_litter, refuse_full_disk, sync_folder, wait_for_lock
from igpt.progress import tell
from igpt.text import visible

Report = Callable[[int, int | None], None]

# What damaged bytes lead to; other errors are the disk's or the machine's.
DAMAGE = (None, errno.EINVAL, errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def fetch_dataset(name: str, *, report: Report = lambda done, total: None) -> Path:
    """Download, verify and unpack a data set unless it is present; return its folder.

    The archive is removed once it is unpacked. While another process fetches the same set, this call waits, and resumes if
    that process ends early. Optional files that cannot be fetched are named on stderr.
    Raises UsageError for a data set that requires registration, with the files to put into its folder; for a full disk, on
    which the bytes received are kept; as `igpt.fetch.fetch` does; and for an invalid archive.
    """
    card = data_card(name)
    if is_own(name):
        raise UsageError(f"{name} is your own data set: there is nothing to fetch")
    if not card.subfolder:
        raise UsageError(f"{card.short} come with scikit-learn: there is nothing to fetch")
    if card.loose:
        _fetch_loose(card, report)
    elif not is_present(name):
        with refuse_full_disk(card.folder):
            _fetch_archives(card, report)
    return card.folder


def _fetch_loose(card: DataSet, report: Report) -> None:
    """Fetch a data set's loose files, then the optional ones, as far as they are available."""
    for address in (*card.loose, *card.beside):
        name = address.rpartition("/")[2]
        try:
            with refuse_full_disk(card.folder / name):
                fetch(RemoteFile(name, (address,), None, None), card.folder, report=report)
        except UsageError as error:
            if address in card.loose:
                raise
            tell(f"igpt: {card.title} is usable without: {error}")
            if not (isinstance(error, Unavailable) and error.is_missing):
                return  # without a network, for example, each further file would take a timeout


def _fetch_archives(card: DataSet, report: Report) -> None:
    """Fetch and unpack a data set's archives."""
    folder = card.folder
    if folder.exists():
        raise UsageError(f"{folder} is there and is not {card.title} as published: move it away, and the same command fetches it")
    if not all(archive.addresses for archive in card.archives):
        raise UsageError(f"{card.title} may be had from its owner only, under {card.terms}: {by_hand(card.name)}")
    check_writable(folder, is_folder=True)
    data_home().mkdir(parents=True, exist_ok=True)
    held = f"{card.title} is being fetched by another process into {folder}"
    with wait_for_lock(folder.with_name(f".{folder.name}.lock"), held):
        for archive in card.archives if not is_present(card.name) else ():  # the other process may have finished it
            path = fetch(_remote(archive), data_home(), report=report)
            unpack(path, folder, limit=card.unpacked_bytes)
            path.unlink()


def _remote(archive: Archive) -> RemoteFile:
    """An archive as a file to fetch."""
    return RemoteFile(archive.name, archive.addresses, archive.bytes, archive.checksum)


def unpack(path: Path, folder: Path, *, limit: int) -> None:
    """Unpack the folder called ``folder.name`` from a verified tar or zip archive, atomically; other members are dropped.

    limit : maximum total bytes of the files
    Raises UsageError for a tar's link, device or path outside of it, for more bytes than the limit, and for a damaged
    archive.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if not is_litter(info.filename)]
                _check_size(path, sum(info.file_size for info in infos), limit)
                archive.extractall(part, infos)  # which leaves out "..", drives and links
        else:
            with tarfile.open(path) as tar:
                safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in Python 3.11.0 to 3.11.3
                tar.extractall(part, _members(path, tar, limit), **safe)  # type: ignore[arg-type]
        (part / folder.name).replace(folder)
        sync_folder(folder.parent)
    except UsageError:
        raise
    except Exception as error:  # damaged bytes make tarfile and zipfile raise errors of many types
        if isinstance(error, OSError) and error.errno not in DAMAGE:
            raise
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__  # tarfile lists all formats that it tried
        raise UsageError(f"{path} is damaged ({reason}): get it again") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _members(path: Path, tar: tarfile.TarFile, limit: int) -> Iterator[tarfile.TarInfo]:
    """A tar's files and folders, checked one by one as they are unpacked."""
    total = 0
    for member in tar:
        if is_litter(member.name):
            continue
        if Path(member.name).is_absolute() or ".." in Path(member.name).parts:
            raise UsageError(f"{path} has a path outside of it, {member.name!r}, which the published one has not: get it again")
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise UsageError(f"{path} has a link or device {member.name!r}, which the published one has not: get it again")
        total += member.size
        _check_size(path, total, limit)
        yield member


def _check_size(path: Path, size: int, limit: int) -> None:
    """Raise UsageError for more bytes than the limit."""
    if size > limit:
        raise UsageError(f"{path} unpacks to more than {limit:,} bytes, which the published one does not: get it again")


def check_dataset(name: str) -> list[str]:
    """Check a data set's checksums, counts, split and a decoded image; one line per result.

    Raises UsageError for the first difference from the published data set.
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
        if (path := card.folder / archive.name).is_file():  # an archive that is read without unpacking
            if fault := difference(_remote(archive), path):
                raise UsageError(f"{path} {fault}: get it again")
            lines.append(f"{archive.name} has its published MD5 sum")
    for split in ("train", "test"):
        pictures, labels = card.read(card, split)
        count, first = len(labels), pictures[0] if isinstance(pictures, np.ndarray) else np.asarray(pictures.picture(0))
        if isinstance(pictures, FittedPictures):
            pictures.all_pixels(side=1, channels=3)  # each picture is compared with its SHA-256
        least, most = np.bincount(labels, minlength=card.classes).min(), np.bincount(labels, minlength=card.classes).max()
        expected = card.train if split == "train" else card.test
        if count != expected or (len(np.unique(labels)) != card.classes and not is_own(name)):
            raise UsageError(f"{card.title} has {count:,} {split} images, {expected:,} were published: restore what is missing")
        height, width = first.shape[:2]
        first_class = visible(card.names(card)[labels[0]], limit=60)
        lines.append(
            f"{split}: {count:,} images of {card.classes:,} classes, {least:,} to {most:,} a class;"
            f" the first is {height} x {width}, of class {labels[0]} ({first_class}), mean {first.mean():.1f}"
        )
    if card.split:
        digest = index_digest(held_out(name))
        if digest != card.split:
            raise UsageError(
                f"the held-out part of {card.title} has SHA-256 {digest}, not {card.split}: install this package again"
            )
        lines.append(f"held out: {card.validation:,} of train, SHA-256 {digest[:12]}, as signed")
    return lines


def dataset_lines() -> list[tuple[str, str, str, str, str]]:
    """One row per data set: name, images, download, whether it is present, folder."""
    return [
        (
            name,
            card.count(card.train + card.test),
            download(card),
            "here" if is_present(name) else "not here",
            str(card.folder) if card.subfolder else "in scikit-learn",
        )
        for name, card in [*DATASETS.items(), *((name, data_card(name)) for name in own_names())]
    ]


def download(card: DataSet) -> str:
    """The size of the download, and whether it has to be done by hand."""
    if not card.subfolder or is_own(card.name):
        return "none"
    if card.loose:
        return f"at least {card.loose_bytes / 1e9:.1f} GB"
    size = sum(archive.bytes for archive in card.archives) / 1e9
    return f"{size:.2f} GB" if all(archive.addresses for archive in card.archives) else f"{size:.0f} GB, by hand"
