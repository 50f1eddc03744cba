"""Labelled images as tokens, wherever these lie: in memory, in a token store, or in the released files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from igpt.data.order import index_digest


class Tokens(Protocol):
    """A set of images as tokens. What is asked for is read then, and not before."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, indices: NDArray[np.int64], /) -> NDArray[np.integer]:
        """Tokens, integers (B, positions), of the images at ``indices``, int64 (B,), none of them negative."""
        ...

    @property
    def positions(self) -> int:
        """Tokens an image."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 (N,)."""
        ...

    @property
    def digest(self) -> str:
        """What identifies the tokens."""
        ...


class TokensInMemory:
    """Tokens, uint16 (N, positions), with labels, int64 (N,)."""

    def __init__(self, tokens: NDArray[np.uint16], labels: NDArray[np.int64]) -> None:
        self.tokens, self.labels = tokens, labels
        self.positions = tokens.shape[1]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.tokens)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Tokens uint16 (B, positions) of the images at ``indices``."""
        return self.tokens[indices]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens, as little-endian uint16."""
        return hashlib.sha256(self.tokens.astype("<u2").tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """Images in some order, out of one or several sets of tokens, as if they were all.

    source : int64 (N,), which of ``sources`` an image is in
    place : int64 (N,), where in it
    classes : how many there are, in these images or not

    >>> import numpy as np
    >>> memory = TokensInMemory(np.array([[1, 2], [3, 4], [5, 6]], np.uint16), np.array([0, 1, 1]))
    >>> some = LabelledTokens.of(memory, np.array([2, 0]), classes=2)
    >>> (some + some)[np.array([0, 3])], (some + some).labels
    (array([[5, 6],
           [1, 2]], dtype=uint16), array([1, 0, 1, 0]))
    """

    sources: tuple[Tokens, ...]
    source: NDArray[np.int64]
    place: NDArray[np.int64]
    classes: int

    @classmethod
    def of(cls, tokens: Tokens, places: NDArray[np.int64], *, classes: int) -> LabelledTokens:
        """The images of one set at ``places``, int64 (N,)."""
        return cls((tokens,), np.zeros(len(places), np.int64), places, classes)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.place)

    @property
    def positions(self) -> int:
        """Tokens an image."""
        return self.sources[0].positions

    def __getitem__(self, index: NDArray[np.int64] | slice) -> NDArray[np.uint16]:
        """Tokens uint16 (B, positions) of the images at ``index``, int64 (B,) or a slice; only these are read.

        Raises IndexError outside of the images, and UsageError for tokens that are damaged.
        """
        source, place = self.source[index], self.place[index]
        found = np.empty((len(place), self.positions), np.uint16)
        for number, tokens in enumerate(self.sources):
            if len(here := np.flatnonzero(source == number)):
                found[here] = tokens[place[here]]
        return found

    def take(self, index: NDArray[np.int64] | slice) -> LabelledTokens:
        """The images at ``index``, in that order; nothing is read."""
        return replace(self, source=self.source[index], place=self.place[index])

    def __add__(self, other: LabelledTokens) -> LabelledTokens:
        """Both, one after the other: validation goes back to train before the final fit (section 3.1)."""
        assert (self.classes, self.positions) == (other.classes, other.positions)
        source = np.concatenate([self.source, len(self.sources) + other.source])
        place = np.concatenate([self.place, other.place])
        return LabelledTokens((*self.sources, *other.sources), source, place, self.classes)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 (N,)."""
        found = np.empty(len(self), np.int64)
        for number, tokens in enumerate(self.sources):
            if len(here := np.flatnonzero(self.source == number)):
                found[here] = tokens.labels[self.place[here]]
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what identifies tokens, labels and order; the same in every process and on every machine."""
        parts = [*(tokens.digest for tokens in self.sources), *map(index_digest, (self.source, self.place, self.labels))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
