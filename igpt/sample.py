"""Samples and completions (the blog's method): one token at a time, temperature 1, from the model's own logits."""

from __future__ import annotations

import torch
from torch import Tensor

from igpt.errors import UsageError
from igpt.model import Cache, ImageGPT


def sample(model: ImageGPT, *, n: int, seed: int, temperature: float = 1.0) -> Tensor:
    """n images from nothing, tokens int64 (n, positions). Raises UsageError as `complete` does."""
    return complete(model, torch.empty(1, 0, dtype=torch.int64), n=n, seed=seed, temperature=temperature)[0]


@torch.no_grad()
def complete(model: ImageGPT, prefix: Tensor, *, n: int, seed: int, temperature: float = 1.0) -> Tensor:
    """n continuations of each prefix, tokens int64 (B, n, positions), the prefix kept.

    prefix : int64 (B, P), the first P tokens in raster order. ``temperature`` 0 takes the likeliest token.
    One uniform number decides one token, drawn image by image: the same seed gives the same image
    whatever the batch. Raises UsageError for BERT weights, or a prefix longer than the model.
    """
    shape = model.shape
    if shape.objective != "autoregressive":
        raise UsageError("BERT weights cannot be sampled from: use autoregressive ones")
    if prefix.shape[1] > shape.n_ctx:
        raise UsageError(f"the prefix has {prefix.shape[1]} tokens, the model only {shape.n_ctx} positions")
    images = len(prefix) * n
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(images, shape.n_ctx, generator=generator, dtype=torch.float64)
    tokens = prefix.repeat_interleave(n, dim=0)
    cache = Cache(shape, images, like=model.wte)
    for position in range(prefix.shape[1], shape.n_ctx):
        logits = model.next_logits(tokens, cache)
        chosen = logits.argmax(-1) if temperature == 0 else _draw(logits / temperature, uniform[:, position])
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    return tokens.view(len(prefix), n, shape.n_ctx)


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (B,) by the inverse of the cumulative distribution: logits (B, V), uniform (B,) in [0, 1)."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    return drawn.clamp(max=logits.shape[-1] - 1)  # the product may round up to the total
