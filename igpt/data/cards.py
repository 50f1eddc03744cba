"""The registry of data sets: declarations by name, presence of files, digests of splits; no picture is opened.

Each data set is declared in the module that reads it; a user's own are registered, see `igpt.data.own`. The registry is not
part of signatures, so that a new data set makes no stage stale; signatures contain `split_digest` instead.
"""

from __future__ import annotations

import hashlib
import json

from igpt.data.cifar import CIFAR10, CIFAR100
from igpt.data.dataset import DataSet, data_home, pictures_folder
from igpt.data.digits import DIGITS
from igpt.data.imagenet_tokens import IMAGENET_TOKENS
from igpt.data.jpegs import IMAGENET, SOLUTION, TINY_IMAGENET
from igpt.data.own import own_card, own_names
from igpt.data.stl import STL10
from igpt.errors import UsageError
from igpt.palette import RELEASED

__all__ = [
    "DATASETS",
    "by_hand",
    "check_present",
    "data_card",
    "data_home",
    "is_known",
    "is_own",
    "is_present",
    "own_digest",
    "split_digest",
]

DATASETS = {card.name: card for card in (DIGITS, CIFAR10, CIFAR100, STL10, TINY_IMAGENET, IMAGENET, IMAGENET_TOKENS)}


def data_card(name: str) -> DataSet:
    """The declaration of a data set. Raises UsageError for an unknown name.

    >>> card = data_card("cifar10")
    >>> card.train, card.test, card.classes
    (50000, 10000, 10)
    """
    card = DATASETS.get(name) or own_card(name)
    if card is None:
        names = ", ".join([*DATASETS, *own_names()])
        raise UsageError(f"there is no data set {name!r}; choose one of {names}, or register your own by `igpt data add`")
    return card


def is_known(name: str) -> bool:
    """Whether there is a data set of this name."""
    return name in DATASETS or own_card(name) is not None


def is_own(name: str) -> bool:
    """Whether a data set is a user's own."""
    return name not in DATASETS


def own_digest(name: str) -> str:
    """The digest of a user's own data set, which may be replaced under its name; empty for other sets."""
    return data_card(name).content if is_own(name) else ""


def is_present(name: str) -> bool:
    """Whether a data set's files exist; they are not opened."""
    card = data_card(name)
    if not card.subfolder:
        return True
    if is_own(name):
        return card.folder.exists()
    if names := [*card.files, *(address.rpartition("/")[2] for address in card.loose)]:
        return all((card.folder / file).is_file() for file in names)
    if (pictures_folder(card) / "train").is_dir():
        return True
    in_place = [archive for archive in card.archives if not archive.addresses]  # ImageNet's, read without unpacking
    return bool(in_place) and all((card.folder / archive.name).is_file() for archive in in_place)


def check_present(name: str) -> None:
    """Raise UsageError, with the next step, when a data set's files are missing."""
    card = data_card(name)
    if is_present(name):
        return
    if is_own(name):
        raise UsageError(f"the pictures of {name} are no longer at {card.folder}: put them back, or run `igpt data add` again")
    if not card.loose and not any(archive.addresses for archive in card.archives):
        raise UsageError(f"{card.title} is not here: {by_hand(name)}")
    raise UsageError(f"{card.title} is not here: `igpt data fetch {name}` brings it into {card.folder}")


def check_fits(name: str, weights: str, *, side: int, channels: int, palette: str) -> None:
    """Raise UsageError, which names both, unless a data set has images for weights of a side, channels and a palette's digest."""
    card = data_card(name)
    reads = images_in_words(side, channels)
    if card.channels not in (0, channels) or side > card.height:
        raise UsageError(
            f"{weights} reads {reads}, and {name} has {images_in_words(card.height, card.channels)}: choose another data set"
        )
    if card.tokens and (side, palette) != (card.height, RELEASED):
        raise UsageError(
            f"{weights} reads {reads} in its own colours or size, and {name} are tokens of"
            f" {card.height} x {card.height} pixels in the released ones: choose a data set of pictures"
        )


def images_in_words(side: int, channels: int) -> str:
    """A format of images as a phrase."""
    return f"{'grey' if channels == 1 else 'colour'} images of {side} x {side} pixels"


def by_hand(name: str) -> str:
    """Advice for ImageNet, which cannot be downloaded without registration: which files to put into which folder."""
    names = ", ".join(archive.name for archive in data_card(name).archives)
    return (
        f"get {names} from image-net.org and put them, or the folders train/ and val/ made of them, or Kaggle's ILSVRC/ and"
        f" {SOLUTION}, into {data_card(name).folder}"
    )


def split_digest(name: str) -> str:
    """SHA-256 of all that determines a data set's images, labels and splits. No picture is opened."""
    card = data_card(name)
    parts: list[object] = [card.name, card.content, card.train, card.validation, card.test, card.classes]
    parts += [card.height, card.channels]
    if card.split:
        parts += [card.split, sorted(card.files.items()), [archive.checksum for archive in card.archives]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
