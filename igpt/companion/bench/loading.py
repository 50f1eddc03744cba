"""What training waits for: a batch out of a token store on disk, and the step that it feeds."""

from __future__ import annotations

import numpy as np
import torch

from igpt.companion.bench.models import our_model, random_store, shape_of
from igpt.companion.bench.work import Candidate, Task, Work

BATCH = 128  # images, as in the paper
AT_ONCE = 2  # of them in one measured step, which takes seconds on a processor


def _loading(toy: bool) -> Work:
    """Random images of a store of several shards, gathered from memory maps and made what the model takes."""
    shape = shape_of(toy)
    kept, store = random_store(shape, shards=1 if toy else 8)

    def run() -> object:
        for _ in range(20):
            indices = torch.randint(len(store), (BATCH,)).numpy()
            torch.from_numpy(store[indices].astype(np.int64))
        return kept

    run()
    return Work(run, [], times=1 / 20)


def _step(toy: bool) -> Work:
    """Forward, backward and Adam, float32."""
    model = our_model(toy).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(model.shape.n_vocab, (AT_ONCE, model.shape.n_ctx))

    def run() -> None:
        optimizer.zero_grad()
        model.loss(tokens).backward()
        optimizer.step()

    run()
    return Work(run, [], times=BATCH / AT_ONCE)


TASK = Task(
    "Loading a batch of 128 images of 1,024 tokens, and a training step on it, iGPT-S's shape",
    (Candidate("loading the batch", _loading), Candidate("a training step on it", _step)),
)
