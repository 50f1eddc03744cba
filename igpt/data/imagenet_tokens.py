"""ImageNet as tokens and one-hot labels, as released by OpenAI; the files are memory-mapped.

Neither sizes nor checksums of these files are published, so their content is checked: the rows read by each read, and all
rows by `check_released`. CIFAR-10's released tokens are downloaded too, only for comparison with ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from igpt.data.dataset import DataSet, SplitName
from igpt.data.store import map_array, read_tokens
from igpt.errors import UsageError
from igpt.fetch import OPENAI, RemoteFile, fetch
from igpt.files import file_sha256, refuse_full_disk
from igpt.palette import RELEASED, Palette
from igpt.progress import Bar, tell

SPLITS: tuple[SplitName, ...] = get_args(SplitName)  # file names contain the first two letters
End = Literal["X", "Y"]  # tokens, one-hot labels
ENDS: tuple[End, ...] = get_args(End)
SIDE, COLOURS = 32, 512
PIECE = 2**12  # images checked at once; 32 MiB at most
SAMPLE = 2**10  # images in a digest, since all would be 10 GB


class ReleasedTokens:
    """One released split as `igpt.data.labelled.Tokens`; labels are read on first use."""

    def __init__(self, card: DataSet, split: SplitName) -> None:
        """Download missing tokens. Raises UsageError when that fails, and for a file that is not this split."""
        self._card, self._split = card, split
        self.path = _fetched(card, file_name("imagenet", split, "X"))
        self._tokens = read_tokens(self.path, advice=again(card))
        count, self.positions = self._tokens.shape
        if self.positions != SIDE**2:
            raise UsageError(
                f"{self.path} has {self.positions:,} tokens an image, the released ones have {SIDE**2:,}: {again(card)}"
            )
        if not count or (split == "test" and count != card.test):
            wanted = f"{card.test:,}" if split == "test" else "more"
            raise UsageError(f"{self.path} has the tokens of {count:,} images, the released one of {wanted}: {again(card)}")

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.integer]:
        """Tokens (B, positions) of the images at ``indices``. Raises UsageError for tokens outside the palette."""
        tokens: NDArray[np.integer] = self._tokens[indices]
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < COLOURS:
            raise UsageError(
                f"{self.path} has tokens from {tokens.min()} to {tokens.max()}, the released ones are of {COLOURS} colours:"
                f" {again(self._card)}"
            )
        return tokens

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 (N,). Raises UsageError as `one_hot_labels` does."""
        path = _fetched(self._card, file_name("imagenet", self._split, "Y"))
        return one_hot_labels(path, images=len(self), classes=self._card.classes, advice=again(self._card))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the number of images and the tokens of some of them, evenly spread."""
        indices = np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).astype(np.int64)
        return hashlib.sha256(f"{len(self)} ".encode() + self[indices].astype("<u2").tobytes()).hexdigest()


def open_released(card: DataSet, split: SplitName, side: int, palette: Palette) -> ReleasedTokens:
    """One released split. Raises UsageError for a model of another size or palette."""
    if (side, palette.digest) != (SIDE, RELEASED):
        other = f"{side} x {side}" if side != SIDE else "another palette"
        raise UsageError(
            f"{card.title} is {SIDE} x {SIDE} of the released palette, the model takes {other}: take imagenet, whose pictures"
            " can be tokenised for it"
        )
    return ReleasedTokens(card, split)


def one_hot_labels(path: Path, *, images: int, classes: int, advice: str) -> NDArray[np.int64]:
    """Labels int64 (images,) from a ``.npy`` file of one-hot rows of any numeric type, read in pieces.

    Raises UsageError, whose message ends with ``advice``, unless the file has one row per image, each with one 1 among zeros.
    """
    one_hot = map_array(path, wrong="is not an array of labels", advice=advice)
    if one_hot.dtype.kind not in "biuf" or one_hot.shape != (images, classes):
        raise UsageError(f"{path} holds {one_hot.dtype} {one_hot.shape}, not one-hot labels ({images}, {classes}): {advice}")
    labels = np.empty(images, np.int64)
    for start in range(0, images, PIECE):
        piece = one_hot[start : start + PIECE]
        columns = piece.argmax(1)
        invalid = (np.count_nonzero(piece, axis=1) != 1) | (piece[np.arange(len(piece)), columns] != 1)
        if invalid.any():
            raise UsageError(f"{path} has a row {start + int(invalid.argmax()):,} that is not one 1 among zeros: {advice}")
        labels[start : start + len(piece)] = columns
    return labels


def check_released(card: DataSet) -> Iterator[str]:
    """Check every token and label; one line per split. Raises UsageError for the first difference from the release.

    Two splits that begin with the same images are refused, since one file is then a copy of the other.
    """
    checked: list[ReleasedTokens] = []
    for split in SPLITS:
        tokens = ReleasedTokens(card, split)
        for other in checked:
            first = np.arange(min(SAMPLE, len(tokens), len(other)))
            if np.array_equal(tokens[first], other[first]):
                raise UsageError(f"{tokens.path} begins with the same images as {other.path}, one is a copy: {again(card)}")
        checked.append(tokens)
        pieces = (tokens[np.arange(start, min(start + PIECE, len(tokens)))] for start in range(0, len(tokens), PIECE))
        least, most = np.array([(piece.min(), piece.max()) for piece in pieces], np.int64).T
        counts = np.bincount(tokens.labels, minlength=card.classes)
        if not counts.all():
            raise UsageError(
                f"{card.folder} has {split} images of {np.count_nonzero(counts):,} classes, {card.title} of {card.classes:,}:"
                f" {again(card)}"
            )
        sums = " and ".join(file_sha256(released_path(split, end)) for end in ENDS)
        yield (
            f"{split}: {len(tokens):,} images of {tokens.positions:,} tokens from {least.min()} to {most.max()},"
            f" {counts.min():,} to {counts.max():,} a class; SHA-256 of tokens and labels {sums}"
        )


def again(card: DataSet) -> str:
    """The next step for a file that differs from the release."""
    return f"move it away, and `igpt data fetch {card.name}` gets it again"


def file_name(of: str, split: SplitName, end: End) -> str:
    """The name under which tokens (X) or labels (Y) of ImageNet or CIFAR-10 were released.

    >>> file_name("imagenet", "validation", "Y")
    'imagenet_vaY.npy'
    """
    return f"{of}_{split[:2]}{end}.npy"


def released_path(split: SplitName, end: End = "X", *, of: str = "imagenet") -> Path:
    """The path of released tokens (X) or labels (Y) of ImageNet or CIFAR-10; the file may be missing."""
    return IMAGENET_TOKENS.folder / file_name(of, split, end)


def _fetched(card: DataSet, name: str) -> Path:
    """The path of a released file, which is downloaded if it is missing."""
    path = card.folder / name
    if path.exists():
        return path
    tell(f"fetching {name} into {card.folder}")
    with Bar(name, "B") as bar, refuse_full_disk(path):
        try:
            return fetch(RemoteFile(name, (f"{OPENAI}/datasets/{name}",), None, None), card.folder, report=bar)
        except UsageError as error:
            or_by_hand = f"or put {name} from {OPENAI}/datasets/ into {card.folder}"
            raise UsageError(f"released tokens cannot be fetched: {error}; {or_by_hand}") from None


def addresses(name: str) -> tuple[str, ...]:
    """Where the released tokens and labels of a set are published."""
    return tuple(f"{OPENAI}/datasets/{file_name(name, split, end)}" for split in SPLITS for end in ENDS)


IMAGENET_TOKENS = DataSet(
    name="imagenet-tokens",
    title="ImageNet as released tokens",
    short="ImageNet's tokens",
    terms="published by OpenAI with Image GPT; made from ImageNet, under its terms",
    train=1_281_167,  # ImageNet's count; the numbers per released file are not published; `igpt data check` counts them
    test=50_000,
    classes=1000,
    height=SIDE,
    channels=3,
    held_out=0.04,
    names=lambda card: [str(label) for label in range(card.classes)],  # no names were released
    tokens=open_released,
    in_memory=False,
    subfolder="imagenet-tokens",
    loose=addresses("imagenet"),
    beside=addresses("cifar10"),
)
