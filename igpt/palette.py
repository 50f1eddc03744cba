"""Pixels to palette tokens and back (section 3.2 of the paper, ``color_quantize`` of the released code).

A palette is k colour centres in [-1, 1], found by k-means on training pixels: 512 RGB colours in the
paper ("9 bits"), fewer grey levels for the digits. Grey is one channel, RGB three; nothing else differs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError
from igpt.files import write_atomically


@dataclass(frozen=True, eq=False)
class Palette:
    """Colour centres, float32 (k, channels) in [-1, 1]; a pixel value v stands at v / 127.5 - 1."""

    centres: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Refuse anything but finite float32 (k, channels)."""
        c = self.centres
        if c.ndim != 2 or c.dtype != np.float32 or not 1 <= len(c) <= 65536 or not np.isfinite(c).all():
            raise UsageError(
                f"a palette is finite float32 (colours, channels), this one is {c.dtype} {c.shape}: fit or fetch it again"
            )

    @classmethod
    def fit(cls, images: NDArray[np.uint8], *, k: int, seed: int, pixels: int = 1_000_000) -> Palette:
        """k centres by k-means on at most ``pixels`` pixels of ``images``, uint8 (N, H, W, channels).

        The centres are sorted, so that neighbouring tokens of a grey palette are neighbouring shades.
        Raises UsageError when the images hold fewer than k colours.
        Source: section 3.2; the paper leaves the sample, its size and the start unpublished.
        """
        from sklearn.cluster import KMeans

        flat = _flat(images)
        generator = np.random.default_rng(seed)
        if len(flat) > pixels:
            flat = flat[generator.choice(len(flat), pixels, replace=False)]
        colours, counts = np.unique(flat, axis=0, return_counts=True)
        if len(colours) < k:
            raise UsageError(f"the images hold {len(colours)} colours, fewer than the {k} asked for: choose a smaller k")
        # A colour with its count is the same to k-means as its pixels one by one, and far cheaper.
        kmeans = KMeans(k, n_init=4, random_state=seed).fit(_scaled(colours), sample_weight=counts)
        centres = kmeans.cluster_centers_.astype(np.float32)
        return cls(centres[np.lexsort(centres.T[::-1])])

    @classmethod
    def load(cls, path: Path) -> Palette:
        """The palette in a ``.npy`` file. Raises UsageError when there is none or it is not one."""
        try:
            return cls(np.load(path, allow_pickle=False))
        except FileNotFoundError:
            raise UsageError(f"there is no palette at {path}") from None
        except (OSError, UsageError):
            raise
        except Exception as error:  # numpy's reader of headers raises whatever Python's parser does
            raise UsageError(f"{path} is not a palette ({error}): fit or fetch it again") from None

    def save(self, path: Path) -> None:
        """Write the centres as ``.npy``; the name appears only when the file is whole."""
        with write_atomically(path) as stream:
            np.save(stream, self.centres)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the centres: what a checkpoint and its tokens must agree on."""
        return hashlib.sha256(self.centres.tobytes() + str(self.centres.shape).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of colours, the model's ``n_vocab``."""
        return len(self.centres)

    def quantize(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Tokens uint16 (N, H, W) of uint8 (N, H, W, channels): the nearest centre to v / 127.5 - 1.

        Squared distance in float64, lowest index on ties. Raises UsageError for other channels.
        """
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] != self.centres.shape[1]:
            raise UsageError(
                f"images are uint8 (N, H, W, {self.centres.shape[1]}) for this palette, not {images.dtype} {images.shape}"
            )
        colours, place = np.unique(_flat(images), axis=0, return_inverse=True)
        nearest = np.empty(len(colours), np.uint16)
        for start in range(0, len(colours), 4096):
            offset = _scaled(colours[start : start + 4096])[:, None, :] - self.centres.astype(np.float64)
            nearest[start : start + 4096] = np.square(offset).sum(-1).argmin(1)
        return nearest[place].reshape(images.shape[:-1])

    def dequantize(self, tokens: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Images uint8 (..., channels) of tokens (...): rint(127.5 (c + 1)), as released."""
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self):
            raise UsageError(f"tokens reach from {tokens.min()} to {tokens.max()}; this palette has {len(self)} colours")
        colours = np.rint(127.5 * (self.centres.astype(np.float64) + 1)).clip(0, 255).astype(np.uint8)
        images: NDArray[np.uint8] = colours[tokens]
        return images

    def rms_error(self, images: NDArray[np.uint8]) -> float:
        """Root mean squared difference, in levels of 0 to 255, of uint8 (N, H, W, channels) to their palette colours."""
        difference = self.dequantize(self.quantize(images)).astype(np.float64) - images
        return float(np.sqrt(np.square(difference).mean()))


def _flat(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All pixels in a row, (pixels, channels)."""
    return images.reshape(-1, images.shape[-1])


def _scaled(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Pixel values 0 .. 255 in [-1, 1]."""
    return colours.astype(np.float64) / 127.5 - 1
