"""Tokens on disk: a folder of memory-mapped shards and a small header, opened without reading them."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from igpt.errors import UsageError
from igpt.files import cannot_read, file_size, read_json, write_array, write_text
from igpt.palette import Palette

VERSION = 1
SHARD = 4096  # images; at 64 x 64 pixels 32 MiB
Number = TypeVar("Number", np.uint16, np.int64)
HEADER = "header.json"  # written last: a folder without it is not a store


class Header(BaseModel):
    """What a store's tokens are. ``crops`` random crops an image, or 0 for the central one (or the whole image)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: int
    dataset: str
    split: Literal["train", "test"]  # the official ones; validation is a part of train
    resolution: int = Field(gt=0)  # pixels a side
    filter: str
    crops: int
    seed: int
    palette_sha256: str
    images: int = Field(gt=0)  # stored ones: each of the split's, times the crops
    held_out_sha256: str  # of the validation indices into train
    shards: list[str] = []  # SHA-256 of each shard's tokens


class TokenStore:
    """A finished store. Opening costs a header and a memory map for each shard that is used."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError for a folder that is no store, or one that was not finished or lacks a shard."""
        self.folder = folder
        self.header = read_header(folder)
        self._maps: dict[int, NDArray[np.uint16]] = {}
        self._colours = 2**16  # all that uint16 can name, until `check_for` knows the palette
        for place in range(shard_count(self.header.images)):
            if not shard_path(folder, place).is_file():
                raise UsageError(f"{shard_path(folder, place)} is missing: move {folder} away and tokenise again")

    def __len__(self) -> int:
        """Number of stored images."""
        return self.header.images

    @property
    def positions(self) -> int:
        """Tokens an image."""
        return self.header.resolution**2

    @cached_property
    def digest(self) -> str:
        """What identifies the tokens: SHA-256 over the sums of the shards."""
        return hashlib.sha256("\n".join(self.header.shards).encode()).hexdigest()

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 (N,). Raises UsageError when they are missing or damaged."""
        return read_labels(self.folder, len(self))

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Tokens uint16 (B, positions) of the images at ``indices``, int64 (B,).

        Raises IndexError outside the store, and UsageError for tokens that the palette of `check_for` does not have.
        """
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"images {indices.min()} to {indices.max()} are not all in a store of {len(self)}")
        found = np.empty((len(indices), self.positions), np.uint16)
        shards = indices // SHARD
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = self._shard(int(shard))[indices[here] % SHARD]
        if found.size and (most := int(found.max())) >= self._colours:
            raise UsageError(
                f"{self.folder} has the token {most}, its palette only {self._colours} colours:"
                " move the folder away and tokenise again"
            )
        return found

    def check_for(self, palette: Palette, *, positions: int) -> None:
        """Raise UsageError unless a model with this palette and number of positions can read these tokens."""
        if palette.digest != self.header.palette_sha256:
            raise UsageError(f"{self.folder} was tokenised with another palette than the model's: tokenise again with that one")
        if positions != self.positions:
            side, wanted = self.header.resolution, round(positions**0.5)
            raise UsageError(
                f"{self.folder} holds images of {side} x {side}, the model takes {wanted} x {wanted}: tokenise again"
            )
        self._colours = len(palette)

    def _shard(self, place: int) -> NDArray[np.uint16]:
        """A memory map of one shard, made when it is first asked for."""
        if place not in self._maps:
            expected = (shard_images(len(self), place), self.positions)
            self._maps[place] = _mapped(shard_path(self.folder, place), expected, np.uint16)
        return self._maps[place]


class StorePart:
    """Some images of a store, as if they were all."""

    def __init__(self, store: TokenStore, places: NDArray[np.int64]) -> None:
        self.store, self.places = store, places

    def __len__(self) -> int:
        """Number of images."""
        return len(self.places)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Tokens uint16 (B, positions) of some of them."""
        return self.store[self.places[indices]]


def _mapped(path: Path, shape: tuple[int, ...], dtype: type[Number]) -> NDArray[Number]:
    """A memory map of a .npy file. Raises UsageError for one that is damaged or holds something else."""
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy's reader of headers raises whatever Python's parser does
        says = str(error).partition("\n")[0].partition(". ")[0]
        raise UsageError(f"{path} is damaged ({says}): move {path.parent} away and tokenise again") from None
    if found.offset + found.nbytes != path.stat().st_size:  # a shorter head would shift every token
        raise UsageError(f"{path} is damaged (it is longer than it says): move {path.parent} away and tokenise again")
    if found.shape != shape or found.dtype != dtype:
        raise UsageError(
            f"{path} holds {found.dtype} {found.shape}, not {dtype.__name__} {shape}: move {path.parent} away and tokenise again"
        )
    return found


def read_tokens(path: Path) -> NDArray[np.integer]:
    """Tokens, integers (images, positions), out of a ``.npy`` file, memory-mapped. Raises UsageError for anything else."""
    found = map_array(path, "is not an array of tokens")
    if found.ndim != 2 or found.dtype.kind not in "iu":
        raise UsageError(f"{path} holds {found.dtype} {found.shape}, tokens are integers (images, positions): get it again")
    return found


def map_array(path: Path, wrong: str) -> NDArray[Any]:
    """The array in a ``.npy`` file, memory-mapped. Raises UsageError for anything else, a longer file too.

    wrong : what is then said of the file
    """
    try:
        size = file_size(path)
        found = np.lib.format.open_memmap(path, mode="r")
        if found.offset + found.nbytes != size:  # a shorter one does not open
            raise ValueError("it is longer than it says")
    except FileNotFoundError:
        raise UsageError(f"there are no tokens at {path}: give a file that is there") from None
    except Exception as error:  # numpy's reader of headers raises whatever Python's parser does
        raise cannot_read(path, error, wrong) from None
    return found


def read_header(folder: Path) -> Header:
    """The header of a finished store. Raises UsageError when there is none, or it is of another version."""
    try:
        found = read_json(folder / HEADER)
        if found.get("version") != VERSION:
            raise UsageError(
                f"{folder} is a token store of version {found.get('version')!r}, this one reads {VERSION}: tokenise again"
            )
        return Header.model_validate(found)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} is not a finished token store: `igpt data tokenize` makes and continues one") from None
    except (OSError, ValueError, AttributeError) as error:  # pydantic's error is a ValueError
        raise UsageError(
            f"{folder / HEADER} is damaged ({str(error).splitlines()[0]}): move the folder away and tokenise again"
        ) from None


def write_shard(folder: Path, place: int, tokens: NDArray[np.uint16]) -> None:
    """Write one shard, uint16 (images, positions), whole or not at all."""
    write_array(shard_path(folder, place), tokens)


def read_labels(folder: Path, images: int) -> NDArray[np.int64]:
    """The labels, int64 (images,). Raises UsageError when they are missing or damaged."""
    return np.array(_mapped(folder / "labels.npy", (images,), np.int64))


def write_labels(folder: Path, labels: NDArray[np.int64]) -> None:
    """Write the labels, int64 (N,), whole or not at all."""
    write_array(folder / "labels.npy", labels)


def write_header(path: Path, header: Header) -> None:
    """Write a header, whole or not at all."""
    write_text(path, json.dumps(header.model_dump(), indent=1) + "\n")


def shard_path(folder: Path, place: int) -> Path:
    """Where a shard lies."""
    return folder / f"tokens-{place:05d}.npy"


def shard_count(images: int) -> int:
    """How many shards hold ``images`` images."""
    return -(-images // SHARD)


def shard_images(images: int, place: int) -> int:
    """How many of ``images`` images lie in one shard."""
    return min(SHARD, images - place * SHARD)
