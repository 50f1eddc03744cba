"""Features on disk: computed in one pass over the tokens, in bounded memory, to be continued; read back memory-mapped.

For sets whose features do not fit into memory (ImageNet's, five layers of iGPT-XL, are 39 GB in half precision). Rows
may lie in a random order, so that reading them one after the other is what stochastic gradients need.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.data.store import TokenStore
from igpt.errors import UsageError
from igpt.evaluate.features import masked_features
from igpt.fast import packed
from igpt.files import read_json, remove_parts, wait_for_lock, write_array, write_text
from igpt.model import ImageGPT

HEADER, PROGRESS = "header.json", "progress.json"
AGAIN = "move its folder away and compute the features again"
PIECE = 2**14  # images that are looked at together
FLUSH = 32  # batches between two notes of how far the work is
Report = Callable[[int, int], None]  # images done, images in all


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
    tokens: TokenStore | NDArray[np.integer],
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
    mask_seed : of BERT's masks
    key : what decides them, such as the digests of weights and tokens; another one in the folder is refused
    dtype : of the numbers on disk; they are computed in the model's precision and averaged in float32
    While another process fills the folder, this one waits for it, and continues when that process ends before it is done.
    Raises UsageError for a folder of other features.
    """
    layers = range(model.shape.n_layer + 1) if layers is None else layers
    key = {**key, "dtype": dtype, "order": str(seed), "masks": str(mask_seed)}
    if (folder / HEADER).exists():
        return _finished(folder, key, layers)
    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder / ".lock", f"{folder} is being filled by another process"):
        if (folder / HEADER).exists():  # that process has finished it
            return _finished(folder, key, layers)
        remove_parts(folder, ".*.part")
        _check_space(folder, len(tokens) * model.shape.n_embd * len(layers) * np.dtype(dtype).itemsize)
        order = np.arange(len(tokens)) if seed is None else np.random.default_rng(seed).permutation(len(tokens))
        done = _begun(folder, key, list(layers))
        size = (len(tokens), model.shape.n_embd)
        mode = "r+" if done else "w+"
        maps = {n: np.lib.format.open_memmap(folder / f"layer-{n:03d}.npy", mode, dtype, size) for n in layers}
        with packed(model):
            for place, start in enumerate(range(done, len(order), batch), start=1):
                rows = order[start : start + batch]
                part = torch.from_numpy(tokens[rows].astype(np.int64)).to(model.wte.device)
                # A mask of BERT's depends on the seed and on where the batch begins, which a continued run keeps.
                generator = torch.Generator().manual_seed(mask_seed * 1_000_003 + start)
                for layer, averages in masked_features(model, part, layers=layers, generator=generator).items():
                    maps[layer][start : start + len(rows)] = averages.cpu().numpy()
                if place % FLUSH == 0:
                    _note(folder, key, list(layers), start + len(rows), maps)
                report(start + len(rows), len(order))
        for mapped in maps.values():
            mapped.flush()
        write_array(folder / "order.npy", order)
        write_text(folder / HEADER, json.dumps({"layers": list(layers), "key": key}, indent=1) + "\n")
        (folder / PROGRESS).unlink(missing_ok=True)
    return FeatureStore(folder)


def _finished(folder: Path, key: dict[str, str], layers: Sequence[int]) -> FeatureStore:
    """A finished store, when it is the one asked for. Raises UsageError when it is not."""
    found = FeatureStore(folder)
    found.check_for(key)
    if missing := sorted(set(layers) - set(found.layers)):
        raise UsageError(f"{folder} has layers {found.layers}, not {missing}: move it away, then compute again")
    return found


def _check_space(folder: Path, needed: int) -> None:
    """Raise UsageError when the features do not fit on the disk: a map that cannot grow ends the process."""
    there = sum(path.stat().st_blocks * 512 for path in folder.glob("layer-*.npy"))
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise UsageError(f"the features need {needed - there:,} more bytes and {folder} has {free:,} free: make room first")


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
