"""Unconditional sampling of eight images: ours, transformers' `generate` with its cache, and the released code's method.

In float32 on a CPU; in bfloat16 on a GPU, where ours replays a CUDA graph of a step.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from igpt.companion.bench.models import IMAGES, TOY, S, our_model, random_tokens, reading, shifted_tokens, their_model
from igpt.companion.bench.work import Candidate, Task, Work, both, device_of
from igpt.fast import prepacked
from igpt.sample import sample


def _ours(toy: bool, *, gpu: bool = False) -> Work:
    device = device_of(toy, gpu=gpu)
    model = our_model(TOY if toy else S).to(device, torch.bfloat16 if gpu else torch.float32)
    with torch.no_grad(), prepacked(model):
        answer = model(random_tokens(model.shape, IMAGES)[:1].to(device))
    return Work(lambda: sample(model, n=IMAGES, seed=0), _some_logits(answer), device=device)


@torch.inference_mode()
def _theirs(toy: bool, *, gpu: bool = False) -> Work:
    device, shape = device_of(toy, gpu=gpu), TOY if toy else S
    model = their_model(shape).to(device, torch.bfloat16 if gpu else torch.float32)
    start, positions = shape.n_vocab, shape.n_ctx
    answer = model(shifted_tokens(random_tokens(shape, IMAGES)[:1], start).to(device)).logits[..., :start]
    settings = {"max_new_tokens": positions, "min_new_tokens": positions, "do_sample": True, "top_k": 0, "use_cache": True}

    @torch.inference_mode()
    def run() -> object:
        return model.generate(torch.full((IMAGES, 1), start, device=device), **settings)

    return Work(run, _some_logits(answer), device=device)


@torch.inference_mode()
def _released(toy: bool) -> Work:
    """One full forward pass per pixel, at full length each time, as ``src/run.py`` of the released code samples."""
    model = our_model(TOY if toy else S)
    tokens = random_tokens(model.shape, IMAGES)
    answer = model(tokens[:1])

    @torch.inference_mode()
    def run() -> object:
        return model(tokens)

    return Work(run, _some_logits(answer), times=model.shape.n_ctx)


def _limit(toy: bool, *, gpu: bool = False) -> Work:
    """Reading all weights and the filled part of the cache once per step: a lower limit of a step's time."""
    device, shape, size = device_of(toy, gpu=gpu), TOY if toy else S, 2 if gpu else 4  # bytes per number
    weights = size * (shape.parameters - (shape.n_ctx + shape.n_vocab) * shape.n_embd)
    cache = size * 2 * shape.n_layer * shape.n_embd * IMAGES  # per position
    return reading(shape.n_ctx * weights + cache * shape.n_ctx * (shape.n_ctx + 1) / 2, toy=toy, device=device)


def _some_logits(logits: Tensor) -> list[float]:
    """The first logits of three positions of float (1, T, V)."""
    values: list[float] = logits[0, [0, logits.shape[1] // 2, -1], :4].float().flatten().tolist()
    return values


TASKS = {
    "sampling": Task(
        "Sampling 8 images of 1,024 tokens, float32, iGPT-S's shape",
        (
            *both("igpt", _ours),
            *both("transformers", _theirs),
            Candidate("a full forward pass a pixel", _released),
            Candidate("limit: reading the memory", _limit),
        ),
    ),
    "sampling_gpu": Task(
        "Sampling 8 images of 1,024 tokens on a GPU, bfloat16, iGPT-S's shape",
        (
            Candidate("igpt", partial(_ours, gpu=True)),
            Candidate("transformers", partial(_theirs, gpu=True), tolerance=0.05),
            Candidate("limit: copying the memory", partial(_limit, gpu=True)),
        ),
    ),
}
