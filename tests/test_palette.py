from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from igpt.errors import UsageError
from igpt.palette import Palette

channels = st.sampled_from([1, 3])


@st.composite
def palettes_and_images(draw: st.DrawFn) -> tuple[Palette, np.ndarray]:
    width = draw(channels)
    k = draw(st.integers(1, 20))
    centres = draw(arrays(np.float32, (k, width), elements=st.floats(-1, 1, width=32)))
    n, h, w = draw(array_shapes(min_dims=3, max_dims=3, max_side=4))
    return Palette(centres), draw(arrays(np.uint8, (n, h, w, width)))


@given(palettes_and_images())
def test_quantize_finds_the_nearest_centre_and_the_lowest_of_equals(case: tuple[Palette, np.ndarray]) -> None:
    palette, images = case
    x = images.astype(np.float64) / 127.5 - 1
    distance = ((x[..., None, :] - palette.centres.astype(np.float64)) ** 2).sum(-1)
    tokens = palette.quantize(images)
    assert tokens.dtype == np.uint16
    np.testing.assert_array_equal(tokens, distance.argmin(-1))  # argmin takes the first of equals


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=12, unique=True), st.integers(0, 2**32 - 1))
def test_a_colour_of_the_palette_survives_the_round_trip(colours: list[tuple[int, int, int]], seed: int) -> None:
    bytes_ = np.array(colours, np.uint8)
    palette = Palette((bytes_ / 127.5 - 1).astype(np.float32))
    images = bytes_[np.random.default_rng(seed).integers(len(colours), size=(2, 3, 3))]
    np.testing.assert_array_equal(palette.dequantize(palette.quantize(images)), images)


def test_dequantize_rounds_as_the_released_code_does() -> None:
    palette = Palette(np.array([[-1.0], [0.0], [1.0], [0.0039]], np.float32))
    assert palette.dequantize(np.array([0, 1, 2, 3])).ravel().tolist() == [0, 128, 255, 128]


def test_fit_is_the_same_for_the_same_seed_sorted_and_close_to_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    first, again = (Palette.fit(images, k=16, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.centres, again.centres)
    assert (np.diff(first.centres[:, 0]) > 0).all()
    assert first.rms_error(images) < 6  # sixteen even greys over 256 levels err by 16 / sqrt(12)


def test_fit_treats_colour_and_grey_alike() -> None:
    grey = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    colour = np.repeat(grey, 3, axis=-1)
    in_grey, in_colour = Palette.fit(grey, k=6, seed=0), Palette.fit(colour, k=6, seed=0)
    np.testing.assert_allclose(in_colour.centres, in_colour.centres[:, :1].repeat(3, axis=1), atol=1e-6)  # greys stay grey
    assert in_colour.rms_error(colour) == pytest.approx(in_grey.rms_error(grey), rel=0.05)


def test_fit_refuses_more_colours_than_there_are() -> None:
    with pytest.raises(UsageError, match="2 colours, fewer than the 3"):
        Palette.fit(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1), k=3, seed=0)


def test_quantize_refuses_other_channels(greys: Palette) -> None:
    with pytest.raises(UsageError, match=r"uint8 \(N, H, W, 1\)"):
        greys.quantize(np.zeros((1, 2, 2, 3), np.uint8))


def test_dequantize_refuses_tokens_outside_the_palette(greys: Palette) -> None:
    with pytest.raises(UsageError, match="this palette has 8 colours"):
        greys.dequantize(np.array([8]))


def test_save_and_load_keep_the_centres(greys: Palette, tmp_path: Path) -> None:
    greys.save(tmp_path / "palette.npy")
    assert Palette.load(tmp_path / "palette.npy").digest == greys.digest


@pytest.mark.parametrize(
    "centres",
    [
        np.array([[0.0], [np.nan]], np.float32),
        np.array([[0.0], [-np.inf]], np.float32),
        np.zeros((4, 1)),
        np.zeros((4, 1), np.int64),
        np.zeros((4, 1), np.float16),
        np.zeros(4, np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((3, 0), np.float32),
        np.zeros((2, 2, 3), np.float32),
    ],
    ids=["NaN", "infinite", "float64", "int64", "float16", "one axis", "no colours", "no channels", "three axes"],
)
def test_load_names_the_file_whose_array_is_no_palette(centres: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "palette.npy", centres)
    with pytest.raises(UsageError, match=r"palette\.npy is not a palette: a palette is finite float32") as caught:
        Palette.load(tmp_path / "palette.npy")
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=300))
def test_load_refuses_whatever_is_no_palette(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "palette.npy"
        path.write_bytes(content)
        with pytest.raises(UsageError):
            Palette.load(path)


@given(st.data())
def test_load_refuses_or_reads_a_damaged_palette(data: st.DataObject) -> None:
    import tempfile

    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 1), np.float32))
    content = bytearray(stream.getvalue())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "palette.npy"
        path.write_bytes(content)
        try:
            assert Palette.load(path).centres.dtype == np.float32
        except UsageError:
            pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
        (b"<!DOCTYPE html>\n", "is a text that begins with"),
        (b"", "is empty"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (60000, 99999999), }".ljust(128),
            "is not a palette",
        ),
        (None, r"cannot be read \(it is a folder\)"),
    ],
    ids=["lfs", "page", "empty", "large", "folder"],
)
def test_another_file_in_the_place_of_a_palette_is_called_what_it_is(content: bytes | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "palette.npy").mkdir() if content is None else (tmp_path / "palette.npy").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        Palette.load(tmp_path / "palette.npy")


@pytest.mark.parametrize("k", [0, -3, 65537, 2**70, 1.5, "16", None])
def test_a_palette_of_no_possible_number_of_colours_is_refused(k: int) -> None:
    with pytest.raises(UsageError, match="a palette has 1 to 65536 colours, not .*: choose another number"):
        Palette.fit(np.zeros((1, 2, 2, 1), np.uint8), k=k, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_a_palette_from_a_seed_that_is_none_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=f"a seed is a whole number from 0 to 4294967295, not {seed}"):
        Palette.fit(np.zeros((1, 2, 2, 1), np.uint8), k=1, seed=seed)
