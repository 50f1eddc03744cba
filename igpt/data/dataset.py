"""A data set as a declaration, which the module that reads its files makes; and orders of images that never change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError
from igpt.project import configured_folder

if TYPE_CHECKING:
    from igpt.data.jpegs import Jpegs
    from igpt.data.labelled import Tokens
    from igpt.palette import Palette

Official = Literal["train", "test"]  # the splits that a data set itself has; validation is a part of train
SplitName = Literal["train", "validation", "test"]
TOKEN, ONE_HOT = 2, 1  # bytes, the least of a released token and of an element of its label; their types are not published


@dataclass(frozen=True)
class Archive:
    """A published file; ``addresses`` is empty if a download needs registration."""

    name: str
    addresses: tuple[str, ...]
    bytes: int
    checksum: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """All that is particular to a data set. Counts are images.

    ``read`` gives the pictures of an official split, uint8 (N, H, W, channels) or as files to read, and their labels, int64
    (N,); its files exist then. A set that is published as tokens has ``tokens`` instead, which opens a split for a model of
    so many pixels a side and a palette.
    """

    name: str
    title: str
    short: str  # in the heads of tables
    terms: str
    train: int  # with the held-out part
    test: int
    classes: int
    height: int  # pixels, before any reduction (for ImageNet, of the published crop)
    channels: int
    held_out: float  # fraction of train used for validation (paper, section 3.1)
    names: Callable[[DataSet], list[str]]  # of the classes, by label
    read: Callable[[DataSet, Official], tuple[NDArray[np.uint8] | Jpegs, NDArray[np.int64]]] | None = None
    tokens: Callable[[DataSet, SplitName, int, Palette], Tokens] | None = None
    cropped: bool = False  # whether its pictures have sizes of their own; other sets' are squares and are reduced whole
    content: str = ""  # SHA-256 of images and labels, where there are no files to have sums
    split: str = ""  # SHA-256 of the held-out indices, where there is an official test split
    subfolder: str = ""  # below the data home; empty for what comes with scikit-learn
    archives: tuple[Archive, ...] = ()
    unpacked_bytes: int = 0  # at most
    files: dict[str, str] = field(default_factory=dict)  # MD5 sums by path below the folder
    loose: tuple[str, ...] = ()  # addresses of files that are used as they come, and of which no sums are published
    beside: tuple[str, ...] = ()  # addresses of more such files, which are fetched along and which the set does not need

    @property
    def validation(self) -> int:
        """Images of train held out for validation."""
        return round(self.train * self.held_out)

    @property
    def loose_bytes(self) -> int:
        """The least that its loose files, tokens and labels, can have."""
        return (self.train + self.test) * (self.height**2 * TOKEN + self.classes * ONE_HOT) if self.loose else 0

    def count(self, images: int) -> str:
        """A number of images in words: the rows of loose files are not published."""
        return f"{'about ' if self.loose else ''}{images:,}"

    @property
    def folder(self) -> Path:
        """The folder of its files; it may be missing."""
        return data_home() / self.subfolder

    @property
    def reader(self) -> str:
        """The module that reads its files."""
        reads = self.read or self.tokens
        assert reads is not None
        return reads.__module__


def data_home() -> Path:
    """The folder of all data sets: ``IGPT_DATA``, else ``~/.cache/igpt/data``."""
    return configured_folder("IGPT_DATA", "~/.cache/igpt/data")


def pictures_folder(card: DataSet) -> Path:
    """The folder of a data set's train/ and val/: its own, or the one in Kaggle's archive of ImageNet."""
    kaggle = card.folder / "ILSVRC" / "Data" / "CLS-LOC"
    return kaggle if (kaggle / "train").is_dir() and not (card.folder / "train").is_dir() else card.folder


def checked_bytes(path: Path, md5: str) -> bytes:
    """A file's content. Raises UsageError when it cannot be read or has another MD5 sum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): fetch the data set again") from None
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise UsageError(f"{path} is damaged or another file (MD5 {digest}, published is {md5}): move it away and fetch again")
    return content


def stable_order(salt: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """``indices`` in an order that depends on them and ``salt`` alone."""
    keys = [hashlib.sha256(f"{salt} {index}".encode()).digest() for index in indices.tolist()]
    return indices[sorted(range(len(indices)), key=keys.__getitem__)]


def index_digest(indices: NDArray[np.int64]) -> str:
    """SHA-256 of indices, as little-endian int64."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
