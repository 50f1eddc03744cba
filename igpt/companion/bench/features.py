"""Features of every layer of a batch: ours in two precisions, and transformers' hidden states, normed and averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from igpt.companion.bench.models import IMAGES, our_model, shape_of, shifted_tokens, some_tokens, their_model
from igpt.companion.bench.work import Candidate, Task, Work, both
from igpt.evaluate.features import extract_features
from igpt.fast import Linear, prepacked

SIDE = 2048  # of the square products that measure the limit
REPEATS = 20


def _ours(toy: bool, dtype: torch.dtype = torch.float32) -> Work:
    model = our_model(toy).to(dtype)
    tokens = some_tokens(model)

    def run() -> Tensor:
        return torch.from_numpy(extract_features(model, tokens))

    return Work(run, _few(run()))


def _ours_bfloat16(toy: bool) -> Work:
    return _ours(toy, torch.bfloat16)


def _theirs(toy: bool) -> Work:
    """The norm is applied here: their hidden states are the residual stream, but for the last."""
    ours, model = our_model(toy), their_model(toy)
    tokens = shifted_tokens(some_tokens(ours), ours.shape.n_vocab)

    @torch.inference_mode()
    def run() -> Tensor:
        *inner, last = model.transformer(tokens, output_hidden_states=True, use_cache=False).hidden_states
        normed = [block.ln_1(h) for block, h in zip(model.transformer.h, inner, strict=True)]
        return torch.stack([h.mean(1) for h in [*normed, last]])

    return Work(run, _few(run()))


def _products(toy: bool, dtype: torch.dtype = torch.float32) -> Work:
    """As many operations in square products, on weights that oneDNN has laid out: the fastest found here."""
    shape, side = shape_of(toy), 256 if toy else SIDE
    a = torch.ones(side, side, dtype=dtype)
    width, positions = shape.n_embd, shape.n_ctx
    token = shape.n_layer * (2 * 12 * width**2 + 2 * width * positions)  # attention's half, as the other is masked
    total = IMAGES * positions * token
    product = Linear(side, side).to(dtype)

    def run() -> None:
        with prepacked(product):
            for _ in range(REPEATS):
                product(a)

    return Work(run, [], times=total / (REPEATS * 2 * side**3))


def _products_bfloat16(toy: bool) -> Work:
    return _products(toy, torch.bfloat16)


def _few(features: Tensor) -> list[float]:
    """Some features of the first, a middle and the last layer, of float (L + 1, B, C)."""
    some: list[float] = features[[0, len(features) // 2, -1], 0, :4].flatten().float().tolist()
    return some


TASK = Task(
    "Features of all layers of 8 images of 1,024 tokens, iGPT-S's shape",
    (
        *both("igpt", _ours),
        *both("igpt in bfloat16", _ours_bfloat16, tolerance=0.05),
        *both("transformers", _theirs),
        Candidate("limit: matrix products", _products),
        Candidate("limit: matrix products in bfloat16", _products_bfloat16),
    ),
)
