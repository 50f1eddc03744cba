"""Features of every layer of a batch: ours, and transformers' hidden states, normed and averaged.

In float32 on a CPU, ours also in bfloat16; in bfloat16 on a GPU.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from igpt.companion.bench.models import IMAGES, TOY, S, our_model, products, random_tokens, shifted_tokens, their_model
from igpt.companion.bench.work import Candidate, Task, Work, both, device_of
from igpt.evaluate.features import extract_features
from igpt.shape import ModelShape

GPU_IMAGES = 128
Half = torch.bfloat16


def _tokens(shape: ModelShape, *, toy: bool, gpu: bool) -> Tensor:
    """A batch; at toy size a GPU's is smaller."""
    return random_tokens(shape, (2 if toy else GPU_IMAGES) if gpu else IMAGES)


def _ours(toy: bool, *, dtype: torch.dtype = torch.float32) -> Work:
    model = our_model(TOY if toy else S).to(dtype)
    tokens = random_tokens(model.shape, IMAGES)

    def run() -> Tensor:
        return torch.from_numpy(extract_features(model, tokens))

    return Work(run, _some_features(run()))


def _ours_on_gpu(toy: bool) -> Work:
    """The features stay on the GPU, where a probe would read them."""
    device = device_of(toy, gpu=True)
    model = our_model(TOY if toy else S).to(device, Half)
    tokens = _tokens(model.shape, toy=toy, gpu=True).to(device)

    @torch.inference_mode()
    def run() -> Tensor:
        return torch.stack(list(model.features(tokens).values()))

    return Work(run, _some_features(run()), device=device)


def _theirs(toy: bool, *, gpu: bool = False) -> Work:
    """The norm is applied here: transformers' hidden states are the residual stream, except for the last."""
    device, shape = device_of(toy, gpu=gpu), TOY if toy else S
    model = their_model(shape).to(device, Half if gpu else torch.float32)
    tokens = shifted_tokens(_tokens(shape, toy=toy, gpu=gpu), shape.n_vocab).to(device)

    @torch.inference_mode()
    def run() -> Tensor:
        *inner, last = model.transformer(tokens, output_hidden_states=True, use_cache=False).hidden_states
        normed = [block.ln_1(h) for block, h in zip(model.transformer.h, inner, strict=True)]
        return torch.stack([h.float().mean(1) for h in [*normed, last]])

    return Work(run, _some_features(run()), device=device)


def _limit(toy: bool, *, gpu: bool = False, dtype: torch.dtype = torch.float32) -> Work:
    """The same number of operations as products of square matrices."""
    shape = TOY if toy else S
    per_token = shape.n_layer * (2 * 12 * shape.n_embd**2 + 2 * shape.n_embd * shape.n_ctx)  # attention's half: it is causal
    total = _tokens(shape, toy=toy, gpu=gpu).numel() * per_token
    return products(total, toy=toy, device=device_of(toy, gpu=gpu), dtype=dtype)


def _some_features(features: Tensor) -> list[float]:
    """Some features of the first, a middle and the last layer, of float (L + 1, B, C)."""
    values: list[float] = features[[0, len(features) // 2, -1], 0, :4].flatten().float().tolist()
    return values


TASKS = {
    "features": Task(
        "Features of all layers of 8 images of 1,024 tokens, iGPT-S's shape",
        (
            *both("igpt", _ours),
            *both("igpt in bfloat16", partial(_ours, dtype=Half), tolerance=0.05),
            *both("transformers", _theirs),
            Candidate("limit: matrix products", _limit),
            Candidate("limit: matrix products in bfloat16", partial(_limit, dtype=Half)),
        ),
    ),
    "features_gpu": Task(
        "Features of all layers of 128 images of 1,024 tokens on a GPU, bfloat16, iGPT-S's shape",
        (
            Candidate("igpt", _ours_on_gpu),
            Candidate("transformers", partial(_theirs, gpu=True), tolerance=0.05),
            Candidate("limit: matrix products", partial(_limit, gpu=True, dtype=Half)),
        ),
    ),
}
