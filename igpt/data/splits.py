"""Images and labels of a data set's splits, in memory; and the fixed rules that split them (section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from igpt.data.cards import check_present, data_card
from igpt.data.dataset import FittedPictures, Official, SplitName, stable_order
from igpt.data.labelled import LabelledTokens
from igpt.data.resize import reduced
from igpt.errors import UsageError
from igpt.palette import Palette

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, H, W, channels) with labels int64 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __add__(self, other: Split) -> Split:
        """The concatenation: validation images are added back to train before the final fit (section 3.1)."""
        return Split(np.concatenate([self.images, other.images]), np.concatenate([self.labels, other.labels]))

    def take(self, index: NDArray[np.int64]) -> Split:
        """The images at ``index``."""
        return Split(self.images[index], self.labels[index])


def load_split(name: str, split: SplitName, *, side: int | None = None) -> Split:
    """One split of a data set; train is without the held-out validation images.

    side : pixels per side after reduction; not reduced by default. Pictures of different sizes need a side, and are RGB
    Raises UsageError for a data set that is unknown, missing, damaged or too large for memory, and for a
    side larger than the images.

    >>> load_split("digits", "train").images.shape
    (1293, 8, 8, 1)
    >>> load_split("digits", "test", side=4).images.shape
    (360, 4, 4, 1)
    """
    card = data_card(name)
    official = load_official(name, "test" if split == "test" else "train", side=side)
    if split != "test":
        validation = validation_indices(name)
        official = official.take(validation if split == "validation" else np.setdiff1d(np.arange(card.train), validation))
    if card.cropped or side is None or side == card.height:
        return official
    return Split(reduced(official.images, side=side), official.labels)


def load_official(name: str, split: Official, *, side: int | None = None) -> Split:
    """A data set's whole official train or test split, in the order of its files.

    For the digits and a user's own pictures, which have no official order, validation images come last.
    side : of pictures of different sizes; others are not reduced
    Raises UsageError as `load_split` does.
    """
    card = data_card(name)
    if card.read is None:
        raise UsageError(f"{card.title} has no pictures, only tokens: name another data set")
    check_present(name)
    if not card.in_memory:
        raise UsageError(f"{card.title} is larger than memory: `igpt data tokenize {name}` makes tokens of it, on disk")
    images, labels = card.read(card, split)
    if isinstance(images, np.ndarray):
        return Split(images, labels)
    assert isinstance(images, FittedPictures)
    if side is None:
        raise UsageError(f"the pictures of {card.title} differ in size: say to how many pixels a side they are to be reduced")
    return Split(images.all_pixels(side=side, channels=3), labels)


def validation_indices(name: str) -> NDArray[np.int64]:
    """Indices, int64 and ascending, of the validation images in the official train split; the last ones if there is no such."""
    card = data_card(name)
    return held_out(name) if card.split else np.arange(card.train - card.validation, card.train)


@cache
def held_out(name: str) -> NDArray[np.int64]:
    """Indices of the validation images in a data set's official train split, in order (section 3.1).

    The first ones in an order given by SHA-256 of name and index, so that they do not depend on a library's version. Their
    digest is part of the declaration and of signatures.
    """
    card = data_card(name)
    return np.sort(stable_order(f"igpt split {name}", np.arange(card.train))[: card.validation])


def low_data_subset(labels: NDArray[np.int64], *, per_class: int, draw: int) -> NDArray[np.int64]:
    """Indices of ``per_class`` images of every class, the ``draw``-th random choice (section 4.7).

    Balanced classes are our choice: the paper states totals only, which are multiples of the number of classes.
    Raises UsageError when a class has fewer images.

    >>> import numpy as np
    >>> labels = np.repeat(np.arange(3), 10)
    >>> labels[low_data_subset(labels, per_class=2, draw=0)]
    array([0, 0, 1, 1, 2, 2])
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise UsageError(f"class {label} has {len(members)} training images, fewer than the {per_class} asked for")
        chosen.append(stable_order(f"igpt low data {draw}", members)[:per_class])
    return np.sort(np.concatenate(chosen))


Images = TypeVar("Images", Split, LabelledTokens)


def subsample(train: Images, validation: Images, *, images: int, seed: int) -> tuple[Images, Images]:
    """A random subsample of both splits, ``images`` in total and in proportion, in the original order; all images for 0."""
    if not images:
        return train, validation
    total, generator = len(train) + len(validation), np.random.default_rng(seed)
    indices = [np.sort(generator.permutation(len(split))[: len(split) * images // total]) for split in (train, validation)]
    return train.take(indices[0]), validation.take(indices[1])


def tokenize(images: NDArray[np.uint8], palette: Palette) -> Tensor:
    """Tokens int64 (N, H * W) in raster order, of images uint8 (N, H, W, channels).

    >>> import numpy as np
    >>> from igpt.palette import Palette
    >>> greys = Palette(np.array([[-1.0], [1.0]], np.float32))
    >>> tokenize(np.array([[[[0], [255]], [[200], [9]]]], np.uint8), greys)
    tensor([[0, 1, 1, 0]])
    """
    import torch

    return torch.from_numpy(palette.quantize(images).reshape(len(images), -1).astype(np.int64))
