from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from official import (
    COLOURS,
    Publish,
    cifar_batch,
    imagenet_folders,
    pictures,
    publish_cifar10,
    publish_imagenet,
    python2_pickle,
    refusal,
    stl_files,
    tiny_imagenet,
    write,
)

from igpt.data import LabelledTokens, SplitName, data_card, labelled_tokens, load_split, subsample, tokenize
from igpt.data.labelled import TokensInMemory
from igpt.data.splits import load_official
from igpt.data.store import TokenStore
from igpt.data.tokens import TokenizeSettings, make_store, train_parts
from igpt.palette import Palette

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
GREYS = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])


@pytest.fixture
def every_set(home: Path, publish: Publish) -> None:
    """A small one of each data set in the official formats."""
    publish_cifar10(publish, home)
    names = python2_pickle({b"fine_label_names": [b"fine%d" % label for label in range(100)]})
    parts = {"train": cifar_batch(pictures(100), list(range(100)), b"fine_labels")}
    parts |= {"test": cifar_batch(pictures(20, seed=1), list(range(20)), b"fine_labels"), "meta": names}
    publish("cifar100", files=parts, train=100, test=20)
    write(home / "cifar-100-python", parts)
    stl = stl_files(pictures(20, side=96), pictures(10, side=96, seed=1))
    publish("stl10", files=stl, train=20, test=10)
    write(home / "stl10_binary", stl)
    publish("tiny-imagenet", train=9, test=6, classes=3)
    write(home / "tiny-imagenet-200", tiny_imagenet())
    publish_imagenet(publish, home, imagenet_folders())


@pytest.mark.usefixtures("every_set")
@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "stl10", "tiny-imagenet"])
def test_they_are_the_tokens_of_the_splits_images(name: str) -> None:
    card = data_card(name)
    for side in (card.height, 4):
        for split in SPLITS:
            colours = COLOURS if card.channels == 3 else GREYS
            expected, found = load_split(name, split, side=side), labelled_tokens(name, split, side=side, palette=colours)
            assert len(found) == len(expected) and found.classes == card.classes and found.positions == side**2
            np.testing.assert_array_equal(found[:], tokenize(expected.images, colours).numpy())
            np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.usefixtures("every_set")
def test_those_of_imagenet_are_on_disk_and_its_parts_are_the_stores() -> None:
    store, test = (make_store(TokenizeSettings("imagenet", split, 4), COLOURS)[0] for split in ("train", "test"))
    train, validation = train_parts(store)
    parts = [labelled_tokens("imagenet", split, side=4, palette=COLOURS) for split in SPLITS]
    for found, where, indices in zip(parts, (store, store, test), (train.indices, validation.indices, np.arange(6)), strict=True):
        assert isinstance(found.sources[0], TokenStore)
        np.testing.assert_array_equal(found[:], where[indices])
        np.testing.assert_array_equal(found.labels, where.labels[indices])
    assert sorted((parts[0] + parts[1]).indices.tolist()) == list(range(9))


def test_train_and_validation_together_are_the_official_train_split(home: Path, publish: Publish) -> None:
    publish_cifar10(publish, home)
    whole = labelled_tokens("cifar10", "train", side=4, palette=COLOURS) + labelled_tokens(
        "cifar10", "validation", side=4, palette=COLOURS
    )
    official = load_official("cifar10", "train")
    assert len(whole) == 60 and np.bincount(whole.labels).tolist() == np.bincount(official.labels).tolist()
    both = whole.take(np.array([59, 0, 54]))
    np.testing.assert_array_equal(both[np.array([2, 0])], whole[np.array([54, 59])])
    np.testing.assert_array_equal(both.labels, whole.labels[[59, 0, 54]])
    np.testing.assert_array_equal(whole.take(slice(50, None))[::2], whole[50:60:2])
    assert both[:].dtype == np.uint16 and both.labels.dtype == np.int64
    with pytest.raises(IndexError):
        both[np.array([3])]


def test_a_digest_is_the_same_everywhere_and_of_these_very_images_alone() -> None:
    train = labelled_tokens("digits", "train", side=8, palette=GREYS)
    # Stores of features stand on it: a change here must be meant.
    assert train.digest == "079a11f3479240b2a38612bb1b4b5d2ea2843b4b161c0e6c2bebc2ecee17e92c"
    memory = TokensInMemory(train[:], train.labels)
    others = [
        labelled_tokens("digits", "validation", side=8, palette=GREYS),
        labelled_tokens("digits", "train", side=4, palette=GREYS),
        labelled_tokens("digits", "train", side=8, palette=Palette(GREYS.centres[::-1].copy())),
        train.take(np.arange(len(train))[::-1]),
        train + train,
        train.take(slice(5)),
        LabelledTokens.of(TokensInMemory(memory.tokens, np.roll(memory.labels, 1)), np.arange(len(train)), classes=10),
    ]
    assert len({train.digest, *(other.digest for other in others)}) == 1 + len(others)
    assert LabelledTokens.of(memory, np.arange(len(train)), classes=10).digest == train.digest


def test_a_part_of_them_is_of_the_same_images() -> None:
    pair = [labelled_tokens("digits", split, side=8, palette=GREYS) for split in SPLITS[:2]]
    images = [load_split("digits", split) for split in SPLITS[:2]]
    for found, expected in zip(
        subsample(pair[0], pair[1], images=100, seed=3), subsample(images[0], images[1], images=100, seed=3), strict=True
    ):
        np.testing.assert_array_equal(found[:], tokenize(expected.images, GREYS).numpy())
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_a_data_set_that_is_unknown_or_not_here_is_refused(home: Path) -> None:
    assert "no data set 'mnist'" in refusal(labelled_tokens, "mnist", "test", side=8, palette=GREYS)
    assert "`igpt data fetch cifar10` brings it" in refusal(labelled_tokens, "cifar10", "test", side=8, palette=COLOURS)
    assert "ImageNet (ILSVRC 2012) is not here" in refusal(labelled_tokens, "imagenet", "test", side=8, palette=COLOURS)
    assert "(N, H, W, 3) for this palette" in refusal(labelled_tokens, "digits", "test", side=8, palette=COLOURS)
