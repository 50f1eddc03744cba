from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, random_model
from conftest import igpt_here as igpt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from igpt.errors import UsageError
from igpt.palette import Palette
from igpt.pictures import read_picture, write_grid
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
        packed = struct.pack(order + {short: "H", long: "I", double: "d"}[code] * len(values), *values)
        if len(packed) > 4:
            more, packed = more + packed, struct.pack(order + "I", after + len(more))
        directory += struct.pack(order + "HHI", tag, code, len(values)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at)
    content = head + data + b"\0" * (len(data) % 2) + struct.pack(order + "H", len(entries)) + directory + b"\0" * 4 + more
    path.write_bytes(content)


def png(path: Path, rows: bytes, *, size: tuple[int, int], colour_type: int, chunks: dict[bytes, bytes] | None = None) -> None:
    """A PNG of 16 bits, chunk by chunk; ``rows`` are samples in big-endian order without the filter's bytes."""
    width, height = size
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
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
@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        (np.round(RAMP * 65535).astype(np.uint16), {}),
        (np.round(RAMP * 4095).astype(np.uint16), {"least": 0, "greatest": 4095}),
        (np.round(RAMP * 60000 - 30000).astype(np.int16), {"least": -30000, "greatest": 30000}),
        (np.round(RAMP * 1e6 - 4e5).astype(np.int32), {"least": -4e5, "greatest": 6e5}),
        (np.round(RAMP * 4294967295).astype(np.uint32), {"least": 0, "greatest": 4294967295}),
        (RAMP.astype(np.float32), {}),
        ((RAMP * 255).astype(np.float32), {"least": 0, "greatest": 255}),
        ((RAMP * 3 - 2).astype(np.float32), {"least": -2, "greatest": 1}),
    ],
)
@pytest.mark.parametrize("photometric", [0, 1])  # white is zero, black is zero
def test_grey_of_more_than_eight_bits_is_scaled_by_what_the_file_says(
    tmp_path: Path, pixels: np.ndarray, tags: dict[str, float], order: str, photometric: int
) -> None:
    write_tiff(tmp_path / "a.tif", pixels, order=order, photometric=photometric, **tags)
    try:
        found = grey(tmp_path / "a.tif")
    except UsageError as error:
        assert photometric == 0 or (pixels.dtype == np.uint32 and order == ">")  # which Pillow does not read
        assert "is not an image that can be read" in str(error)
        return
    expected = np.rint(255 * RAMP)
    np.testing.assert_allclose(found, expected if photometric else 255 - expected, atol=1)


def test_twelve_bits_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    levels = np.round(RAMP * 4095).astype(int)
    pairs = levels.reshape(8, 4, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).reshape(8, 12)
    write_tiff(tmp_path / "a.tif", packed, bits=12, width=8)
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), np.rint(255 * RAMP), atol=1)


@pytest.mark.parametrize(
    ("pixels", "tags", "message"),
    [
        (RAMP * 255, {}, "has floats from 0 to 255, and does not say which are black and white"),
        (RAMP - 0.5, {}, r"has floats from -0\.5 to 0\.5"),
        (np.where(RAMP > 0.5, np.nan, RAMP), {}, "has NaN or infinite values"),
        (np.where(RAMP > 0.5, np.inf, RAMP), {"least": 0, "greatest": 1}, "has NaN or infinite values"),
        (RAMP, {"least": 1, "greatest": 1}, r"no valid range from black \(1\) to white \(1\)"),
        (RAMP, {"least": 0, "greatest": float("nan")}, r"no valid range from black \(0\) to white \(nan\)"),
        (np.round(RAMP * 32767).astype(np.int16), {}, "has signed or 32-bit integers"),
        (np.round(RAMP * 255).astype(np.int32), {}, "has signed or 32-bit integers"),
        (np.round(RAMP * 255).astype(np.uint32), {}, "has signed or 32-bit integers"),
        (np.round(RAMP * 127).astype(np.int8), {}, "has signed values"),
    ],
)
def test_values_without_a_known_black_and_white_are_refused(
    tmp_path: Path, pixels: np.ndarray, tags: dict[str, float], message: str
) -> None:
    write_tiff(tmp_path / "a.tif", pixels.astype(np.float32) if pixels.dtype == float else pixels, **tags)
    with pytest.raises(UsageError, match=message) as caught:
        grey(tmp_path / "a.tif")
    assert str(caught.value).startswith(str(tmp_path / "a.tif"))
    assert "\n" not in str(caught.value)


def test_floats_of_other_formats_follow_the_same_rule(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.pfm")
    np.testing.assert_allclose(grey(tmp_path / "a.pfm"), np.rint(255 * RAMP), atol=1)
    Image.fromarray((RAMP * 2).astype(np.float32)).save(tmp_path / "b.pfm")
    with pytest.raises(UsageError, match="has floats from 0 to 2"):
        grey(tmp_path / "b.pfm")


@pytest.mark.parametrize("greatest", [65535, 1023, 255])
def test_a_portable_greymap_is_scaled_by_its_own_maximum(tmp_path: Path, greatest: int) -> None:
    levels = np.round(RAMP * greatest).astype(">u2" if greatest > 255 else np.uint8)
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 %d\n" % greatest + levels.tobytes())
    np.testing.assert_allclose(grey(tmp_path / "a.pgm"), np.rint(255 * RAMP), atol=1)


def test_integers_of_an_astronomers_file_are_refused(tmp_path: Path) -> None:
    cards = ("SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2",
             "NAXIS1  =                    8", "NAXIS2  =                    8", "END")  # fmt: skip
    head = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    (tmp_path / "a.fits").write_bytes(head + np.zeros((8, 8), ">i2").tobytes().ljust(2880, b"\0"))
    with pytest.raises(UsageError, match="has signed or 32-bit integers"):
        grey(tmp_path / "a.fits")


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
    done = igpt("complete", "a.tif", "--model", "weights", root=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "igpt: a.tif is not an image that can be read: give a PNG, a JPEG or the like\n"


def test_a_float_picture_that_cannot_be_scaled_ends_complete_with_one_sentence_and_no_file(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", (RAMP * 255).astype(np.float32))
    save_weights(tmp_path / "weights", random_model(ModelShape(1, 8, 1, 4, 4)), GREYS)
    done = igpt("complete", "a.tif", "--model", "weights", "--out", "b.png", root=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("igpt: a.tif has floats from 0 to 255")
    assert not (tmp_path / "b.png").exists()


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(levels, (64, 1))).save(tmp_path / "deep.png")
    pixels = read_picture(tmp_path / "deep.png", side=8, channels=1)[0, :, 0].astype(int)
    np.testing.assert_allclose(pixels, (np.arange(8) + 0.5) * 255 / 8, atol=4)


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
        (b"", "is not an image"),
        (b"some words", "is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_picture(tmp_path / "a.png", side=8, channels=3)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_picture(tmp_path / "none.png", side=8, channels=3)
    with pytest.raises(UsageError, match="is a folder"):
        read_picture(tmp_path, side=8, channels=3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_cut_image_is_refused(tmp_path: Path, name: str) -> None:
    gradient("RGB", (200, 200)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="is damaged"):
        read_picture(tmp_path / name, side=8, channels=3)


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient("RGB", (200, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match="too many pixels"):
        read_picture(tmp_path / "a.png", side=8, channels=3)


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


def test_grey_that_names_its_white_alone_is_scaled_from_zero(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", np.array([[0, 4095], [2048, 1024]], np.uint16), greatest=4095)
    assert read_picture(tmp_path / "a.tif", side=2, channels=1)[..., 0].tolist() == [[0, 255], [128, 64]]


def test_colours_of_16_bits_in_the_lower_part_of_their_range_are_refused(tmp_path: Path) -> None:
    pixels = np.full((2, 2, 3), 4095, np.uint16)
    write_tiff(tmp_path / "a.tif", pixels, photometric=2, least=0, greatest=4095)
    with pytest.raises(UsageError, match="a.tif has colours of 16 bits that reach 4095 only"):
        read_picture(tmp_path / "a.tif", side=2, channels=3)
