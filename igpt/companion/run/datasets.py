"""The ``igpt data`` commands: list, fetch, check and tokenise data sets, with progress and messages."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from igpt.data import DATASETS, DataSet, data_card, load_split
from igpt.data.cards import by_hand, check_present, is_own, is_present
from igpt.data.cifar_tokens import compare_released, released_splits
from igpt.data.fetching import check_dataset, dataset_lines, download, fetch_dataset
from igpt.data.own import add_own
from igpt.data.splits import validation_indices
from igpt.data.tokens import TokenizeSettings, check_stores, make_store
from igpt.errors import UsageError
from igpt.files import check_writable
from igpt.palette import Palette
from igpt.pictures import Resize
from igpt.progress import Bar, tell

PICTURES = 10_000  # drawn of a set that is larger than memory, to fit a palette


def list_datasets() -> str:
    """A table of the data sets, and their terms of use."""
    table = tabulate(dataset_lines(), ("Name", "Images", "Download", "Is", "Where"), disable_numparse=True)
    terms = "\n".join(f"  {name}: {card.terms}" for name, card in DATASETS.items())
    manual = f"ImageNet by hand: {by_hand('imagenet')}."
    own = "Your own: igpt data add NAME FOLDER."
    return f"{table}\n\nTerms\n{terms}\n\n{manual}\n{own}\n\nIGPT_DATA names another folder to look in."


def add(name: str, source: Path, *, resize: Resize, skip: bool) -> str:
    """Register a user's own data set; the lines to print."""
    if name in DATASETS:
        raise UsageError(f"{name} is a data set already, {DATASETS[name].title}: choose another name")
    with Bar(name, " pictures") as bar:
        lines = add_own(name, source, resize=resize, skip=skip, report=bar)
    return "\n".join([*lines, f"use it: igpt run linear_probe -p dataset={name} -p weights=laptop-l"])


def fetch(name: str) -> str:
    """Download a data set; the line to print."""
    card = data_card(name)
    size = "" if is_present(name) else f"{download(card)}; "
    tell(f"{'fetching ' if size else ''}{card.title} ({size}terms: {card.terms})")
    with _Bytes(name, "B") as bar:
        folder = fetch_dataset(name, report=bar)
    return f"{card.title} is in {folder}"


def check(name: str) -> str:
    """Check a whole data set; the report to print."""
    lines = [*check_dataset(name), *check_stores(name)]
    if name == "cifar10" and released_splits():
        from igpt.weights.own import released_palette  # imports torch

        lines += compare_released(released_palette())
    card = data_card(name)
    verdict = "is whole and consistent; nothing is published to compare it with" if card.loose else "is as published"
    if is_own(name):
        verdict = "is as it was added"
    return "\n".join([f"{card.title} {verdict}", *(f"  {line}" for line in lines)])


def tokenize(name: str, *, resolution: int | None, workers: int, crops: int, filter: str, seed: int, palette: Path | None) -> str:
    """Make the token stores of a data set's train and test splits; the lines to print."""
    from igpt.weights.own import released_palette  # imports torch, which the other commands do not need

    card = data_card(name)
    colours = Palette.load(palette) if palette else released_palette()
    side = resolution or min(card.height, 32)
    lines = []
    for split in ("train", "test"):
        settings = TokenizeSettings(name, split, side, crops if split == "train" else 0, filter, seed)
        start = time.monotonic()
        with Bar(f"{name} {split}", " images") as bar:
            store, rate = make_store(settings, colours, workers=workers, report=bar)
        size = len(store) * store.positions * 2 / 1e6
        outcome = f"{rate:,.0f} images/s, {time.monotonic() - start:.0f} s" if rate else "there already"
        lines.append(f"{split}: {len(store):,} images of {side} x {side} tokens, {size:,.1f} MB, {outcome}: {store.folder}")
    return "\n".join(lines)


def fit_palette(name: str, *, colours: int, out: Path, resolution: int | None, seed: int) -> str:
    """Fit a palette to a data set's training images, and write it; the line to print.

    Of a set that is larger than memory, `PICTURES` images are drawn. Raises UsageError for more colours than the images have.
    """
    card = data_card(name)
    side = resolution or min(card.height, 32)
    check_writable(out)
    if out.suffix != ".npy":
        raise UsageError(f"a palette is written as .npy, not as {out}: name a file such as palette.npy")
    palette = Palette.fit(_training_images(card, side, seed), k=colours, seed=seed)
    palette.save(out)
    return f"{colours} colours of {card.title} at {side} x {side} pixels, seed {seed}: {out}"


def _training_images(card: DataSet, side: int, seed: int) -> NDArray[np.uint8]:
    """Training images without the held-out ones, uint8 (N, side, side, channels)."""
    if card.in_memory:
        return load_split(card.name, "train", side=side).images
    if card.read is None:
        raise UsageError(f"{card.title} has no pictures, only tokens: name another data set")
    check_present(card.name)
    if not 1 <= side <= card.height:
        raise UsageError(f"{card.title} has {card.height} pixels a side: choose a resolution from 1 to {card.height}")
    pictures, _ = card.read(card, "train")
    assert not isinstance(pictures, np.ndarray)
    indices = np.setdiff1d(np.arange(card.train), validation_indices(card.name))
    drawn = np.random.default_rng(seed).permutation(indices)[:PICTURES].tolist()
    images = np.empty((len(drawn), side, side, 3), np.uint8)
    with Bar(card.name, " images") as bar:
        for row, index in enumerate(drawn):
            images[row] = pictures.pixels(index, side=side, channels=3)
            bar(row + 1, len(drawn))
    return images


class _Bytes(Bar):
    """A progress bar in bytes; without a terminal, one line per tenth."""

    _tenth = 0

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        super().__call__(done, total)
        tenth = 10 * done // total if total else 0
        if self.hidden and total and tenth > self._tenth:
            tell(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB")
        self._tenth = tenth  # reset by the next file
