"""Whether CIFAR-10's tokens as released are those that are made here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from igpt.data.cards import data_card
from igpt.data.dataset import Official, SplitName
from igpt.data.imagenet_tokens import IMAGENET_TOKENS, SIDE, one_hot_labels, released_path
from igpt.data.splits import load_official
from igpt.data.store import read_tokens
from igpt.errors import UsageError
from igpt.palette import Palette

PARTS: dict[Official, tuple[SplitName, ...]] = {"train": ("train", "validation"), "test": ("test",)}  # of an official split


def released_at_hand() -> list[Official]:
    """The official splits of CIFAR-10 of which all released files are here."""
    return [
        split
        for split, parts in PARTS.items()
        if all(released_path(part, end, of="cifar10").exists() for part in parts for end in ("X", "Y"))
    ]


def compare_released(palette: Palette) -> Iterator[str]:
    """How many of the released images differ from ours, a line for each split that is at hand.

    Row by row; and where most rows differ, since nothing says in what order the released ones are, as sets too.
    Raises UsageError for files that are no tokens or labels of CIFAR-10.
    """
    for split in released_at_hand():
        official = load_official("cifar10", split)
        ours = palette.quantize(official.images).reshape(len(official), -1)
        theirs, labels = _released(split)
        said = f"released tokens, {split}: "
        if len(theirs) != len(ours):
            yield said + f"{len(theirs):,} images, here {len(ours):,}; {_unequal(theirs, labels, ours, official.labels)}"
            continue
        wrong = theirs != ours
        images = int(wrong.any(1).sum())
        said += f"{images:,} of {len(ours):,} images differ from ours, in {int(wrong.sum()):,} of {ours.size:,} tokens"
        said += f", and {int((labels != official.labels).sum()):,} labels"
        if 2 * images > len(ours):
            said += f" row by row; {_unequal(theirs, labels, ours, official.labels)}"
        yield said


def _released(split: Official) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Released tokens uint16 (N, 1024) and labels int64 (N,) of an official split."""
    tokens, labels = [], []
    for part in PARTS[split]:
        path = released_path(part, of="cifar10")
        found = read_tokens(path)
        if found.shape[1] != SIDE**2 or (found.size and not 0 <= int(found.min()) <= int(found.max()) < 2**16):
            raise UsageError(f"{path} holds no tokens of {SIDE} x {SIDE} pixels: move it away, or fetch it again")
        tokens.append(found.astype(np.uint16))
        hot = released_path(part, "Y", of="cifar10")
        labels.append(one_hot_labels(IMAGENET_TOKENS, hot, images=len(found), classes=data_card("cifar10").classes))
    return np.concatenate(tokens), np.concatenate(labels)


def _unequal(
    theirs: NDArray[np.uint16], labels: NDArray[np.int64], ours: NDArray[np.uint16], our_labels: NDArray[np.int64]
) -> str:
    """How many of the released images have no equal among ours, whatever the order, alone and with their labels."""
    rows = [Counter(row.tobytes() for row in tokens) for tokens in (theirs, ours)]
    labelled = [
        Counter((label, row.tobytes()) for label, row in zip(found.tolist(), tokens, strict=True))
        for tokens, found in ((theirs, labels), (ours, our_labels))
    ]
    return (
        f"in any order, {(rows[0] - rows[1]).total():,} of the released images have no equal here,"
        f" {(labelled[0] - labelled[1]).total():,} none of the same label"
    )
