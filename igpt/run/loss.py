"""What ``igpt evaluate-loss`` does: the loss of any weights on any tokens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from igpt.data.store import TokenStore
from igpt.errors import UsageError
from igpt.fast import packed
from igpt.run.samples import find_weights
from igpt.train.loop import evaluate_loss
from igpt.weights.released import read_tokens, released_tokens

BATCH = 64  # images; as many as the released code has in one step of its eight GPUs


def loss_line(model: str, tokens: Path | None, images: int | None) -> str:
    """The loss of a model, in nats and bits per token, as a sentence.

    tokens : a token store, an ``.npy`` file, or ImageNet's test tokens as released when left out
    images : the first so many; the released code leaves out what does not fill a step, so do we when left out
    Raises UsageError for tokens that are not the model's.
    """
    weights, palette = find_weights(model)
    if tokens is not None and tokens.is_dir():
        store = TokenStore(tokens)
        store.check_for(palette, positions=weights.shape.n_ctx)
        place, found = tokens, torch.from_numpy(store[np.arange(len(store))].astype(np.int64))
    else:
        place, array = (tokens, read_tokens(tokens)) if tokens else released_tokens()
        found = torch.from_numpy(np.array(array, dtype=np.int64))
    found = found[: images or max(len(found) // BATCH, 1) * BATCH]
    _check(found, weights.shape.n_ctx, weights.shape.n_vocab, place)
    with packed(weights):
        nats = evaluate_loss(weights, found, batch=BATCH)
    return f"{model}: {nats:.4f} nats per token, {nats / math.log(2):.4f} bits, over {len(found):,} images of {place}"


def _check(tokens: Tensor, positions: int, colours: int, place: Path) -> None:
    """Refuse tokens of another shape or palette."""
    if tokens.shape[1] != positions:
        raise UsageError(f"{place} has {tokens.shape[1]} tokens an image, the model {positions}: give others")
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < colours:
        raise UsageError(f"{place} has tokens from {tokens.min()} to {tokens.max()}, the model {colours} colours: give others")
