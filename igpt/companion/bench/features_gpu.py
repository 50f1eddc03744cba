"""Features of every layer on a GPU in bfloat16: ours, and transformers' hidden states, normed and averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from igpt.companion.bench.gpu import multiplying, place, waited
from igpt.companion.bench.models import our_model, shape_of, shifted_tokens, their_model
from igpt.companion.bench.work import Candidate, Task, Work

BATCH = 128


def _tokens(toy: bool) -> Tensor:
    """Random images, tokens int64 (B, positions)."""
    shape, images = shape_of(toy), 2 if toy else BATCH
    return torch.randint(shape.n_vocab, (images, shape.n_ctx), generator=torch.Generator().manual_seed(2))


def _ours(toy: bool) -> Work:
    device = place(toy)
    model, tokens = our_model(toy).to(device, torch.bfloat16), _tokens(toy).to(device)

    @torch.inference_mode()
    def run() -> Tensor:
        return torch.stack(list(model.features(tokens).values()))

    return waited(run, device, _few(run()))


def _theirs(toy: bool) -> Work:
    """The norm is applied here: their hidden states are the residual stream, but for the last."""
    device = place(toy)
    model = their_model(toy).to(device, torch.bfloat16)
    tokens = shifted_tokens(_tokens(toy), shape_of(toy).n_vocab).to(device)

    @torch.inference_mode()
    def run() -> Tensor:
        *inner, last = model.transformer(tokens, output_hidden_states=True, use_cache=False).hidden_states
        normed = [block.ln_1(h) for block, h in zip(model.transformer.h, inner, strict=True)]
        return torch.stack([h.float().mean(1) for h in [*normed, last]])

    return waited(run, device, _few(run()))


def _products(toy: bool) -> Work:
    """As many operations in square products."""
    shape = shape_of(toy)
    token = shape.n_layer * (2 * 12 * shape.n_embd**2 + 2 * shape.n_embd * shape.n_ctx)  # attention's half: causal
    return multiplying(place(toy), toy=toy, total=_tokens(toy).numel() * token)


def _few(features: Tensor) -> list[float]:
    """Some features of the first, a middle and the last layer, of float (L + 1, B, C)."""
    some: list[float] = features[[0, len(features) // 2, -1], 0, :4].flatten().float().tolist()
    return some


TASK = Task(
    "Features of all layers of 128 images of 1,024 tokens on a GPU, bfloat16, iGPT-S's shape",
    (
        Candidate("igpt", _ours),
        Candidate("transformers", _theirs, tolerance=0.05),
        Candidate("limit: matrix products", _products),
    ),
)
