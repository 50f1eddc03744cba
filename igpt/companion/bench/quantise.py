"""Quantising colour images with the released palette: ours, and the image processor of transformers."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from igpt.companion.bench.work import Candidate, Task, Work, both
from igpt.errors import UsageError
from igpt.palette import colour_table, nearest_centres
from igpt.weights.own import released_palette


def _images(toy: bool) -> NDArray[np.uint8]:
    """Random colours: the worst case of every method, since no two neighbours are alike."""
    return np.random.default_rng(0).integers(0, 256, (100 if toy else 1000, 32, 32, 3), dtype=np.uint8)


def _ours(toy: bool) -> Work:
    """The table is built before the first round; `_with_table` counts it."""
    palette, images = released_palette(), _images(toy)
    return Work(lambda: palette.quantize(images), _few(palette.quantize(images)))


def _with_table(toy: bool) -> Work:
    palette, images = released_palette(), _images(toy)

    def run() -> NDArray[np.uint16]:
        colour_table.cache_clear()
        return palette.quantize(images)

    return Work(run, _few(run()))


def _theirs(toy: bool) -> Work:
    try:
        from transformers import ImageGPTImageProcessorPil
    except ImportError:
        raise UsageError("the comparison is with transformers, which is not installed: pip install transformers") from None
    processor, images = ImageGPTImageProcessorPil(clusters=released_palette().centres.tolist()), list(_images(toy))

    def run() -> NDArray[np.int64]:
        tokens: NDArray[np.int64] = processor(images, do_resize=False, return_tensors="np")["input_ids"]
        return tokens

    return Work(run, _few(run()))


def _brute(toy: bool) -> Work:
    """Every squared distance of a tenth of the pixels in float64: what all others must agree with."""
    palette, images = released_palette(), _images(toy)
    flat = images.reshape(-1, 3)
    tenth = flat[: len(flat) // 10]
    return Work(lambda: nearest_centres(tenth, palette.centres), _few(nearest_centres(flat, palette.centres)), times=10)


def _few(tokens: NDArray[np.integer]) -> list[float]:
    """What all tokens are, in a few numbers."""
    return [float(byte) for byte in hashlib.sha256(tokens.astype("<u2").tobytes()).digest()[:8]]


TASK = Task(
    "Quantising 1,000 images of 32 x 32 random colours with the released palette",
    (
        *both("igpt", _ours),
        Candidate("igpt, table built anew", _with_table),
        *both("transformers", _theirs),
        Candidate("every distance in float64", _brute),
    ),
)
