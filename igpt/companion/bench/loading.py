"""Loading a batch of tokens from disk, and the training step that uses it.

Tokens are in a store of several shards, or ImageNet's released tokens in one file.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.companion.bench.models import TOY, S, our_model, random_store
from igpt.companion.bench.work import Candidate, Task, Work
from igpt.data.imagenet_tokens import COLOURS, IMAGENET_TOKENS, SIDE, ReleasedTokens, released_path
from igpt.data.store import TokenStore

BATCH = 128  # images, as in the paper
BATCHES = 20  # in one measurement
IMAGES = 50_000  # of ImageNet's test split, in a file of its real size


def _read_batches(tokens: TokenStore | ReleasedTokens) -> None:
    """Gather random images from memory maps, as int64."""
    for _ in range(BATCHES):
        indices: NDArray[np.int64] = torch.randint(len(tokens), (BATCH,)).numpy()
        torch.from_numpy(tokens[indices].astype(np.int64))


def _store(toy: bool) -> Work:
    directory, store = random_store(TOY if toy else S, shards=1 if toy else 8)

    def run() -> object:
        _read_batches(store)
        return directory

    run()
    return Work(run, [], times=1 / BATCHES)


def _released(toy: bool, *, cold: bool) -> Work:
    """ImageNet's released tokens, opened, checked and read.

    cold : the file is dropped from the page cache first, so that all is read from the disk (if the folder is on one)
    """
    directory = tempfile.TemporaryDirectory(prefix="igpt-bench-")
    path = Path(directory.name) / released_path("test").name
    generator, images = np.random.default_rng(0), IMAGES // 100 if toy else IMAGES
    array = np.lib.format.open_memmap(path, "w+", np.int64, (images, SIDE**2))
    for start in range(0, images, 500):
        array[start : start + 500] = generator.integers(0, COLOURS, (500, SIDE**2))
    array.flush()
    card = replace(IMAGENET_TOKENS, subfolder=directory.name, test=images)

    def run() -> object:
        if cold and hasattr(os, "posix_fadvise"):  # not on macOS
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        _read_batches(ReleasedTokens(card, "test"))
        return directory

    run()
    return Work(run, [], times=1 / BATCHES)


def _step(toy: bool, *, device: str = "cpu") -> Work:
    """Forward and backward pass and Adam, on a GPU in bfloat16, else in float32."""
    at_once = 16 if device == "cuda" else 2  # images in a measured step, which takes seconds on a CPU
    model = our_model(TOY if toy else S).train().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(model.shape.n_vocab, (at_once, model.shape.n_ctx), device=device)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model.loss(tokens)
        loss.backward()
        optimizer.step()

    run()
    return Work(run, [], BATCH / at_once, device)


TASKS = {
    "loading": Task(
        "Loading a batch of 128 images of 1,024 tokens, and a training step on it, iGPT-S's shape",
        (Candidate("loading the batch", _store), Candidate("a training step on it", _step)),
    ),
    "tokens": Task(
        "Reading a batch of 128 of ImageNet's released images, and a training step on it, iGPT-S's shape",
        (
            Candidate("reading the batch", partial(_released, cold=False)),
            Candidate("reading it from the disk", partial(_released, cold=True)),
            Candidate("a training step on it", lambda toy: _step(toy, device="cuda" if torch.cuda.is_available() else "cpu")),
        ),
    ),
}
