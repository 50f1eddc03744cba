from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from official import pictures, refusal
from PIL import Image

from igpt.data.resize import FILTERS, centre_crop, fitted, random_crop, reduced

SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample"


def smooth(width: int, height: int) -> Image.Image:
    """A picture with some detail: waves in three colours."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17) * np.cos(y / 21), np.sin((x + y) / 33), np.cos(x / 27)]
    return Image.fromarray(np.uint8(127.5 + 127.5 * np.stack(waves, -1)))


def as_the_paper_says(picture: Image.Image, side: int) -> np.ndarray:
    """Short side to 224, the central 224 x 224 of the whole resized picture, then the reduction."""
    width, height = picture.size
    scale = 224 / min(width, height)
    whole = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    cropped = whole.crop((left, top, left + 224, top + 224))
    return np.asarray(cropped.resize((side, side), Image.Resampling.BICUBIC)).astype(int)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (500, 500), (100, 100)])
@pytest.mark.parametrize("side", [32, 48, 64, 224])
def test_a_square_is_resized_as_pillow_does(size: tuple[int, int], side: int) -> None:
    found = centre_crop(smooth(*size), side=side)
    assert found.shape == (side, side, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, as_the_paper_says(smooth(*size), side))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (2400, 1600), (411, 120), (68, 121), (225, 224)])
def test_others_differ_from_resize_then_crop_by_less_than_a_pixels_shift(size: tuple[int, int]) -> None:
    # the published order rounds the long side to whole pixels and the margin down; the crop here is exact
    difference = np.abs(centre_crop(smooth(*size), side=32).astype(int) - as_the_paper_says(smooth(*size), 32))
    assert difference.mean() < 3


@pytest.mark.parametrize("flip", [False, True])
def test_the_centre_of_wide_and_tall_pictures_is_taken(flip: bool) -> None:
    bands = np.zeros((100, 300, 3), np.uint8)
    bands[:, :100], bands[:, 100:200], bands[:, 200:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    found = centre_crop(Image.fromarray(bands.transpose(1, 0, 2).copy() if flip else bands), side=32)
    found = found[1:-1, 1:-1]  # the filter reaches over the edge, as it does when the whole picture is resized first
    np.testing.assert_array_equal(found, np.broadcast_to([0, 255, 0], (30, 30, 3)))


@pytest.mark.parametrize("filter", FILTERS)
def test_a_flat_picture_stays_flat_under_every_filter(filter: str) -> None:
    picture = Image.new("RGB", (300, 200), (10, 100, 200))
    crops = [centre_crop(picture, side=32, filter=filter)]
    crops.append(random_crop(picture, side=32, filter=filter, generator=np.random.default_rng(0)))
    crops.append(reduced(np.full((1, 64, 64, 3), (10, 100, 200), np.uint8), side=32, filter=filter)[0])
    for crop in crops:
        np.testing.assert_array_equal(crop, np.broadcast_to([10, 100, 200], (32, 32, 3)))


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 2**32))
def test_any_size_of_picture_can_be_cropped(width: int, height: int, seed: int) -> None:
    picture = Image.new("RGB", (width, height), (1, 2, 3))
    for crop in (centre_crop(picture, side=8), random_crop(picture, side=8, generator=np.random.default_rng(seed))):
        assert crop.shape == (8, 8, 3) and (crop == (1, 2, 3)).all()


def test_random_crops_are_224_of_256_to_384_and_anywhere() -> None:
    ramp = np.zeros((300, 600, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 600)
    ramp[..., 1] = np.linspace(0, 255, 300)[:, None]
    picture = Image.fromarray(ramp)
    lefts, tops, extents = [], [], []
    for seed in range(150):
        crop = random_crop(picture, side=32, generator=np.random.default_rng(seed)).astype(float)
        width = (crop[16, 28, 0] - crop[16, 4, 0]) / 24 * 32 / 255 * 600
        extents.append(width / 300)
        lefts.append(crop[16, 16, 0] / 255 * 600 - width / 2)
        tops.append(crop[16, 16, 1] / 255 * 300 - width / 2)
    assert 224 / 384 - 0.04 < min(extents) < 0.62 and 0.83 < max(extents) < 224 / 256 + 0.04
    assert min(lefts) < 25 and max(lefts) > 300 and min(tops) < 10 and max(tops) > 70
    assert min(lefts) > -8 and max(np.add(lefts, np.multiply(extents, 300))) < 608


def test_a_random_crop_depends_on_its_generator_alone() -> None:
    picture = smooth(300, 200)
    crops = [random_crop(picture, side=16, generator=np.random.default_rng([1, index])).tobytes() for index in (0, 1, 0)]
    assert crops[0] == crops[2] != crops[1]


def test_reduced_images_are_pillows() -> None:
    images = pictures(3, 64)
    found = reduced(images, side=32)
    for image, small in zip(images, found, strict=True):
        np.testing.assert_array_equal(small, np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)))
    np.testing.assert_array_equal(reduced(images, side=64), images)
    grey = images[..., :1]
    assert reduced(grey, side=8).shape == (3, 8, 8, 1)
    means = grey.reshape(3, 8, 8, 8, 8).mean(axis=(2, 4))
    assert np.abs(reduced(grey, side=8, filter="box")[..., 0] - means).max() <= 1


@pytest.mark.parametrize("side", [0, 33, -1])
def test_a_side_that_is_none_of_theirs_is_refused(side: int) -> None:
    assert "choose at most 32" in refusal(reduced, pictures(1), side=side)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"needs the sample of ImageNet in {SAMPLE}")
@pytest.mark.parametrize("name", ["n01440764_tench", "n01443537_goldfish_made-cmyk", "n02951585_can_opener"])
def test_real_images_are_near_resize_then_crop(name: str) -> None:
    from igpt.data.jpegs import decode

    picture = decode(Path(SAMPLE / f"{name}.JPEG").read_bytes())
    difference = np.abs(centre_crop(picture, side=32).astype(int) - as_the_paper_says(picture, 32))
    assert difference.mean() < 3


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 300), (2000, 225)])
def test_a_users_large_picture_is_cropped_as_imagenets(size: tuple[int, int]) -> None:
    found = fitted(smooth(*size), side=32, channels=3)
    np.testing.assert_array_equal(found, centre_crop(smooth(*size), side=32))


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 600), height=st.integers(1, 600), channels=st.sampled_from([1, 3]))
def test_any_size_of_picture_is_fitted(width: int, height: int, channels: int) -> None:
    picture = Image.new("RGB", (width, height), (7, 7, 7))
    for resize in ("crop", "squeeze"):
        found = fitted(picture, side=8, channels=channels, resize=resize)  # type: ignore[arg-type]
        assert found.shape == (8, 8, channels) and (found == 7).all()


def test_squeezing_keeps_the_whole_picture() -> None:
    bands = np.zeros((10, 80, 3), np.uint8)
    bands[:, :40] = 255
    found = fitted(Image.fromarray(bands), side=8, channels=1, resize="squeeze")[..., 0]
    assert (found[:, :3] == 255).all() and (found[:, 5:] == 0).all()
