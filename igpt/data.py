"""Data sets by name: images, labels and the fixed splits of section 3.1 of the paper.

Only scikit-learn's handwritten digits can be read so far; the sets of the paper's scale are declared
with their splits, so that plans and pending cells can name them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError
from igpt.palette import Palette

if TYPE_CHECKING:
    from torch import Tensor

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class DataCard:
    """What is known of a data set without opening it; counts are images."""

    name: str
    title: str
    train: int  # with the held-out part
    test: int
    classes: int
    height: int  # pixels, before any reduction
    channels: int
    held_out: float  # fraction of train kept for choosing (paper, section 3.1)
    terms: str
    sha256: str = ""  # of the content, where this package can read it

    @property
    def readable(self) -> bool:
        """Whether this package can open it."""
        return bool(self.sha256)

    @property
    def validation(self) -> int:
        """Images of train held out for choosing."""
        return round(self.train * self.held_out)


# Sizes: section 3.1 of the paper and the data sets' own descriptions. Digits: see `_digits`.
DATASETS = {
    card.name: card
    for card in (
        DataCard(
            "digits",
            "scikit-learn's handwritten digits",
            *(1437, 360, 10, 8, 1, 0.1),
            "public, shipped inside scikit-learn (UCI optical recognition of handwritten digits)",
            "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382",
        ),
        DataCard("cifar10", "CIFAR-10", 50_000, 10_000, 10, 32, 3, 0.1, "no explicit licence; cite Krizhevsky 2009"),
        DataCard("cifar100", "CIFAR-100", 50_000, 10_000, 100, 32, 3, 0.1, "no explicit licence; cite Krizhevsky 2009"),
        DataCard("stl10", "STL-10", 5_000, 8_000, 10, 96, 3, 0.1, "images from ImageNet; cite Coates 2011"),
        DataCard("tiny-imagenet", "Tiny ImageNet", 100_000, 10_000, 200, 64, 3, 0.1, "ImageNet terms"),
        DataCard("imagenet", "ImageNet", 1_281_167, 50_000, 1000, 224, 3, 0.04, "ImageNet terms: non-commercial"),
    )
}


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, H, W, channels) with labels int64 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __add__(self, other: Split) -> Split:
        """Both, one after the other: validation goes back to train before the final fit (section 3.1)."""
        return Split(np.concatenate([self.images, other.images]), np.concatenate([self.labels, other.labels]))

    def __getitem__(self, index: NDArray[np.int64]) -> Split:
        """The images at ``index``."""
        return Split(self.images[index], self.labels[index])


def data_card(name: str) -> DataCard:
    """The card of a data set. Raises UsageError for an unknown name."""
    if name not in DATASETS:
        raise UsageError(f"there is no data set {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def load_split(name: str, split: SplitName) -> Split:
    """One split of a data set; train is without the held-out validation images.

    Raises UsageError for an unknown data set, or one that this version cannot read.
    """
    card = data_card(name)
    if not card.readable:
        raise UsageError(f"this version of igpt cannot read {card.title} yet; the tiny tier's data set is digits")
    whole = _digits(card)
    return whole[split_indices(name, whole.labels)[split]]


def split_indices(name: str, labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Indices of train, validation and test in a data set that has no official test set.

    Stratified by class. The order is by SHA-256 of name and index rather than by a random generator,
    so the split is the same under every version of every library.
    """
    card = data_card(name)
    order = _stable_order(f"igpt split {name}", np.arange(len(labels)))
    test = _stratified(order, labels, card.test)
    rest = np.array([i for i in order if i not in set(test.tolist())])
    validation = _stratified(rest, labels, card.validation)
    train = np.setdiff1d(rest, validation)
    return {"train": train, "validation": np.sort(validation), "test": np.sort(test)}


def low_data_subset(labels: NDArray[np.int64], *, per_class: int, draw: int) -> NDArray[np.int64]:
    """Indices of ``per_class`` images of every class, the ``draw``-th random choice (section 4.7).

    Balanced classes are our choice: the paper gives the totals only, which divide by the classes.
    Raises UsageError when a class has fewer images.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise UsageError(f"class {label} has {len(members)} training images, fewer than the {per_class} asked for")
        chosen.append(_stable_order(f"igpt low data {draw}", members)[:per_class])
    return np.sort(np.concatenate(chosen))


def shifted(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The nine shifts of every image by at most one pixel, uint8 (9 N, H, W, channels), edges filled with 0.

    The tiny tier's way to more unlabelled images, in place of the paper's random resizes and crops.
    """
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.concatenate([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)])


def tokenize(images: NDArray[np.uint8], palette: Palette) -> Tensor:
    """Tokens int64 (N, H * W) in raster order, of images uint8 (N, H, W, channels)."""
    import torch

    return torch.from_numpy(palette.quantize(images).reshape(len(images), -1).astype(np.int64))


def split_digest(name: str) -> str:
    """SHA-256 over what decides a data set's splits: content, sizes and rule. Nothing is opened."""
    card = data_card(name)
    decides = [card.name, card.sha256, card.train, card.test, str(card.held_out)]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _digits(card: DataCard) -> Split:
    """All 1,797 digits; their 17 grey levels 0 .. 16 spread over 0 .. 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    found = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if found != card.sha256:
        raise UsageError(f"the digits of this scikit-learn have SHA-256 {found}, not {card.sha256}: install the pinned version")
    return Split(images, labels)


def _stable_order(salt: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """``indices`` in an order that depends on them and ``salt`` alone."""
    keys = [hashlib.sha256(f"{salt} {index}".encode()).digest() for index in indices]
    return indices[sorted(range(len(indices)), key=keys.__getitem__)]


def _stratified(order: NDArray[np.int64], labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` of ``order``'s first indices, every class in proportion (largest remainders first)."""
    classes, members = np.unique(labels[order], return_counts=True)
    share = members * count / len(order)
    take = np.floor(share).astype(int)
    for place in np.argsort(take - share, kind="stable")[: count - take.sum()]:
        take[place] += 1
    return np.concatenate([order[labels[order] == label][:n] for label, n in zip(classes, take, strict=True)])
