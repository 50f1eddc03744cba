"""Features on disk: computed in one pass over the tokens, in bounded memory, to be continued; read back memory-mapped.

For sets whose features do not fit into memory (ImageNet's, five layers of iGPT-XL, are 39 GB in half precision). Rows
may lie in a random order, so that reading them one after the other is what stochastic gradients need.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.data import LabelledTokens
from igpt.data.store import TokenStore
from igpt.errors import UsageError
from igpt.evaluate.features import masked_features
from igpt.fast import prepacked
from igpt.files import read_json, remove_parts, wait_for_lock, write_array, write_text
from igpt.model import ImageGPT
from igpt.progress import tell

HEADER, PROGRESS = "header.json", "progress.json"
AGAIN = "move its folder away and compute the features again"
PIECE = 2**14  # images that are looked at together
SECONDS = 60.0  # between two notes of how far the work is
PRECISIONS = ("float32", "float16")  # of features on disk
AT_ONCE = 2**28  # bytes of the widest activations of the images that go through a network together
MEASURED = 2.0  # seconds that are enough to tell a rate from
WORTH = 60.0  # seconds of work that are said before it begins
Report = Callable[[int, int], None]  # images done, images in all; what it raises ends the work, which is kept as far as it is
Tokens: TypeAlias = "LabelledTokens | TokenStore | NDArray[np.integer]"  # (images, positions)


class FeatureStore:
    """A finished store. ``order`` int64 (N,) says which image each row is of."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError for a folder that is no finished store."""
        try:
            header = read_json(folder / HEADER)
            self.layers: list[int] = list(map(int, header["layers"]))
            self.key: dict[str, str] = dict(header["key"])
            self._dtype = np.dtype(self.key["dtype"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{folder} is not a finished store of features ({error}): compute them again") from None
        self.order: NDArray[np.int64] = _mapped(folder / "order.npy", np.dtype(np.int64), 1)
        if not np.array_equal(np.sort(self.order), np.arange(len(self.order))):
            raise UsageError(f"{folder / 'order.npy'} is damaged (it is not a permutation of the images): {AGAIN}")
        self.folder = folder
        self._finite: set[int] = set()  # layers that have been looked at

    def __len__(self) -> int:
        """Number of images."""
        return len(self.order)

    def layer(self, layer: int) -> NDArray[np.floating]:
        """Features (N, width) of one layer in the store's order, memory-mapped.

        Raises UsageError for a missing one, and for a file that is damaged or holds other than finite features.
        What is written to them stays in memory: torch warns of arrays that it may not write to.
        """
        if layer not in self.layers:
            raise UsageError(f"{self.folder} has layers {self.layers}, not {layer}: compute it too")
        path = self.folder / f"layer-{layer:03d}.npy"
        found = _mapped(path, self._dtype, 2)
        if len(found) != len(self):
            raise UsageError(f"{path} has features of {len(found):,} images, not {len(self):,}: {AGAIN}")
        for start in range(0, 0 if layer in self._finite else len(found), PIECE):
            if not np.isfinite(found[start : start + PIECE]).all():
                raise UsageError(f"{path} has features that are NaN or infinite: {AGAIN}, in float32")
        self._finite.add(layer)
        return found

    def every_layer(self) -> list[NDArray[np.floating]]:
        """Each layer's features, in the layers' order."""
        return [self.layer(layer) for layer in sorted(self.layers)]

    def check_for(self, key: dict[str, str]) -> None:
        """Raise UsageError unless the features are of these weights and tokens, in this precision."""
        if differ := sorted(name for name in key.keys() | self.key.keys() if key.get(name) != self.key.get(name)):
            raise UsageError(f"{self.folder} holds features of another {' and '.join(differ)}: compute them again")


def store_features(
    folder: Path,
    model: ImageGPT,
    tokens: Tokens,
    *,
    key: dict[str, str],
    layers: Sequence[int] | None = None,
    dtype: str = "float16",
    seed: int | None = 0,
    mask_seed: int = 0,
    batch: int = 128,
    report: Report = lambda done, total: None,
) -> FeatureStore:
    """The features of some layers (all by default) of all tokens, computed or continued.

    seed : decides the random order of the rows; None leaves them in the images' order
    mask_seed, batch : of BERT's masks, and how many images' are drawn together
    key : what decides them, such as the digests of weights and tokens; another one in the folder is refused
    dtype : of the numbers on disk, one of `PRECISIONS`; they are computed in the model's precision and averaged in float32
    While another process fills the folder, this one waits for it, and continues when that process ends before it is done.
    Raises UsageError for a folder of other features, and for another precision.
    """
    if dtype not in PRECISIONS:
        raise UsageError(f"features are kept in {' or '.join(PRECISIONS)}, not {dtype!r}: choose one of these")
    layers = range(model.shape.n_layer + 1) if layers is None else layers
    key = {**key, "dtype": dtype, "order": str(seed), "masks": str(mask_seed)}
    if (folder / HEADER).exists():
        return _finished(folder, key, layers)
    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder / ".lock", f"{folder} is being filled by another process"):
        if (folder / HEADER).exists():  # that process has finished it
            return _finished(folder, key, layers)
        remove_parts(folder, ".*.part")
        check_space(len(tokens) * layer_bytes(model, dtype) * len(layers), folder)
        order = np.arange(len(tokens)) if seed is None else np.random.default_rng(seed).permutation(len(tokens))
        done = _begun(folder, key, list(layers))
        size = (len(tokens), model.shape.n_embd)
        mode = "r+" if done else "w+"
        maps = {n: np.lib.format.open_memmap(folder / f"layer-{n:03d}.npy", mode, dtype, size) for n in layers}
        noted, generator = time.monotonic(), _masks(mask_seed, done, batch, model.shape.n_ctx)
        with prepacked(model):
            while done < len(order):
                ahead = batch - done % batch
                if ahead == batch:
                    generator = _masks(mask_seed, done, batch, model.shape.n_ctx)
                rows = order[done : done + min(ahead, images_at_once(model))]
                part = torch.from_numpy(tokens[rows].astype(np.int64)).to(model.wte.device)
                for layer, averages in masked_features(model, part, layers=layers, generator=generator).items():
                    maps[layer][done : done + len(rows)] = averages.cpu().numpy()
                done += len(rows)
                if time.monotonic() - noted > SECONDS:
                    _note(folder, key, list(layers), done, maps)
                    noted = time.monotonic()
                try:
                    report(done, len(order))
                except BaseException:
                    _note(folder, key, list(layers), done, maps)
                    raise
        for mapped in maps.values():
            mapped.flush()
        write_array(folder / "order.npy", order)
        write_text(folder / HEADER, json.dumps({"layers": list(layers), "key": key}, indent=1) + "\n")
        (folder / PROGRESS).unlink(missing_ok=True)
    return FeatureStore(folder)


def layer_bytes(model: ImageGPT, dtype: str) -> int:
    """Bytes that one layer's features of one image take on disk."""
    return model.shape.n_embd * np.dtype(dtype).itemsize


def images_at_once(model: ImageGPT) -> int:
    """How many images go through a network together: more gain nothing, and their activations take memory."""
    shape = model.shape
    return max(AT_ONCE // (4 * shape.n_embd * shape.n_ctx * model.wte.element_size()), 1)


Look = tuple[Tokens, int]  # images and the seed of their masks, which an autoregressive model does not draw


def store_looks(
    folder: Path,
    model: ImageGPT,
    looks: Sequence[Look],
    *,
    key: dict[str, str],
    layers: Sequence[int],
    dtype: str = "float32",
    seed: int | None = None,
    report: Report = lambda done, total: None,
) -> list[FeatureStore]:
    """The features of several sets of images, in stores below ``folder``, by default in the images' order.

    Arguments are those of `store_features`, which says what is computed, continued and refused.
    """
    found, total = [], sum(len(tokens) for tokens, _ in looks)
    for number, (tokens, mask_seed) in enumerate(looks):
        before = sum(len(earlier) for earlier, _ in looks[:number])
        store = store_features(
            look_folder(folder, number),
            model,
            tokens,
            key={**key, "look": str(number)},
            layers=layers,
            dtype=dtype,
            seed=seed,
            mask_seed=mask_seed,
            report=lambda done, _, before=before: report(before + done, total),  # type: ignore[misc]
        )
        found.append(store)
    return found


def look_folder(folder: Path, number: int) -> Path:
    """Where `store_looks` keeps the features of one of its sets of images."""
    return folder / f"features-{number}"


def remove_looks(folder: Path) -> None:
    """Remove what `store_looks` keeps in a folder."""
    remove_parts(folder, "features-*")


def say_effort(
    folders: Sequence[Path], model: ImageGPT, looks: Sequence[Look], *, layers: Sequence[int], dtype: str = "float32"
) -> None:
    """Say on stderr what `store_looks` will take, by the rate of a few images on this machine: time, and disk.

    folders : of it, one for each network of the model's shape; what is kept of one is removed before the next one begins
    Nothing is said of work that is over within a minute. Raises UsageError when the disk has not that much to give.
    """
    done = [images_done(look_folder(folder, number)) for folder in folders for number in range(len(looks))]
    images = sum(len(tokens) for tokens, _ in looks)
    left = len(folders) * images - sum(done)
    if not left:
        return
    disk = images * len(layers) * layer_bytes(model, dtype)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    check_space(disk, *folders)
    rate = images_per_second(model, looks[0][0])
    if left / rate > WORTH:
        precision = str(model.wte.dtype).removeprefix("torch.")
        tell(
            f"igpt: features of {left:,} images: about {_duration(left / rate)} expected at {rate:.3g} images a second"
            f" ({model.wte.device.type}, {precision}), {disk / 1e9:.1f} GB on disk"
        )


def images_per_second(model: ImageGPT, tokens: Tokens) -> float:
    """The rate at which this machine computes features, measured: twice as many images each time, up to some seconds."""
    count, most = 1, min(images_at_once(model), len(tokens))
    with prepacked(model):

        def seconds() -> float:
            part = torch.from_numpy(tokens[np.arange(count)].astype(np.int64)).to(model.wte.device)
            start = time.perf_counter()
            masked_features(model, part, generator=torch.Generator())
            return time.perf_counter() - start

        seconds()  # the first time anything is slower
        while (took := seconds()) < MEASURED and 2 * count <= most:
            count *= 2
    return count / took


def images_done(folder: Path) -> int:
    """Of how many images a folder has features, finished or not."""
    try:
        return len(FeatureStore(folder))
    except UsageError:
        pass
    try:
        return int(read_json(folder / PROGRESS)["done"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def check_space(needed: int, *folders: Path) -> None:
    """Raise UsageError when features of so many bytes do not fit on the disk, those below the folders already counted in.

    A map that cannot grow would end the process.
    """
    there = sum(path.stat().st_blocks * 512 for folder in folders for path in folder.rglob("layer-*.npy"))
    free = shutil.disk_usage(folders[0]).free
    if needed - there > free:
        raise UsageError(f"the features need {needed - there:,} more bytes and {folders[0]} has {free:,} free: make room first")


def _masks(seed: int, done: int, batch: int, positions: int) -> torch.Generator:
    """The generator of BERT's masks, which depend on the seed and on where a batch begins, at ``done`` images."""
    begun = done - done % batch
    generator = torch.Generator().manual_seed(seed * 1_000_003 + begun)
    torch.rand(done - begun, positions, generator=generator)  # of those of the batch whose features are there
    return generator


def _duration(seconds: float) -> str:
    """In minutes, or in hours from two on.

    >>> _duration(80), _duration(7000), _duration(9000)
    ('2 minutes', '117 minutes', '2.5 hours')
    """
    return f"{seconds / 3600:.1f} hours" if seconds >= 7200 else f"{-(-seconds // 60):.0f} minutes"


def _finished(folder: Path, key: dict[str, str], layers: Sequence[int]) -> FeatureStore:
    """A finished store, when it is the one asked for. Raises UsageError when it is not."""
    found = FeatureStore(folder)
    found.check_for(key)
    if missing := sorted(set(layers) - set(found.layers)):
        raise UsageError(f"{folder} has layers {found.layers}, not {missing}: move it away, then compute again")
    return found


def _begun(folder: Path, key: dict[str, str], layers: list[int]) -> int:
    """How many images of these features are there already. Raises UsageError when others are."""
    try:
        note = read_json(folder / PROGRESS)
        others, done = (note["key"], note["layers"]) != (key, layers), int(note["done"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0
    if others:
        raise UsageError(f"{folder} was begun with other weights, tokens or layers: move it away, then compute again")
    try:
        for layer in layers:  # a file that was cut short would be lengthened by zeros
            _mapped(folder / f"layer-{layer:03d}.npy", np.dtype(key["dtype"]), 2)
    except UsageError:
        return 0
    return done


def _mapped(path: Path, dtype: np.dtype[Any], dimensions: int) -> NDArray[Any]:
    """A memory map of a whole .npy file; writing to it stays in memory. Raises UsageError for one that is damaged or another."""
    try:
        found = np.lib.format.open_memmap(path, mode="c")
    except Exception as error:  # numpy's reader of headers raises whatever Python's parser does
        says = str(error).partition("\n")[0]
        raise UsageError(f"{path} is damaged ({says}): {AGAIN}") from None
    if found.dtype != dtype or found.ndim != dimensions or found.offset + found.nbytes != path.stat().st_size:
        raise UsageError(f"{path} is damaged ({found.dtype} {found.shape} is not what was written): {AGAIN}")
    return found


def _note(folder: Path, key: dict[str, str], layers: list[int], done: int, maps: dict[int, np.memmap]) -> None:
    """Say how far the work is, once that far is on disk."""
    for mapped in maps.values():
        mapped.flush()
    write_text(folder / PROGRESS, json.dumps({"key": key, "layers": layers, "done": done}))
