"""What training waits for: a batch out of a token store on disk, and the step that it feeds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from igpt.bench.models import our_model, shape_of
from igpt.bench.work import Contestant, Task, Work
from igpt.data.store import HEADER, SHARD, VERSION, Header, TokenStore, write_header, write_labels, write_shard

BATCH = 128  # images, as in the paper
AT_ONCE = 2  # of them in one measured step, which takes seconds on a processor


def _loading(toy: bool) -> Work:
    """Random images of a store of several shards, gathered from memory maps and made what the model takes."""
    shape = shape_of(toy)
    kept = tempfile.TemporaryDirectory(prefix="igpt-bench-")
    folder, shards = Path(kept.name), 1 if toy else 8
    generator = np.random.default_rng(0)
    for place in range(shards):
        write_shard(folder, place, generator.integers(0, shape.n_vocab, (SHARD, shape.n_ctx)).astype(np.uint16))
    write_labels(folder, np.zeros(shards * SHARD, np.int64))
    header = Header(
        version=VERSION,
        dataset="imagenet",
        split="train",
        resolution=round(shape.n_ctx**0.5),
        filter="bicubic",
        crops=0,
        seed=0,
        palette_sha256="",
        images=shards * SHARD,
        held_out_sha256="",
    )
    write_header(folder / HEADER, header)
    store = TokenStore(folder)

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
    (Contestant("loading the batch", _loading), Contestant("a training step on it", _step)),
)
