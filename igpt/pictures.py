"""Image files in, grids of images out. What a file is squeezed through before the palette is written here once."""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from igpt.errors import UsageError
from igpt.files import write_atomically

# Pillow logs some damage besides raising it; without a handler of the caller's that would be a second line.
logging.getLogger("PIL").addHandler(logging.NullHandler())

LINE = 128  # grey between the images of a grid
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")  # whose grey of more than 8 bits is unsigned, and by Pillow of 16
PHOTOMETRIC, BITS, SAMPLE_FORMAT, LEAST, GREATEST = 262, 258, 339, 340, 341  # TIFF's tags; the last two name black and white


def read_picture(path: Path, *, side: int, channels: int, resample: int = Image.Resampling.BICUBIC) -> NDArray[np.uint8]:
    """An image file as uint8 (side, side, channels): upright, its central square, reduced by bicubic filtering.

    resample : another of Pillow's filters, see `PIL.Image.Resampling`

    Grey, palette, CMYK, LAB and YCbCr files are converted, transparent parts are laid on white, and of several frames the
    first is taken. Colours of 16 bits are cut to their higher 8. Grey of more than 8 bits is scaled by what the file says
    is black and white (TIFF's SMinSampleValue and SMaxSampleValue), else by the range of its unsigned integers of up to 16
    bits; floats without such a statement are taken as 0 to 1. Raises UsageError for values that cannot be scaled so (signed
    or 32-bit integers, floats outside 0 to 1), and for a file that is missing, empty, no image, cut short, or far too large
    to be decoded safely.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:  # of EXIF and of large pictures
            picture = ImageOps.exif_transpose(file)
            picture.load()
            rgb = _rgb(picture, file)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder: name the image files in it") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{path} has too many pixels to be read safely: reduce it first") from None
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not an image that can be read: give a PNG, a JPEG or the like") from None
    except UsageError as error:
        raise UsageError(f"{path} {error}") from None
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error) as error:
        raise UsageError(f"{path} is damaged ({error}): copy it again") from None
    square = ImageOps.fit(rgb, (side, side), Image.Resampling(resample))
    pixels = np.asarray(square.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return pixels.reshape(side, side, channels)


def grey_levels(picture: Image.Image, file: Image.Image) -> NDArray[np.uint8]:
    """A grey picture of more than 8 bits as uint8 (height, width), black at 0 and white at 255.

    picture : of mode ``F``, or one whose name begins with ``I``, from ``file`` as it was opened
    Raises UsageError, a sentence without the file's name, where nothing says which values are black and white.
    """
    values = np.asarray(picture).astype(np.float64)
    tags: dict[int, Any] = dict(getattr(file, "tag_v2", {}))
    unsigned = tags.get(SAMPLE_FORMAT, (1,))[0] == 1
    bits = tags.get(BITS, (16,))[0]
    if unsigned and bits == 32:
        values %= 2**32  # Pillow reads them as signed
    if GREATEST in tags:
        black, white = (float(np.ravel(tags.get(tag, 0))[0]) for tag in (LEAST, GREATEST))
    elif picture.mode == "F":
        black, white = 0.0, 1.0
    elif bits <= 16 and unsigned and (tags or file.format in SIXTEEN_BITS):
        black, white = 0.0, 2.0**bits - 1
    else:
        raise UsageError("has signed or 32-bit integers, and does not say which are black and white: save it with 8 or 16 bits")
    if not np.isfinite(values).all() or not np.isfinite([black, white]).all() or black >= white:
        raise UsageError(
            f"has NaN or infinite values, or no valid range from black ({black:g}) to white ({white:g}):"
            " save it with 8 or 16 bits"
        )
    if picture.mode == "F" and GREATEST not in tags and not 0 <= values.min() <= values.max() <= 1:
        raise UsageError(
            f"has floats from {values.min():g} to {values.max():g}, and does not say which are black and white: scale them"
            " to 0 to 1, or save it with 8 or 16 bits"
        )
    levels = np.rint(255 * (values - black) / (white - black)).clip(0, 255).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        levels = 255 - levels
    transparent = picture.info.get("transparency")  # a PNG's one clear value
    return np.where(values == transparent, np.uint8(255), levels) if isinstance(transparent, int) else levels


def _rgb(picture: Image.Image, file: Image.Image) -> Image.Image:
    """The picture as RGB of 8 bits without transparency; as `grey_levels` raises."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return Image.fromarray(grey_levels(picture, file)).convert("RGB")
    if set(np.ravel(getattr(file, "tag_v2", {}).get(SAMPLE_FORMAT, 1))) & {2, 3}:
        raise UsageError("has signed values, which Pillow reads as unsigned: save it with 8 or 16 unsigned bits")
    _check_colours(getattr(file, "tag_v2", {}))
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _check_colours(tags: Mapping[int, Any]) -> None:
    """Raise UsageError for colours of 16 bits that lie in the lower half of their range: cut to 8 bits they are dark."""
    bits, greatest = int(np.max(tags.get(BITS, 8))), float(np.max(tags.get(GREATEST, np.inf)))
    if bits > 8 and greatest < 2 ** (bits - 1):
        raise UsageError(f"has colours of {bits} bits that reach {greatest:g} only, and is read as 8 bits: save it with 8 bits")


def check_png(path: Path) -> None:
    """Refuse a name that does not end in ``.png``."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"images are written as PNG, not as {path.name}: name a file that ends in .png")


def write_grid(path: Path, rows: Sequence[Sequence[NDArray[np.uint8]]], *, scale: int) -> None:
    """Images uint8 (side, side, channels) in rows and columns as one PNG, each pixel ``scale`` wide; whole or not at all."""
    side, _, channels = rows[0][0].shape
    shape = (len(rows) * (side + 1) + 1, max(map(len, rows)) * (side + 1) + 1, channels)
    sheet = np.full(shape, LINE, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (side + 1) + 1, x * (side + 1) + 1
            sheet[top : top + side, left : left + side] = image
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    with write_atomically(path) as stream:
        picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST).save(stream, "PNG")
