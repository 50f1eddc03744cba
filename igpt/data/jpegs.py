"""ImageNet and Tiny ImageNet: JPEG files in folders or in the official tar files, listed once and read one by one."""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from igpt.data.cards import data_card, data_folder
from igpt.errors import UsageError
from igpt.pictures import grey_levels

SUFFIXES = (".jpeg", ".jpg", ".png")
FORMATS = ("JPEG", "PNG")  # one file of ImageNet is a PNG under a JPEG's name; Pillow's others include PostScript, which is run
TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
LARGEST = 64 << 20  # bytes of one image or list; ImageNet's largest file has some 15 MB


@dataclass(frozen=True, eq=False)
class Jpegs:
    """A split's images, as places to read them from; small enough to be handed to other processes.

    files : paths below ``folder``, bytes (F,)
    file, offset, size : int64 (N,) each; where an image's bytes stand, size -1 for a whole file
    labels : int64 (N,)
    """

    folder: Path
    files: NDArray[np.bytes_]
    file: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Jpegs:
        """Some of the images, in that order, with nothing of the others."""
        files, places = self.files[self.file[indices]], np.arange(len(indices))
        return Jpegs(self.folder, files, places, self.offset[indices], self.size[indices], self.labels[indices])

    def read(self, index: int) -> bytes:
        """One image's bytes."""
        path = self.path(index)
        with path.open("rb") as stream:
            stream.seek(int(self.offset[index]))
            return stream.read(int(self.size[index]))

    def path(self, index: int) -> Path:
        """The file one image is in."""
        return self.folder / os.fsdecode(self.files[self.file[index]])

    def picture(self, index: int) -> Image.Image:
        """One image, decoded. Raises UsageError naming a file that is none."""
        try:
            return decode(self.read(index))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            where = f"{self.path(index)} at byte {self.offset[index]}" if self.size[index] >= 0 else f"{self.path(index)}"
            raise UsageError(f"{where} is not an image ({error}): restore the data set") from None

    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 (N, H, W, 3), where they have one size. Raises UsageError where they have not."""
        pictures = (np.asarray(self.picture(index)) for index in range(len(self)))
        first = next(pictures)
        found = np.empty((len(self), *first.shape), np.uint8)
        found[0] = first
        for index, picture in enumerate(pictures, start=1):
            if picture.shape != first.shape:
                raise UsageError(f"{self.path(index)} is {picture.shape[:2]}, others are {first.shape[:2]}: restore the data set")
            found[index] = picture
        return found


def decode(content: bytes) -> Image.Image:
    """A picture as RGB, from the bytes of a file: grey and CMYK converted, a broken end left grey, as ImageNet has them.

    EXIF's orientation is not followed: the data set's usual readers do not, and its labels do not need it.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:
            if file.mode.startswith("I"):  # a PNG of 16 bits, of which Pillow's own conversion would cut off all but the darkest
                return Image.fromarray(grey_levels(file, file)).convert("RGB")
            return file.convert("RGB")
    except OSError:
        if not content.startswith(b"\xff\xd8"):
            raise
    with Image.open(io.BytesIO(content), formats=FORMATS) as file:
        strict, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            return file.convert("RGB")
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = strict


def open_jpegs(name: str, split: Literal["train", "test"]) -> Jpegs:
    """The images of a split of ImageNet or Tiny ImageNet; test is the official validation set, as in the paper.

    Sorted by class and file name for train, by file name for test. Raises UsageError when the folder is not the
    data set, a class is missing, or the number of images is not the published one.
    """
    card, folder = data_card(name), data_folder(name)
    part = "train" if split == "train" else "val"
    if name == "tiny-imagenet":
        found = _tiny(folder, split)
    elif (folder / part).is_dir():
        found = _folders(folder, part)
    else:
        found = _tar(folder, split)
    expected = card.train if split == "train" else card.test
    classes = len(np.unique(found.labels))
    if (len(found), classes) != (expected, card.classes):
        raise UsageError(
            f"{folder} has {len(found):,} {split} images of {classes:,} classes, {card.title} has {expected:,} of"
            f" {card.classes:,}: restore what is missing"
        )
    return found


def class_ids(name: str) -> list[str]:
    """The WordNet ids of the classes, by label: sorted, as labels count them."""
    folder = data_folder(name)
    if (folder / "train").is_dir():
        return _classes(folder / "train")
    return sorted(_devkit_classes(folder).values())


def _folders(folder: Path, part: str) -> Jpegs:
    """``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``, or a flat ``val/`` with the development kit beside it."""
    known = _classes(folder / "train")
    rows = []
    if part == "val" and not (folder / part / known[0]).is_dir():
        truth = _ground_truth(folder)
        names = _listing(folder / part)
        _check_labelled(folder / part, len(names), len(truth))
        if strange := sorted(set(truth) - set(known)):
            raise UsageError(f"{folder / 'train'} has no folder {strange[0]}, a class of the validation images: restore it")
        rows = [(f"{part}/{name}", known.index(truth[place])) for place, name in enumerate(names)]
    else:
        for label, wnid in enumerate(known):
            rows += [(f"{part}/{wnid}/{name}", label) for name in _listing(folder / part / wnid)]
    return _whole_files(folder, rows)


def _tiny(folder: Path, split: str) -> Jpegs:
    """``train/<wnid>/images/*.JPEG``; ``val/images/*.JPEG`` with the classes in ``val/val_annotations.txt``."""
    known = _classes(folder / "train")
    if split == "train":
        rows = [
            (f"train/{wnid}/images/{name}", label)
            for label, wnid in enumerate(known)
            for name in _listing(folder / "train" / wnid / "images")
        ]
        return _whole_files(folder, rows)
    notes = folder / "val" / "val_annotations.txt"
    try:
        wnids = dict(line.split("\t")[:2] for line in notes.read_text().splitlines())
        rows = [(f"val/images/{name}", known.index(wnids[name])) for name in _listing(folder / "val" / "images")]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{notes} does not say the classes of val/images ({error}): restore the data set") from None
    return _whole_files(folder, rows)


def _classes(folder: Path) -> list[str]:
    """The classes' folders, sorted. Raises UsageError when there is none."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = sorted(path.name for path in paths if path.is_dir() and re.fullmatch(r"n\d{8}", path.name))
    if not found:
        raise UsageError(f"{folder} has no folder of a class, such as n01440764: put the data set's own folders there")
    return found


def _listing(folder: Path) -> list[str]:
    """The image files in a folder, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
    except OSError as error:
        raise UsageError(f"{folder} cannot be read ({error.strerror}): restore the data set") from None


def _whole_files(folder: Path, rows: list[tuple[str, int]]) -> Jpegs:
    """Images that are files of their own."""
    files = np.array([os.fsencode(path) for path, _ in rows], dtype=np.bytes_)
    labels = np.array([label for _, label in rows], dtype=np.int64)
    count = np.arange(len(rows))
    return Jpegs(folder, files, count, np.zeros_like(count), np.full_like(count, -1), labels)


def _tar(folder: Path, split: str) -> Jpegs:
    """The official tar files, read in place: their members are located, nothing is unpacked."""
    path = folder / (TRAIN_TAR if split == "train" else VAL_TAR)
    rows: list[tuple[str, int, int, str]] = []  # name, offset, size, class
    try:
        with path.open("rb") as stream:
            if split == "train":
                for outer, start, size in _members(path, stream, 0, r"n\d{8}\.tar"):
                    wnid = outer.removesuffix(".tar")
                    inner = _members(path, _Part(stream, start, size), start, rf"{wnid}_\d+\.JPEG")
                    rows += [(name, offset, length, wnid) for name, offset, length in inner]
                known = sorted({row[3] for row in rows})
            else:
                truth = _ground_truth(folder)
                found = sorted(_members(path, stream, 0, r"ILSVRC2012_val_\d{8}\.JPEG"))
                _check_labelled(path, len(found), len(truth))
                rows = [(*member, wnid) for member, wnid in zip(found, truth, strict=True)]
                known = sorted(_devkit_classes(folder).values())
    except FileNotFoundError:
        raise UsageError(
            f"{path} is missing, and there are no folders train/ and val/ either: put one or the other there"
        ) from None
    rows.sort(key=lambda row: (row[3], row[0]) if split == "train" else ("", row[0]))
    label = {wnid: place for place, wnid in enumerate(known)}
    return Jpegs(
        folder,
        np.array([os.fsencode(path.name)], dtype=np.bytes_),
        np.zeros(len(rows), np.int64),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.int64),
        np.array([label[row[3]] for row in rows], np.int64),
    )


def _members(path: Path, stream: IO[bytes] | _Part, base: int, pattern: str) -> Iterator[tuple[str, int, int]]:
    """Name, place in the file and size of a tar's members.

    Raises UsageError for a member that is not a plain file of the expected name, and for a tar that is cut short.
    """
    end = path.stat().st_size
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse() or not re.fullmatch(pattern, member.name):
                    raise UsageError(f"{path} has a member {member.name!r}, which the official file has not: get it again")
                place = base + member.offset_data
                if place + member.size > end or (member.size > LARGEST and not member.name.endswith(".tar")):
                    raise UsageError(f"{path} is cut short or damaged at {member.name}: get it again")
                yield member.name, place, member.size
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
        raise UsageError(f"{path} is cut short or damaged ({error}): get it again") from None


class _Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, stream: IO[bytes], start: int, size: int) -> None:
        self._stream, self._start, self._size, self._place = stream, start, size, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the part."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """The place in the part."""
        return self._place

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the part."""
        left = max(self._size - self._place, 0)
        self._stream.seek(self._start + self._place)
        found = self._stream.read(left if size < 0 else min(size, left))
        self._place += len(found)
        return found

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _ground_truth(folder: Path) -> list[str]:
    """The class of each validation image, in the order of their names, out of the development kit."""
    ids = _devkit_classes(folder)
    try:
        return [ids[int(line)] for line in _devkit_file(folder, GROUND_TRUTH).decode().split()]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{folder / DEVKIT} does not label the validation images ({error}): get it again") from None


def _check_labelled(place: Path, images: int, labels: int) -> None:
    """Raise UsageError when there are more or fewer validation images than labels, which then belong to others."""
    if images != labels:
        raise UsageError(f"{place} has {images:,} images and the development kit {labels:,} labels: restore the official files")


def _devkit_classes(folder: Path) -> dict[int, str]:
    """WordNet ids by the development kit's own numbers, of the classes without subclasses."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(_devkit_file(folder, "meta.mat")), squeeze_me=True)["synsets"]  # type: ignore[arg-type]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(synsets) if int(row["num_children"]) == 0}
    except UsageError:
        raise
    except Exception as error:  # loadmat raises whatever the bytes lead it to
        raise UsageError(f"{folder / DEVKIT} does not say its classes ({error}): get it again") from None


def _devkit_file(folder: Path, name: str) -> bytes:
    """One small file of the development kit."""
    path = folder / DEVKIT
    try:
        with gzip.open(path) as stream:  # to its end, where gzip's own sum is: a flipped bit would be a wrong label
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UsageError(f"{path} unpacks to more than {LARGEST:,} bytes: it is not the official file")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                if Path(member.name).name == name and member.isreg():
                    found = tar.extractfile(member)
                    assert found is not None
                    return found.read()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: the classes of the validation images are in it") from None
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, MemoryError) as error:
        raise UsageError(f"{path} is damaged ({error}): get it again") from None
    raise UsageError(f"{path} has no {name}: it is not the official file")
