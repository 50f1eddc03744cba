"""Token stores on disk: memory-mapped shards and a small header; opening a store reads the header only."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from igpt.errors import UsageError
from igpt.files import cannot_read, file_size, read_json, write_text
from igpt.palette import Palette

VERSION = 1
SHARD = 4096  # images; at 64 x 64 pixels 32 MiB
HEADER = "header.json"  # written last: a folder without it is not a finished store
LABELS = "labels.npy"


class Header(BaseModel):
    """A store's settings, counts and checksums. ``crops`` are random ones per image; 0 is the central crop or the whole image."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: int
    dataset: str
    split: Literal["train", "test"]  # the official ones; validation is a part of train
    resolution: int = Field(gt=0)  # pixels per side
    filter: str
    crops: int
    seed: int
    palette_sha256: str
    images: int = Field(gt=0)  # stored ones: those of the split times the crops, if any
    held_out_sha256: str  # of the validation indices into train
    content: str = ""  # digest of a user's own data set
    shards: list[str] = []  # SHA-256 of each shard's tokens


class TokenStore:
    """A finished store. Opening reads the header; a shard is memory-mapped on first use."""

    def __init__(self, folder: Path) -> None:
        """Read the header. Raises UsageError for a folder that is not a finished store, or lacks a shard."""
        self.folder = folder
        self.header = read_header(folder)
        self._maps: dict[int, NDArray[Any]] = {}
        self._colours = 2**16  # the range of uint16, until `check_for` sets the palette's
        for shard in range(shard_count(self.header.images)):
            if not shard_path(folder, shard).is_file():
                raise UsageError(f"{shard_path(folder, shard)} is missing: move {folder} away and tokenise again")

    def __len__(self) -> int:
        """Number of stored images."""
        return self.header.images

    @property
    def positions(self) -> int:
        """Tokens per image."""
        return self.header.resolution**2

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the shards' checksums; identifies the tokens."""
        return hashlib.sha256("\n".join(self.header.shards).encode()).hexdigest()

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 (N,). Raises UsageError when they are missing or damaged."""
        return read_labels(self.folder, len(self))

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Tokens uint16 (B, positions) of the images at ``indices``, int64 (B,).

        Raises IndexError for an index out of range, and UsageError for tokens outside the palette given to `check_for`.
        """
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"images {indices.min()} to {indices.max()} are not all in a store of {len(self)}")
        tokens = np.empty((len(indices), self.positions), np.uint16)
        shards = indices // SHARD
        for shard in np.unique(shards).tolist():
            if shard not in self._maps:
                shape = (min(SHARD, len(self) - shard * SHARD), self.positions)
                self._maps[shard] = _mapped(shard_path(self.folder, shard), shape, "uint16")
            tokens[shards == shard] = self._maps[shard][indices[shards == shard] % SHARD]
        if tokens.size and (most := int(tokens.max())) >= self._colours:
            raise UsageError(
                f"{self.folder} has the token {most}, its palette only {self._colours} colours:"
                " move the folder away and tokenise again"
            )
        return tokens

    def check_for(self, palette: Palette, *, positions: int) -> None:
        """Raise UsageError unless a model with this palette and number of positions can read these tokens."""
        if palette.digest != self.header.palette_sha256:
            raise UsageError(
                f"{self.folder} was tokenised with another palette than the model's ({self.header.palette_sha256[:12]}, not"
                f" {palette.digest[:12]}): tokenise again with that one"
            )
        if positions != self.positions:
            side, wanted = self.header.resolution, round(positions**0.5)
            raise UsageError(
                f"{self.folder} holds images of {side} x {side}, the model takes {wanted} x {wanted}: tokenise again"
            )
        self._colours = len(palette)


def _mapped(path: Path, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A memory map of a store's file. Raises UsageError when it is damaged, or has another shape or dtype."""
    advice = f"move {path.parent} away and tokenise again"
    array = map_array(path, wrong="is damaged", advice=advice)
    if array.shape != shape or array.dtype != dtype:
        raise UsageError(f"{path} holds {array.dtype} {array.shape}, not {dtype} {shape}: {advice}")
    return array


def read_tokens(path: Path, *, advice: str = "get it again") -> NDArray[np.integer]:
    """Tokens, integers (images, positions), in a ``.npy`` file, memory-mapped. Raises UsageError for anything else."""
    array = map_array(path, wrong="is not an array of tokens", advice=advice)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UsageError(f"{path} holds {array.dtype} {array.shape}, tokens are integers (images, positions): {advice}")
    return array


def map_array(path: Path, *, wrong: str, advice: str) -> NDArray[Any]:
    """The array in a ``.npy`` file, memory-mapped. Raises UsageError for anything else, and for a file of another length.

    wrong : description of a damaged file
    advice : the next step for such a file
    """
    try:
        size = file_size(path)
        array = np.lib.format.open_memmap(path, mode="r")
        if array.offset + array.nbytes != size:  # numpy refuses a shorter file
            raise ValueError("it is longer than its header says")
    except Exception as error:  # numpy parses headers as Python, which raises errors of many types
        raise cannot_read(path, error, wrong, advice=advice) from None
    return array


def read_header(folder: Path) -> Header:
    """The header of a finished store. Raises UsageError when it is missing, damaged, or of a different version."""
    try:
        fields = read_json(folder / HEADER)
        if fields.get("version") != VERSION:
            raise UsageError(
                f"{folder} is a token store of version {fields.get('version')!r}, this one reads {VERSION}: tokenise again"
            )
        return Header.model_validate(fields)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} is not a finished token store: `igpt data tokenize` makes and continues one") from None
    except (OSError, ValueError, AttributeError) as error:  # pydantic's error is a ValueError
        raise UsageError(
            f"{folder / HEADER} is damaged ({str(error).splitlines()[0]}): move the folder away and tokenise again"
        ) from None


def write_header(path: Path, header: Header) -> None:
    """Write a header atomically."""
    write_text(path, json.dumps(header.model_dump(), indent=1) + "\n")


def read_labels(folder: Path, images: int) -> NDArray[np.int64]:
    """The labels, int64 (images,). Raises UsageError when they are missing or damaged."""
    return np.array(_mapped(folder / LABELS, (images,), "int64"))


def shard_path(folder: Path, shard: int) -> Path:
    """The file of one shard, a ``.npy`` of uint16 (images, positions)."""
    return folder / f"tokens-{shard:05d}.npy"


def shard_count(images: int) -> int:
    """Number of shards that hold ``images`` images."""
    return -(-images // SHARD)
