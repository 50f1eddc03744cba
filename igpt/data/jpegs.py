"""ImageNet and Tiny ImageNet: JPEG files in folders or in the official tar files, listed once and read one by one.

The book's chapter on the data lists the layouts. All result in the same order: train by class and file name, val by file name.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from igpt.data.dataset import Archive, DataSet, Official, checked_bytes, pictures_folder
from igpt.data.resize import centre_crop
from igpt.errors import UsageError
from igpt.files import is_litter, read_whole
from igpt.pictures import grey_levels, opened

SUFFIXES = (".jpeg", ".jpg", ".png")
FORMATS = ("JPEG", "PNG")  # one file of ImageNet is a PNG under a JPEG's name
ADVICE = "restore the data set"
TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
SOLUTION = "LOC_val_solution.csv"  # Kaggle's list of the validation images' classes
VAL, TINY_VAL = r"ILSVRC2012_val_\d{8}", r"val_\d+"  # names of validation images, as regular expressions
TINY_FOLDERS = ("val/{}/images", "val/{}", "val/images/{}")  # of a class, in copies with rearranged validation images
LARGEST = 64 << 20  # bytes of one image or list; ImageNet's largest file has some 15 MB


@dataclass(frozen=True, eq=False)
class Jpegs:
    """The locations and labels of a split's images; small enough to send to other processes.

    files : paths below ``folder``, bytes (N,)
    offset, size : int64 (N,), an image's bytes in its file; size -1 for a whole file
    labels : int64 (N,)
    """

    folder: Path
    files: NDArray[np.bytes_]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Jpegs:
        """The images at ``indices``, in that order."""
        return Jpegs(self.folder, self.files[indices], self.offset[indices], self.size[indices], self.labels[indices])

    def path(self, index: int) -> Path:
        """The file that holds one image."""
        return self.folder / os.fsdecode(self.files[index])

    def read(self, index: int) -> bytes:
        """One image's bytes. Raises OSError where reading fails, and ValueError as `read_whole` does."""
        if self.size[index] < 0:
            return read_whole(self.path(index), most=LARGEST)
        with self.path(index).open("rb") as stream:
            stream.seek(int(self.offset[index]))
            return stream.read(int(self.size[index]))

    def picture(self, index: int) -> Image.Image:
        """One image, decoded. Raises UsageError with the file's name when it cannot be read or decoded."""
        location = f"{self.path(index)} at byte {self.offset[index]}" if self.size[index] >= 0 else f"{self.path(index)}"
        try:
            return decode(self.read(index))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{location} cannot be read ({reason}): {ADVICE}") from None
        except UsageError as error:
            raise UsageError(f"{location} {error}") from None

    def pixels(self, index: int, *, side: int, channels: int, filter: str = "bicubic") -> NDArray[np.uint8]:
        """One image's evaluation crop, uint8 (side, side, 3); raises as `picture` does. ``channels`` is 3."""
        return centre_crop(self.picture(index), side=side, filter=filter)

    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 (N, H, W, 3). Raises UsageError where they differ in size."""
        first = np.asarray(self.picture(0))
        images = np.empty((len(self), *first.shape), np.uint8)
        for index in range(len(self)):
            image = np.asarray(self.picture(index))
            if image.shape != first.shape:
                raise UsageError(f"{self.path(index)} is {image.shape[:2]}, others are {first.shape[:2]}: {ADVICE}")
            images[index] = image
        return images


def decode(content: bytes) -> Image.Image:
    """Decode a file's bytes as RGB: grey and CMYK are converted, and a truncated end stays grey, since ImageNet has such files.

    EXIF orientation and ICC profiles are ignored, as in the usual readers of ImageNet. Raises UsageError as
    `igpt.pictures.opened` does.
    """
    try:
        with opened(io.BytesIO(content), FORMATS, advice=ADVICE) as file:
            if file.mode.startswith("I"):  # a 16-bit PNG, whose values above 255 Pillow's own conversion would clip
                return Image.fromarray(grey_levels(file)).convert("RGB")
            return file.convert("RGB")
    except UsageError:
        if not content.startswith(b"\xff\xd8"):
            raise
    with opened(io.BytesIO(content), FORMATS, advice=ADVICE) as file:
        previous, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            return file.convert("RGB")
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = previous


class _Row(NamedTuple):
    """One image: its official name without suffix, its file, its class, and the class that the file's name ends in, if any."""

    name: str
    path: str
    wnid: str = ""
    suffix: str | None = None
    offset: int = 0
    size: int = -1


def imagenet_jpegs(card: DataSet, split: Official) -> Jpegs:
    """The images of a split of ImageNet, by name; test is the official validation set, as in the paper.

    Raises UsageError when the folder is not the data set, a class is missing, an image is duplicated or has an unknown name,
    or the number of images is not the published one.
    """
    root = pictures_folder(card)
    if not (root / ("train" if split == "train" else "val")).is_dir():
        rows, classes = _tar_rows(card, split)
        return _jpegs(card, split, card.folder, rows, classes)
    if not (root / "train").is_dir():
        raise UsageError(
            f"{card.folder} has val/ as a folder and no train/: unpack the training pictures into train/, or put {VAL_TAR} there"
            " and move val/ away"
        )
    classes = _classes(root / "train")
    if split == "train":
        rows = _class_rows(root, "train/{}", classes)
    elif rows := _rows(root, "val", VAL):
        rows = _with_classes(root / "val", rows, _truth(card))
    else:
        rows = _class_rows(root, "val/{}", classes, VAL)
    return _jpegs(card, split, root, rows, classes)


def read_imagenet(card: DataSet, split: Official) -> tuple[Jpegs, NDArray[np.int64]]:
    """The images, to be read one by one, and their labels, as `imagenet_jpegs`."""
    jpegs = imagenet_jpegs(card, split)
    return jpegs, jpegs.labels


def tiny_jpegs(card: DataSet, split: Official) -> Jpegs:
    """The images of a split of Tiny ImageNet, by name, with the checks of `imagenet_jpegs`."""
    root, classes = card.folder, _classes(card.folder / "train")
    if split == "train":
        nested = (root / "train" / classes[0] / "images").is_dir()
        return _jpegs(card, split, root, _class_rows(root, "train/{}/images" if nested else "train/{}", classes), classes)
    official = _rows(root, "val/images", TINY_VAL) if (root / "val" / "images").is_dir() else []
    rearranged = [pattern for pattern in TINY_FOLDERS if (root / pattern.format(classes[0])).is_dir()]
    if rearranged and len(official) != card.test:  # a stopped rearrangement may leave empty folders
        return _jpegs(card, split, root, _class_rows(root, rearranged[0], classes, TINY_VAL), classes)
    notes = root / "val" / "val_annotations.txt"
    rows = official or _rows(root, "val/images", TINY_VAL)
    try:
        wnids = dict(line.split("\t")[:2] for line in notes.read_text().splitlines())
        rows = [row._replace(wnid=wnids[f"{row.name}.JPEG"]) for row in rows]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{notes} does not give the classes of val/images ({error}): {ADVICE}") from None
    return _jpegs(card, split, root, rows, classes)


def read_tiny(card: DataSet, split: Official) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Tiny ImageNet's images, uint8 (N, 64, 64, 3), and their labels. Raises UsageError for an image of another size."""
    jpegs = tiny_jpegs(card, split)
    return jpegs.images(), jpegs.labels


def class_ids(card: DataSet) -> list[str]:
    """The WordNet ids of the classes, by label: a label is the index of its id in sorted order."""
    root = pictures_folder(card)
    return _classes(root / "train") if (root / "train").is_dir() else sorted(_devkit(card)[0].values())


def _jpegs(card: DataSet, split: Official, folder: Path, rows: list[_Row], classes: list[str]) -> Jpegs:
    """The images in the order of their names, which is by class for train. Raises UsageError as `imagenet_jpegs` does."""
    rows = sorted(rows)
    label_of = {wnid: index for index, wnid in enumerate(classes)}
    for previous, row in pairwise([_Row("", ""), *rows]):
        if row.name == previous.name:
            raise UsageError(f"{folder / row.path} and {folder / previous.path} are the same picture: move one away")
        if row.wnid not in label_of:
            raise UsageError(f"{folder} has no folder {row.wnid} in train/, a class of {row.name}: restore it")
        if row.suffix not in (None, row.wnid):
            raise UsageError(f"{folder / row.path} names another class than its folder or list, {row.wnid}: {ADVICE}")
    labels = np.array([label_of[row.wnid] for row in rows], np.int64)
    counts = np.bincount(labels, minlength=card.classes)
    expected, present = card.train if split == "train" else card.test, int(np.count_nonzero(counts))
    if (len(rows), present) != (expected, card.classes):
        raise UsageError(
            f"{card.folder} has {len(rows):,} {split} images of {present:,} classes, {card.title} has {expected:,} of"
            f" {card.classes:,}: restore what is missing"
        )
    if split == "test" and counts.min() < counts.max():  # the published classes are equally large
        raise UsageError(
            f"{card.folder} has {counts.max():,} test images of class {classes[counts.argmax()]}, {card.title} has"
            f" {expected // card.classes:,} of each: restore the official classes"
        )
    files = np.array([os.fsencode(row.path) for row in rows], np.bytes_)
    offset, size = np.array([(row.offset, row.size) for row in rows], np.int64).T
    return Jpegs(folder, files, offset, size, labels)


def _classes(folder: Path) -> list[str]:
    """The names of the classes' folders, sorted. Raises UsageError when there is none."""
    paths = folder.iterdir() if folder.is_dir() else ()
    classes = sorted(path.name for path in paths if path.is_dir() and re.fullmatch(r"n\d{8}", path.name))
    if not classes:
        raise UsageError(f"{folder} has no folder of a class, such as n01440764: put the data set's own folders there")
    return classes


def _class_rows(root: Path, pattern: str, classes: list[str], name: str = r"{}_\d+") -> list[_Row]:
    """The images in the folder of each class."""
    return [row._replace(wnid=wnid) for wnid in classes for row in _rows(root, pattern.format(wnid), name.replace("{}", wnid))]


def _rows(root: Path, folder: str, name: str) -> list[_Row]:
    """The images in a folder whose names match the expression ``name``; some copies append the class, or use another suffix.

    Metadata files of macOS and Windows are skipped. Raises UsageError for an image with any other name.
    """
    try:
        names = [e.name for e in os.scandir(root / folder) if e.name.lower().endswith(SUFFIXES) and not is_litter(e.name)]
    except OSError as error:
        raise UsageError(f"{root / folder} cannot be read ({error.strerror}): {ADVICE}") from None
    rows = []
    for file in names:
        match = re.fullmatch(rf"({name})(?:_(n\d{{8}}))?\.\w+", file)
        if match is None:
            raise UsageError(f"{root / folder / file} is none of the data set's pictures: move it away")
        rows.append(_Row(match[1], f"{folder}/{file}", suffix=match[2]))
    return rows


def _with_classes(path: Path, rows: list[_Row], truth: list[str]) -> list[_Row]:
    """ImageNet's validation images with their classes, which ``truth`` lists by the numbers in their names."""
    if len(rows) != len(truth):
        raise UsageError(f"{path} has {len(rows):,} images, and there are {len(truth):,} labels: restore the official files")
    if unknown := [row.name for row in rows if not 1 <= int(row.name[-8:]) <= len(truth)]:
        raise UsageError(f"{path} has {unknown[0]}, for which there is no label: restore the official files")
    return [row._replace(wnid=truth[int(row.name[-8:]) - 1]) for row in rows]


def _tar_rows(card: DataSet, split: Official) -> tuple[list[_Row], list[str]]:
    """The images in an official tar file, which is not unpacked, and the classes."""
    path = card.folder / (TRAIN_TAR if split == "train" else VAL_TAR)
    rows: list[_Row] = []
    try:
        with tarfile.open(path, "r:") as tar:
            if split == "test":
                rows += (
                    _Row(m.name[:-5], path.name, "", None, m.offset_data, m.size) for m in _members(path, tar, rf"{VAL}\.JPEG")
                )
            for outer in _members(path, tar, r"n\d{8}\.tar") if split == "train" else ():
                wnid, base = outer.name[:-4], outer.offset_data
                with tarfile.open(fileobj=cast(IO[bytes], tar.extractfile(outer)), mode="r:") as inner:
                    members = _members(path, inner, rf"{wnid}_\d+\.JPEG", base)
                    rows += (_Row(m.name[:-5], path.name, wnid, None, base + m.offset_data, m.size) for m in members)
    except FileNotFoundError:
        folder = "train" if split == "train" else "val"
        raise UsageError(f"{path} is missing, and so is the folder {folder}/: put one or the other there") from None
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
        raise UsageError(f"{path} is cut short or damaged ({error}): get it again") from None
    if split == "train":
        return rows, sorted({row.wnid for row in rows})
    classes, truth = _devkit(card)
    return _with_classes(path, rows, truth), sorted(classes.values())


def _members(path: Path, tar: tarfile.TarFile, pattern: str, base: int = 0) -> Iterator[tarfile.TarInfo]:
    """A tar's members. Raises UsageError for one that is not a plain file with an official name, or is truncated."""
    for member in tar:
        if is_litter(member.name):
            continue
        if not member.isreg() or member.issparse() or not re.fullmatch(pattern, member.name):
            raise UsageError(f"{path} has a member {member.name!r}, which the official file has not: get it again")
        end = base + member.offset_data + member.size
        if end > path.stat().st_size or (member.size > LARGEST and not member.name.endswith(".tar")):
            raise UsageError(f"{path} is cut short or damaged at {member.name}: get it again")
        yield member


def _truth(card: DataSet) -> list[str]:
    """The class of each validation image by its number, from the development kit, else from Kaggle's list."""
    path = card.folder / SOLUTION
    if (card.folder / DEVKIT).exists() or not path.exists():
        return _devkit(card)[1]
    try:
        head, *lines = path.read_text("utf-8-sig").splitlines()
        matches = [re.fullmatch(rf"{VAL[:-5]}(\d{{8}}),(n\d{{8}}) .*", line) for line in lines]
        wnids = {int(match[1]): match[2] for match in matches if match}
        if head != "ImageId,PredictionString" or sorted(wnids) != list(range(1, len(lines) + 1)):
            raise ValueError("it needs a head, and one line per picture with its class")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} does not give the classes of the validation images ({error}): get it again") from None
    return [wnids[number] for number in sorted(wnids)]


def _devkit(card: DataSet) -> tuple[dict[int, str], list[str]]:
    """WordNet ids by the development kit's class numbers, and the class of each validation image."""
    from scipy.io import loadmat

    path, md5 = card.folder / DEVKIT, next(each.checksum for each in card.archives if each.name == DEVKIT)
    if not path.exists():
        raise UsageError(f"{path} is missing: it has the classes of the validation images, as has Kaggle's {SOLUTION}")
    with tarfile.open(fileobj=io.BytesIO(checked_bytes(path, md5.removeprefix("md5:")))) as tar:
        content = {Path(m.name).name: cast(IO[bytes], tar.extractfile(m)).read() for m in tar if m.isreg()}
        synsets = loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]  # type: ignore[arg-type]
        ids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if not row["num_children"]}  # no parents
        lines = content["ILSVRC2012_validation_ground_truth.txt"].split()
    return ids, [ids[int(line)] for line in lines]


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
    in_memory=False,
    cropped=True,
    split="46fb0835df039252d1256579c1bb8ad01b40d33f4ab25a63b1cd4be2b109f31a",
    subfolder="imagenet",
    archives=(
        Archive(TRAIN_TAR, (), 147_897_477_120, "md5:1d675b47d978889d74fa0da5fadfb00e"),
        Archive(VAL_TAR, (), 6_744_924_160, "md5:29b22e2961454d5413ddabcf34fc5622"),
        Archive(DEVKIT, (), 2_568_145, "md5:fa75699e90414af021442c21a62c3abf"),
    ),
)
