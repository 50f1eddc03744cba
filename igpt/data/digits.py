"""scikit-learn's handwritten digits, which have no official test split: ours is stratified by class."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from igpt.data.dataset import DataSet, Official, stable_order
from igpt.errors import UsageError


def read_digits(card: DataSet, split: Official) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (N, 8, 8, 1) and labels int64 (N,); validation images are the last of train.

    The 17 grey levels 0 .. 16 are scaled to 0 .. 255. Raises UsageError for digits with a different digest.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if digest != card.content:
        raise UsageError(f"the digits of this scikit-learn have SHA-256 {digest}, not {card.content}: install the pinned version")
    parts = split_by_class(card, labels)
    index = parts["test"] if split == "test" else np.concatenate([parts["train"], parts["validation"]])
    return images[index], labels[index]


def split_by_class(card: DataSet, labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Indices of train, validation and test in a data set that has no official test set, each ascending.

    Stratified by class. The order is by SHA-256 of name and index rather than by a random generator,
    so the split is the same under every version of every library.
    """
    order = stable_order(f"igpt split {card.name}", np.arange(len(labels)))
    test = _stratified(order, labels, card.test)
    rest = np.array([i for i in order if i not in set(test.tolist())])
    validation = _stratified(rest, labels, card.validation)
    train = np.setdiff1d(rest, validation)
    return {"train": train, "validation": np.sort(validation), "test": np.sort(test)}


def _stratified(order: NDArray[np.int64], labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` indices, the first of each class in ``order``, with classes in proportion (largest remainders)."""
    classes, members = np.unique(labels[order], return_counts=True)
    quotas = members * count / len(order)
    taken = np.floor(quotas).astype(int)
    taken[np.argsort(taken - quotas, kind="stable")[: count - taken.sum()]] += 1
    return np.concatenate([order[labels[order] == label][:n] for label, n in zip(classes, taken, strict=True)])


DIGITS = DataSet(
    name="digits",
    title="scikit-learn's handwritten digits",
    short="the digits",
    terms="public, shipped inside scikit-learn (UCI optical recognition of handwritten digits)",
    train=1437,
    test=360,
    classes=10,
    height=8,
    channels=1,
    held_out=0.1,
    names=lambda card: [str(digit) for digit in range(card.classes)],
    read=read_digits,
    content="0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382",
)
