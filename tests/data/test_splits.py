from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt import data
from igpt.data import DATASETS, load_split, low_data_subset, shifted, subsample, tokenize
from igpt.data.digits import split_by_class
from igpt.errors import UsageError
from igpt.palette import Palette


@pytest.fixture(scope="module")
def splits() -> dict[str, data.Split]:
    return {name: data.load_split("digits", name) for name in ("train", "validation", "test")}  # type: ignore[arg-type]


def test_the_digits_are_split_as_their_card_says(splits: dict[str, data.Split]) -> None:
    card = DATASETS["digits"]
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes == {"train": card.train - card.validation, "validation": card.validation, "test": card.test}
    assert sum(sizes.values()) == 1797
    for split in splits.values():
        assert split.images.shape[1:] == (8, 8, 1)
        assert split.images.dtype == np.uint8


def test_no_index_is_in_two_splits_and_none_is_lost(splits: dict[str, data.Split]) -> None:
    labels = np.concatenate([split.labels for split in splits.values()])
    indices = split_by_class(DATASETS["digits"], np.arange(1797) % 10)
    together = np.concatenate(list(indices.values()))
    assert len(labels) == len(together) == 1797
    assert sorted(together.tolist()) == list(range(1797))


def test_the_digits_splits_never_change(splits: dict[str, data.Split]) -> None:
    # Every record stands on these very images: a change here must be meant.
    digest = hashlib.sha256(b"".join(split.images.tobytes() for split in splits.values())).hexdigest()
    assert digest == "4adfa50c675ba047a298c7103a13157d0dcfdae940163da5c4beac40d4562e0d"


def test_every_class_has_its_share_of_every_split(splits: dict[str, data.Split]) -> None:
    for split in splits.values():
        share = np.bincount(split.labels, minlength=10) / len(split)
        assert share.min() > 0.08
        assert share.max() < 0.12


def test_the_held_out_parts_are_the_papers() -> None:
    assert DATASETS["imagenet"].validation == 51_247
    assert {DATASETS[name].validation for name in ("cifar10", "cifar100")} == {5_000}
    assert DATASETS["stl10"].validation == 500


@settings(deadline=None, max_examples=25)
@given(counts=st.lists(st.integers(5, 30), min_size=2, max_size=5), per_class=st.integers(1, 5), draw=st.integers(0, 4))
def test_a_low_data_subset_is_balanced_repeatable_and_its_own(counts: list[int], per_class: int, draw: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = low_data_subset(labels, per_class=per_class, draw=draw)
    assert np.bincount(labels[chosen]).tolist() == [per_class] * len(counts)
    assert len(set(chosen.tolist())) == len(chosen)
    np.testing.assert_array_equal(chosen, low_data_subset(labels, per_class=per_class, draw=draw))


def test_draws_of_a_low_data_subset_differ() -> None:
    labels = np.arange(200) % 10
    draws = {tuple(low_data_subset(labels, per_class=4, draw=draw)) for draw in range(5)}
    assert len(draws) == 5


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(UsageError, match="class 1 has 2 training images, fewer than the 3"):
        low_data_subset(np.array([0, 0, 0, 1, 1]), per_class=3, draw=0)


def test_shifts_move_the_image_and_fill_with_black() -> None:
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    found = shifted(image)
    assert found.shape == (9, 3, 3, 1)
    np.testing.assert_array_equal(found[4], image[0])  # not moved
    np.testing.assert_array_equal(found[0, ..., 0], [[0, 0, 0], [0, 1, 2], [0, 4, 5]])  # down and right
    np.testing.assert_array_equal(found[8, ..., 0], [[5, 6, 0], [8, 9, 0], [0, 0, 0]])  # up and left


def test_tokens_are_in_raster_order(greys: Palette) -> None:
    images = np.array([[[[0], [255]], [[36], [73]]]], np.uint8)
    assert tokenize(images, greys).tolist() == [[0, 7, 1, 2]]


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no data set 'mnist'; choose one of digits, cifar10"):
        data.load_split("mnist", "train")


def test_a_data_set_that_is_not_here_is_said_with_what_brings_it(home: Path) -> None:
    with pytest.raises(UsageError, match=f"CIFAR-10 is not here: `igpt data fetch cifar10` brings it into {home}"):
        data.load_split("cifar10", "train")


def test_other_digits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    real = sklearn.datasets.load_digits()
    real.images[0, 0, 0] += 1
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: real)
    with pytest.raises(UsageError, match="install the pinned version"):
        data.load_split("digits", "train")


def test_the_split_digest_names_what_decides_the_split() -> None:
    digests = {name: data.split_digest(name) for name in DATASETS}
    assert len(set(digests.values())) == len(DATASETS)
    # Every record stands on these: a change here must be meant.
    assert {name: digest[:12] for name, digest in digests.items()} == {
        "digits": "3a6e6fdf76c6",
        "cifar10": "b6a04470c907",
        "cifar100": "5362b74504a0",
        "stl10": "18c797087870",
        "tiny-imagenet": "ebc58f4bbe8e",
        "imagenet": "f98eef7e4e9e",
        "imagenet-tokens": "0120bf14a39b",
    }


def test_a_part_is_random_in_proportion_and_all_of_it_for_nothing() -> None:
    train, validation = load_split("digits", "train"), load_split("digits", "validation")
    some, held = subsample(train, validation, images=200, seed=3)
    total = len(train) + len(validation)
    assert (len(some), len(held)) == (len(train) * 200 // total, len(validation) * 200 // total)
    assert len(np.unique(some.labels)) == 10
    assert np.array_equal(subsample(train, validation, images=200, seed=3)[0].images, some.images)
    assert not np.array_equal(subsample(train, validation, images=200, seed=4)[0].images, some.images)
    assert subsample(train, validation, images=0, seed=3) == (train, validation)
