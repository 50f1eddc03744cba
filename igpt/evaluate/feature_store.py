"""Features on disk: computed in one resumable pass over the tokens, in bounded memory, and read back memory-mapped.

For features that do not fit into memory (five layers of iGPT-XL on ImageNet are 39 GB in half precision). Rows may be in a
random order, so that stochastic gradients can read them sequentially.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.errors import UsageError
from igpt.evaluate.features import masked_features
from igpt.evaluate.kept import PRECISIONS, Kept
from igpt.fast import prepacked
from igpt.files import remove_parts, wait_for_lock
from igpt.model import ImageGPT
from igpt.train.memory import AT_ONCE

SECONDS = 60.0  # between two saves of the progress
Report = Callable[[int, int], None]  # images done, images in all; an exception stops the work, which can be resumed


class Tokens(Protocol):
    """Images as tokens, integers (images, positions), of which those at int64 indices (B,) are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: NDArray[np.int64], /) -> NDArray[np.integer]: ...


Look = tuple[Tokens, int]  # images, and the seed of BERT's masks for them


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Features by layer, each (N, width) and memory-mapped; ``order`` int64 (N,) is the image of each row.

    The maps are copy-on-write: changes to the features stay in memory.
    """

    order: NDArray[np.int64]
    layers: dict[int, NDArray[np.floating]]


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
    """Features of some layers (all by default) of all tokens: read from ``folder`` if complete, else resumed or computed.

    key : identifies their inputs, such as by the digests of weights and tokens; features with another key are recomputed
    dtype : on disk, one of `PRECISIONS`; features are computed in the model's precision and averaged in float32
    seed : of the random order of the rows; None for the images' order
    mask_seed : of BERT's masks; batch : images whose masks are drawn together
    While another process fills the folder this one waits, and resumes the work if that process ends early.
    Raises UsageError for an unknown dtype, for features that are NaN or infinite, and when the disk is too small.
    """
    if dtype not in PRECISIONS:
        raise UsageError(f"features are kept in {' or '.join(PRECISIONS)}, not {dtype!r}: choose one of these")
    layers = range(model.shape.n_layer + 1) if layers is None else layers
    key = {**key, "dtype": dtype, "order": str(seed), "masks": str(mask_seed), "layers": str(list(layers))}
    kept, images = Kept(folder, key), len(tokens)
    order = np.arange(images) if seed is None else np.random.default_rng(seed).permutation(images)
    paths = {layer: folder / f"layer-{layer:03d}.npy" for layer in layers}
    shape = (images, model.shape.n_embd)
    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder / ".lock", f"{folder} is being filled by another process"):
        remove_parts(folder, ".*.part")
        done: int = kept.get("done") or 0
        maps = {layer: _opened(path, shape, dtype) for layer, path in paths.items()} if done else {}
        if any(features is None for features in maps.values()):
            done = 0
        if not done:
            check_space(feature_bytes(model, images, layers, dtype), folder)
            kept.keep("done", 0)  # first, or a kill would leave the count of the old files beside empty new ones
            maps = {layer: np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape) for layer, path in paths.items()}

        def save_progress() -> None:
            for features in maps.values():
                features.flush()
            kept.keep("done", done)

        saved = time.monotonic()
        try:
            with prepacked(model):
                for averages in feature_batches(model, tokens, order, layers=layers, done=done, mask_seed=mask_seed, batch=batch):
                    count = len(next(iter(averages.values()), ()))
                    for layer, values in averages.items():
                        with np.errstate(over="ignore"):
                            features = values.astype(dtype)
                        if not np.isfinite(features).all():
                            raise UsageError(f"features of layer {layer} overflow {dtype}: compute them in float32")
                        maps[layer][done : done + count] = features
                    done += count
                    if time.monotonic() - saved > SECONDS:
                        save_progress()
                        saved = time.monotonic()
                    report(done, images)
        finally:
            save_progress()
    return FeatureStore(order, {layer: np.lib.format.open_memmap(path, "c") for layer, path in paths.items()})


def feature_batches(
    model: ImageGPT,
    tokens: Tokens,
    order: NDArray[np.int64],
    *,
    layers: Sequence[int],
    done: int = 0,
    mask_seed: int = 0,
    batch: int = 128,
) -> Iterator[dict[int, NDArray[np.float32]]]:
    """Features by layer, float32 (B, width), of some images at once, in an order, int64 (N,), from its ``done``-th on.

    mask_seed, batch : as in `store_features`
    Raises UsageError for features that are NaN or infinite.
    """
    at_once = images_at_once(model)
    for start in range(done - done % batch, len(order), batch):
        # Masks depend on their seed and on their batch's first image; those of finished images are drawn again.
        generator = torch.Generator().manual_seed(mask_seed * 1_000_003 + start)
        torch.rand(done - start, model.shape.n_ctx, generator=generator)
        while done < min(start + batch, len(order)):
            rows = order[done : min(done + at_once, start + batch)]
            inputs = torch.from_numpy(tokens[rows].astype(np.int64)).to(model.wte.device)
            averages = masked_features(model, inputs, layers=layers, generator=generator)
            yield {layer: values.cpu().numpy() for layer, values in averages.items()}
            done += len(rows)


def _opened(path: Path, shape: tuple[int, int], dtype: str) -> Any:
    """A writable memory map of a whole .npy file; None for a missing, damaged or different one."""
    try:
        features = np.lib.format.open_memmap(path, "r")  # "r+" would pad a truncated file with zeros
    except Exception:  # numpy parses headers with Python's parser, which raises many kinds of errors
        return None
    complete = features.offset + features.nbytes == path.stat().st_size
    same = (features.shape, str(features.dtype)) == (shape, dtype)
    return np.lib.format.open_memmap(path, "r+") if complete and same else None


def images_at_once(model: ImageGPT) -> int:
    """Images per forward pass of a frozen network; larger batches are not faster and take more memory."""
    shape = model.shape
    return max(AT_ONCE // (4 * shape.n_embd * shape.n_ctx * model.wte.element_size()), 1)


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
    """`store_features` of several sets of images, each in a subfolder of ``folder``, by default in the images' order.

    Raises UsageError before the first set when the disk is too small for all of them.
    """
    total = sum(len(tokens) for tokens, _ in looks)
    folder.mkdir(parents=True, exist_ok=True)
    check_space(feature_bytes(model, total, layers, dtype), folder)
    stores: list[FeatureStore] = []
    for index, (tokens, mask_seed) in enumerate(looks):
        offset = sum(len(store.order) for store in stores)
        store = store_features(
            folder / f"features-{index}",
            model,
            tokens,
            key={**key, "look": str(index)},
            layers=layers,
            dtype=dtype,
            seed=seed,
            mask_seed=mask_seed,
            report=lambda done, _, offset=offset: report(offset + done, total),  # type: ignore[misc]
        )
        stores.append(store)
    return stores


def remove_looks(folder: Path) -> None:
    """Remove the features that `store_looks` wrote in a folder."""
    remove_parts(folder, "features-*")


def feature_bytes(model: ImageGPT, images: int, layers: Sequence[int], dtype: str) -> int:
    """Bytes of features on disk."""
    return images * len(layers) * model.shape.n_embd * np.dtype(dtype).itemsize


def check_space(needed: int, folder: Path) -> None:
    """Raise UsageError when ``needed`` bytes of features do not fit on the disk, less those already in the folder.

    (Writing to a memory map on a full disk kills the process.)
    """
    present = sum(path.stat().st_blocks * 512 for path in folder.rglob("layer-*.npy"))
    free = shutil.disk_usage(folder).free
    if needed - present > free:
        raise UsageError(f"the features need {needed - present:,} more bytes and {folder} has {free:,} free: make room first")
