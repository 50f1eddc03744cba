"""Crop pictures as the paper does, and reduce them to the model's resolution (section 3.1).

The paper crops to 224 x 224 first and then reduces; the filter of either step is not published. Ours is bicubic
with antialiasing by default; the header of a token store records the filter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from igpt.errors import UsageError

if TYPE_CHECKING:  # an import would make every stage depend on the reader of image files
    from igpt.pictures import Resize

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP = 224  # pixels per side
SHORT = (256, 384)  # bounds of the short side of a training crop


def centre_crop(picture: Image.Image, *, side: int, filter: str = "bicubic") -> NDArray[np.uint8]:
    """The evaluation crop, uint8 (side, side, 3): short side to 224, its central 224 x 224, reduced."""
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    return _crop(picture, (left, top, left + short, top + short), side, filter)


def random_crop(picture: Image.Image, *, side: int, filter: str = "bicubic", generator: np.random.Generator) -> NDArray[np.uint8]:
    """A training crop, uint8 (side, side, channels): short side uniform in 256 .. 384, a random 224 x 224 of it, reduced."""
    width, height = picture.size
    extent = min(width, height) * CROP / generator.integers(SHORT[0], SHORT[1] + 1)
    left, top = generator.uniform(0, width - extent), generator.uniform(0, height - extent)
    return _crop(picture, (left, top, left + extent, top + extent), side, filter)


def fitted(
    picture: Image.Image,
    *,
    side: int,
    channels: int,
    resize: Resize = "crop",
    resample: int = Image.Resampling.BICUBIC,
) -> NDArray[np.uint8]:
    """A picture of any size as uint8 (side, side, channels).

    resize : ``crop`` takes the central square and reduces it, as the paper, by way of 224 x 224 pixels unless it is smaller;
    ``squeeze`` takes the whole picture and changes its proportions, as transformers' processor
    resample : filter of Pillow, see `PIL.Image.Resampling`
    """
    if resize == "crop":
        if min(picture.size) >= CROP >= side:
            picture = ImageOps.fit(picture, (CROP, CROP), Image.Resampling(resample))
        picture = ImageOps.fit(picture, (side, side), Image.Resampling(resample))
    else:
        picture = picture.resize((side, side), Image.Resampling(resample))
    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return pixels.reshape(side, side, channels)


def reduced(images: NDArray[np.uint8], *, side: int, filter: str = "bicubic") -> NDArray[np.uint8]:
    """Square images uint8 (N, H, H, channels) reduced to uint8 (N, side, side, channels).

    Raises UsageError for a side larger than the images': they are never enlarged.

    >>> import numpy as np
    >>> reduced(np.array([[[[0], [0]], [[255], [255]]]], np.uint8), side=1, filter="box")
    array([[[[128]]]], dtype=uint8)
    """
    height, channels = images.shape[1], images.shape[3]
    if not 1 <= side <= height:
        raise UsageError(f"images of {height} x {height} cannot be reduced to {side} x {side}: choose at most {height}")
    small = np.empty((len(images), side, side, channels), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        small[index] = np.asarray(picture.resize((side, side), FILTERS[filter])).reshape(side, side, channels)
    return small


def _crop(picture: Image.Image, box: tuple[float, float, float, float], side: int, filter: str) -> NDArray[np.uint8]:
    """A square of the picture, resized to 224 x 224, then to side x side; only pixels within the square are computed."""
    crop = picture.resize((CROP, CROP), FILTERS[filter], box=box)
    return np.asarray(crop.resize((side, side), FILTERS[filter]), dtype=np.uint8).reshape(side, side, -1)
