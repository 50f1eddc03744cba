"""Sampling on a GPU in bfloat16: ours, by a replayed recording of a step, and transformers' `generate`."""

from __future__ import annotations

import torch

from igpt.companion.bench.gpu import copying, place, waited
from igpt.companion.bench.models import IMAGES, our_model, shape_of, shifted_tokens, some_tokens, their_model
from igpt.companion.bench.work import Candidate, Task, Work
from igpt.sample import sample


@torch.inference_mode()
def _ours(toy: bool) -> Work:
    device = place(toy)
    model = our_model(toy).to(device, torch.bfloat16)
    answer = model(some_tokens(model)[:1].to(device))[0, [0, -1], :4].float().flatten().tolist()
    return waited(lambda: sample(model, n=IMAGES, seed=0), device, answer)


@torch.inference_mode()
def _theirs(toy: bool) -> Work:
    device = place(toy)
    ours, model = our_model(toy), their_model(toy).to(device, torch.bfloat16)
    start, positions = ours.shape.n_vocab, ours.shape.n_ctx
    logits = model(shifted_tokens(some_tokens(ours)[:1], start).to(device)).logits
    answer = logits[0, [0, -1], :4].float().flatten().tolist()
    settings = {"max_new_tokens": positions, "min_new_tokens": positions, "do_sample": True, "top_k": 0, "use_cache": True}

    @torch.inference_mode()
    def run() -> object:
        return model.generate(torch.full((IMAGES, 1), start, device=device), **settings)

    return waited(run, device, answer)


def _memory(toy: bool) -> Work:
    """Reading once a step all weights and the cache as far as it is filled, at the rate at which memory is copied."""
    shape = shape_of(toy)
    weights = 2 * (shape.parameters - (shape.n_ctx + shape.n_vocab) * shape.n_embd)
    cache = 2 * 2 * shape.n_layer * shape.n_embd * IMAGES  # a position
    total = shape.n_ctx * weights + cache * shape.n_ctx * (shape.n_ctx + 1) / 2
    return copying(place(toy), toy=toy, total=total)


TASK = Task(
    "Sampling 8 images of 1,024 tokens on a GPU, bfloat16, iGPT-S's shape",
    (
        Candidate("igpt", _ours),
        Candidate("transformers", _theirs, tolerance=0.05),
        Candidate("limit: copying the memory", _memory),
    ),
)
