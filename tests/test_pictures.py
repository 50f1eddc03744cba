from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from igpt.errors import UsageError
from igpt.pictures import read_picture, write_grid

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


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(levels, (64, 1))).save(tmp_path / "deep.png")
    pixels = read_picture(tmp_path / "deep.png", side=8, channels=1)[0, :, 0].astype(int)
    np.testing.assert_allclose(pixels, (np.arange(8) + 0.5) * 255 / 8, atol=4)


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png", side=4, channels=3) == 255).all()


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
    name = data.draw(st.sampled_from(["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp"]))
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
