"""From a data set to token stores: read, crop, reduce, quantise; in shards, by several processes, to be continued."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from igpt.data.cards import check_present, data_card, data_home
from igpt.data.dataset import Official, SplitName
from igpt.data.labelled import LabelledTokens, TokensInMemory
from igpt.data.order import index_digest
from igpt.data.resize import FILTERS, centre_crop, random_crop, reduced
from igpt.data.splits import held_out, load_split, validation_indices
from igpt.data.store import (
    HEADER,
    SHARD,
    VERSION,
    Header,
    StorePart,
    TokenStore,
    read_labels,
    shard_count,
    shard_images,
    shard_path,
    write_header,
    write_labels,
    write_shard,
)
from igpt.errors import UsageError
from igpt.files import check_writable, file_sha256, remove_parts, wait_for_lock
from igpt.palette import Palette
from igpt.seeds import check_seed

if TYPE_CHECKING:  # so that the reader of one data set is not part of what stages with others stand on
    from igpt.data.jpegs import Jpegs

PLAN = "plan.json"  # the header without its shards, while a store is being made
AT_ONCE = 512  # images decoded before they are quantised
Report = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class TokenizeSettings:
    """What is to be tokenised, and how."""

    dataset: str
    split: Official
    resolution: int
    crops: int = 0  # random crops of each training image; 0: the central crop, as probes take it
    filter: str = "bicubic"
    seed: int = 0  # of the random crops


def labelled_tokens(dataset: str, split: SplitName, *, side: int, palette: Palette) -> LabelledTokens:
    """One split of a data set as tokens with their labels; train is without the held-out validation images.

    side : pixels a side, to which the images are reduced
    ImageNet's tokens lie on disk and are read as they are asked for: its store is made where there is none. Tokens that
    were published as such are downloaded where they are not at hand. The other sets are in memory.
    Raises UsageError as `load_split` and `make_store` do, and for published tokens of another side or palette.

    >>> from igpt.data import load_split
    >>> greys = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    >>> tokens = labelled_tokens("digits", "test", side=8, palette=greys)
    >>> len(tokens), tokens[:2].shape, tokens.classes
    (360, (2, 64), 10)
    """
    card = data_card(dataset)
    if card.tokens is not None:
        released = card.tokens(card, split, side, palette)
        return LabelledTokens.of(released, np.arange(len(released)), classes=card.classes)
    if not card.cropped:
        loaded = load_split(dataset, split, side=side)
        memory = TokensInMemory(palette.quantize(loaded.images).reshape(len(loaded), -1), loaded.labels)
        return LabelledTokens.of(memory, np.arange(len(memory)), classes=card.classes)
    store, _ = make_store(TokenizeSettings(dataset, "test" if split == "test" else "train", side), palette)
    if split == "test":
        return LabelledTokens.of(store, np.arange(len(store)), classes=card.classes)
    part = train_parts(store)[split == "validation"]
    return LabelledTokens.of(store, part.places, classes=card.classes)


def store_folder(wanted: TokenizeSettings, palette: Palette) -> Path:
    """Where a store lies: below the data home, under a name that says what it is."""
    crops = f"-{wanted.crops}-crops-seed-{wanted.seed}" if wanted.crops else ""
    words = f"{wanted.dataset}-{wanted.split}-{wanted.resolution}-{wanted.filter}{crops}-{palette.digest[:8]}"
    return data_home() / "tokens" / words


def make_store(
    wanted: TokenizeSettings, palette: Palette, *, workers: int = 1, report: Report = lambda done, total: None
) -> tuple[TokenStore, float]:
    """The store of what is wanted, made or continued; and how many images a second this call tokenised (0 if none).

    While another process makes it, this one waits for the store, and continues it when that process ends before it does.
    Raises UsageError for a data set that is not at hand or damaged, and for a resolution, filter or number of crops that
    it does not have.
    """
    _check(wanted, palette, workers)
    folder = store_folder(wanted, palette)
    if (folder / HEADER).exists():
        return _open_store(folder, wanted, palette), 0.0
    check_present(wanted.dataset)
    check_writable(folder, is_folder=True)
    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder / ".lock", f"{folder} is being made by another process"):
        if (folder / HEADER).exists():  # that process has finished it
            return _open_store(folder, wanted, palette), 0.0
        remove_parts(folder, ".*.part")
        return _make(wanted, palette, folder, workers=workers, report=report)


def _open_store(folder: Path, wanted: TokenizeSettings, palette: Palette) -> TokenStore:
    """A finished store, held against what is wanted: its folder's name may have been given to another."""
    store = TokenStore(folder)
    header = store.header
    found = TokenizeSettings(header.dataset, header.split, header.resolution, header.crops, header.filter, header.seed)
    if (found, header.palette_sha256) != (wanted, palette.digest):
        raise UsageError(f"{folder} holds other tokens than its name says: move it away, then tokenise again")
    store.check_for(palette, positions=wanted.resolution**2)
    return store


def check_stores(name: str) -> list[str]:
    """What a look at every finished store of a data set finds; each shard is read and held against its sum.

    Raises UsageError for the first shard that is not as it was written.
    """
    lines = []
    for header in sorted((data_home() / "tokens").glob(f"{name}-*/{HEADER}")):
        store = TokenStore(header.parent)
        if store.header.dataset != name:
            continue
        for place, expected in enumerate(store.header.shards):
            if file_sha256(shard_path(store.folder, place)) != expected:
                raise UsageError(f"{shard_path(store.folder, place)} is damaged: move {store.folder} away and tokenise again")
        lines.append(f"tokens: {store.folder.name}, {len(store):,} images, every shard as it was written")
    return lines


def train_parts(store: TokenStore) -> tuple[StorePart, StorePart]:
    """A train store without the held-out images, and these; of an image with several crops all go to one side.

    Raises UsageError for a store of test images.
    """
    header = store.header
    if header.split != "train":
        raise UsageError(f"{store.folder} holds the test images of {header.dataset}: training and choosing want the train store")
    places = validation_indices(header.dataset)
    if header.held_out_sha256 and header.held_out_sha256 != index_digest(places):
        raise UsageError(f"{store.folder} was made under another rule for the held-out part: move it away and tokenise again")
    pictures = np.arange(len(store)) % (len(store) // max(header.crops, 1))
    validation = np.isin(pictures, places)
    return StorePart(store, np.flatnonzero(~validation)), StorePart(store, np.flatnonzero(validation))


def _make(wanted: TokenizeSettings, palette: Palette, folder: Path, *, workers: int, report: Report) -> tuple[TokenStore, float]:
    """Make the missing shards, then the header."""
    card = data_card(wanted.dataset)
    assert card.read is not None  # looked at by _check
    source, labels = card.read(card, wanted.split)
    images = len(labels) * max(wanted.crops, 1)
    header = Header(
        version=VERSION,
        dataset=wanted.dataset,
        split=wanted.split,
        resolution=wanted.resolution,
        filter=wanted.filter,
        crops=wanted.crops,
        seed=wanted.seed,
        palette_sha256=palette.digest,
        images=images,
        held_out_sha256=index_digest(held_out(wanted.dataset)) if card.split else "",
    )
    _continue(folder, header, np.tile(labels, max(wanted.crops, 1)))
    todo = [place for place in range(shard_count(images)) if not shard_path(folder, place).exists()]
    before = images - sum(shard_images(images, place) for place in todo)
    done, start = before, time.perf_counter()
    report(done, images)
    for place in _each_shard(todo, source, images, (wanted, palette, folder), workers):
        done += shard_images(images, place)
        report(done, images)
    rate = (done - before) / (time.perf_counter() - start) if todo else 0.0
    sums = [file_sha256(shard_path(folder, place)) for place in range(shard_count(images))]
    write_header(folder / HEADER, header.model_copy(update={"shards": sums}))
    (folder / PLAN).unlink()
    return TokenStore(folder), rate


def _continue(folder: Path, header: Header, labels: NDArray[np.int64]) -> None:
    """Say in the folder what is being made there, labels first. Raises UsageError when that is something else already."""
    plan = folder / PLAN
    if plan.exists():
        try:
            begun = Header.model_validate_json(plan.read_bytes())
            same = begun == header and np.array_equal(read_labels(folder, len(labels)), labels)  # or pictures in another order
        except (ValidationError, UsageError):
            same = False
        if not same:
            raise UsageError(
                f"{folder} was begun by another version or from other data: when no command is at work there, move it away"
                " and tokenise again"
            )
    elif any(folder.glob("tokens-*.npy")):
        raise UsageError(f"{folder} has shards and nothing says of what: move it away, then tokenise again")
    else:
        write_labels(folder, labels)
        write_header(plan, header)


Pictures: TypeAlias = "Jpegs | NDArray[np.uint8]"


def _each_shard(
    todo: list[int], pictures: Pictures, images: int, kept: tuple[TokenizeSettings, Palette, Path], workers: int
) -> Iterator[int]:
    """Make shards, here or in ``workers`` processes; each one's place as it is done."""
    if workers == 1 or len(todo) < 2:
        for place in todo:
            yield make_shard(place, _part(pictures, place, images), *kept)
        return
    context = multiprocessing.get_context("spawn")  # a fork would share what torch's threads hold
    with ProcessPoolExecutor(min(workers, len(todo)), context, _keep, kept) as pool:
        try:
            running = {_submitted(pool, place, _part(pictures, place, images)) for place in todo}
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield future.result()
        except BrokenProcessPool:
            raise UsageError(
                "a worker was killed, for memory perhaps: run the same command again, with fewer --workers"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)  # and wait for the shards at work, so that the lock outlives them
            raise


def _submitted(pool: ProcessPoolExecutor, place: int, pictures: Pictures) -> Future[int]:
    """A shard given to the pool. Raises BrokenProcessPool if a worker cannot be started.

    A worker that is killed while others start closes the pipes that these would inherit, which Python tells as OSError or
    ValueError.
    """
    try:
        return pool.submit(_make_kept, place, pictures)
    except (OSError, ValueError) as error:
        raise BrokenProcessPool(str(error)) from error


_KEPT: list[tuple[TokenizeSettings, Palette, Path]] = []  # in a worker: what all its shards have in common, sent once


def _keep(wanted: TokenizeSettings, palette: Palette, folder: Path) -> None:
    """Set a worker up."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _KEPT[:] = [(wanted, palette, folder)]


def _end_with_parent() -> None:
    """End a worker whose process was killed; it would wait for the next shard for ever, with its share of memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make_kept(place: int, pictures: Pictures) -> int:
    """Make one shard in a worker."""
    return make_shard(place, pictures, *_KEPT[0])


def _part(pictures: Pictures, place: int, images: int) -> Pictures:
    """One shard's pictures: the ``index``-th stored image is of picture ``index mod N``."""
    indices = np.arange(place * SHARD, place * SHARD + shard_images(images, place)) % len(pictures)
    return pictures[indices] if isinstance(pictures, np.ndarray) else pictures.take(indices)


def make_shard(place: int, pictures: Pictures, wanted: TokenizeSettings, palette: Palette, folder: Path) -> int:
    """Tokenise and write one shard out of its pictures; its place. In memory at a time are some of its images only."""
    tokens = np.empty((len(pictures), wanted.resolution**2), np.uint16)
    for start in range(0, len(pictures), AT_ONCE):
        rows = range(start, min(start + AT_ONCE, len(pictures)))
        if isinstance(pictures, np.ndarray):
            pixels = pictures[start : rows.stop]
            if pixels.shape[1] != wanted.resolution:
                pixels = reduced(pixels, side=wanted.resolution, filter=wanted.filter)
        else:
            pixels = np.stack([_cropped(pictures, wanted, row, place * SHARD + row) for row in rows])
        tokens[start : rows.stop] = palette.quantize(pixels).reshape(len(rows), -1)
    write_shard(folder, place, tokens)
    return place


def _cropped(jpegs: Jpegs, wanted: TokenizeSettings, row: int, index: int) -> NDArray[np.uint8]:
    """One stored image, the ``index``-th. Random crops depend on seed and index alone."""
    picture = jpegs.picture(row)
    if not wanted.crops:
        return centre_crop(picture, side=wanted.resolution, filter=wanted.filter)
    generator = np.random.default_rng([wanted.seed, index])
    return random_crop(picture, side=wanted.resolution, filter=wanted.filter, generator=generator)


def _check(wanted: TokenizeSettings, palette: Palette, workers: int) -> None:
    """Refuse what cannot be made, before anything is opened."""
    card = data_card(wanted.dataset)
    if card.read is None:
        raise UsageError(f"{card.title} is tokens already: name a data set of pictures, or use these as they are")
    if not 1 <= wanted.resolution <= card.height:
        raise UsageError(f"{card.title} has {card.height} pixels a side: choose a resolution from 1 to {card.height}")
    if wanted.filter not in FILTERS:
        raise UsageError(f"there is no filter {wanted.filter!r}; choose one of {', '.join(FILTERS)}")
    if wanted.crops and (not card.cropped or wanted.split != "train"):
        raise UsageError(f"random crops are taken of ImageNet's training images, not of {card.title}'s {wanted.split} images")
    check_seed(wanted.seed)
    if wanted.crops < 0 or workers < 1:
        raise UsageError(f"crops are at least 0 and workers 1, not {wanted.crops} and {workers}")
    if palette.centres.shape[1] != card.channels:
        raise UsageError(f"the palette has {palette.centres.shape[1]} channels, {card.title} has {card.channels}: give another")
