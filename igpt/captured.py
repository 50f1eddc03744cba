"""Sampling on a GPU: a position's whole work, drawn token included, as one graph that is recorded once and replayed.

Launched one by one, a step's several hundred kernels take longer to start than to run. A graph has fixed addresses and
sizes, so the position is a tensor that the graph itself counts up, and attention looks at the cache up to a fixed end,
with what is not filled yet masked; a graph a stretch of `STRETCH` positions keeps that look short.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.model import Block, Cache, ImageGPT

STRETCH = 128  # positions
Choose = Callable[[Tensor, Tensor], Tensor]  # of logits (B, V) and uniform (B,): tokens (B,)


def continue_captured(
    model: ImageGPT, given: Tensor, uniform: Tensor, choose: Choose, report: Callable[[int], None], *, start: int, graphs: bool
) -> Tensor:
    """As `igpt.sample` continues images, from position ``start`` on; tokens int64 (B, positions).

    given : int64 (B, P), -1 for a token to be drawn; uniform : float64 (B, positions)
    graphs : record and replay; without it the same steps are launched one by one, on any device
    """
    positions = model.shape.n_ctx
    kept = F.pad(given, (0, positions - given.shape[1]), value=-1)
    tokens = kept.clone()
    cache = Cache(model.shape, len(given), like=model.wte)
    first = choose(model.next_logits(tokens[:, :start], cache), uniform[:, start])
    tokens[:, start] = torch.where(kept[:, start] >= 0, kept[:, start], first)
    report(start + 1)
    position = torch.full((1,), start + 1, device=given.device)
    done = start + 1
    while done < positions:
        end = min((done // STRETCH + 1) * STRETCH, positions)

        def step(end: int = end) -> None:
            newest = tokens.index_select(1, position - 1)
            drawn = choose(_logits(model, newest, cache, position, end), uniform.index_select(1, position)[:, 0])
            held = kept.index_select(1, position)[:, 0]
            tokens.index_copy_(1, position, torch.where(held >= 0, held, drawn)[:, None])
            position.add_(1)

        replay = _recorded(step, position) if graphs else step
        while done < end:
            replay()
            done += 1
            report(done)
    return tokens


def _logits(model: ImageGPT, newest: Tensor, cache: Cache, position: Tensor, end: int) -> Tensor:
    """Logits (B, V) at ``position``, int64 (1,), below ``end``, of the ``newest`` token, int64 (B, 1)."""
    B, shape = len(newest), model.shape
    seen = torch.arange(end, device=newest.device) <= position
    h = model.wte[newest] + model.wpe[position]
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        q, k, v = block.attn.qkv(block.ln_1(h)).view(B, 1, 3, shape.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, 1, D)
        keys, values = cache.keys[number], cache.values[number]  # (B, H, T, D)
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        a = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=seen[None])
        h = block.attn.c_proj(a.transpose(1, 2).reshape(B, 1, -1), add=h)
        h = block.c_proj(block.c_fc(block.ln_2(h)), add=h)
    return model.logits(model.ln_f(h[:, 0]))


def _recorded(step: Callable[[], None], position: Tensor) -> Callable[[], None]:
    """The step as a graph. It is launched once before, as libraries set themselves up then; its count is taken back."""
    before = position.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    position.copy_(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
