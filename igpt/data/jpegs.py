"""ImageNet and Tiny ImageNet: JPEG files in folders or in the official tar files, listed once and read one by one.

The layouts that are read are named in the book's chapter on the data. In each of them the order is the same: train by class and
file name, val by file name.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from igpt.data.dataset import Archive, DataSet, Official, pictures_folder
from igpt.errors import UsageError
from igpt.files import file_size, is_litter, read_whole
from igpt.pictures import grey_levels, opened

SUFFIXES = (".jpeg", ".jpg", ".png")
FORMATS = ("JPEG", "PNG")  # one file of ImageNet is a PNG under a JPEG's name
ADVICE = "restore the data set"
TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
SOLUTION = "LOC_val_solution.csv"  # Kaggle's file of the classes of the validation pictures
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
VAL, TINY_VAL = "ILSVRC2012_val_[0-9]{8}", "val_[0-9]+"  # names of validation pictures, as regular expressions
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
        """One image's bytes. Raises OSError where reading fails, and ValueError for what is no regular file or too large."""
        path = self.path(index)
        if self.size[index] < 0:
            return read_whole(path, most=LARGEST)
        file_size(path)  # which refuses a pipe, for that would be waited for without end
        with path.open("rb") as stream:
            stream.seek(int(self.offset[index]))
            return stream.read(int(self.size[index]))

    def path(self, index: int) -> Path:
        """The file one image is in."""
        return self.folder / os.fsdecode(self.files[self.file[index]])

    def picture(self, index: int) -> Image.Image:
        """One image, decoded. Raises UsageError naming a file that cannot be read or is none."""
        try:
            content = self.read(index)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{self.path(index)} cannot be read ({reason}): restore the data set") from None
        try:
            return decode(content)
        except UsageError as error:
            where = f"{self.path(index)} at byte {self.offset[index]}" if self.size[index] >= 0 else f"{self.path(index)}"
            raise UsageError(f"{where} {error}") from None

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

    EXIF's orientation and ICC profiles are not followed: the data set's usual readers do not. Raises UsageError as
    `igpt.pictures.opened` does.
    """
    try:
        with opened(io.BytesIO(content), FORMATS, advice=ADVICE) as file:
            if file.mode.startswith("I"):  # a PNG of 16 bits, of which Pillow's own conversion would cut off all but the darkest
                return Image.fromarray(grey_levels(file, file)).convert("RGB")
            return file.convert("RGB")
    except UsageError:
        if not content.startswith(b"\xff\xd8"):
            raise
    with opened(io.BytesIO(content), FORMATS, advice=ADVICE) as file:
        strict, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            return file.convert("RGB")
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = strict


def imagenet_jpegs(card: DataSet, split: Official) -> Jpegs:
    """The images of a split of ImageNet; test is the official validation set, as in the paper.

    Sorted by class and file name for train, by file name for test, whatever the layout. Raises UsageError when the folder
    is not the data set, a class is missing, a picture is another's or there twice, or the number of images is not the
    published one.
    """
    root = pictures_folder(card)
    if not (root / ("train" if split == "train" else "val")).is_dir():
        return _checked(_tar(card.folder, split), card, split)
    return _checked(_train(root) if split == "train" else _val(root, card.folder), card, split)


def read_imagenet(card: DataSet, split: Official) -> tuple[Jpegs, NDArray[np.int64]]:
    """The images, to be read one by one, and their labels, as `imagenet_jpegs`."""
    found = imagenet_jpegs(card, split)
    return found, found.labels


def tiny_jpegs(card: DataSet, split: Official) -> Jpegs:
    """The images of a split of Tiny ImageNet, in the order and under the checks of `imagenet_jpegs`."""
    return _checked(_train(card.folder) if split == "train" else _tiny_val(card.folder), card, split)


def read_tiny(card: DataSet, split: Official) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Tiny ImageNet's images, uint8 (N, 64, 64, 3), and their labels. Raises UsageError for a picture of another size."""
    found = tiny_jpegs(card, split)
    return found.images(), found.labels


def _checked(found: Jpegs, card: DataSet, split: Official) -> Jpegs:
    """Images that are as many, and of as many classes, as were published."""
    expected = card.train if split == "train" else card.test
    counts = np.bincount(found.labels, minlength=card.classes)
    classes = int(np.count_nonzero(counts))
    if (len(found), classes) != (expected, card.classes):
        raise UsageError(
            f"{card.folder} has {len(found):,} {split} images of {classes:,} classes, {card.title} has {expected:,} of"
            f" {card.classes:,}: restore what is missing"
        )
    if split == "test" and counts.min() < counts.max():  # as many of each class were published
        raise UsageError(
            f"{card.folder} has {counts.max():,} test images of class {class_ids(card)[counts.argmax()]}, {card.title} has"
            f" {expected // card.classes:,} of each: restore the official classes"
        )
    return found


def class_ids(card: DataSet) -> list[str]:
    """The WordNet ids of the classes, by label: sorted, as labels count them."""
    root = pictures_folder(card)
    if (root / "train").is_dir():
        return _classes(root / "train")
    return sorted(_devkit_classes(card.folder).values())


def _train(root: Path) -> Jpegs:
    """``train/<wnid>/*.JPEG``, or ``train/<wnid>/images/*.JPEG`` as Tiny ImageNet has it."""
    rows, known = [], _classes(root / "train")
    for label, wnid in enumerate(known):
        place = f"train/{wnid}/images" if (root / "train" / wnid / "images").is_dir() else f"train/{wnid}"
        rows += [(f"{place}/{name}", label) for name in _listing(root / place, f"{wnid}_[0-9]+").values()]
    return _whole_files(root, rows, known)


def _val(root: Path, folder: Path) -> Jpegs:
    """ImageNet's ``val/<wnid>/*.JPEG``, or a flat ``val/`` with the classes in ``folder``: development kit or Kaggle's file."""
    if not (root / "train").is_dir():
        raise UsageError(
            f"{folder} has val/ as a folder and no train/: unpack the training pictures into train/, or put {VAL_TAR} there"
            " and move val/ away"
        )
    known = _classes(root / "train")
    names = _listing(root / "val", VAL)
    if not names:
        return _class_folders(root, known, VAL, ("val/{}",), lists=f"{DEVKIT} or {SOLUTION}")
    wnids = _by_number(root / "val", list(names), _truth(folder))
    if strange := sorted(set(wnids) - set(known)):
        raise UsageError(f"{root / 'train'} has no folder {strange[0]}, a class of the validation images: restore it")
    rows = [(f"val/{name}", known.index(wnid)) for name, wnid in zip(names.values(), wnids, strict=True)]
    return _whole_files(root, rows, known)


def _tiny_val(root: Path) -> Jpegs:
    """Tiny's ``val/images/*.JPEG`` with the classes in ``val/val_annotations.txt``, or rearranged into folders of the classes."""
    known, notes = _classes(root / "train"), root / "val" / "val_annotations.txt"
    names = _listing(root / "val" / "images", TINY_VAL) if (root / "val" / "images").is_dir() else {}
    if not names:
        return _class_folders(root, known, TINY_VAL, ("val/{}/images", "val/{}", "val/images/{}"), lists=notes.name)
    try:
        pairs = dict(line.split("\t")[:2] for line in notes.read_text().splitlines())
        wnids = {name.partition(".")[0]: wnid for name, wnid in pairs.items()}
        rows = [(f"val/images/{name}", known.index(wnids[stem])) for stem, name in names.items()]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{notes} does not say the classes of val/images ({error}): restore the data set") from None
    return _whole_files(root, rows, known)


def _class_folders(root: Path, known: list[str], stem: str, places: tuple[str, ...], *, lists: str) -> Jpegs:
    """Validation pictures in a folder of each class, in the order of their names, as they lie in the official layout."""
    place = next((p for p in places if any((root / p.format(wnid)).is_dir() for wnid in known)), None)
    if place is None:
        raise UsageError(
            f"{root / 'val'} has neither pictures, with classes in {lists}, nor a folder of each class: restore the data set"
        )
    found: dict[str, tuple[str, int]] = {}
    for label, wnid in enumerate(known):
        for name, file in _listing(root / place.format(wnid), stem).items():
            path = f"{place.format(wnid)}/{file}"
            if name in found:
                raise UsageError(
                    f"{root / path} and {root / found[name][0]} are one picture in two classes: restore the data set"
                )
            found[name] = (path, label)
    return _whole_files(root, [found[name] for name in sorted(found)], known)


def _classes(folder: Path) -> list[str]:
    """The classes' folders, sorted. Raises UsageError when there is none."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = sorted(path.name for path in paths if path.is_dir() and re.fullmatch(r"n\d{8}", path.name))
    if not found:
        raise UsageError(f"{folder} has no folder of a class, such as n01440764: put the data set's own folders there")
    return found


def _listing(folder: Path, stem: str) -> dict[str, str]:
    """The image files in a folder, by their official names without a suffix and in that order.

    stem : what such a name is, as a regular expression; files may have another suffix, and their class behind the name
    What macOS and Windows leave is passed over. Raises UsageError for a picture of another name, and one that is there
    twice.
    """
    try:
        names = sorted(
            entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES) and not is_litter(entry.name)
        )
    except OSError as error:
        raise UsageError(f"{folder} cannot be read ({error.strerror}): restore the data set") from None
    found: dict[str, str] = {}
    for name in names:
        match = re.fullmatch(rf"({stem})(_n[0-9]{{8}})?\.\w+", name)
        if match is None:
            raise UsageError(f"{folder / name} is none of the data set's pictures: move it away")
        if match[1] in found:
            raise UsageError(f"{folder / name} and {found[match[1]]} are the same picture: move one away")
        found[match[1]] = name
    return dict(sorted(found.items()))


def _whole_files(folder: Path, rows: list[tuple[str, int]], known: list[str]) -> Jpegs:
    """Images that are files of their own, with their labels. Raises UsageError where a file's name says another class."""
    for path, label in rows:
        match = re.search(r"_(n[0-9]{8})\.\w+$", path)
        if match and match[1] != known[label]:
            raise UsageError(f"{folder / path} says another class than its place or list, {known[label]}: restore the data set")
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
                found = sorted(_members(path, stream, 0, rf"{VAL}\.JPEG"))
                wnids = _by_number(path, [name.removesuffix(".JPEG") for name, _, _ in found], _ground_truth(folder))
                rows = [(*member, wnid) for member, wnid in zip(found, wnids, strict=True)]
                known = sorted(_devkit_classes(folder).values())
    except FileNotFoundError:
        raise UsageError(
            f"{path} is missing, and so is the folder {'train' if split == 'train' else 'val'}/: put one or the other there"
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
                if is_litter(member.name):
                    continue
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


def _truth(folder: Path) -> list[str]:
    """The class of each validation image by its number, out of the development kit, or of Kaggle's file where there is none."""
    path = folder / SOLUTION
    if (folder / DEVKIT).exists() or not path.exists():
        return _ground_truth(folder)
    found: dict[int, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            head, *rows = csv.reader(stream)
        if head != ["ImageId", "PredictionString"]:
            raise ValueError(f"its head is {','.join(head)[:80]}")
        for line, row in enumerate(rows, start=2):
            match = re.fullmatch(rf"{VAL},(n[0-9]{{8}}) .*", ",".join(row))
            if match is None or int(row[0][-8:]) in found:
                raise ValueError(f"line {line} names no picture with its class, or one that was named before")
            found[int(row[0][-8:])] = match[1]
        if sorted(found) != list(range(1, len(found) + 1)):
            raise ValueError("its pictures are not numbered from 1 on without a gap")
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} does not say the classes of the validation images ({error}): get it again") from None
    return [found[number] for number in sorted(found)]


def _ground_truth(folder: Path) -> list[str]:
    """The class of each validation image, in the order of their names, out of the development kit."""
    ids = _devkit_classes(folder)
    try:
        return [ids[int(line)] for line in _devkit_file(folder, GROUND_TRUTH).decode().split()]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{folder / DEVKIT} does not label the validation images ({error}): get it again") from None


def _by_number(place: Path, names: list[str], truth: list[str]) -> list[str]:
    """The classes of validation pictures by the numbers in their names; as many pictures as classes are needed."""
    if len(names) != len(truth):
        raise UsageError(f"{place} has {len(names):,} images, and there are {len(truth):,} labels: restore the official files")
    numbers = [int(name[-8:]) for name in names]
    if strange := [name for name, number in zip(names, numbers, strict=True) if not 1 <= number <= len(truth)]:
        raise UsageError(f"{place} has {strange[0]}, for which there is no label: restore the official files")
    return [truth[number - 1] for number in numbers]


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
        raise UsageError(
            f"{path} is missing: the classes of the validation images are in it, or in Kaggle's {SOLUTION}"
        ) from None
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, MemoryError) as error:
        raise UsageError(f"{path} is damaged ({error}): get it again") from None
    raise UsageError(f"{path} has no {name}: it is not the official file")


TINY_IMAGENET = DataSet(
    name="tiny-imagenet",
    title="Tiny ImageNet",
    short="Tiny ImageNet",
    terms="images from ImageNet, under its terms; made for Stanford's course CS231n",
    train=100_000,
    test=10_000,
    classes=200,
    height=64,
    channels=3,
    held_out=0.1,
    names=class_ids,
    read=read_tiny,
    split="5d3a89901cc4336fc95d01c700d693e6bab41eb4938cee0fde13b822978d8cf4",
    subfolder="tiny-imagenet-200",
    archives=(
        Archive(
            "tiny-imagenet-200.zip",
            ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            248_100_043,
            "md5:90528d7ca1a48142e341f4ef8d21d0de",
        ),
    ),
    unpacked_bytes=400_000_000,
)
IMAGENET = DataSet(
    name="imagenet",
    title="ImageNet (ILSVRC 2012)",
    short="ImageNet",
    terms="ImageNet's terms of access: research and education, non-commercial; register at image-net.org",
    train=1_281_167,
    test=50_000,
    classes=1000,
    height=224,
    channels=3,
    held_out=0.04,
    names=class_ids,
    read=read_imagenet,
    cropped=True,
    split="46fb0835df039252d1256579c1bb8ad01b40d33f4ab25a63b1cd4be2b109f31a",
    subfolder="imagenet",
    archives=(
        Archive(TRAIN_TAR, (), 147_897_477_120, "md5:1d675b47d978889d74fa0da5fadfb00e"),
        Archive(VAL_TAR, (), 6_744_924_160, "md5:29b22e2961454d5413ddabcf34fc5622"),
        Archive(DEVKIT, (), 2_568_145, "md5:fa75699e90414af021442c21a62c3abf"),
    ),
)
