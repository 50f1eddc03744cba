"""Image GPT's transformer: a GPT-2 that reads an image as a raster sequence of palette tokens.

Follows ``src/model.py`` of openai/image-gpt, the code of the released weights, and sections
2.1 to 2.3 of the paper. Independent of images, data sets and training: tokens in, logits out.

Letters in the shape comments: B images, T positions, C width (``n_embd``), H heads, D = C / H,
V colours (``n_vocab``), L blocks (``n_layer``).

Layers are numbered as the paper numbers them (section 2.4): layer ``l`` is the input of block ``l``'s
attention after its norm, for ``l`` = 0 .. L - 1; layer L is the output of the final norm. So there are
L + 1 layers, and layer 0 is the normed embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.errors import UsageError
from igpt.fast import Linear, causal_attention
from igpt.shape import ModelShape


class Norm(nn.Module):
    """RMS norm, ``x * rsqrt(mean(x^2) + 1e-5) * g``: as released, without subtracting the mean and without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.g, eps=1e-5)


class Cache:
    """Keys and values of every block, allocated once, for sampling one position at a time.

    ``length`` is the number of positions filled so far. A CUDA graph has fixed addresses and sizes. There ``length`` is an
    int64 (1,) tensor that the graph increments, and attention covers all positions below the fixed ``end``, with unfilled
    ones masked. The memory is zeroed because a mask does not hide NaN or infinity.
    """

    def __init__(self, shape: ModelShape, images: int, *, like: Tensor) -> None:
        size = (shape.n_layer, images, shape.n_head, shape.n_ctx, shape.n_embd // shape.n_head)
        self.keys = like.new_zeros(size)  # (L, B, H, T, D)
        self.values = like.new_zeros(size)  # (L, B, H, T, D)
        self.length: int | Tensor = 0
        self.end = shape.n_ctx
        self.mask: Tensor | None = None  # bool (1, end), for a tensor ``length`` only

    def extend(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append a block's new keys and values (B, H, S, D); return all of them below ``end``, (B, H, end, D)."""
        for kept, new in ((self.keys[block], k), (self.values[block], v)):
            if isinstance(self.length, Tensor):
                kept.index_copy_(2, self.length, new)
            else:
                kept[:, :, self.length : self.end] = new
        return self.keys[block, :, :, : self.end], self.values[block, :, :, : self.end]


class Attention(nn.Module):
    """Multi-head attention without dropout; causal for the autoregressive objective."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.n_head = shape.n_head
        self.causal = shape.objective == "autoregressive"
        self.qkv = Linear(shape.n_embd, 3 * shape.n_embd, bias=shape.biases)
        self.c_proj = Linear(shape.n_embd, shape.n_embd, bias=shape.biases)

    def forward(self, h: Tensor, x: Tensor, cache: Cache | None = None, block: int = 0) -> Tensor:
        """``h + attn(x)``, all (B, S, C)."""
        B, S, C = x.shape
        q, k, v = self.qkv(x).view(B, S, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (B, H, S, D)
        causal, mask = self.causal, None
        if cache is not None:
            k, v = cache.extend(block, k, v)  # (B, H, T, D)
            causal, mask = cache.end == S, cache.mask  # causal for a prefix; a single later position attends to all before it
        # (B, H, S, D), scaled by D^-1/2
        a = causal_attention(q, k, v) if causal else F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(a.transpose(1, 2).reshape(B, S, C), add=h)  # type: ignore[no-any-return]


class Block(nn.Module):
    """``h + attn(norm(h))``, then ``h + mlp(norm(h))`` with the hidden width 4 C and x * sigmoid(1.702 x)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.ln_1 = Norm(shape.n_embd)
        self.attn = Attention(shape)
        self.ln_2 = Norm(shape.n_embd)
        self.c_fc = Linear(shape.n_embd, 4 * shape.n_embd, bias=shape.biases, gelu=True)
        self.c_proj = Linear(4 * shape.n_embd, shape.n_embd, bias=shape.biases)

    def forward(self, h: Tensor) -> Tensor:
        """The block's output (B, T, C) from its input."""
        return self.after_norm(h, self.ln_1(h))

    def after_norm(self, h: Tensor, normed: Tensor, cache: Cache | None = None, block: int = 0) -> Tensor:
        """The block's output (B, T, C) from its input ``h`` and ``normed = ln_1(h)``, both (B, T, C)."""
        h = self.attn(h, normed, cache, block)
        return self.c_proj(self.c_fc(self.ln_2(h)), add=h)  # type: ignore[no-any-return]


class ImageGPT(nn.Module):
    """The transformer with its token, position and start embeddings and its untied output matrix.

    ``seed`` determines the initial weights, which have the released code's distributions. The output matrix
    starts at zero, so an untrained model gives every colour the same logit.

    >>> import torch
    >>> from igpt.shape import ModelShape
    >>> model = ImageGPT(ModelShape(n_layer=2, n_embd=16, n_head=2, n_vocab=8, n_ctx=9))
    >>> tokens = torch.zeros(4, 9, dtype=torch.int64)
    >>> model(tokens).shape
    torch.Size([4, 9, 8])
    >>> round(model.loss(tokens).item(), 4)  # log 8, in nats per token
    2.0794
    """

    def __init__(self, shape: ModelShape, *, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Parameter(torch.empty(shape.n_vocab, shape.n_embd))
        self.wpe = nn.Parameter(torch.empty(shape.n_ctx, shape.n_embd))
        if shape.objective == "autoregressive":
            self.sos = nn.Parameter(torch.empty(shape.n_embd))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.ln_f = Norm(shape.n_embd)
        self.wtet = nn.Parameter(torch.empty(shape.n_vocab, shape.n_embd))
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Draw initial weights as released: attention's output projection shrinks with depth, the MLP's does not.

        Biases, which the released models do not have, start at zero.
        """
        if self.wte.is_meta:
            return
        generator = torch.Generator(device=self.wte.device).manual_seed(seed)
        width = self.shape.n_embd
        self.wte.normal_(0, 0.02, generator=generator)
        self.wpe.normal_(0, 0.01, generator=generator)
        if self.shape.objective == "autoregressive":
            self.sos.normal_(0, 0.02, generator=generator)
        for block in self._blocks():
            block.attn.qkv.weight.normal_(0, 1 / math.sqrt(width), generator=generator)
            block.attn.c_proj.weight.normal_(0, 1 / math.sqrt(width * self.shape.n_layer), generator=generator)
            block.c_fc.weight.normal_(0, 0.02, generator=generator)
            block.c_proj.weight.normal_(0, 0.02, generator=generator)
            for layer in (block.attn.qkv, block.attn.c_proj, block.c_fc, block.c_proj):
                if layer.bias is not None:
                    layer.bias.zero_()
        self.wtet.zero_()

    def _blocks(self) -> Iterable[Block]:
        """The blocks, typed for mypy."""
        return (block for block in self.blocks if isinstance(block, Block))

    def embed(self, tokens: Tensor, masked: Tensor | None = None, *, shifted: bool = True) -> Tensor:
        """Input of block 0, float (B, T, C), from int64 tokens (B, T).

        Autoregressive: shifted right by one behind the start vector, so position i never sees token i. With ``shifted``
        False position i reads token i instead, as transformers feeds its classifiers.
        BERT: the token embedding is zero where ``masked`` (bool (B, T)) is True; the position embedding stays.
        Raises ValueError when ``masked`` is given to an autoregressive model.
        """
        h = self.wte[tokens]
        if self.shape.objective == "autoregressive":
            if masked is not None:
                raise ValueError("an autoregressive model takes no mask")
            if shifted:
                h = torch.cat([self.sos.expand(len(tokens), 1, -1), h[:, :-1]], dim=1)
        elif masked is not None:
            h = h * ~masked[..., None]
        return h + self.wpe[: tokens.shape[1]]

    def hidden(self, tokens: Tensor, masked: Tensor | None = None, *, shifted: bool = True) -> Tensor:
        """Output of the final norm, float (B, T, C); ``shifted`` as in `embed`."""
        h = self.embed(tokens, masked, shifted=shifted)
        for block in self._blocks():
            h = block(h)
        return self.ln_f(h)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits, float32 (..., V), of the final norm's output (..., C).

        Raises UsageError for weights without an output matrix (``wtet`` is None), such as a classifier's.
        """
        if self.wtet is None:
            raise UsageError(
                "these weights give features, but neither loss nor samples, since they have no output matrix:"
                " choose those of a generative model"
            )
        logits = hidden @ self.wtet.T
        return logits if logits.dtype == torch.float64 else logits.float()

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        """Logits, float32 (B, T, V); position i predicts token i."""
        return self.logits(self.hidden(tokens, masked))

    def loss(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        """Mean nats per token: over all positions, or per image over the masked ones (BERT)."""
        return generative_loss(self(tokens, masked), tokens, masked)

    def features(self, tokens: Tensor, *, layers: Iterable[int] | None = None, masked: Tensor | None = None) -> dict[int, Tensor]:
        """Features of the given layers (all L + 1 by default), averaged over positions.

        tokens : int64 (B, T), palette indices
        Returns ``{layer: float32 (B, C)}``. Raises ValueError for a layer outside 0 .. L.
        Source: section 2.4, "Linear Probing"; the released code has no counterpart.
        """
        last = self.shape.n_layer
        wanted = set(range(last + 1) if layers is None else layers)
        if outside := sorted(layer for layer in wanted if not 0 <= layer <= last):
            raise ValueError(f"layers {outside} are outside 0 .. {last}")
        features: dict[int, Tensor] = {}
        h = self.embed(tokens, masked)
        for layer, block in enumerate(self._blocks()):
            if layer > max(wanted, default=-1):
                return features
            normed = block.ln_1(h)
            if layer in wanted:
                features[layer] = normed.mean(dim=1, dtype=torch.float32)
            h = block.after_norm(h, normed)
        if last in wanted:
            features[last] = self.ln_f(h).mean(dim=1, dtype=torch.float32)
        return features

    def next_logits(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) of the position after those in ``cache``, which is extended by that position.

        tokens : int64 (B, P), all tokens so far; the first call fills the cache with the whole prefix, each later call adds
        the last token only. With a tensor ``cache.length``: int64 (B, T), of which the token at ``length`` - 1 is read.
        Autoregressive models only.
        """
        if isinstance(cache.length, Tensor):
            h = self.wte[tokens.index_select(1, cache.length - 1)] + self.wpe[cache.length]  # (B, 1, C)
            cache.mask = (torch.arange(cache.end, device=h.device) <= cache.length)[None]
        elif cache.length:
            h = self.wte[tokens[:, -1:]] + self.wpe[cache.length]  # (B, 1, C)
            cache.end = cache.length + 1
        else:
            h = self.embed(F.pad(tokens, (0, 1)))  # (B, P + 1, C), with the start vector; the padding is shifted out
            cache.end = h.shape[1]
        for index, block in enumerate(self._blocks()):
            h = block.after_norm(h, block.ln_1(h), cache, index)
        cache.length += h.shape[1]  # in place if it is a tensor
        return self.logits(self.ln_f(h[:, -1]))


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy in nats of each token, float (B, T), of logits (B, T, V) and int64 tokens (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


def generative_loss(logits: Tensor, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats per token.

    logits : float (B, T, V); tokens : int64 (B, T); masked : bool (B, T) for BERT
    Without ``masked`` the mean over positions and images; with it, the mean over each image's masked
    positions, then over images, as the released code averages (the paper writes sums, section 2.2).
    """
    nats = token_losses(logits, tokens)
    if masked is None:
        return nats.mean()
    return ((nats * masked).sum(1) / masked.sum(1)).mean()


def draw_mask(tokens: Tensor, *, rate: float, generator: torch.Generator) -> Tensor:
    """BERT's mask, bool like ``tokens`` (B, T): each position masked independently with probability ``rate``.

    An image without a masked position would have no loss, so its first position is masked then. At the
    paper's 1024 positions that never happens; at 64, in about three of 100,000 images.
    """
    masked = torch.rand(tokens.shape, generator=generator) < rate
    masked[~masked.any(1), 0] = True
    return masked
