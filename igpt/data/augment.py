"""Augmentation: the crops and flips of CIFAR fine-tuning, and the tiny tier's shifts."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Token = TypeVar("Token", bound=np.integer)

PAD = 4  # pixels on each side, as in the Wide-ResNet recipe that section 3.4 follows


def augmented(tokens: NDArray[Token], indices: NDArray[np.int64], *, images: int, epoch: int, seed: int) -> NDArray[Token]:
    """Images padded by reflection, cropped at random and flipped with probability one half, integers (B, H, W).

    tokens : integers (B, H, W), the images at ``indices``, int64 (B,), of a set of ``images``
    The draw for an image depends on seed, epoch and its index alone, not on batches, workers or a resume. Augmenting tokens
    equals augmenting pixels, since neither step mixes colours.
    Source: section 3.4, which pads by 4 and takes a random crop of the image or of its mirror image.

    >>> import numpy as np
    >>> tokens = np.arange(2 * 8 * 8).reshape(2, 8, 8)
    >>> augmented(tokens, np.array([0, 1]), images=2, epoch=1, seed=0).shape
    (2, 8, 8)
    """
    draws = np.random.default_rng([seed, epoch]).integers(0, (2 * PAD + 1, 2 * PAD + 1, 2), (images, 3))[indices]
    height, width = tokens.shape[1:]
    padded = np.pad(tokens, ((0, 0), (PAD, PAD), (PAD, PAD)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    cropped = windows[np.arange(len(tokens)), draws[:, 0], draws[:, 1]]
    return np.where(draws[:, 2, None, None] == 1, cropped[:, :, ::-1], cropped)


def shifted(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The nine shifts of every image by at most one pixel, uint8 (9 N, H, W, channels), edges filled with 0.

    The tiny tier's augmentation of unlabelled images, in place of the paper's random resizes and crops.

    >>> import numpy as np
    >>> shifted(np.ones((2, 8, 8, 1), np.uint8)).shape
    (18, 8, 8, 1)
    """
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.concatenate([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)])
