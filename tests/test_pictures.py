from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, igpt_here, random_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from igpt.data.folders import read_picture
from igpt.errors import UsageError
from igpt.palette import Palette
from igpt.pictures import opened, write_grid
from igpt.shape import ModelShape
from igpt.weights.own import save_weights

SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample"


def gradient(mode: str, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A picture that is dark on the left and light on the right."""
    levels = np.tile(np.linspace(20, 235, size[0]), (size[1], 1)).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB").convert(mode)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGB", "a.png"), ("L", "a.png"), ("P", "a.png"), ("1", "a.png"), ("RGBA", "a.png"), ("LA", "a.png"), ("RGB", "a.jpg"),
     ("L", "a.jpg"), ("CMYK", "a.jpg"), ("RGB", "a.webp"), ("RGB", "a.bmp"), ("RGB", "a.gif")],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_any_kind_of_image_becomes_a_square_of_pixels(tmp_path: Path, mode: str, name: str, channels: int) -> None:
    gradient(mode).save(tmp_path / name)
    pixels = read_picture(tmp_path / name, side=8, channels=channels)
    assert pixels.shape == (8, 8, channels)
    assert pixels.dtype == np.uint8
    if mode != "1":
        assert pixels[:, 0].mean() + 60 < pixels[:, -1].mean()


def write_tiff(path: Path, pixels: np.ndarray, *, photometric: int = 1, order: str = "<", bits: int = 0, **tags: object) -> None:
    """An uncompressed TIFF of (height, width) or (height, width, samples), byte by byte, as its specification says.

    bits : other than those of the pixels' type, which are then packed already, (height, bytes a row)
    tags : sample_format; least and greatest, as doubles; extra, for the sample beyond the colours
    """
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    height, width, samples = (*pixels.shape, 1)[:3]
    width = int(tags.pop("width", width))
    bits = bits or 8 * pixels.dtype.itemsize
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    short, long, double = 3, 4, 12
    entries: dict[int, tuple[int, list[float]]] = {
        256: (long, [width]),
        257: (long, [height]),
        258: (short, [bits] * samples),
        259: (short, [1]),
        262: (short, [photometric]),
        273: (long, [8]),
        277: (short, [samples]),
        278: (long, [height]),
        279: (long, [len(data)]),
        339: (short, [kind] * samples),
    }
    if "extra" in tags:
        entries[338] = (short, [int(str(tags["extra"]))])
    for name, tag in (("least", 340), ("greatest", 341)):
        if name in tags:
            entries[tag] = (double, [float(str(tags[name]))])
    at = 8 + len(data) + len(data) % 2
    after, directory, more = at + 2 + 12 * len(entries) + 4, b"", b""
    for tag, (code, values) in sorted(entries.items()):
        prepacked = struct.pack(order + {short: "H", long: "I", double: "d"}[code] * len(values), *values)
        if len(prepacked) > 4:
            more, prepacked = more + prepacked, struct.pack(order + "I", after + len(more))
        directory += struct.pack(order + "HHI", tag, code, len(values)) + prepacked.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at)
    content = head + data + b"\0" * (len(data) % 2) + struct.pack(order + "H", len(entries)) + directory + b"\0" * 4 + more
    path.write_bytes(content)


def png(
    path: Path,
    rows: bytes,
    *,
    size: tuple[int, int],
    colour_type: int,
    chunks: dict[bytes, bytes] | None = None,
    bits: int = 16,
) -> None:
    """A PNG, chunk by chunk; ``rows`` are samples packed as the format says, without the filter's bytes."""
    width, height = size
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    found = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", head), *(chunks or {}).items(), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")):
        found += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    path.write_bytes(found)


GREYS = Palette(np.linspace(-1, 1, 4, dtype=np.float32)[:, None])
RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def grey(path: Path) -> np.ndarray:
    """The pixels of a picture of 8 by 8, which is not resampled."""
    return read_picture(path, side=8, channels=1)[..., 0].astype(int)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_grey_tiff_of_sixteen_bits_is_scaled(tmp_path: Path, order: str) -> None:
    write_tiff(tmp_path / "a.tif", np.round(RAMP * 65535).astype(np.uint16), order=order)
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), np.rint(255 * RAMP), atol=1)


SIXTEEN = np.round(RAMP * 65535).astype(np.uint16)
OTHER_DEPTHS: dict[str, tuple[np.ndarray, dict[str, float]]] = {
    "floats": (RAMP.astype(np.float32), {}),
    "signed": (np.round(RAMP * 32767).astype(np.int16), {}),
    "signed bytes": (np.round(RAMP * 127).astype(np.int8), {}),
    "32 bits": (np.round(RAMP * 255).astype(np.int32), {}),
    "32 bits without sign": (np.round(RAMP * 255).astype(np.uint32), {}),
    "another white": (np.round(RAMP * 4095).astype(np.uint16), {"least": 0, "greatest": 4095}),
    "no white": (SIXTEEN, {"greatest": float("nan")}),
    "white is zero": (SIXTEEN, {"photometric": 0}),
    "twelve bits": (np.zeros((8, 12), np.uint8), {"bits": 12, "width": 8}),
    "dark colours": (np.full((8, 8, 3), 4095, np.uint16), {"photometric": 2, "greatest": 4095}),
}


@pytest.mark.parametrize(("pixels", "tags"), OTHER_DEPTHS.values(), ids=OTHER_DEPTHS.keys())
def test_values_that_pillow_does_not_scale_are_refused(tmp_path: Path, pixels: np.ndarray, tags: dict[str, float]) -> None:
    write_tiff(tmp_path / "a.tif", pixels, **tags)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"a\.tif has values that are not unsigned integers of their whole range"):
        grey(tmp_path / "a.tif")
    with pytest.raises(UsageError, match=r"a\.pfm has floats"):
        Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.pfm")
        grey(tmp_path / "a.pfm")


@pytest.mark.parametrize("greatest", [65535, 1023, 255])
def test_a_portable_greymap_is_scaled_by_its_own_maximum(tmp_path: Path, greatest: int) -> None:
    levels = np.round(RAMP * greatest).astype(">u2" if greatest > 255 else np.uint8)
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 %d\n" % greatest + levels.tobytes())
    np.testing.assert_allclose(grey(tmp_path / "a.pgm"), np.rint(255 * RAMP), atol=1)


def test_a_png_of_sixteen_bits_is_scaled_in_every_kind_of_colour(tmp_path: Path) -> None:
    sixteen = np.round(RAMP * 65535).astype(">u2")
    clear = struct.pack(">H", int(sixteen[3, 3]))
    png(tmp_path / "grey.png", sixteen.tobytes(), size=(8, 8), colour_type=0)
    np.testing.assert_allclose(grey(tmp_path / "grey.png"), np.rint(255 * RAMP), atol=1)
    png(tmp_path / "clear.png", sixteen.tobytes(), size=(8, 8), colour_type=0, chunks={b"tRNS": clear})
    expected = np.rint(255 * RAMP)
    expected[3, 3] = 255  # laid on white
    np.testing.assert_allclose(grey(tmp_path / "clear.png"), expected, atol=1)

    colours = np.stack([sixteen, sixteen[::-1], sixteen.T], axis=-1).astype(">u2")
    png(tmp_path / "rgb.png", colours.tobytes(), size=(8, 8), colour_type=2)
    found = read_picture(tmp_path / "rgb.png", side=8, channels=3).astype(int)
    np.testing.assert_allclose(found, colours / 257, atol=1)
    for colour_type, samples in ((4, [sixteen]), (6, [sixteen, sixteen[::-1], sixteen.T])):
        alpha = np.full((8, 8), 65535, ">u2")
        alpha[:4] = 0
        png(
            tmp_path / "a.png", np.stack([*samples, alpha], axis=-1).astype(">u2").tobytes(), size=(8, 8), colour_type=colour_type
        )
        found = read_picture(tmp_path / "a.png", side=8, channels=3).astype(int)
        assert (found[:4] == 255).all()
        np.testing.assert_allclose(found[4:, :, 0], sixteen[4:] / 257, atol=1)


def test_colours_of_sixteen_bits_in_a_tiff_are_scaled(tmp_path: Path) -> None:
    colours = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
    for order in "<>":
        write_tiff(tmp_path / "a.tif", np.round(colours * 65535).astype(np.uint16), photometric=2, order=order)
        found = read_picture(tmp_path / "a.tif", side=8, channels=3).astype(int)
        np.testing.assert_allclose(found, 255 * colours, atol=1)


@pytest.mark.parametrize("extra", [1, 2])  # premultiplied by alpha, and not
def test_a_grey_tiff_with_alpha_is_laid_on_white(tmp_path: Path, extra: int) -> None:
    level, alpha = 60, 128
    stored = round(level * alpha / 255) if extra == 1 else level
    write_tiff(tmp_path / "a.tif", np.full((8, 8, 2), (stored, alpha), np.uint8), extra=extra)
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), 255 + (level - 255) * alpha / 255, atol=2)


def test_a_tiff_in_lab_has_the_colours_that_it_names(tmp_path: Path) -> None:
    red = (54, 81, 70)  # of sRGB's red: lightness in percent, a, b
    write_tiff(tmp_path / "a.tif", np.full((8, 8, 3), (round(red[0] * 2.55), red[1], red[2]), np.uint8), photometric=8)
    found = read_picture(tmp_path / "a.tif", side=8, channels=3).astype(int)
    np.testing.assert_allclose(found, np.broadcast_to((255, 0, 0), found.shape), atol=12)


def test_of_several_frames_the_first_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (40, 200)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(grey(tmp_path / name), 40, atol=3)


def test_a_deep_tiff_is_turned_upright(tmp_path: Path) -> None:
    levels = np.round(RAMP * 65535).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(levels).save(tmp_path / "a.tif", exif=exif)
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), np.rint(255 * RAMP)[::-1, ::-1], atol=1)


def test_a_damaged_tiff_ends_complete_with_one_sentence_only(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", np.zeros((8, 8, 9), np.uint8))  # Pillow logs that it has too many samples
    save_weights(tmp_path / "weights", random_model(ModelShape(1, 8, 1, 4, 4)), GREYS)
    done = igpt_here("complete", "a.tif", "--model", "weights", root=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "igpt: a.tif is not an image that can be read: give a PNG, a JPEG or the like\n"


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png", side=4, channels=3) == 255).all()


@pytest.mark.parametrize(("mode", "colour"), [("P", 1), ("L", 9), ("1", 0), ("RGB", (9, 9, 9))])
def test_the_one_clear_colour_of_a_png_is_white(tmp_path: Path, mode: str, colour: int | tuple[int, ...]) -> None:
    picture = Image.new(mode, (8, 8), colour)
    if mode == "P":
        picture.putpalette([0, 0, 0, 200, 60, 20])
    picture.save(tmp_path / "opaque.png")
    assert (read_picture(tmp_path / "opaque.png", side=4, channels=3) != 255).all()
    picture.save(tmp_path / "clear.png", transparency=colour)
    assert (read_picture(tmp_path / "clear.png", side=4, channels=3) == 255).all()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("YCbCr", (200, 60, 20)), ("CMYK", (200, 60, 20)), ("LAB", (200, 60, 20)), ("LA", (97, 97, 97)), ("L", (97, 97, 97))],
)
def test_a_tiff_of_every_colour_space_has_its_colours(tmp_path: Path, mode: str, expected: tuple[int, ...]) -> None:
    Image.new("RGB", (8, 8), (200, 60, 20)).convert(mode).save(tmp_path / "a.tif")
    found = read_picture(tmp_path / "a.tif", side=8, channels=3).astype(int)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=2)


def test_the_central_square_is_taken_upright(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    wide[:5, 20:40] = 255  # the upper edge
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: shown, its left edge is on top
    Image.fromarray(np.rot90(wide)).save(tmp_path / "turned.png", exif=exif)
    pixels = read_picture(tmp_path / "turned.png", side=4, channels=1)[..., 0]
    assert pixels.min() > 150
    assert pixels[0].mean() > pixels[1:].mean() + 30


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", side=8, channels=3), levels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.png is empty: copy it again"),
        (b"\x89PNG\r\n\x1a\n", "is not an image|is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is not an image"),
        (b"some words", "is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_picture(tmp_path / "a.png", side=8, channels=3)


def test_what_cannot_be_opened_is_refused_with_what_is_so(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UsageError) as caught:
            read_picture(path, side=8, channels=3)
        assert "\n" not in str(caught.value) and "again" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "a.png").write_bytes(b"words")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "there is no file" in refused(tmp_path / "none.png")
    assert "there is no file" in refused(tmp_path / "a.png" / "b.png")
    assert "cannot be read (it is a folder)" in refused(tmp_path)
    assert "loop.png cannot be read (Too many levels of symbolic links)" in refused(tmp_path / "loop.png")
    assert "pipe.png cannot be read (it is no regular file)" in refused(tmp_path / "pipe.png")


def test_a_postscript_file_is_not_run_and_other_rare_formats_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = tmp_path / "bin" / "gs"
    witness.parent.mkdir()
    witness.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    witness.chmod(0o755)
    monkeypatch.setenv("PATH", f"{witness.parent}:{os.environ['PATH']}")
    for kind in ("EPS", "ICO", "SGI", "TGA", "PDF"):
        gradient("RGB").save(tmp_path / "a.jpg", kind)
        with pytest.raises(UsageError, match=r"a\.jpg is not an image that can be read"):
            read_picture(tmp_path / "a.jpg", side=8, channels=3)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_cut_image_is_refused(tmp_path: Path, name: str) -> None:
    gradient("RGB", (200, 200)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="is damaged"):
        read_picture(tmp_path / name, side=8, channels=3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.jp2"])
def test_a_picture_of_too_many_pixels_is_refused_with_the_way_to_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, name: str
) -> None:
    gradient("RGB", (200, 200)).save(tmp_path / name)
    before = read_picture(tmp_path / name, side=8, channels=3)
    monkeypatch.setenv("IGPT_MAX_MEGAPIXELS", "0.039")
    with pytest.raises(UsageError, match=rf"{name} has 0\.0 million pixels, .* set IGPT_MAX_MEGAPIXELS=1 where 0\.0 GB"):
        read_picture(tmp_path / name, side=8, channels=3)
    monkeypatch.setenv("IGPT_MAX_MEGAPIXELS", "1")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of which Pillow would warn, and refuse 200
    np.testing.assert_array_equal(read_picture(tmp_path / name, side=8, channels=3), before)
    assert Image.MAX_IMAGE_PIXELS == 100 and not recwarn.list


@pytest.mark.parametrize(
    "head", [b"RIFF\xf6\xff\xff\xffWEBPVP8 ", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", b"\x89PNG\r\n\x1a\n"]
)
def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a").write_bytes(head)
    os.truncate(tmp_path / "a", 2**40)  # more than can be read
    with pytest.raises(
        UsageError, match=r"a has 1,099,511\.6 MB, and up to 1,024 MB are opened: .* set IGPT_MAX_MEGAPIXELS=137439 "
    ):
        read_picture(tmp_path / "a", side=8, channels=3)


def test_the_limit_of_bytes_is_that_of_pixels_also_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    gradient("L").save(stream, "PNG")
    monkeypatch.setenv("IGPT_MAX_MEGAPIXELS", "0.0024")  # of 60 by 40
    with opened(stream) as file:
        assert file.size == (60, 40)
    stream.seek(0, os.SEEK_END)
    stream.write(bytes(8 * 2400))
    with pytest.raises(UsageError, match=r"has 0\.0 MB, and up to 0\.0192 MB"), opened(stream):
        pass


@pytest.mark.parametrize("words", ["many", "-1", "0", "nan", "inf", "1 000"])
def test_a_limit_that_is_no_number_of_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    gradient("RGB").save(tmp_path / "a.png")
    monkeypatch.setenv("IGPT_MAX_MEGAPIXELS", words)
    with pytest.raises(UsageError, match=f"IGPT_MAX_MEGAPIXELS is '{words}': set a number of megapixels, such as 128"):
        read_picture(tmp_path / "a.png", side=8, channels=3)


def test_a_png_of_178_megapixels_is_refused_and_one_of_108_is_read_in_silence(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights", random_model(ModelShape(1, 8, 1, 4, 4)), GREYS)
    for name, size in (("large.png", (13350, 13340)), ("photo.png", (12000, 9000))):
        png(tmp_path / name, bytes(size[1] * -(-size[0] // 8)), size=size, colour_type=0, bits=1)
    done = igpt_here("complete", "large.png", "--model", "weights", root=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "igpt: large.png has 178.1 million pixels, and up to 128 million are opened: reduce it, or set"
        " IGPT_MAX_MEGAPIXELS=179 where 3.6 GB of memory are free\n",
    )
    done = igpt_here("complete", "photo.png", "--model", "weights", "--n", "1", root=tmp_path)
    assert done.returncode == 0 and "arning" not in done.stderr and (tmp_path / "completions.png").exists()


ORIENTED = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # an entry of EXIF: turned
DAMAGED = {  # EXIF's directory with its entries, and whether the orientation in it can be read
    "a rational of -1/0": (2, ORIENTED + struct.pack("<HHII", 0x9204, 10, 1, 38) + bytes(4) + struct.pack("<ii", -1, 0), True),
    "a resolution of 1/0": (2, ORIENTED + struct.pack("<HHII", 0x011A, 5, 1, 38) + bytes(4) + struct.pack("<II", 1, 0), True),
    "an orientation of -1/0": (1, struct.pack("<HHII", 0x0112, 10, 1, 26) + bytes(4) + struct.pack("<ii", -1, 0), False),
    "an orientation of 9": (1, struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0) + bytes(4), False),
    "an orientation in words": (1, struct.pack("<HHI4s", 0x0112, 2, 4, b"six\0") + bytes(4), False),
    "values beyond the end": (1, struct.pack("<HHII", 0x0112, 3, 900000, 1 << 30) + bytes(4), False),
    "a directory in itself": (2, struct.pack("<HHII", 0x8769, 4, 1, 8) + ORIENTED + bytes(4), True),
    "no end": (9, ORIENTED[:6], False),
}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize(("count", "entries", "readable"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_picture_with_damaged_exif_is_opened(tmp_path: Path, name: str, count: int, entries: bytes, readable: bool) -> None:
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, count) + entries
    corners = np.repeat(np.repeat(np.uint8([[10, 80], [160, 240]]), 16, 0), 16, 1)
    options = {"exif": exif, "quality": 95}
    Image.fromarray(corners).convert("RGB").save(tmp_path / name, **options)
    found = read_picture(tmp_path / name, side=8, channels=1)[[0, 0, -1, -1], [0, -1, 0, -1], 0]
    np.testing.assert_allclose(found.astype(int), [160, 10, 240, 80] if readable else [10, 80, 160, 240], atol=8)


@pytest.mark.parametrize("tag", ["resolution", "orientation"])
def test_a_tiff_with_a_rational_of_one_by_zero_is_opened(tmp_path: Path, tag: str) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    number = {"resolution": 282, "orientation": 274}[tag]
    info.tagtype[number], info[number] = 5, TiffImagePlugin.IFDRational(7919, 13)
    Image.fromarray(np.uint8(255 * RAMP)).save(tmp_path / "a.tif", tiffinfo=info)
    content = (tmp_path / "a.tif").read_bytes()
    assert struct.pack("<II", 7919, 13) in content
    (tmp_path / "a.tif").write_bytes(content.replace(struct.pack("<II", 7919, 13), struct.pack("<II", 1, 0)))
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), 255 * RAMP, atol=1)


def test_a_tiff_whose_tags_are_damaged_is_one_sentence_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    write_tiff(tmp_path / "a.tif", np.full((8, 8, 3), 90, np.uint8), photometric=2)
    content = (tmp_path / "a.tif").read_bytes()
    entry = struct.pack("<HHI", 339, 3, 3)  # of a format a sample, with its values elsewhere: now beyond the end
    assert content.count(entry) == 1
    at = content.index(entry) + 8
    (tmp_path / "a.tif").write_bytes(content[:at] + struct.pack("<I", 1 << 20) + content[at + 4 :])
    try:
        assert (read_picture(tmp_path / "a.tif", side=8, channels=3) == 90).all()
    except UsageError as error:
        assert "a.tif is damaged (" in str(error) and "\n" not in str(error)
    assert not recwarn.list


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_nothing_is_printed_of_a_cut_tiff_beside_the_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], compression: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.tif", compression=compression)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[500:4000] = bytes(3500)
    (tmp_path / "a.tif").write_bytes(content)
    try:
        read_picture(tmp_path / "a.tif", side=8, channels=3)
    except UsageError as error:
        assert "a.tif is damaged (" in str(error)
    else:
        assert compression == "packbits"  # whose zeros are colours
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("noise", [0, 0x4000])  # beyond the bits that count
def test_a_grey_png_of_few_bits_has_its_levels_and_its_clear_one(tmp_path: Path, bits: int, noise: int) -> None:
    white = 2**bits - 1
    values = np.arange(64).reshape(8, 8) % (white + 1)
    prepacked = np.packbits(np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -bits:].reshape(8, -1), axis=-1)
    png(tmp_path / "a.png", prepacked.tobytes(), size=(8, 8), colour_type=0, bits=bits)
    expected = values * 255 // white
    np.testing.assert_array_equal(grey(tmp_path / "a.png"), expected)
    clear = 1 if bits > 1 else 0
    chunk = {b"tRNS": struct.pack(">H", clear | (noise if bits > 1 else 0))}
    png(tmp_path / "a.png", prepacked.tobytes(), size=(8, 8), colour_type=0, bits=bits, chunks=chunk)
    np.testing.assert_array_equal(grey(tmp_path / "a.png"), np.where(values == clear, 255, expected))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("alpha", [b"\x00", b"\xff\x80", b"\xff\x00"])
def test_a_palette_png_is_laid_on_white_as_its_table_says(tmp_path: Path, bits: int, alpha: bytes) -> None:
    table = np.uint8([[10, 20, 30], [200, 100, 50]])
    values = np.indices((8, 8)).sum(0) % 2
    prepacked = np.packbits(np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -bits:].reshape(8, -1), axis=-1)
    chunks = {b"PLTE": table.tobytes(), b"tRNS": alpha}
    png(tmp_path / "a.png", prepacked.tobytes(), size=(8, 8), colour_type=3, bits=bits, chunks=chunks)
    opaque = np.frombuffer(alpha.ljust(2, b"\xff"), np.uint8)[:, None] / 255
    expected = (opaque * table + (1 - opaque) * 255)[values]
    np.testing.assert_allclose(read_picture(tmp_path / "a.png", side=8, channels=3), expected, atol=1)


def test_a_clear_colour_of_eight_bits_is_white_and_of_sixteen_is_refused(tmp_path: Path) -> None:
    colours = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    chunk = {b"tRNS": struct.pack(">HHH", *(value | 0x700 for value in (3, 4, 5)))}
    png(tmp_path / "a.png", colours.tobytes(), size=(8, 8), colour_type=2, bits=8, chunks=chunk)
    expected = colours.copy()
    expected[0, 1] = 255
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", side=8, channels=3), expected)
    png(tmp_path / "a.png", colours.astype(">u2").tobytes(), size=(8, 8), colour_type=2, chunks=chunk)
    with pytest.raises(UsageError, match="has 16-bit colours and a transparent one among them: save it with 8 bits"):
        read_picture(tmp_path / "a.png", side=8, channels=3)


def icc(power: float, name: str = "of a test", *, grey: bool = False) -> bytes:
    """An ICC profile with sRGB's primaries, or grey, whose levels are light to a power."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    white = (0.9642, 1, 0.8249)
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(power * 256)) + bytes(2)
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, len(name) + 1) + name.encode() + bytes(79),
        b"wtpt": b"XYZ " + bytes(4) + fixed(*white),
    }
    if grey:
        tags[b"kTRC"] = curve
    else:
        primaries = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
        tags |= {b"%cXYZ" % c: b"XYZ " + bytes(4) + fixed(*xyz) for c, xyz in zip(b"rgb", primaries, strict=True)}
        tags |= {b"%cTRC" % c: curve for c in b"rgb"}
    index, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        index += tag + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(
        ">I4sI4s4s4s12s4s",
        at + len(body),
        b"lcms",
        0x02400000,
        b"mntr",
        b"GRAY" if grey else b"RGB ",
        b"XYZ ",
        bytes(12),
        b"acsp",
    )
    return (head + bytes(28) + fixed(*white)).ljust(128, b"\0") + index + body


@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "LA", "P", "L in RGB"])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_colours_are_brought_from_the_files_icc_profile_to_srgb(tmp_path: Path, kind: str, name: str) -> None:
    mode = kind.split(maxsplit=1)[0]
    if name == "a.webp" and mode not in ("RGB", "RGBA"):
        pytest.skip("WebP has colours only")
    picture = Image.new("L", (8, 8), 100).convert(mode)
    picture.save(tmp_path / name, icc_profile=icc(1, grey=kind in ("L", "LA")), lossless=True)
    light = 100 / 255  # of a profile of power 1; sRGB's level of it, by its definition
    expected = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(read_picture(tmp_path / name, side=8, channels=3), expected, atol=2)


@pytest.mark.parametrize("profile", [b"", b"words", icc(1)[:200], icc(1, "sRGB IEC61966-2.1"), icc(1, grey=True)])
def test_a_profile_that_is_damaged_or_anothers_or_srgb_changes_nothing(tmp_path: Path, profile: bytes) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", side=8, channels=3), levels)


def test_of_a_stereo_photograph_the_first_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), (level, level, level)) for level in (40, 200)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.jpg") as file:
        assert file.format == "MPO"
    np.testing.assert_allclose(grey(tmp_path / "a.jpg"), 40, atol=2)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_image_is_read_or_refused_and_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tif"]))
    gradient("RGB").save(tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content)
    try:
        assert read_picture(tmp_path / name, side=4, channels=3).shape == (4, 4, 3)
    except UsageError as error:
        assert name in str(error)


def test_real_photographs_of_every_kind_are_read() -> None:
    photos = sorted(SAMPLE.glob("*.JPEG"))
    if not photos:
        pytest.skip("the sample of ImageNet photographs lies outside the project and is not here")
    assert len(photos) == 41
    for photo in photos:
        assert read_picture(photo, side=32, channels=3).std() > 5, photo


def test_a_grid_has_every_image_at_its_place(tmp_path: Path) -> None:
    images = [np.full((2, 2, 3), shade, np.uint8) for shade in (10, 60, 110)]
    write_grid(tmp_path / "g.png", [images[:2], images[2:]], scale=2)
    sheet = np.asarray(Image.open(tmp_path / "g.png"))[::2, ::2, 0]
    assert sheet.shape == (7, 7)
    assert (sheet[1:3, 1:3] == 10).all()
    assert (sheet[1:3, 4:6] == 60).all()
    assert (sheet[4:6, 1:3] == 110).all()
    assert (sheet[0] == 128).all()
