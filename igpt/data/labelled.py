"""Labelled images as tokens: in memory, in a token store, or in the released files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from igpt.data.dataset import index_digest


class Tokens(Protocol):
    """Images as tokens, read on indexing: int64 indices (B,) select tokens, integers (B, positions).

    positions : tokens per image
    labels : int64 (N,)
    digest : identifies the tokens
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: NDArray[np.int64], /) -> NDArray[np.integer]: ...

    @property
    def positions(self) -> int: ...

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def digest(self) -> str: ...


class TokensInMemory:
    """Tokens, uint16 (N, positions), with labels, int64 (N,)."""

    def __init__(self, tokens: NDArray[np.uint16], labels: NDArray[np.int64]) -> None:
        self.tokens, self.labels = tokens, labels
        self.positions = tokens.shape[1]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint16]:
        return self.tokens[indices]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens, as little-endian uint16."""
        return hashlib.sha256(self.tokens.astype("<u2").tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """Images from one or several sets of tokens, in a chosen order.

    source : int64 (N,), the index of each image's set in ``sources``
    indices : int64 (N,), the image's index in that set
    classes : number of classes, including those without an image

    >>> import numpy as np
    >>> memory = TokensInMemory(np.array([[1, 2], [3, 4], [5, 6]], np.uint16), np.array([0, 1, 1]))
    >>> some = LabelledTokens.of(memory, np.array([2, 0]), classes=2)
    >>> (some + some)[np.array([0, 3])], (some + some).labels
    (array([[5, 6],
           [1, 2]], dtype=uint16), array([1, 0, 1, 0]))
    """

    sources: tuple[Tokens, ...]
    source: NDArray[np.int64]
    indices: NDArray[np.int64]
    classes: int

    @classmethod
    def of(cls, tokens: Tokens, indices: NDArray[np.int64] | None = None, *, classes: int) -> LabelledTokens:
        """The images of one set at ``indices``, int64 (N,); all of them by default."""
        indices = np.arange(len(tokens)) if indices is None else indices
        return cls((tokens,), np.zeros(len(indices), np.int64), indices, classes)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def positions(self) -> int:
        """Tokens per image."""
        return self.sources[0].positions

    def __getitem__(self, index: NDArray[np.int64] | slice) -> NDArray[np.uint16]:
        """Tokens uint16 (B, positions) of the images at ``index``, int64 (B,) or a slice; only these are read.

        Raises IndexError for an index out of range, and UsageError for damaged tokens.
        """
        source, indices = self.source[index], self.indices[index]
        tokens = np.empty((len(indices), self.positions), np.uint16)
        for number, stored in enumerate(self.sources):
            if len(rows := np.flatnonzero(source == number)):
                tokens[rows] = stored[indices[rows]]
        return tokens

    def take(self, index: NDArray[np.int64] | slice) -> LabelledTokens:
        """The images at ``index``, in that order; nothing is read."""
        return replace(self, source=self.source[index], indices=self.indices[index])

    def __add__(self, other: LabelledTokens) -> LabelledTokens:
        """The concatenation: validation images are added back to train before the final fit (section 3.1)."""
        assert (self.classes, self.positions) == (other.classes, other.positions)
        source = np.concatenate([self.source, len(self.sources) + other.source])
        indices = np.concatenate([self.indices, other.indices])
        return LabelledTokens((*self.sources, *other.sources), source, indices, self.classes)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 (N,)."""
        labels = np.empty(len(self), np.int64)
        for number, stored in enumerate(self.sources):
            if len(rows := np.flatnonzero(self.source == number)):
                labels[rows] = stored.labels[self.indices[rows]]
        return labels

    @cached_property
    def digest(self) -> str:
        """SHA-256 of tokens' digests, labels and order; equal in every process and on every machine."""
        parts = [*(each.digest for each in self.sources), *map(index_digest, (self.source, self.indices, self.labels))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
