"""Image files in, grids of images out. What a file is squeezed through before the palette is written here once."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Real
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from igpt.errors import UsageError
from igpt.files import write_atomically

# Pillow logs some damage besides raising it; without a handler of the caller's that would be a second line.
logging.getLogger("PIL").addHandler(logging.NullHandler())

LINE = 128  # grey between the images of a grid
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")  # Pillow runs Ghostscript for one other
MOST = "IGPT_MAX_MEGAPIXELS"  # the environment's variable
MEGAPIXELS = 128  # the largest picture without it; photographs of 108 exist
BYTES = 20  # of memory a pixel at most, measured over FORMATS and modes: JPEG2000 19, WebP 18, JPEG and PNG 4 to 10
STORED = 8  # bytes of a file for each pixel at most, as colours of 16 bits with alpha take
ABSURD = 2**31  # pixels, of which damage is more likely than a picture
LONGEST = 2**31 // 64  # pixels of a side, whose bits Pillow counts by 32 bits with a sign; it raises MemoryError beyond
STRIP = 1 << 22  # pixels converted at once, so that what conversion takes beside the picture is small
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")  # whose grey of more than 8 bits is unsigned, and by Pillow of 16
PHOTOMETRIC, BITS, SAMPLE_FORMAT, LEAST, GREATEST = 262, 258, 339, 340, 341  # TIFF's tags; the last two name black and white
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

    Grey, palette, CMYK, LAB and YCbCr files are converted, by the ICC profile inside where it can be read; transparent parts
    are laid on white, and of several frames the first is taken. An orientation that cannot be read is not followed.
    Colours of 16 bits are cut to their higher 8. Grey of more than 8 bits is scaled by what the file says
    is black and white (TIFF's SMinSampleValue and SMaxSampleValue), else by the range of its unsigned integers of up to 16
    bits; floats without such a statement are taken as 0 to 1. Raises UsageError for values that cannot be scaled so (signed
    or 32-bit integers, floats outside 0 to 1), and for a file that is missing, may not be read, is empty, no image of
    `FORMATS`, cut short, or larger than `opened` allows.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UsageError("is a pipe or a device: copy it into a file first")
        with path.open("rb") as stream:
            if not stream.read(1):
                raise UsageError("is empty: copy it again")
            stream.seek(0)
            picture = _picture(stream)
    except UsageError as error:
        raise UsageError(f"{path} {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{path} is a link to a file that is not there: give the file itself"
            if path.is_symlink()
            else f"there is no file {path}"
        ) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder: name the image files in it") from None
    except PermissionError:
        raise UsageError(f"{path} may not be read by you: ask for permission (chmod +r), or copy it from its owner") from None
    except MemoryError:
        raise UsageError(f"{path} needs more memory than there is: reduce it first") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}): copy it to another disk or name") from None
    square = ImageOps.fit(picture, (side, side), Image.Resampling(resample))
    pixels = np.asarray(square.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return pixels.reshape(side, side, channels)


def _picture(stream: IO[bytes]) -> Image.Image:
    """The picture in an open file, upright, as RGB of 8 bits; raises as `opened` and `grey_levels` do."""
    with opened(stream) as file:
        _scale_clear(file)
        with _muted() if file.format == "TIFF" else nullcontext():
            file.load()
        picture = _turned(file)
    with warnings.catch_warnings(action="ignore"):  # of tags, when they are asked for
        return _rgb(picture, file)


@contextmanager
def opened(source: IO[bytes], formats: tuple[str, ...] = FORMATS, *, advice: str = "") -> Iterator[Image.Image]:
    """An image file, opened and not yet decoded, for a block that decodes it: the one place where Pillow opens any.

    advice : what to do about a file that is damaged or none of ``formats``, where it is not just any file

    Raises UsageError, a sentence without the file's name: for what is none of ``formats``, for damage met here or in the
    block, and for more pixels than `MEGAPIXELS` or the environment's ``IGPT_MAX_MEGAPIXELS``, or more bytes than so many
    can take. OSError where reading fails.
    """
    _check_bytes(source)
    longest = 0
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, int(_most() * 1e6 / 2)  # Pillow warns of so many, refuses twice
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(source, formats=formats) as file:  # of EXIF as well
            longest = max(file.size)
            yield file
    except UsageError:
        raise
    except UnidentifiedImageError:
        raise UsageError(f"is not an image that can be read: {advice or 'give a PNG, a JPEG or the like'}") from None
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        if pixels > ABSURD:
            raise UsageError(
                f"says that it has {pixels / 1e6:,.0f} million pixels, so it is damaged or far too large:"
                f" {advice or 'copy it again, or reduce it'}"
            ) from None
        raise UsageError(
            f"has {pixels / 1e6:,.1f} million pixels, and up to {_most():,g} million are opened: reduce it, or set"
            f" {MOST}={math.ceil(pixels / 1e6)} where {BYTES * pixels / 1e9:.1f} GB of memory are free"
        ) from None
    except MemoryError:
        if longest > LONGEST:
            raise UsageError(f"has a side of {longest:,} pixels, too long to be decoded: reduce it first") from None
        raise UsageError("needs more memory than there is: reduce it first") from None
    except Exception as error:  # Pillow raises whatever the bytes lead it to
        if isinstance(error, OSError) and error.errno:
            raise
        raise UsageError(f"is damaged ({str(error) or type(error).__name__}): {advice or 'copy it again'}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


@contextmanager
def _muted() -> Iterator[None]:
    """Standard error closed to C code: libtiff prints there what it raises as well."""
    theirs, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(theirs, 2)
        os.close(theirs)
        os.close(nothing)


def _most() -> float:
    """The megapixels of the largest picture that is opened."""
    words = os.environ.get(MOST) or str(MEGAPIXELS)
    try:
        most = float(words)
    except ValueError:
        most = math.nan
    if not 0 < most < math.inf:
        raise UsageError(f"was not opened, for {MOST} is {words!r}: set a number of megapixels, such as {MEGAPIXELS}")
    return most


def _check_bytes(source: IO[bytes]) -> None:
    """Raise UsageError for a file of more bytes than the most pixels can take: Pillow reads some of them whole."""
    size, most = source.seek(0, os.SEEK_END), _most() * 1e6 * STORED
    source.seek(0)
    if size > most:
        raise UsageError(
            f"has {size / 1e6:,.1f} MB, and up to {most / 1e6:,g} MB are opened: reduce it, or set"
            f" {MOST}={math.ceil(size / 1e6 / STORED)} where {BYTES * size / STORED / 1e9:.1f} GB of memory are free"
        )


def _turned(file: Image.Image) -> Image.Image:
    """The decoded picture upright, as far as its EXIF can be read."""
    try:
        way = UPRIGHT.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of EXIF Pillow reads more than the orientation, and raises whatever the bytes lead it to
        way = None
    return file if way is None else file.transpose(way)


def grey_levels(picture: Image.Image, file: Image.Image) -> NDArray[np.uint8]:
    """A grey picture of more than 8 bits as uint8 (height, width), black at 0 and white at 255.

    picture : of mode ``F``, or one whose name begins with ``I``, from ``file`` as it was opened
    Raises UsageError, a sentence without the file's name, where nothing says which values are black and white.
    """
    tags = _tags(file)
    unsigned = tags.get(SAMPLE_FORMAT, (1,))[0] == 1
    bits = tags.get(BITS, (16,))[0]
    if GREATEST in tags:
        black, white = (float(np.ravel(tags.get(tag, 0))[0]) for tag in (LEAST, GREATEST))
    elif picture.mode == "F":
        black, white = 0.0, 1.0
    elif bits <= 16 and unsigned and (tags or file.format in SIXTEEN_BITS):
        black, white = 0.0, 2.0**bits - 1
    else:
        raise UsageError("has signed or 32-bit integers, and does not say which are black and white: save it with 8 or 16 bits")
    clear = picture.info.get("transparency")  # a PNG's one clear value
    strips = []
    for strip in _strips(picture):
        values = np.asarray(strip).astype(np.float64)
        if unsigned and bits == 32:
            values %= 2**32  # Pillow reads them as signed
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
        strips.append(np.where(values == clear, np.uint8(255), levels) if isinstance(clear, int) else levels)
    return np.concatenate(strips)


def _tags(file: Image.Image) -> dict[int, Any]:
    """A TIFF's tags, of those that say how its values are meant; none of other files."""
    try:
        found = getattr(file, "tag_v2", {})
        tags = {tag: found[tag] for tag in (PHOTOMETRIC, BITS, SAMPLE_FORMAT, LEAST, GREATEST) if tag in found}
    except Exception as error:  # Pillow reads them when they are asked for, and raises whatever the bytes lead it to
        raise UsageError(f"is damaged (tag {error}): copy it again") from None
    for tag, value in tags.items():
        values, kind = value if isinstance(value, tuple) else (value,), Real if tag in (LEAST, GREATEST) else int
        if not values or not all(isinstance(number, kind) for number in values):
            raise UsageError(f"is damaged (tag {tag} is no number as it should be): copy it again")
    return tags


def _rgb(picture: Image.Image, file: Image.Image) -> Image.Image:
    """The picture as RGB of 8 bits without transparency; as `grey_levels` raises."""
    tags = _tags(file)
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = Image.fromarray(grey_levels(picture, file))
    elif set(np.ravel(tags.get(SAMPLE_FORMAT, 1))) & {2, 3}:
        raise UsageError("has signed values, which Pillow reads as unsigned: save it with 8 or 16 unsigned bits")
    else:
        _check_colours(tags)
    base = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}.get(picture.mode, "RGB")
    profile = _profile(file.info.get("icc_profile"), base)
    if picture.mode == "RGB" and profile is None and not picture.has_transparency_data:
        return picture
    found = Image.new("RGB", picture.size, "white")
    top = 0
    for strip in _strips(picture):
        whole = strip.convert("LA") if strip.mode == "La" else strip
        clear = whole.convert("RGBA").getchannel("A") if whole.has_transparency_data else None
        colours = whole.convert(base)
        colours = colours.convert("RGB") if profile is None else profile(colours)
        found.paste(colours, (0, top), clear)
        top += strip.height
    return found


def _strips(picture: Image.Image) -> Iterator[Image.Image]:
    """The picture in pieces from the top, each as wide as it is."""
    rows = max(1, STRIP // picture.width)
    for top in range(0, picture.height, rows):
        yield picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _profile(content: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """What brings colours of a mode from an ICC profile to sRGB; None where they are that, or the profile is of no use."""
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(content or b""))
        space = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}[theirs.profile.xcolor_space.strip()]
        if "sRGB" in ImageCms.getProfileDescription(theirs) or (mode, space) not in {(space, space), ("L", "RGB")}:
            return None
        way = ImageCms.buildTransform(theirs, ImageCms.createProfile("sRGB"), space, "RGB")
    except Exception:  # lcms raises whatever the bytes lead it to; browsers leave such a profile out as well
        return None

    def convert(colours: Image.Image) -> Image.Image:
        found = ImageCms.applyTransform(colours.convert(space), way)
        assert found is not None
        return found

    return convert


def _scale_clear(file: Image.Image) -> None:
    """Bring the one clear value of a PNG, which Pillow leaves as stored, to the scale to which it brings the pixels."""
    clear = file.info.get("transparency")
    if file.format != "PNG" or clear is None:
        return
    assert isinstance(file, ImageFile.ImageFile)
    stored = str(file.tile[0].args) if file.tile else ""
    if file.mode == "RGB" and stored == "RGB;16B":
        raise UsageError("has colours of 16 bits and a transparent one among them: save it with 8 bits")
    if file.mode == "RGB":
        file.info["transparency"] = tuple(value & 255 for value in clear)  # the other bits say nothing
    elif file.mode == "L":
        white = {"L;2": 3, "L;4": 15}.get(stored, 255)
        file.info["transparency"] = (clear & white) * 255 // white


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
