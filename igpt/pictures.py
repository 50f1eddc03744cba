"""Image files in, grids of images out. What a file is squeezed through before the palette is written here once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from igpt.errors import UsageError
from igpt.files import write_atomically

LINE = 128  # grey between the images of a grid


def read_picture(path: Path, *, side: int, channels: int) -> NDArray[np.uint8]:
    """An image file as uint8 (side, side, channels): upright, its central square, reduced by bicubic filtering.

    Grey, palette, CMYK and 16-bit files are converted; transparent parts are laid on white. Raises UsageError
    for a file that is missing, empty, no image, cut short, or far too large to be decoded safely.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder: name the image files in it") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{path} has too many pixels to be read safely: reduce it first") from None
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not an image that can be read: give a PNG, a JPEG or the like") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}): copy it again") from None
    square = ImageOps.fit(_eight_bits(picture), (side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(square.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return pixels.reshape(side, side, channels)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The picture as RGB without transparency."""
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would cut off, not scale
        levels = np.asarray(picture, dtype=np.int64)
        return Image.fromarray((levels.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


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
