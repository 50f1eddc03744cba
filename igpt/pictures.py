"""Read image files as arrays for the palette, and write grids of images; all processing before the palette is here."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, TiffImagePlugin, UnidentifiedImageError

from igpt.errors import UsageError
from igpt.files import file_size, write_atomically

# Pillow also logs some of the damage that it raises; without any handler, logging would print that line.
logging.getLogger("PIL").addHandler(logging.NullHandler())

Resize = Literal["crop", "squeeze"]  # of a picture of any size: its central square, or all of it; see `igpt.data.resize.fitted`
LINE = 128  # grey level of the lines between the images of a grid
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"),
)
# Pictures that are not read: their suffixes, and what to do.
OTHER_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "is HEIC, which cannot be read: save it as JPEG"),
    **dict.fromkeys((".svg", ".svgz", ".eps", ".ai", ".pdf"), "is a drawing, not pixels: export it as PNG"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2", ".raw"), "is a camera's raw file: export it as JPEG"
    ),
    **dict.fromkeys((".psd", ".xcf", ".jxl", ".tga", ".ico"), "is of a format that cannot be read: save it as PNG"),
}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")  # not EPS, for which Pillow runs Ghostscript
MOST = "IGPT_MAX_MEGAPIXELS"  # environment variable
MEGAPIXELS = 128  # the default limit; photographs of 108 exist
BYTES = 20  # of memory per pixel, the maximum over FORMATS and modes, measured: JPEG2000 20, WebP 16, PNG and CMYK 13
STORED = 8  # bytes of a file per pixel, the maximum: 16-bit RGBA
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


def decoded(
    path: Path, content: bytes | None = None, *, background: int = 255, note: Callable[[str], None] = lambda kind: None
) -> Image.Image:
    """An image file as 8-bit RGB, turned upright as EXIF says; an unreadable orientation is ignored.

    content : the file's bytes if they were read already
    background : grey level on which transparency is composited
    note : called with ``animated`` for a file of several frames

    All colour spaces are converted, by the embedded ICC profile if it can be read. The first of several frames is used. 16
    bits are reduced to 8.
    Raises UsageError for other depths (floats, signed or 32-bit integers), and for a file that is missing, empty, damaged,
    not of `FORMATS`, or larger than `opened` allows.
    """
    try:
        if not (file_size(path) if content is None else content):
            raise UsageError("is empty: copy it again")
        if path.suffix.lower() in OTHER_SUFFIXES:  # Pillow would read the thumbnail of a raw file
            raise UsageError(OTHER_SUFFIXES[path.suffix.lower()])
        with path.open("rb") if content is None else io.BytesIO(content) as stream:
            return _picture(stream, background, note)
    except UsageError as error:
        raise UsageError(f"{path} {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no file {path}: name an image file") from None
    except MemoryError:
        raise UsageError(f"{path} needs more memory than there is: reduce it first") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path} cannot be read ({reason}): name an image file that you may read") from None


def _picture(stream: IO[bytes], background: int, note: Callable[[str], None]) -> Image.Image:
    """The picture in an open file, upright, as 8-bit RGB on a grey level; raises as `opened` and `grey_levels` do."""
    with opened(stream) as file:
        _scale_clear(file)
        if isinstance(file, TiffImagePlugin.TiffImageFile):
            _check_tiff(file)
        with _muted() if file.format == "TIFF" else nullcontext():
            file.load()
        picture = _turned(file)
    if file.format in ("GIF", "WEBP", "PNG", "AVIF") and getattr(file, "is_animated", False):
        note("animated")
    with warnings.catch_warnings(action="ignore"):  # about tags, which are read lazily
        return _rgb(picture, file.info.get("icc_profile"), background)


def upright(picture: Image.Image) -> Image.Image:
    """A picture in memory as `decoded` gives one in a file: 8-bit RGB, turned upright.

    Raises UsageError, whose message lacks a name, as `decoded` does for other depths and damaged pixels.
    """
    try:
        picture.load()
        with warnings.catch_warnings(action="ignore"):  # about tags, which are read lazily
            return _rgb(_turned(picture), picture.info.get("icc_profile"), 255)
    except UsageError:
        raise
    except Exception as error:  # of a file that is read only now, in which damaged bytes make Pillow raise errors of many types
        raise UsageError(f"cannot be read ({str(error) or type(error).__name__}): open it again, or copy its file") from None


def from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    """A picture of uint8 (H, W) or (H, W, channels): grey, RGB, or RGB with transparency, which is laid on white."""
    picture = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


@contextmanager
def opened(source: IO[bytes], formats: tuple[str, ...] = FORMATS, *, advice: str = "") -> Iterator[Image.Image]:
    """Context manager: an image file, opened and not yet decoded; all files that Pillow opens are opened here.

    advice : the next step for a file that is damaged or not of ``formats``, instead of the default one

    Raises UsageError, whose message lacks the file's name: for a file of another format, for damage found here or in the
    block, for more pixels than the variable ``IGPT_MAX_MEGAPIXELS`` (by default `MEGAPIXELS`) allows, and for more bytes
    than so many pixels can take. Raises OSError when reading fails.
    """
    most, size = _most(), source.seek(0, os.SEEK_END)
    source.seek(0)
    if size > most * 1e6 * STORED:  # Pillow reads some formats whole into memory
        raise UsageError(
            f"has {size / 1e6:,.1f} MB, and up to {most * STORED:,g} MB are opened: reduce it, or {_raise(size / STORED)}"
        )
    # Pillow warns above this number, and refuses above twice as many.
    previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, int(most * 1e6 / 2)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(source, formats=formats) as file:  # about EXIF too
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
    except Exception as error:  # damaged bytes make Pillow raise errors of many types
        if isinstance(error, OSError) and error.errno:
            raise
        raise UsageError(f"is damaged ({str(error) or type(error).__name__}): {advice or 'copy it again'}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = previous


def _most() -> float:
    """The largest picture that is opened, in megapixels. Raises UsageError for an invalid environment variable."""
    value = os.environ.get(MOST) or str(MEGAPIXELS)
    try:
        most = float(value)
    except ValueError:
        most = math.nan
    if not 0 < most < math.inf:
        raise UsageError(f"was not opened, for {MOST} is {value!r}: set a number of megapixels, such as {MEGAPIXELS}")
    return most


def _raise(pixels: float) -> str:
    """Advice to raise the limit, for a picture of so many pixels."""
    return f"set {MOST}={math.ceil(pixels / 1e6)} where {BYTES * pixels / 1e9:.1f} GB of memory are free"


@contextmanager
def _muted() -> Iterator[None]:
    """Context manager: redirect file descriptor 2 to the null device, since libtiff prints there what it also raises."""
    stderr_copy, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        os.close(null)


def _turned(file: Image.Image) -> Image.Image:
    """The decoded picture turned by its EXIF orientation; unchanged if that cannot be read."""
    try:
        transposition = UPRIGHT.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow reads all of EXIF, and damaged bytes make it raise errors of many types
        transposition = None
    return file if transposition is None else file.transpose(transposition)


def grey_levels(picture: Image.Image, *, background: int = 255) -> NDArray[np.uint8]:
    """A 16-bit grey picture (its mode begins with ``I``) as uint8 (height, width); transparent pixels get the background's level.

    Raises UsageError, whose message lacks the file's name, for values outside of 16 bits.
    """
    values = np.asarray(picture)
    if not 0 <= values.min() <= values.max() < 2**16:
        raise UsageError("has values that are not unsigned integers of 16 bits: save it with 8 or 16 bits")
    levels = ((2 * values.astype(np.uint32) + 257) // 514).astype(np.uint8)  # 255 v / 65535, rounded
    transparent = picture.info.get("transparency")  # a PNG's one transparent value
    return np.where(values == transparent, np.uint8(background), levels) if isinstance(transparent, int) else levels


def _check_tiff(file: TiffImagePlugin.TiffImageFile) -> None:
    """Raise UsageError for TIFF values that Pillow cannot scale: signed, float, of odd depth, or white below the maximum."""
    try:
        tags = {tag: np.ravel(file.tag_v2.get(tag, default)) for tag, default in ((BITS, 1), (SAMPLE_FORMAT, 1))}
        bits = int(tags[BITS].max())
        white = float(np.min(file.tag_v2.get(GREATEST, 2**bits - 1)))
        deep = bits > 8 and (bits != 16 or file.tag_v2.get(PHOTOMETRIC) == 0)  # white is zero
    except Exception as error:  # Pillow reads tags lazily, and damaged bytes make it raise errors of many types
        raise UsageError(f"is damaged (tag {error}): copy it again") from None
    short = bits > 8 and not white >= 2**bits - 1
    if deep or short or np.isin(tags[SAMPLE_FORMAT], (2, 3, 5, 6)).any():
        raise UsageError("has values that are not unsigned integers of their whole range: save it with 8 or 16 bits")


def _rgb(picture: Image.Image, icc: bytes | None, background: int) -> Image.Image:
    """The picture as 8-bit RGB, with transparency composited on a grey level; raises as `grey_levels` does."""
    if picture.mode == "F":
        raise UsageError("has floats, and does not say which are black and white: save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        picture = Image.fromarray(grey_levels(picture, background=background))
    base = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}.get(picture.mode, "RGB")
    profile = _profile(icc, base)
    if picture.mode == "RGB" and profile is None and not picture.has_transparency_data:
        return picture
    whole = picture.convert("LA") if picture.mode == "La" else picture
    alpha = whole.convert("RGBA").getchannel("A") if whole.has_transparency_data else None
    colours = whole.convert(base)
    colours = colours.convert("RGB") if profile is None else profile(colours)
    composited = Image.new("RGB", picture.size, (background, background, background))
    composited.paste(colours, (0, 0), alpha)
    return composited


def _profile(content: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """The conversion from an ICC profile to sRGB; None if the profile is sRGB already or cannot be used."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content or b""))
        space = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}[profile.profile.xcolor_space.strip()]
        if "sRGB" in ImageCms.getProfileDescription(profile) or (mode, space) not in {(space, space), ("L", "RGB")}:
            return None
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), space, "RGB")
    except Exception:  # damaged bytes make lcms raise errors of many types; browsers ignore such a profile too
        return None

    def convert(colours: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(colours.convert(space), transform)
        assert converted is not None
        return converted

    return convert


def _scale_clear(file: Image.Image) -> None:
    """Scale a PNG's one transparent value as Pillow scales the pixels; Pillow leaves that value as stored."""
    transparent = file.info.get("transparency")
    if file.format != "PNG" or transparent is None:
        return
    assert isinstance(file, ImageFile.ImageFile)
    stored = str(file.tile[0].args) if file.tile else ""
    if file.mode == "RGB" and stored == "RGB;16B":  # many colours have its upper bytes
        raise UsageError("has 16-bit colours and a transparent one among them: save it with 8 bits")
    if file.mode == "RGB":
        file.info["transparency"] = tuple(value & 255 for value in transparent)
    elif file.mode == "L":
        white = {"L;2": 3, "L;4": 15}.get(stored, 255)
        file.info["transparency"] = (transparent & white) * 255 // white


def check_png(path: Path) -> None:
    """Raise UsageError for a name that does not end in ``.png``."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"images are written as PNG, not as {path.name}: name a file that ends in .png")


def check_not_given(out: Path, given: Iterable[Path]) -> None:
    """Raise UsageError for a file to write that is one of the pictures given."""
    if out.resolve() in {path.resolve() for path in given}:
        raise UsageError(f"{out} is one of the given pictures, and would be replaced: name another file with --out")


def write_grid(path: Path, rows: Sequence[Sequence[NDArray[np.uint8]]], *, scale: int) -> None:
    """Write rows of images, uint8 (side, side, channels), as one PNG with each pixel ``scale`` pixels wide, atomically."""
    side, _, channels = rows[0][0].shape
    shape = (len(rows) * (side + 1) + 1, max(map(len, rows)) * (side + 1) + 1, channels)
    grid = np.full(shape, LINE, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (side + 1) + 1, x * (side + 1) + 1
            grid[top : top + side, left : left + side] = image
    picture = Image.fromarray(grid[..., 0] if channels == 1 else grid)
    with write_atomically(path) as stream:
        picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST).save(stream, "PNG")
