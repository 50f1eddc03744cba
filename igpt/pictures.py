"""Image files in, grids of images out. Everything that happens to a file before the palette is here."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from igpt.errors import UsageError
from igpt.files import file_size, write_atomically

# Pillow logs some damage besides raising it; without a handler of the caller's that would be a second line.
logging.getLogger("PIL").addHandler(logging.NullHandler())

LINE = 128  # grey between the images of a grid
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")  # Pillow runs Ghostscript for one other
MOST = "IGPT_MAX_MEGAPIXELS"  # environment variable
MEGAPIXELS = 128  # the largest picture without it; photographs of 108 exist
BYTES = 20  # of memory per pixel at most, measured over FORMATS and modes: JPEG2000 20, WebP 16, PNG and CMYK 13
STORED = 8  # bytes of a file per pixel at most, as colours of 16 bits with alpha take
PHOTOMETRIC, BITS, SAMPLE_FORMAT, GREATEST = 262, 258, 339, 341  # TIFF's tags
UPRIGHT = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(path: Path, *, side: int, channels: int, resample: int = Image.Resampling.BICUBIC) -> NDArray[np.uint8]:
    """An image file as uint8 (side, side, channels): upright, its central square, reduced by bicubic filtering.

    resample : another of Pillow's filters, see `PIL.Image.Resampling`

    All colour spaces are converted, by the ICC profile inside if it can be read. Transparent parts are laid on white, and of
    several frames the first is taken. An orientation that cannot be read is not followed. 16 bits are reduced to 8.
    Raises UsageError for other depths (floats, signed or 32-bit integers), and for a file that is missing, empty, damaged,
    not of `FORMATS`, or larger than `opened` allows.
    """
    try:
        if not file_size(path):
            raise UsageError("is empty: copy it again")
        with path.open("rb") as stream:
            picture = _picture(stream)
    except UsageError as error:
        raise UsageError(f"{path} {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no file {path}: name an image file") from None
    except MemoryError:
        raise UsageError(f"{path} needs more memory than there is: reduce it first") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path} cannot be read ({reason}): name an image file that you may read") from None
    square = ImageOps.fit(picture, (side, side), Image.Resampling(resample))
    pixels = np.asarray(square.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return pixels.reshape(side, side, channels)


def _picture(stream: IO[bytes]) -> Image.Image:
    """The picture in an open file, upright, as RGB of 8 bits; raises as `opened` and `grey_levels` do."""
    with opened(stream) as file:
        _scale_clear(file)
        if isinstance(file, TiffImagePlugin.TiffImageFile):
            _check_tiff(file)
        with _muted() if file.format == "TIFF" else nullcontext():
            file.load()
        picture = _turned(file)
    with warnings.catch_warnings(action="ignore"):  # of tags, when they are asked for
        return _rgb(picture, file.info.get("icc_profile"))


@contextmanager
def opened(source: IO[bytes], formats: tuple[str, ...] = FORMATS, *, advice: str = "") -> Iterator[Image.Image]:
    """An image file, opened and not yet decoded, for a block that decodes it: the one place where Pillow opens any.

    advice : what to do about a file that is damaged or none of ``formats``, in place of the usual

    Raises UsageError, a sentence without the file's name: for a file of another format, for damage met here or in the
    block, and for more pixels than `MEGAPIXELS` or the environment's ``IGPT_MAX_MEGAPIXELS``, or more bytes than so many
    can take. OSError where reading fails.
    """
    most, size = _most(), source.seek(0, os.SEEK_END)
    source.seek(0)
    if size > most * 1e6 * STORED:  # Pillow reads some files whole
        raise UsageError(
            f"has {size / 1e6:,.1f} MB, and up to {most * STORED:,g} MB are opened: reduce it, or {_raise(size / STORED)}"
        )
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, int(most * 1e6 / 2)  # Pillow warns of so many, refuses twice
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(source, formats=formats) as file:  # of EXIF as well
            yield file
    except UsageError:
        raise
    except UnidentifiedImageError:
        raise UsageError(f"is not an image that can be read: {advice or 'give a PNG, a JPEG or the like'}") from None
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise UsageError(
            f"has {pixels / 1e6:,.1f} million pixels, and up to {most:,g} million are opened: reduce it, or {_raise(pixels)}"
        ) from None
    except MemoryError:
        raise UsageError("needs more memory than there is: reduce it first") from None
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        if isinstance(error, OSError) and error.errno:
            raise
        raise UsageError(f"is damaged ({str(error) or type(error).__name__}): {advice or 'copy it again'}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


def _most() -> float:
    """The megapixels of the largest picture that is opened."""
    value = os.environ.get(MOST) or str(MEGAPIXELS)
    try:
        most = float(value)
    except ValueError:
        most = math.nan
    if not 0 < most < math.inf:
        raise UsageError(f"was not opened, for {MOST} is {value!r}: set a number of megapixels, such as {MEGAPIXELS}")
    return most


def _raise(pixels: float) -> str:
    """What to do for a picture of so many pixels."""
    return f"set {MOST}={math.ceil(pixels / 1e6)} where {BYTES * pixels / 1e9:.1f} GB of memory are free"


@contextmanager
def _muted() -> Iterator[None]:
    """Close standard error to C code: libtiff prints there what it raises as well."""
    theirs, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(theirs, 2)
        os.close(theirs)
        os.close(nothing)


def _turned(file: Image.Image) -> Image.Image:
    """The decoded picture upright, as far as its EXIF can be read."""
    try:
        way = UPRIGHT.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of EXIF Pillow reads more than the orientation, and raises whatever the bytes lead it to
        way = None
    return file if way is None else file.transpose(way)


def grey_levels(picture: Image.Image) -> NDArray[np.uint8]:
    """A grey picture of 16 bits (of a mode that begins with ``I``) as uint8 (height, width).

    Raises UsageError, a sentence without the file's name, for values outside of 16 bits.
    """
    values = np.asarray(picture)
    if not 0 <= values.min() <= values.max() < 2**16:
        raise UsageError("has values that are not unsigned integers of 16 bits: save it with 8 or 16 bits")
    levels = ((2 * values.astype(np.uint32) + 257) // 514).astype(np.uint8)  # 255 v / 65535, rounded
    clear = picture.info.get("transparency")  # a PNG's one clear value
    return np.where(values == clear, np.uint8(255), levels) if isinstance(clear, int) else levels


def _check_tiff(file: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse a TIFF whose values Pillow does not scale: signed, float, of odd depth, or with a white below the greatest."""
    try:
        tags = {tag: np.ravel(file.tag_v2.get(tag, default)) for tag, default in ((BITS, 1), (SAMPLE_FORMAT, 1))}
        bits = int(tags[BITS].max())
        white = float(np.min(file.tag_v2.get(GREATEST, 2**bits - 1)))
        deep = bits > 8 and (bits != 16 or file.tag_v2.get(PHOTOMETRIC) == 0)  # white is zero
    except Exception as error:  # Pillow reads tags when they are asked for, and raises whatever the bytes lead it to
        raise UsageError(f"is damaged (tag {error}): copy it again") from None
    if deep or not white >= 2**bits - 1 or (tags[SAMPLE_FORMAT] != 1).any():
        raise UsageError("has values that are not unsigned integers of their whole range: save it with 8 or 16 bits")


def _rgb(picture: Image.Image, icc: bytes | None) -> Image.Image:
    """The picture as RGB of 8 bits without transparency; raises as `grey_levels` does."""
    if picture.mode == "F":
        raise UsageError("has floats, and does not say which are black and white: save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        picture = Image.fromarray(grey_levels(picture))
    base = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}.get(picture.mode, "RGB")
    profile = _profile(icc, base)
    if picture.mode == "RGB" and profile is None and not picture.has_transparency_data:
        return picture
    whole = picture.convert("LA") if picture.mode == "La" else picture
    clear = whole.convert("RGBA").getchannel("A") if whole.has_transparency_data else None
    colours = whole.convert(base)
    colours = colours.convert("RGB") if profile is None else profile(colours)
    on_white = Image.new("RGB", picture.size, "white")
    on_white.paste(colours, (0, 0), clear)
    return on_white


def _profile(content: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """A conversion of colours from an ICC profile to sRGB; None if they are sRGB, or the profile cannot be used."""
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(content or b""))
        space = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}[theirs.profile.xcolor_space.strip()]
        if "sRGB" in ImageCms.getProfileDescription(theirs) or (mode, space) not in {(space, space), ("L", "RGB")}:
            return None
        way = ImageCms.buildTransform(theirs, ImageCms.createProfile("sRGB"), space, "RGB")
    except Exception:  # lcms raises whatever the bytes lead it to; browsers leave such a profile out as well
        return None

    def convert(colours: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(colours.convert(space), way)
        assert converted is not None
        return converted

    return convert


def _scale_clear(file: Image.Image) -> None:
    """Scale the one clear value of a PNG, which Pillow leaves as stored, as Pillow scales the pixels."""
    clear = file.info.get("transparency")
    if file.format != "PNG" or clear is None:
        return
    assert isinstance(file, ImageFile.ImageFile)
    stored = str(file.tile[0].args) if file.tile else ""
    if file.mode == "RGB":
        file.info["transparency"] = tuple(value >> 8 if stored == "RGB;16B" else value & 255 for value in clear)
    elif file.mode == "L":
        white = {"L;2": 3, "L;4": 15}.get(stored, 255)
        file.info["transparency"] = (clear & white) * 255 // white


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
