"""The declaration of a data set, made in the module that reads its files; and reproducible orders of images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError
from igpt.project import configured_folder

if TYPE_CHECKING:
    from PIL import Image

    from igpt.data.jpegs import Jpegs
    from igpt.data.labelled import Tokens
    from igpt.palette import Palette
    from igpt.pictures import Resize

Official = Literal["train", "test"]  # the splits as published; validation is a part of train
SplitName = Literal["train", "validation", "test"]
TOKEN, ONE_HOT = 2, 1  # minimum bytes of a released token, and of an element of a label; their dtypes are not published


@runtime_checkable
class FittedPictures(Protocol):
    """Pictures of any size that know how they become square; in `igpt.data.own`."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.int64]) -> Self: ...

    def picture(self, index: int) -> Image.Image: ...

    def pixels(self, index: int, *, side: int, channels: int, filter: str = "bicubic") -> NDArray[np.uint8]: ...

    def all_pixels(self, *, side: int, channels: int) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Archive:
    """A published file; ``addresses`` is empty if a download needs registration."""

    name: str
    addresses: tuple[str, ...]
    bytes: int
    checksum: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """The declaration of a data set. Counts are images.

    ``read`` returns the pictures of an official split, uint8 (N, H, W, channels) or as files to read, and their labels,
    int64 (N,); it is called only if the files exist. A data set that is published as tokens has ``tokens`` instead, which
    opens a split, given the pixels per side and the palette of the model.
    """

    name: str
    title: str
    short: str  # for the headers of tables
    terms: str
    train: int  # including the held-out part
    test: int
    classes: int
    height: int  # pixels, before any reduction (for ImageNet, of the published crop)
    channels: int  # 0 for pictures that are converted to the palette's
    held_out: float  # fraction of train used for validation (paper, section 3.1)
    names: Callable[[DataSet], list[str]]  # class names, by label
    read: Callable[[DataSet, Official], tuple[NDArray[np.uint8] | Jpegs | FittedPictures, NDArray[np.int64]]] | None = None
    tokens: Callable[[DataSet, SplitName, int, Palette], Tokens] | None = None
    cropped: bool = False  # whether pictures vary in size and are cropped; those of other sets are square and reduced whole
    resize: Resize = "crop"  # how those pictures become square
    in_memory: bool = True  # whether the reduced pictures fit into memory, so that `load_split` returns them
    content: str = ""  # SHA-256 of images and labels, for a set without files
    split: str = ""  # SHA-256 of the held-out indices, if there is an official test split
    subfolder: str = ""  # below the data home; empty for a set that is part of scikit-learn
    archives: tuple[Archive, ...] = ()
    unpacked_bytes: int = 0  # upper bound
    files: dict[str, str] = field(default_factory=dict)  # MD5 sums by path below the folder
    loose: tuple[str, ...] = ()  # addresses of files that are used without unpacking, and whose checksums are not published
    beside: tuple[str, ...] = ()  # addresses of further such files, which are optional and fetched too

    @property
    def validation(self) -> int:
        """Images of train held out for validation."""
        return round(self.train * self.held_out)

    @property
    def loose_bytes(self) -> int:
        """Minimum bytes of the loose files, which are tokens and labels."""
        return (self.train + self.test) * (self.height**2 * TOKEN + self.classes * ONE_HOT) if self.loose else 0

    def count(self, images: int) -> str:
        """A number of images as text, with ``about`` for loose files, whose counts are not published."""
        return f"{'about ' if self.loose else ''}{images:,}"

    @property
    def folder(self) -> Path:
        """The folder of the data set's files; it may not exist."""
        return data_home() / self.subfolder

    @property
    def reader(self) -> str:
        """The name of the module that reads the data set's files."""
        read = self.read or self.tokens
        assert read is not None
        return read.__module__


def data_home() -> Path:
    """The folder of all data sets: ``IGPT_DATA``, else ``~/.cache/igpt/data``."""
    return configured_folder("IGPT_DATA", "~/.cache/igpt/data")


def pictures_folder(card: DataSet) -> Path:
    """The folder of a data set's train/ and val/: its own, or the one in Kaggle's archive of ImageNet."""
    kaggle = card.folder / "ILSVRC" / "Data" / "CLS-LOC"
    return kaggle if (kaggle / "train").is_dir() and not (card.folder / "train").is_dir() else card.folder


def checked_bytes(path: Path, md5: str) -> bytes:
    """A file's content. Raises UsageError when it cannot be read or has a wrong MD5 sum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): fetch the data set again") from None
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise UsageError(f"{path} is damaged or another file (MD5 {digest}, published is {md5}): move it away and fetch again")
    return content


def stable_order(salt: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """``indices`` in a pseudorandom order that depends only on ``salt`` and the indices."""
    keys = [hashlib.sha256(f"{salt} {index}".encode()).digest() for index in indices.tolist()]
    return indices[sorted(range(len(indices)), key=keys.__getitem__)]


def index_digest(indices: NDArray[np.int64]) -> str:
    """SHA-256 of indices, as little-endian int64."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
