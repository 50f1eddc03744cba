"""Sampling and completion, token by token, by default at temperature 1 (the method of OpenAI's blog post).

The released sampler runs a full forward pass for each pixel; here keys and values are cached, and the prefix takes
one pass. On a GPU, launching a step's several hundred kernels takes longer than running them, so there each step
after the first, with the draw of its token, replays a recorded CUDA graph. Restricting the choice to the likeliest tokens
(``top_k``, ``top_p``) is not in the paper, and off by default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.errors import UsageError
from igpt.fast import prepacked
from igpt.model import Cache, ImageGPT
from igpt.seeds import check_seed

Report = Callable[[int, int], None]  # tokens done, total tokens
AT_ONCE = 16  # images per batch; iGPT-L's cache takes 0.6 GB per image
STRETCH = 128  # positions per CUDA graph; its attention covers the cache up to the end of the stretch


def sample(
    model: ImageGPT,
    *,
    n: int,
    seed: int | torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    report: Report = lambda done, total: None,
) -> Tensor:
    """n unconditional samples, tokens int64 (n, positions). Raises UsageError as `complete` does."""
    no_tokens = torch.empty(1, 0, dtype=torch.int64, device=model.wte.device)
    return complete(model, no_tokens, n=n, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, report=report)[0]


def complete(
    model: ImageGPT,
    prefix: Tensor,
    *,
    n: int,
    seed: int | torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    report: Report = lambda done, total: None,
) -> Tensor:
    """n continuations of each prefix, tokens int64 (B, n, positions), the prefix kept.

    prefix : int64 (B, P), the first P tokens in raster order; -1 is a token to be drawn, so that any set
    of positions can be kept. A kept token does not influence earlier draws.
    temperature : divides the logits; 0 takes the likeliest token
    top_k, top_p : choose among the k likeliest tokens only, or the fewest whose probabilities reach p
    seed : or a generator on the CPU, which gives n * positions numbers per prefix, so that the next call gives the next images
    Each token uses one uniform number, drawn per image, so that an image depends on seed and index,
    not on the batch size. Raises UsageError for BERT weights, a prefix of another dtype, shape or palette or longer than
    the model, settings outside their range, a seed outside 0 to 2^32 - 1, and logits that are NaN or infinite.

    >>> import torch
    >>> from igpt.model import ImageGPT
    >>> from igpt.shape import ModelShape
    >>> model = ImageGPT(ModelShape(n_layer=2, n_embd=16, n_head=2, n_vocab=8, n_ctx=9))
    >>> left = torch.tensor([[5, -1, -1, 6, -1, -1, 7, -1, -1]])  # of three by three, the left column
    >>> complete(model, left, n=2, seed=0)[:, :, [0, 3, 6]]
    tensor([[[5, 6, 7],
             [5, 6, 7]]])
    """
    shape = model.shape
    check_settings(model, n=n, temperature=temperature, top_k=top_k, top_p=top_p)
    _check_prefix(model, prefix)
    n, temperature = int(n), float(temperature)
    top_k, top_p = None if top_k is None else int(top_k), None if top_p is None else float(top_p)
    images = len(prefix) * n
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(check_seed(seed))
    uniform = torch.rand(images, shape.n_ctx, generator=generator, dtype=torch.float64).to(model.wte.device)
    given = prefix.to(model.wte.device).repeat_interleave(n, dim=0)
    finite = torch.ones((), dtype=torch.bool, device=model.wte.device)  # on the device: a CUDA graph cannot raise

    def choose(logits: Tensor, drawn: Tensor) -> Tensor:
        if temperature:
            logits = logits / temperature
        finite.logical_and_(logits.isfinite().all())
        if temperature == 0:
            return logits.argmax(-1)
        return _draw(_restrict(logits, top_k=top_k, top_p=top_p), drawn)

    parts, done = [], 0
    with prepacked(model):
        for batch, batch_uniform in zip(given.split(AT_ONCE), uniform.split(AT_ONCE), strict=True):

            def report_part(positions: int, before: int = done, rows: int = len(batch)) -> None:
                report(before + rows * positions, images * shape.n_ctx)

            parts.append(_continue(model, batch, batch_uniform, choose, report_part))
            if not finite:
                raise UsageError(
                    f"the model's logits are not finite at temperature {temperature:g}: check its weights, or take a temperature"
                    " of 0 or nearer to 1"
                )
            done += len(batch) * shape.n_ctx
    return torch.cat(parts).view(len(prefix), n, shape.n_ctx)


def check_settings(model: ImageGPT, *, n: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise UsageError for BERT weights, and for settings that `complete` does not support."""
    if model.shape.objective != "autoregressive":
        raise UsageError("BERT weights cannot be sampled from: use autoregressive ones")
    valid = {
        "n": _is_count(n),
        "top_k": top_k is None or _is_count(top_k),
        "temperature": isinstance(temperature, Real) and 0 <= temperature <= sys.float_info.max,
        "top_p": top_p is None or (isinstance(top_p, Real) and 0 < top_p <= 1),
    }
    if wrong := [name for name, is_valid in valid.items() if not is_valid]:
        raise UsageError(
            "n and top_k are whole numbers of at least 1, temperature is at least 0 and finite, top_p in (0, 1]: give"
            f" another {' and '.join(wrong)}"
        )


def _continue(
    model: ImageGPT,
    given: Tensor,
    uniform: Tensor,
    choose: Callable[[Tensor, Tensor], Tensor],
    report: Callable[[int], None],
) -> Tensor:
    """Tokens int64 (images, positions): those of ``given`` that are not -1, the others chosen one at a time.

    choose : from logits (images, V) and uniform numbers (images,) to tokens (images,)
    """
    positions = model.shape.n_ctx
    kept = F.pad(given, (0, positions - given.shape[1]), value=-1)
    start = int((kept >= 0).all(0).long().cumprod(0).sum())  # first position that is missing in some image
    tokens, cache = kept.clone(), Cache(model.shape, len(given), like=model.wte)

    def draw(so_far: Tensor, position: Tensor) -> None:
        """Fill in the tokens at ``position``, int64 (1,)."""
        drawn = choose(model.next_logits(so_far, cache), uniform.index_select(1, position)[:, 0])
        fixed = kept.index_select(1, position)[:, 0]
        tokens.index_copy_(1, position, torch.where(fixed >= 0, fixed, drawn)[:, None])

    replays = _has_graphs(model)
    for position in range(start, min(start + 1, positions) if replays else positions):
        draw(tokens[:, :position], torch.tensor([position], device=given.device))
        report(position + 1)
    if replays:
        cache.length = length = torch.tensor([start + 1], device=given.device)
        for begin in range(start + 1, positions):
            if begin == start + 1 or begin % STRETCH == 0:
                cache.end = min((begin // STRETCH + 1) * STRETCH, positions)
                replay = _recorded(lambda: draw(tokens, length.clone()), length)
            replay()
            report(begin + 1)
    return tokens


def _has_graphs(model: ImageGPT) -> bool:
    """Whether the model's device supports CUDA graphs."""
    return model.wte.is_cuda


def _recorded(step: Callable[[], None], length: Tensor) -> Callable[[], None]:
    """The step as a CUDA graph. It first runs once, since libraries initialise on first use; then ``length`` is restored."""
    length_before = length.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    length.copy_(length_before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _check_prefix(model: ImageGPT, prefix: Tensor) -> None:
    """Raise UsageError for a prefix that `complete` does not support."""
    shape = model.shape
    if (
        not isinstance(prefix, Tensor)
        or prefix.layout != torch.strided
        or prefix.is_meta
        or prefix.is_nested
        or prefix.ndim != 2
        or prefix.dtype != torch.int64
        or not len(prefix)
    ):
        actual = f"{prefix.dtype} {tuple(prefix.shape)}" if isinstance(prefix, Tensor) else f"a {type(prefix).__name__}"
        raise UsageError(f"a prefix is a tensor of int64 (images, tokens), this one is {actual}: give tokens")
    if prefix.shape[1] > shape.n_ctx:
        raise UsageError(f"the prefix has {prefix.shape[1]} tokens, the model only {shape.n_ctx} positions")
    if prefix.numel() and not -1 <= int(prefix.min()) <= int(prefix.max()) < shape.n_vocab:
        raise UsageError(f"the prefix has tokens outside 0 .. {shape.n_vocab - 1}: quantise it with the model's palette")


def _is_count(number: object) -> bool:
    """Whether ``number`` is an integer from 1 to 2^31 - 1."""
    return isinstance(number, Integral) and not isinstance(number, bool) and 1 <= int(number) < 2**31


def _restrict(logits: Tensor, *, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits (B, V), minus infinity outside the ``top_k`` and ``top_p`` likeliest tokens; the likeliest token is always kept."""
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.double().softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # probability of all likelier tokens
        logits = logits.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), -torch.inf)
    return logits


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (B,) by the inverse of the cumulative distribution: logits (B, V), uniform (B,) in [0, 1)."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    last = (logits > -torch.inf).cumsum(-1).argmax(-1)  # last token that is possible: the product may round up to the total
    return torch.minimum(drawn, last)
