"""What evaluation on ImageNet waits for: a batch out of the released tokens as they lie on disk, and a step that it feeds."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.companion.bench.models import our_model
from igpt.companion.bench.work import Candidate, Task, Work
from igpt.data.imagenet_tokens import COLOURS, IMAGENET_TOKENS, SIDE, ReleasedTokens, released_path

BATCH = 128  # images, as in the paper
IMAGES = 50_000  # of ImageNet's test split, in a file of its real size
BATCHES = 20  # in one measurement


def _file(toy: bool) -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """A folder that lasts as long as it is held, and a file of random tokens in it, in int64."""
    kept = tempfile.TemporaryDirectory(prefix="igpt-bench-")
    path = Path(kept.name) / released_path("test").name
    generator, images = np.random.default_rng(0), IMAGES // 100 if toy else IMAGES
    found = np.lib.format.open_memmap(path, "w+", np.int64, (images, SIDE**2))
    for start in range(0, images, 500):
        found[start : start + 500] = generator.integers(0, COLOURS, (500, SIDE**2))
    found.flush()
    return kept, path


def _reading(toy: bool, *, cold: bool) -> Work:
    """Random images gathered from the memory map, looked at, and made what the model takes.

    cold : the file is dropped from memory first, so that all comes from the disk (where the folder is on one)
    """
    kept, path = _file(toy)
    card = replace(IMAGENET_TOKENS, subfolder=kept.name, test=IMAGES // 100 if toy else IMAGES)

    def run() -> object:
        if cold and hasattr(os, "posix_fadvise"):  # not on macOS
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        tokens = ReleasedTokens(card, "test")
        for _ in range(BATCHES):
            indices: NDArray[np.int64] = torch.randint(len(tokens), (BATCH,)).numpy()
            torch.from_numpy(tokens[indices].astype(np.int64))
        return kept

    run()
    return Work(run, [], times=1 / BATCHES)


def _step(toy: bool) -> Work:
    """Forward, backward and Adam of iGPT-S's shape: on a GPU where there is one, in bfloat16, else in float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    at_once = 16 if device == "cuda" else 2  # of the batch
    model = our_model(toy).train().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(model.shape.n_vocab, (at_once, model.shape.n_ctx), device=device)

    def run() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model.loss(tokens)
        loss.backward()
        optimizer.step()
        return loss.item() + model.wtet.detach()[0, 0].item()  # which wait for the device

    run()
    return Work(run, [], times=BATCH / at_once)


TASK = Task(
    "Reading a batch of 128 of ImageNet's released images, and a training step on it, iGPT-S's shape",
    (
        Candidate("reading the batch", lambda toy: _reading(toy, cold=False)),
        Candidate("reading it from the disk", lambda toy: _reading(toy, cold=True)),
        Candidate("a training step on it", _step),
    ),
)
