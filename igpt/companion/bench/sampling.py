"""Sampling eight images from nothing: ours, transformers' `generate` with its cache, and the released code's method."""

from __future__ import annotations

import torch
from torch import Tensor

from igpt.companion.bench.models import IMAGES, our_model, shape_of, shifted_tokens, some_tokens, their_model
from igpt.companion.bench.work import Candidate, Task, Work, both
from igpt.fast import prepacked
from igpt.sample import sample

REPEATS = 20  # of the reading that measures the limit


def _ours(toy: bool) -> Work:
    model = our_model(toy)
    with prepacked(model):
        answer = model(some_tokens(model)[:1])
    return Work(lambda: sample(model, n=IMAGES, seed=0), _few(answer))


@torch.inference_mode()
def _theirs(toy: bool) -> Work:
    ours, model = our_model(toy), their_model(toy)
    start, positions = ours.shape.n_vocab, ours.shape.n_ctx
    answer = model(shifted_tokens(some_tokens(ours)[:1], start)).logits[..., :start]
    settings = {"max_new_tokens": positions, "min_new_tokens": positions, "do_sample": True, "top_k": 0, "use_cache": True}

    def run() -> object:
        return model.generate(torch.full((IMAGES, 1), start), **settings)

    return Work(run, _few(answer))


@torch.inference_mode()
def _released(toy: bool) -> Work:
    """One full forward pass a pixel, at full length each time, as ``src/run.py`` of the released code samples."""
    model = our_model(toy)
    tokens = some_tokens(model)
    answer = model(tokens[:1])

    @torch.inference_mode()
    def run() -> object:
        return model(tokens)

    return Work(run, _few(answer), times=model.shape.n_ctx)


def _memory(toy: bool) -> Work:
    """Reading once a step all weights and the cache as far as it is filled: no step can be faster than that."""
    shape = shape_of(toy)
    weights = 4 * (shape.parameters - (shape.n_ctx + shape.n_vocab) * shape.n_embd)
    cache = 4 * 2 * shape.n_layer * shape.n_embd * IMAGES  # a position
    total = shape.n_ctx * weights + cache * shape.n_ctx * (shape.n_ctx + 1) / 2
    block = torch.ones(2**20 if toy else 2**28)

    def run() -> None:
        for _ in range(REPEATS):
            block.sum()

    return Work(run, [], times=total / (REPEATS * 4 * block.numel()))


def _few(logits: Tensor) -> list[float]:
    """The first logits of three positions of float (1, T, V)."""
    some: list[float] = logits[0, [0, logits.shape[1] // 2, -1], :4].flatten().tolist()
    return some


TASK = Task(
    "Sampling 8 images of 1,024 tokens, float32, iGPT-S's shape",
    (
        *both("igpt", _ours),
        *both("transformers", _theirs),
        Candidate("a full forward pass a pixel", _released),
        Candidate("limit: reading the memory", _memory),
    ),
)
