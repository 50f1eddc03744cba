"""Pixels to palette tokens and back (section 3.2 of the paper, ``color_quantize`` of the released code).

A palette is k colour centres in [-1, 1], found by k-means on training pixels: 512 RGB colours in the
paper ("9 bits"), fewer grey levels for the digits. Grey is one channel, RGB three; nothing else differs.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError
from igpt.files import cannot_read, read_whole, write_array
from igpt.seeds import check_seed

# SHA-256 digest of the released weights' 512 colours; in code, so that other colours change signatures.
RELEASED = "2e1993e1710ade487e719a6103ff3ec2da542856cd7dcc8ef4fd0b5e9aae927b"
MOST = 2**16  # colours, for tokens are uint16
LARGEST = 2**21  # bytes of a palette file, an upper bound
TABLE_PAYS = 2**16  # pixels above which a lookup table of all colours saves time
PIECE = 2**15  # pixels looked up at once
BEYOND = 1e-3  # tolerance, an eighth of a level: k-means rounds; colours on another scale are far outside


@dataclass(frozen=True, eq=False)
class Palette:
    """Colour centres, float32 (k, channels) in [-1, 1]; a pixel value v is at v / 127.5 - 1.

    >>> import numpy as np
    >>> black_and_white = Palette(np.array([[-1.0], [1.0]], np.float32))
    >>> tokens = black_and_white.quantize(np.array([[[[10], [250]]]], np.uint8))
    >>> tokens
    array([[[0, 1]]], dtype=uint16)
    >>> black_and_white.dequantize(tokens).ravel()
    array([  0, 255], dtype=uint8)
    """

    centres: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Raise UsageError for anything but finite float32 (k, channels) in [-1, 1]."""
        c = self.centres
        if c.ndim != 2 or c.dtype != np.float32 or not 1 <= len(c) <= MOST or not c.size or not np.isfinite(c).all():
            raise UsageError(
                f"a palette is finite float32 (colours, channels), this one is {c.dtype} {c.shape}: fit or fetch it again"
            )
        if np.abs(c).max(initial=0) > 1 + BEYOND:
            raise UsageError(
                f"a palette's colours lie in [-1, 1], these reach from {c.min():g} to {c.max():g}: divide levels of 0 to 255"
                " by 127.5 and subtract 1"
            )

    @classmethod
    def fit(cls, images: NDArray[np.uint8], *, k: int, seed: int, pixels: int = 1_000_000) -> Palette:
        """Fit k centres by k-means on at most ``pixels`` pixels of ``images``, uint8 (N, H, W, channels).

        The centres are sorted, so that neighbouring tokens of a grey palette are neighbouring shades.
        Raises UsageError for a k outside 1 to 65,536, a seed outside 0 to 2^32 - 1, and images that hold fewer than k colours.
        Source: section 3.2; the sample, its size and the initialisation are not published.

        >>> import numpy as np
        >>> greys = np.repeat(np.arange(256, dtype=np.uint8), 4).reshape(1, 32, 32, 1)
        >>> len(Palette.fit(greys, k=4, seed=0))
        4
        """
        from sklearn.cluster import KMeans

        check_seed(seed)
        if not isinstance(k, int | np.integer) or not 1 <= k <= MOST:
            raise UsageError(f"a palette has 1 to {MOST} colours, not {k!r}: choose another number")
        flat = _flat(images)
        generator = np.random.default_rng(seed)
        if len(flat) > pixels:
            flat = flat[generator.choice(len(flat), pixels, replace=False)]
        colours, counts = np.unique(flat, axis=0, return_counts=True)
        if len(colours) < k:
            raise UsageError(
                f"the images hold {len(colours)} colours, fewer than the {k} asked for: choose at most {len(colours)}"
            )
        # To k-means, a colour weighted by its count is equivalent to its pixels one by one, and far cheaper.
        kmeans = KMeans(k, n_init=4, random_state=seed).fit(_scaled(colours), sample_weight=counts)
        centres = kmeans.cluster_centers_.astype(np.float32)
        return cls(centres[np.lexsort(centres.T[::-1])])

    @classmethod
    def load(cls, path: Path) -> Palette:
        """The palette in a ``.npy`` file. Raises UsageError, which names the file, when it is missing or not a palette."""
        try:
            return cls(np.load(io.BytesIO(read_whole(path, most=LARGEST)), allow_pickle=False))
        except FileNotFoundError:
            raise UsageError(f"there is no palette at {path}") from None
        except UsageError as error:
            raise UsageError(f"{path} is not a palette: {error}") from None
        except Exception as error:  # numpy parses headers as Python, which raises errors of many types
            raise cannot_read(path, error, "is not a palette") from None

    def save(self, path: Path) -> None:
        """Write the centres as ``.npy``, atomically."""
        write_array(path, self.centres)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the centres; equal for a checkpoint and its tokens."""
        return hashlib.sha256(self.centres.tobytes() + str(self.centres.shape).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of colours, the model's ``n_vocab``."""
        return len(self.centres)

    def quantize(self, images: NDArray[np.uint8], *, expected: int = 0) -> NDArray[np.uint16]:
        """Tokens uint16 (N, H, W) of uint8 (N, H, W, channels): the nearest centre to v / 127.5 - 1.

        expected : pixels in all, if these are some of many; it decides how they are found, not which
        Squared distance in float64, lowest index on ties. Raises UsageError for other channels.
        """
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] != self.centres.shape[1]:
            raise UsageError(
                f"images are uint8 (N, H, W, {self.centres.shape[1]}) for this palette, not {images.dtype} {images.shape}"
            )
        flat = _flat(images)
        if images.shape[-1] == 3 and max(len(flat), expected) > TABLE_PAYS:
            return _look_up(colour_table(self.centres.tobytes()), flat).reshape(images.shape[:-1])
        colours, index = np.unique(flat, axis=0, return_inverse=True)
        return nearest_centres(colours, self.centres)[index].reshape(images.shape[:-1])

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


def nearest_centres(colours: NDArray[np.uint8], centres: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The index of the nearest centre, uint16 (n,), to each colour, uint8 (n, channels); the reference for `colour_table`.

    Squared distance to v / 127.5 - 1 in float64, lowest index on ties.
    """
    nearest = np.empty(len(colours), np.uint16)
    for start in range(0, len(colours), 4096):
        offset = _scaled(colours[start : start + 4096])[:, None, :] - centres.astype(np.float64)
        nearest[start : start + 4096] = np.square(offset).sum(-1).argmin(1)
    return nearest


@lru_cache(maxsize=2)
def colour_table(centres: bytes) -> NDArray[np.uint16]:
    """Lookup table: the token of each of the 2^24 RGB colours, at index r << 16 | g << 8 | b; 32 MiB, built in seconds, exact.

    The colour cube is cut into blocks. Centres too far from a block's middle to be nearest to any of its colours are
    skipped for that block; distances to the others are computed exactly.
    """
    colours = np.frombuffer(centres, np.float32).reshape(-1, 3)
    side, levels = 16, _scaled(np.arange(256, dtype=np.uint8))
    # (block, level, centre): one channel's share of the squared distance
    share = [np.square(levels[:, None] - c).reshape(256 // side, side, -1) for c in colours.T.astype(np.float64)]
    middle = levels.reshape(-1, side).mean(1)
    radius = np.sqrt(3) * (levels[side - 1] - levels[0]) / 2 * (1 + 1e-9)  # from the middle to a corner
    table = np.empty((256, 256, 256), np.uint16)
    for r, g, b in np.ndindex(3 * (256 // side,)):
        distances = np.sqrt(np.square(np.array([middle[r], middle[g], middle[b]]) - colours).sum(1))
        near = np.flatnonzero(distances <= distances.min() + 2 * radius)
        red, green, blue = share[0][r][:, near], share[1][g][:, near], share[2][b][:, near]
        squared = (red[:, None] + green[None])[:, :, None] + blue  # the sum's order is that of `nearest_centres`
        block = tuple(slice(side * i, side * (i + 1)) for i in (r, g, b))
        table[block] = near[squared.argmin(-1)]
    return table.reshape(-1)


def _look_up(table: NDArray[np.uint16], colours: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Tokens uint16 (n,) of colours uint8 (n, 3), in pieces that stay in the processor's cache."""
    tokens = np.empty(len(colours), np.uint16)
    for start in range(0, len(colours), PIECE):
        red, green, blue = colours[start : start + PIECE].astype(np.int32).T
        table.take(red << 16 | green << 8 | blue, out=tokens[start : start + PIECE], mode="clip")
    return tokens


def _flat(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels of all images, (pixels, channels)."""
    return images.reshape(-1, images.shape[-1])


def _scaled(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Pixel values 0 .. 255 scaled to [-1, 1]."""
    return colours.astype(np.float64) / 127.5 - 1
