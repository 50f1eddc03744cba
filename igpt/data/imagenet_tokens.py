"""ImageNet without ImageNet: the tokens and one-hot labels that OpenAI released, used as they are, memory-mapped.

Neither sizes nor sums of these files are published, so a transfer's length is all that can be held against it. What the
files must be is checked: by every reading of what is read, by `check_released` of the whole. CIFAR-10's released tokens
come along; they only say whether ours are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from igpt.data.dataset import DataSet, SplitName
from igpt.data.store import map_array, read_tokens
from igpt.errors import UsageError
from igpt.fetch import OPENAI, RemoteFile, fetch
from igpt.files import file_sha256, refuse_full_disk
from igpt.palette import RELEASED, Palette
from igpt.progress import Bar, tell

SPLITS: tuple[SplitName, ...] = get_args(SplitName)  # the names of whose files begin with their first two letters
End = Literal["X", "Y"]  # tokens, one-hot labels
ENDS: tuple[End, ...] = get_args(End)
SIDE, COLOURS = 32, 512
PIECE = 2**12  # images looked at together; 32 MiB at the most
SAMPLE = 2**10  # images whose tokens stand for all in a digest, which would read 10 GB otherwise


class ReleasedTokens:
    """One released split: tokens as `igpt.data.labelled.Tokens`, and its labels, which are read when they are asked for."""

    def __init__(self, card: DataSet, split: SplitName) -> None:
        """Downloads tokens that are not at hand. Raises UsageError when they cannot be had, or are not of this split."""
        self._card, self._split = card, split
        self.path = _brought(card, file_name("imagenet", split, "X"))
        self._tokens = _mapped(card, self.path, read_tokens)
        count, self.positions = self._tokens.shape
        if self.positions != SIDE**2:
            raise UsageError(
                f"{self.path} has {self.positions:,} tokens an image, the released ones have {SIDE**2:,}: {again(card)}"
            )
        if not count or (split == "test" and count != card.test):
            wanted = f"{card.test:,}" if split == "test" else "more"
            raise UsageError(f"{self.path} has the tokens of {count:,} images, the released one of {wanted}: {again(card)}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self._tokens)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.integer]:
        """Tokens (B, positions) of the images at ``indices``. Raises UsageError for tokens that are no colours."""
        found: NDArray[np.integer] = self._tokens[indices]
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < COLOURS:
            raise UsageError(
                f"{self.path} has tokens from {found.min()} to {found.max()}, the released ones are of {COLOURS} colours:"
                f" {again(self._card)}"
            )
        return found

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 (N,). Raises UsageError for a file that does not label these images."""
        path = _brought(self._card, file_name("imagenet", self._split, "Y"))
        return one_hot_labels(self._card, path, images=len(self), classes=self._card.classes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the number of images and the tokens of some of them, evenly spread."""
        some = np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).astype(np.int64)
        return hashlib.sha256(f"{len(self)} ".encode() + self[some].astype("<u2").tobytes()).hexdigest()


def open_released(card: DataSet, split: SplitName, side: int, palette: Palette) -> ReleasedTokens:
    """One released split, for a model of so many pixels a side and this palette. Raises UsageError for a model of another."""
    if (side, palette.digest) != (SIDE, RELEASED):
        other = f"{side} x {side}" if side != SIDE else "another palette"
        raise UsageError(
            f"{card.title} is {SIDE} x {SIDE} of the released palette, the model takes {other}: take imagenet, whose pictures"
            " become what it takes"
        )
    return ReleasedTokens(card, split)


def one_hot_labels(card: DataSet, path: Path, *, images: int, classes: int) -> NDArray[np.int64]:
    """Labels int64 (images,) out of a ``.npy`` file of one-hot rows of any number's type, read in pieces.

    Raises UsageError unless the file has a row for each image, and each row one 1 among zeros.
    """
    hot = _mapped(card, path, partial(map_array, wrong="is not an array of labels"))
    if hot.dtype.kind not in "biuf" or hot.shape != (images, classes):
        raise UsageError(f"{path} holds {hot.dtype} {hot.shape}, not one-hot labels ({images}, {classes}): {again(card)}")
    labels = np.empty(images, np.int64)
    for start in range(0, images, PIECE):
        piece = hot[start : start + PIECE]
        found = piece.argmax(1)
        wrong = (np.count_nonzero(piece, axis=1) != 1) | (piece[np.arange(len(piece)), found] != 1)
        if wrong.any():
            raise UsageError(f"{path} has a row {start + int(wrong.argmax()):,} that is not one 1 among zeros: {again(card)}")
        labels[start : start + len(piece)] = found
    return labels


def check_released(card: DataSet) -> Iterator[str]:
    """What a look at every token and label finds, a line a split. Raises UsageError for the first that is not as released.

    Splits that begin with the same images are one file under two names.
    """
    seen: list[ReleasedTokens] = []
    for split in SPLITS:
        tokens = ReleasedTokens(card, split)
        for other in seen:
            first = np.arange(min(SAMPLE, len(tokens), len(other)))
            if np.array_equal(tokens[first], other[first]):
                raise UsageError(
                    f"{tokens.path} begins with the same images as {other.path}, so that one is a copy of the other:"
                    f" {again(card)}"
                )
        seen.append(tokens)
        least, most = COLOURS, 0
        for start in range(0, len(tokens), PIECE):
            piece = tokens[np.arange(start, min(start + PIECE, len(tokens)))]
            least, most = min(least, int(piece.min())), max(most, int(piece.max()))
        counts = np.bincount(tokens.labels, minlength=card.classes)
        if not counts.all():
            raise UsageError(
                f"{card.folder} has {split} images of {np.count_nonzero(counts):,} classes, {card.title} of {card.classes:,}:"
                f" {again(card)}"
            )
        sums = " and ".join(file_sha256(released_path(split, end)) for end in ENDS)
        yield (
            f"{split}: {len(tokens):,} images of {tokens.positions:,} tokens from {least} to {most}, {counts.min():,} to"
            f" {counts.max():,} a class; SHA-256 of tokens and labels {sums}"
        )


def again(card: DataSet) -> str:
    """What to do with a file that is not as released."""
    return f"move it away, and `igpt data fetch {card.name}` gets it again"


def file_name(of: str, split: SplitName, end: End) -> str:
    """The name under which tokens (X) or labels (Y) of ImageNet or CIFAR-10 were released.

    >>> file_name("imagenet", "validation", "Y")
    'imagenet_vaY.npy'
    """
    return f"{of}_{split[:2]}{end}.npy"


def released_path(split: SplitName, end: End = "X", *, of: str = "imagenet") -> Path:
    """Where released tokens (X) or labels (Y) lie, or would; ``of`` ImageNet or CIFAR-10."""
    return IMAGENET_TOKENS.folder / file_name(of, split, end)


def _mapped(card: DataSet, path: Path, read: Callable[[Path], NDArray[Any]]) -> NDArray[Any]:
    """What is read of a released file. Raises UsageError for a damaged one, with what gets it again."""
    try:
        return read(path)
    except UsageError as error:
        raise UsageError(f"{str(error).rpartition(': ')[0]}: {again(card)}") from None


def _brought(card: DataSet, name: str) -> Path:
    """A released file, downloaded where it is not at hand."""
    path = card.folder / name
    if path.exists():
        return path
    tell(f"fetching {name} into {card.folder}")
    with Bar(name, "B") as bar, refuse_full_disk(path):
        try:
            return fetch(RemoteFile(name, (f"{OPENAI}/datasets/{name}",), None, None), card.folder, report=bar)
        except UsageError as error:
            or_by_hand = f"or put {name} from {OPENAI}/datasets/ into {card.folder}"
            raise UsageError(f"released tokens cannot be had: {error}; {or_by_hand}") from None


def _addresses(name: str) -> tuple[str, ...]:
    """Where the released tokens and labels of a set are published."""
    return tuple(f"{OPENAI}/datasets/{file_name(name, split, end)}" for split in SPLITS for end in ENDS)


def _no_names(card: DataSet) -> list[str]:
    """The classes' numbers, for nothing is released that names them."""
    return [str(label) for label in range(card.classes)]


IMAGENET_TOKENS = DataSet(
    name="imagenet-tokens",
    title="ImageNet as released tokens",
    short="ImageNet's tokens",
    terms="published by OpenAI with Image GPT; made from ImageNet, under its terms",
    train=1_281_167,  # ImageNet's; how many of them are in which file is unpublished, and said by `igpt data check`
    test=50_000,
    classes=1000,
    height=SIDE,
    channels=3,
    held_out=0.04,
    names=_no_names,
    tokens=open_released,
    subfolder="imagenet-tokens",
    loose=_addresses("imagenet"),
    beside=_addresses("cifar10"),
)
