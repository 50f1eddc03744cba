"""What is known of each data set without opening it: sizes, terms, files with their sums, and the split's digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from igpt.errors import UsageError
from igpt.project import place


@dataclass(frozen=True)
class DataCard:
    """Counts are images; ``height`` is in pixels, before any reduction (for ImageNet, of the published crop)."""

    name: str
    title: str
    train: int  # with the held-out part
    test: int
    classes: int
    height: int
    channels: int
    held_out: float  # fraction of train kept for choosing (paper, section 3.1)
    terms: str
    content: str = ""  # SHA-256 of digits' images and labels; the others' files have their sums in the manifest
    split: str = ""  # SHA-256 of the held-out indices, where there is an official test split
    reader: str = ""  # the module that reads its files; digits come with scikit-learn

    @property
    def validation(self) -> int:
        """Images of train held out for choosing."""
        return round(self.train * self.held_out)


SOLUTION = "LOC_val_solution.csv"  # Kaggle's file of the classes of ImageNet's validation images
CIFAR_TERMS = "no explicit licence; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
IMAGENET_TERMS = "ImageNet's terms of access: research and education, non-commercial; register at image-net.org"

# Sizes: section 3.1 of the paper and the data sets' own descriptions. Digits: see `igpt.data.splits`.
DATASETS = {
    card.name: card
    for card in (
        DataCard(
            "digits",
            "scikit-learn's handwritten digits",
            *(1437, 360, 10, 8, 1, 0.1),
            "public, shipped inside scikit-learn (UCI optical recognition of handwritten digits)",
            content="0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382",
        ),
        DataCard(
            "cifar10",
            "CIFAR-10",
            50_000,
            10_000,
            10,
            32,
            3,
            0.1,
            CIFAR_TERMS,
            split="7f11483b808e23c3a6b8929b0dc17b475484649c576bc81efd430b887dfff2fb",
            reader="igpt.data.cifar",
        ),
        DataCard(
            "cifar100",
            "CIFAR-100",
            50_000,
            10_000,
            100,
            32,
            3,
            0.1,
            CIFAR_TERMS,
            split="554b0b35b5c4634f158b046ff2b380c80a45a4d4a8cf4b3ec5bd83aa3eda1aca",
            reader="igpt.data.cifar",
        ),
        DataCard(
            *("stl10", "STL-10", 5_000, 8_000, 10, 96, 3, 0.1),
            "images acquired from ImageNet; cite Coates, Lee and Ng, AISTATS 2011",
            split="b0de6f7496eb428579253786f72ff13baf35ea4a6551b6450686c013fb50775f",
            reader="igpt.data.stl",
        ),
        DataCard(
            *("tiny-imagenet", "Tiny ImageNet", 100_000, 10_000, 200, 64, 3, 0.1),
            "images from ImageNet, under its terms; made for Stanford's course CS231n",
            split="5d3a89901cc4336fc95d01c700d693e6bab41eb4938cee0fde13b822978d8cf4",
            reader="igpt.data.jpegs",
        ),
        DataCard(
            *("imagenet", "ImageNet (ILSVRC 2012)", 1_281_167, 50_000, 1000, 224, 3, 0.04),
            IMAGENET_TERMS,
            split="46fb0835df039252d1256579c1bb8ad01b40d33f4ab25a63b1cd4be2b109f31a",
            reader="igpt.data.jpegs",
        ),
    )
}


@dataclass(frozen=True)
class Archive:
    """A published file; ``addresses`` is empty where its owner's leave is needed to download it."""

    name: str
    addresses: tuple[str, ...]
    bytes: int
    checksum: str


@dataclass(frozen=True)
class Files:
    """A data set's files: where they lie below the data home, what they are downloaded as, and their MD5 sums."""

    folder: str
    unpacked_bytes: int
    archives: tuple[Archive, ...]
    files: dict[str, str]  # by path below the folder


def data_card(name: str) -> DataCard:
    """The card of a data set. Raises UsageError for an unknown name.

    >>> card = data_card("cifar10")
    >>> card.train, card.test, card.classes
    (50000, 10000, 10)
    """
    if name not in DATASETS:
        raise UsageError(f"there is no data set {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


@cache
def data_files(name: str) -> Files:
    """The files of a data set, from ``manifest.json``; digits have none."""
    row = json.loads((files("igpt.data") / "manifest.json").read_text())[data_card(name).name]
    archives = tuple(Archive(a["name"], tuple(a["addresses"]), a["bytes"], a["checksum"]) for a in row["archives"])
    return Files(row["folder"], row["unpacked_bytes"], archives, row["files"])


def data_home() -> Path:
    """The folder in which data sets are looked for: ``IGPT_DATA``, else ``~/.cache/igpt/data``."""
    return place("IGPT_DATA", "~/.cache/igpt/data")


def data_folder(name: str) -> Path:
    """Where a data set's files lie, or would."""
    return data_home() / data_files(name).folder


def pictures_folder(name: str) -> Path:
    """Where train/ and val/ of a data set lie, or would: in its folder, or where Kaggle's archive of ImageNet has them."""
    folder = data_folder(name)
    kaggle = folder / "ILSVRC" / "Data" / "CLS-LOC"
    return kaggle if (kaggle / "train").is_dir() and not (folder / "train").is_dir() else folder


def is_present(name: str) -> bool:
    """Whether a data set's files are at hand; they are not opened."""
    if name == "digits":
        return True
    folder, known = data_folder(name), data_files(name)
    if known.files:
        return all((folder / file).is_file() for file in known.files)
    if (pictures_folder(name) / "train").is_dir():
        return True
    in_place = [archive for archive in known.archives if not archive.addresses]  # ImageNet's are read as they are
    return bool(in_place) and all((folder / archive.name).is_file() for archive in in_place)


def check_present(name: str) -> None:
    """Raise UsageError when a data set's files are not at hand, saying what brings them."""
    card = data_card(name)
    if is_present(name):
        return
    if not any(archive.addresses for archive in data_files(name).archives):
        raise UsageError(f"{card.title} is not here: {by_hand(name)}")
    raise UsageError(f"{card.title} is not here: `igpt data fetch {name}` brings it into {data_folder(name)}")


def by_hand(name: str) -> str:
    """What to put where, for a data set that may not be downloaded without its owner's leave."""
    names = ", ".join(archive.name for archive in data_files(name).archives)
    return (
        f"get {names} from image-net.org and put them, or the folders train/ and val/ made of them, or Kaggle's ILSVRC/ and"
        f" {SOLUTION}, into {data_folder(name)}"
    )


def split_digest(name: str) -> str:
    """SHA-256 over all that decides a data set's images, labels and splits. Nothing is opened.

    This module is no part of signatures, so that a new card stales nothing: what of a card can change a number is here.
    """
    card = data_card(name)
    decides: list[object] = [card.name, card.content, card.train, card.validation, card.test, card.classes]
    decides += [card.height, card.channels]
    if card.split:
        known = data_files(name)
        decides += [card.split, sorted(known.files.items()), [archive.checksum for archive in known.archives]]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()
