"""Tokenise data sets into token stores: read, crop, reduce and quantise, in shards, in several processes, with resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from igpt.data.cards import check_present, data_card, data_home, is_own, own_digest
from igpt.data.dataset import FittedPictures, Official, SplitName, index_digest
from igpt.data.labelled import LabelledTokens, TokensInMemory
from igpt.data.resize import FILTERS, random_crop, reduced
from igpt.data.splits import held_out, load_split, validation_indices
from igpt.data.store import (
    HEADER,
    LABELS,
    SHARD,
    VERSION,
    Header,
    TokenStore,
    read_labels,
    shard_count,
    shard_path,
    write_header,
)
from igpt.data.workers import each
from igpt.errors import UsageError
from igpt.files import check_writable, file_sha256, remove_parts, wait_for_lock, write_array
from igpt.machine import cores
from igpt.palette import Palette
from igpt.seeds import check_seed

if TYPE_CHECKING:  # an import would make stages with any data set depend on ImageNet's reader
    from igpt.data.jpegs import Jpegs

PLAN = "plan.json"  # the header without checksums, while a store is being made
AT_ONCE = 512  # images decoded before they are quantised
Report = Callable[[int, int], None]  # images done, total images
Pictures: TypeAlias = "Jpegs | FittedPictures | NDArray[np.uint8]"


@dataclass(frozen=True)
class TokenizeSettings:
    """The settings of a token store."""

    dataset: str
    split: Official
    resolution: int
    crops: int = 0  # random crops per training image; 0 is the central crop, as for linear probes
    filter: str = "bicubic"
    seed: int = 0  # of the random crops


def labelled_tokens(dataset: str, split: SplitName, *, side: int, palette: Palette) -> LabelledTokens:
    """One split of a data set as tokens with their labels; train is without the held-out validation images.

    side : pixels per side of the reduced images
    ImageNet's tokens stay on disk, in a store that is made if it is missing. Published tokens are downloaded if they are
    missing. Other sets are tokenised in memory.
    Raises UsageError as `load_split` and `make_store` do, and for published tokens of a different side or palette.

    >>> from igpt.data import load_split
    >>> greys = Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None])
    >>> tokens = labelled_tokens("digits", "test", side=8, palette=greys)
    >>> len(tokens), tokens[:2].shape, tokens.classes
    (360, (2, 64), 10)
    """
    card = data_card(dataset)
    if card.tokens is not None:
        return LabelledTokens.of(card.tokens(card, split, side, palette), classes=card.classes)
    if not card.cropped:
        loaded = load_split(dataset, split, side=side)
        tokens = palette.quantize(loaded.images).reshape(len(loaded), -1)
        return LabelledTokens.of(TokensInMemory(tokens, loaded.labels), classes=card.classes)
    workers = cores() if is_own(dataset) else 1  # ImageNet's are tokenised beforehand, with as many as its user says
    store, _ = make_store(TokenizeSettings(dataset, "test" if split == "test" else "train", side), palette, workers=workers)
    return LabelledTokens.of(store, classes=card.classes) if split == "test" else train_parts(store)[split == "validation"]


def train_parts(store: TokenStore) -> tuple[LabelledTokens, LabelledTokens]:
    """The training and the held-out images of a train store; all crops of an image go to the same part.

    Raises UsageError for a store of test images, and for one made with different held-out images.
    """
    header = store.header
    if header.split != "train":
        raise UsageError(f"{store.folder} holds the test images of {header.dataset}: training and choosing need the train store")
    card, held = data_card(header.dataset), validation_indices(header.dataset)
    if header.content != own_digest(header.dataset):
        raise UsageError(f"{store.folder} was made of other pictures than {card.title} has now: tokenise again")
    if header.held_out_sha256 and header.held_out_sha256 != index_digest(held):
        raise UsageError(f"{store.folder} was made with other held-out images: move it away and tokenise again")
    pictures = np.arange(len(store)) % (len(store) // max(header.crops, 1))
    is_held = np.isin(pictures, held)
    training, validation = (LabelledTokens.of(store, np.flatnonzero(part), classes=card.classes) for part in (~is_held, is_held))
    return training, validation


def store_folder(settings: TokenizeSettings, palette: Palette) -> Path:
    """The folder of a store, below the data home; its name has the digest of pictures that a user may replace."""
    content = f"-{digest[:8]}" if (digest := own_digest(settings.dataset)) else ""
    crops = f"-{settings.crops}-crops-seed-{settings.seed}" if settings.crops else ""
    name = f"{settings.dataset}{content}-{settings.split}-{settings.resolution}-{settings.filter}{crops}-{palette.digest[:8]}"
    return data_home() / "tokens" / name


def make_store(
    settings: TokenizeSettings, palette: Palette, *, workers: int = 1, report: Report = lambda done, total: None
) -> tuple[TokenStore, float]:
    """Make or resume a store; return it, and the images per second that this call tokenised (0 if none).

    While another process makes the same store, this call waits, and resumes if that process ends early.
    Raises UsageError for a data set that is missing or damaged, and for an unsupported resolution, filter or
    number of crops.
    """
    _check(settings, palette, workers)
    folder, rate = store_folder(settings, palette), 0.0
    if not (folder / HEADER).exists():
        check_present(settings.dataset)
        check_writable(folder, is_folder=True)
        folder.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(folder / ".lock", f"{folder} is being made by another process"):
            if not (folder / HEADER).exists():  # the other process may have finished it
                remove_parts(folder, ".*.part")
                rate = _make(settings, palette, folder, workers=workers, report=report)
    store = TokenStore(folder)
    expected = {**asdict(settings), "palette_sha256": palette.digest, "content": own_digest(settings.dataset)}
    if not expected.items() <= store.header.model_dump(exclude={"shards"}).items():
        raise UsageError(f"{folder} holds other tokens than its name says: move it away, then tokenise again")
    store.check_for(palette, positions=settings.resolution**2)
    return store, rate


def check_stores(name: str) -> list[str]:
    """Check every shard's checksum; one line per finished store of a data set.

    Raises UsageError for the first shard that is damaged.
    """
    lines = []
    for header_path in sorted((data_home() / "tokens").glob(f"{name}-*/{HEADER}")):
        store = TokenStore(header_path.parent)
        if store.header.dataset != name:
            continue
        for shard, expected in enumerate(store.header.shards):
            if file_sha256(path := shard_path(store.folder, shard)) != expected:
                raise UsageError(f"{path} is damaged: move {store.folder} away and tokenise again")
        lines.append(f"tokens: {store.folder.name}, {len(store):,} images, every shard as it was written")
    return lines


def _make(settings: TokenizeSettings, palette: Palette, folder: Path, *, workers: int, report: Report) -> float:
    """Make the missing shards, then the header; return the images per second."""
    card = data_card(settings.dataset)
    assert card.read is not None  # as checked in _check
    pictures, labels = card.read(card, settings.split)
    labels = np.tile(labels, max(settings.crops, 1))
    images = len(labels)
    header = Header(
        **asdict(settings),
        version=VERSION,
        palette_sha256=palette.digest,
        images=images,
        held_out_sha256=index_digest(held_out(settings.dataset)) if card.split else "",
        content=own_digest(settings.dataset),
    )
    _begin(folder, header, labels)
    # The i-th stored image is a crop of picture i mod N.
    shards = [np.arange(start, min(start + SHARD, images)) % len(pictures) for start in range(0, images, SHARD)]
    todo = [shard for shard in range(len(shards)) if not shard_path(folder, shard).exists()]
    already_done = done = images - sum(len(shards[shard]) for shard in todo)
    start = time.perf_counter()
    report(done, images)
    work = ((shard, _take(pictures, shards[shard]), settings, palette, folder) for shard in todo)
    for shard in each(make_shard, work, workers=min(workers, len(todo))):
        done += len(shards[shard])
        report(done, images)
    rate = (done - already_done) / (time.perf_counter() - start) if todo else 0.0
    sums = [file_sha256(shard_path(folder, shard)) for shard in range(shard_count(images))]
    write_header(folder / HEADER, header.model_copy(update={"shards": sums}))
    (folder / PLAN).unlink()
    return rate


def _begin(folder: Path, header: Header, labels: NDArray[np.int64]) -> None:
    """Write labels and plan, or, on resume, check that they are unchanged. Raises UsageError when they are not."""
    plan = folder / PLAN
    if plan.exists():
        try:  # different labels mean pictures in a different order
            same = Header.model_validate_json(plan.read_bytes()) == header
            same = same and np.array_equal(read_labels(folder, len(labels)), labels)
        except (ValidationError, UsageError):
            same = False
        if not same:
            raise UsageError(
                f"{folder} was begun by another version or from other data: when no command is at work there, move it away"
                " and tokenise again"
            )
    elif any(folder.glob("tokens-*.npy")):
        raise UsageError(f"{folder} has shards and no {PLAN}: move it away, then tokenise again")
    else:
        write_array(folder / LABELS, labels)
        write_header(plan, header)


def _take(pictures: Pictures, indices: NDArray[np.int64]) -> Pictures:
    """The pictures of one shard."""
    return pictures[indices] if isinstance(pictures, np.ndarray) else pictures.take(indices)


def make_shard(shard: int, pictures: Pictures, settings: TokenizeSettings, palette: Palette, folder: Path) -> int:
    """Tokenise the pictures of one shard, write it, and return its index. At most `AT_ONCE` images are in memory."""
    tokens = np.empty((len(pictures), settings.resolution**2), np.uint16)
    for start in range(0, len(pictures), AT_ONCE):
        rows = range(start, min(start + AT_ONCE, len(pictures)))
        if isinstance(pictures, np.ndarray):
            pixels = pictures[start : rows.stop]
            if pixels.shape[1] != settings.resolution:
                pixels = reduced(pixels, side=settings.resolution, filter=settings.filter)
        else:
            channels = palette.centres.shape[1]
            pixels = np.stack([_cropped(pictures, settings, row, shard * SHARD + row, channels) for row in rows])
        tokens[start : rows.stop] = palette.quantize(pixels).reshape(len(rows), -1)
    write_array(shard_path(folder, shard), tokens)
    return shard


def _cropped(
    pictures: Jpegs | FittedPictures, settings: TokenizeSettings, row: int, index: int, channels: int
) -> NDArray[np.uint8]:
    """One stored image, the ``index``-th. Random crops depend only on seed and index."""
    if not settings.crops:
        return pictures.pixels(row, side=settings.resolution, channels=channels, filter=settings.filter)
    picture, generator = pictures.picture(row), np.random.default_rng([settings.seed, index])
    if channels == 1:
        picture = picture.convert("L")
    return random_crop(picture, side=settings.resolution, filter=settings.filter, generator=generator)


def _check(settings: TokenizeSettings, palette: Palette, workers: int) -> None:
    """Raise UsageError for invalid settings, before any file is opened."""
    card = data_card(settings.dataset)
    if card.read is None:
        raise UsageError(f"{card.title} is tokens already: name a data set of pictures, or use these as they are")
    if not 1 <= settings.resolution <= card.height:
        raise UsageError(f"{card.title} has {card.height} pixels a side: choose a resolution from 1 to {card.height}")
    if settings.filter not in FILTERS:
        raise UsageError(f"there is no filter {settings.filter!r}; choose one of {', '.join(FILTERS)}")
    if settings.crops and (not card.cropped or settings.split != "train"):
        raise UsageError(
            f"random crops are taken of training pictures of different sizes, not of {card.title}'s {settings.split} images"
        )
    check_seed(settings.seed)
    if settings.crops < 0 or workers < 1:
        raise UsageError(f"crops are at least 0 and workers 1, not {settings.crops} and {workers}")
    if card.channels not in (0, palette.centres.shape[1]):
        raise UsageError(f"the palette has {palette.centres.shape[1]} channels, {card.title} has {card.channels}: give another")
