"""What ``igpt data`` does: data sets listed, fetched, checked and tokenised, with what a person sees meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

from tabulate import tabulate

from igpt.data import DATASETS, data_card
from igpt.data.cards import by_hand, is_present
from igpt.data.cifar_tokens import compare_released, released_splits
from igpt.data.fetching import check_dataset, dataset_lines, download, fetch_dataset
from igpt.data.tokens import TokenizeSettings, check_stores, make_store
from igpt.palette import Palette
from igpt.progress import Bar, tell


def list_datasets() -> str:
    """The data sets, and under what terms they may be used."""
    table = tabulate(dataset_lines(), ("Name", "Images", "Download", "Is", "Where"), disable_numparse=True)
    terms = "\n".join(f"  {name}: {card.terms}" for name, card in DATASETS.items())
    hand = f"ImageNet by hand: {by_hand('imagenet')}."
    return f"{table}\n\nTerms\n{terms}\n\n{hand}\n\nIGPT_DATA names another folder to look in."


def fetch(name: str) -> str:
    """Bring a data set here; what to say of it."""
    card = data_card(name)
    size = "" if is_present(name) else f"{download(card)}; "
    tell(f"{'fetching ' if size else ''}{card.title} ({size}terms: {card.terms})")
    with _Bytes(name, "B") as bar:
        folder = fetch_dataset(name, report=bar)
    return f"{card.title} is in {folder}"


def check(name: str) -> str:
    """Look at a whole data set; what was found, line by line."""
    lines = [*check_dataset(name), *check_stores(name)]
    if name == "cifar10" and released_splits():
        from igpt.weights.own import released_palette  # brings torch

        lines += compare_released(released_palette())
    card = data_card(name)
    verdict = "is whole and consistent; nothing is published to compare it with" if card.loose else "is as published"
    return "\n".join([f"{card.title} {verdict}", *(f"  {line}" for line in lines)])


def tokenize(name: str, *, resolution: int | None, workers: int, crops: int, filter: str, seed: int, palette: Path | None) -> str:
    """Make the token stores of a data set's two official splits; where they are."""
    from igpt.weights.own import released_palette  # brings torch, which the other commands can do without

    card = data_card(name)
    colours = Palette.load(palette) if palette else released_palette()
    side = resolution or min(card.height, 32)
    said = []
    for split in ("train", "test"):
        wanted = TokenizeSettings(name, split, side, crops if split == "train" else 0, filter, seed)
        start = time.monotonic()
        with Bar(f"{name} {split}", " images") as bar:
            store, rate = make_store(wanted, colours, workers=workers, report=bar)
        size = len(store) * store.positions * 2 / 1e6
        done = f"{rate:,.0f} images/s, {time.monotonic() - start:.0f} s" if rate else "there already"
        said.append(f"{split}: {len(store):,} images of {side} x {side} tokens, {size:,.1f} MB, {done}: {store.folder}")
    return "\n".join(said)


class _Bytes(Bar):
    """A bar of bytes; without a terminal a line for each tenth."""

    _tenth = 0

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        super().__call__(done, total)
        tenth = 10 * done // total if total else 0
        if self.hidden and total and tenth > self._tenth:
            tell(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB")
        self._tenth = tenth  # it falls with the next file
