"""Comparison of CIFAR-10's released tokens with tokens quantised by this package."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from igpt.data.cards import data_card
from igpt.data.dataset import Official, SplitName
from igpt.data.imagenet_tokens import ENDS, IMAGENET_TOKENS, SIDE, again, one_hot_labels, released_path
from igpt.data.splits import load_official
from igpt.data.store import read_tokens
from igpt.errors import UsageError
from igpt.palette import Palette

# The released parts of each official split.
PARTS: dict[Official, tuple[SplitName, ...]] = {"train": ("train", "validation"), "test": ("test",)}


def released_splits() -> list[Official]:
    """The official splits of CIFAR-10 whose released files are all present."""
    paths = {split: [released_path(part, end, of="cifar10") for part in PARTS[split] for end in ENDS] for split in PARTS}
    return [split for split in PARTS if all(path.exists() for path in paths[split])]


def compare_released(palette: Palette) -> Iterator[str]:
    """The numbers of released images that differ from ours, one line per present split.

    Images are compared row by row, and also in any order, since the order of the released images is not published.
    Raises UsageError for files that are not tokens or labels of CIFAR-10.
    """
    for split in released_splits():
        official = load_official("cifar10", split)
        ours = palette.quantize(official.images).reshape(len(official), -1)
        theirs, labels = _released(split)
        count = min(len(ours), len(theirs))
        differs = ours[:count] != theirs[:count]
        digests = [[hashlib.sha256(row).digest() for row in tokens] for tokens in (theirs, ours)]
        labelled = [[*zip(digests[i], each.tolist(), strict=True)] for i, each in enumerate((labels, official.labels))]
        unequal, unlabelled = ((Counter(a) - Counter(b)).total() for a, b in (digests, labelled))
        yield (
            f"released tokens, {split}: {len(theirs):,} images, {len(ours):,} here; row by row {int(differs.any(1).sum()):,}"
            f" differ, in {int(differs.sum()):,} tokens; in any order {unequal:,} have no equal here, {unlabelled:,} none of the"
            " same label"
        )


def _released(split: Official) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Released tokens uint16 (N, 1024) and labels int64 (N,) of an official split."""
    tokens, labels, advice = [], [], again(IMAGENET_TOKENS)
    for part in PARTS[split]:
        path = released_path(part, of="cifar10")
        array = read_tokens(path, advice=advice)
        if array.shape[1] != SIDE**2 or (array.size and not 0 <= int(array.min()) <= int(array.max()) < 2**16):
            raise UsageError(f"{path} holds no tokens of {SIDE} x {SIDE} pixels: {advice}")
        tokens.append(array.astype(np.uint16))
        path, classes = released_path(part, "Y", of="cifar10"), data_card("cifar10").classes
        labels.append(one_hot_labels(path, images=len(array), classes=classes, advice=advice))
    return np.concatenate(tokens), np.concatenate(labels)
