"""Images and labels of a data set's splits, in memory; and the fixed rules that split them (section 3.1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from igpt.data.cards import DataCard, check_present, data_card
from igpt.data.resize import reduced
from igpt.errors import UsageError
from igpt.palette import Palette

if TYPE_CHECKING:
    from torch import Tensor

SplitName = Literal["train", "validation", "test"]


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


def load_split(name: str, split: SplitName, *, side: int | None = None) -> Split:
    """One split of a data set; train is without the held-out validation images.

    side : pixels to reduce the images to; as they are when left out
    Raises UsageError for an unknown data set, one that is not at hand or damaged, one too large for memory, or a
    side larger than the images.

    >>> load_split("digits", "train").images.shape
    (1293, 8, 8, 1)
    >>> load_split("digits", "test", side=4).images.shape
    (360, 4, 4, 1)
    """
    card = data_card(name)
    if name == "digits":
        whole = _digits(card)
        found = whole[split_indices(name, whole.labels)[split]]
    else:
        official = load_official(name, "test" if split == "test" else "train")
        found = official if split == "test" else official[_index(name)[split]]
    return found if side in (None, card.height) else Split(reduced(found.images, side=side or card.height), found.labels)


def load_official(name: str, split: Literal["train", "test"]) -> Split:
    """A data set's own train or test split, whole, in the order of its files; of the digits, validation after train.

    Raises UsageError as `load_split` does.
    """
    from igpt.data.cifar import read_cifar
    from igpt.data.jpegs import open_jpegs
    from igpt.data.stl import read_stl

    check_present(name)
    card = data_card(name)
    if name == "digits":
        parts = [load_split(name, part) for part in ("train", "validation")]
        return load_split(name, "test") if split == "test" else parts[0] + parts[1]
    if name == "imagenet":
        raise UsageError(f"{card.title} is larger than memory: `igpt data tokenize imagenet` makes tokens of it, on disk")
    if name == "tiny-imagenet":
        jpegs = open_jpegs(name, split)
        return Split(jpegs.images(), jpegs.labels)
    return Split(*(read_stl if name == "stl10" else read_cifar)(name, split))


@cache
def held_out(name: str) -> NDArray[np.int64]:
    """Indices of the validation images in a data set's official train split, in order (section 3.1).

    The first of them all in an order given by SHA-256 of name and index, so that they are the same under every version
    of every library, whatever the labels. The card holds their digest, which enters signatures.
    """
    card = data_card(name)
    return np.sort(_stable_order(f"igpt split {name}", np.arange(card.train))[: card.validation])


def index_digest(indices: NDArray[np.int64]) -> str:
    """SHA-256 of indices, as little-endian int64."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


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
        chosen.append(_stable_order(f"igpt low data {draw}", members)[:per_class])
    return np.sort(np.concatenate(chosen))


def a_part(train: Split, validation: Split, *, images: int, seed: int) -> tuple[Split, Split]:
    """Random images of both, ``images`` together and in proportion, in their order; all of them for 0."""
    if not images:
        return train, validation
    total, generator = len(train) + len(validation), np.random.default_rng(seed)
    parts = [np.sort(generator.permutation(len(split))[: len(split) * images // total]) for split in (train, validation)]
    return train[parts[0]], validation[parts[1]]


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


def _index(name: str) -> dict[str, NDArray[np.int64]]:
    """The two parts of an official train split."""
    validation = held_out(name)
    return {"train": np.setdiff1d(np.arange(data_card(name).train), validation), "validation": validation}


def _digits(card: DataCard) -> Split:
    """All 1,797 digits; their 17 grey levels 0 .. 16 spread over 0 .. 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    found = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if found != card.content:
        raise UsageError(f"the digits of this scikit-learn have SHA-256 {found}, not {card.content}: install the pinned version")
    return Split(images, labels)


def _stable_order(salt: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """``indices`` in an order that depends on them and ``salt`` alone."""
    keys = [hashlib.sha256(f"{salt} {index}".encode()).digest() for index in indices.tolist()]
    return indices[sorted(range(len(indices)), key=keys.__getitem__)]


def _stratified(order: NDArray[np.int64], labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` of ``order``'s first indices, every class in proportion (largest remainders first)."""
    classes, members = np.unique(labels[order], return_counts=True)
    share = members * count / len(order)
    take = np.floor(share).astype(int)
    for place in np.argsort(take - share, kind="stable")[: count - take.sum()]:
        take[place] += 1
    return np.concatenate([order[labels[order] == label][:n] for label, n in zip(classes, take, strict=True)])
