from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from igpt.data.augment import PAD, augmented

TOKENS = np.arange(400 * 14 * 12).reshape(400, 14, 12).astype(np.uint16)
ALL = np.arange(len(TOKENS))


def draw(indices: NDArray[np.int64] = ALL, *, epoch: int = 0, seed: int = 0) -> NDArray[np.uint16]:
    return augmented(TOKENS[indices], indices, images=len(TOKENS), epoch=epoch, seed=seed)


def reflected(image: NDArray[np.uint16], top: int, left: int, *, mirrored: bool) -> NDArray[np.uint16]:
    """The crop, pixel by pixel: what lies outside is what lies as far inside."""
    height, width = image.shape

    def inside(place: int, size: int) -> int:
        return abs(place) if place < size else 2 * (size - 1) - place

    rows = [inside(y + top - PAD, height) for y in range(height)]
    columns = [inside(x + left - PAD, width) for x in range(width)]
    crop = image[np.ix_(rows, columns)]
    return crop[:, ::-1] if mirrored else crop


def test_every_image_is_a_crop_of_its_reflection_or_of_the_mirror_image() -> None:
    found = draw()
    assert found.shape == TOKENS.shape and found.dtype == np.uint16
    seen = set()
    for image, crop in zip(TOKENS, found, strict=True):
        ways = {
            (top, left, mirrored): reflected(image, top, left, mirrored=mirrored)
            for top in range(2 * PAD + 1)
            for left in range(2 * PAD + 1)
            for mirrored in (False, True)
        }
        match = [way for way, expected in ways.items() if np.array_equal(crop, expected)]
        assert len(match) == 1
        seen.add(match[0])
    assert {way[0] for way in seen} == {way[1] for way in seen} == set(range(9))  # all shifts, either way
    assert len(seen) > 140  # of 162


def test_about_half_are_flipped_and_the_shifts_are_uniform() -> None:
    images = 20_000
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint16), (images, 16, 16))
    found = augmented(ramp, np.arange(images), images=images, epoch=3, seed=5)
    middle = found[:, 0, 7:9].astype(int)  # no reflection reaches the middle
    flipped = middle[:, 1] < middle[:, 0]
    assert abs(flipped.mean() - 0.5) < 0.02
    shifts = np.bincount(np.where(flipped, middle[:, 1], middle[:, 0]) - 3, minlength=9)
    assert len(shifts) == 9 and abs(shifts / images - 1 / 9).max() < 0.015


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(40)), size=st.integers(1, 40))
def test_batches_do_not_change_what_is_drawn(order: list[int], size: int) -> None:
    indices = np.array(order)
    parts = [draw(indices[start : start + size]) for start in range(0, 40, size)]
    np.testing.assert_array_equal(np.concatenate(parts), draw()[indices])


def test_a_resumed_epoch_draws_what_the_first_would_have() -> None:
    np.testing.assert_array_equal(draw(ALL[250:], epoch=7), draw(epoch=7)[250:])


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_epochs_and_seeds_differ(other: dict[str, int]) -> None:
    same = (draw() == draw(**other)).all(axis=(1, 2)).mean()
    assert same < 0.03  # one in 162


def test_epoch_and_seed_are_not_mixed_up() -> None:
    assert not np.array_equal(draw(epoch=1, seed=2), draw(epoch=2, seed=1))


def test_what_is_given_stays_as_it_was_and_nothing_of_nothing_comes() -> None:
    before = TOKENS.copy()
    draw()
    np.testing.assert_array_equal(TOKENS, before)
    assert draw(np.array([], dtype=np.int64)).shape == (0, 14, 12)
