"""What ``igpt evaluate-loss`` does: the loss of any weights on any tokens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.data import LabelledTokens, data_card, labelled_tokens
from igpt.data.imagenet_tokens import SIDE, released_path
from igpt.data.store import TokenStore, read_tokens
from igpt.errors import UsageError
from igpt.fast import prepacked
from igpt.pretrained import open_weights
from igpt.progress import Bar
from igpt.train.loop import evaluate_loss
from igpt.weights.own import released_palette

BATCH = 64  # images; as many as the released code has in one step of its eight GPUs


def loss_line(model: str, tokens: Path | None, images: int | None) -> str:
    """The loss of a model, in nats and bits per token, as a sentence.

    tokens : a token store, an ``.npy`` file, or ImageNet's test tokens as released when left out
    images : the first so many; the released code leaves out what does not fill a step, so do we when left out
    Raises UsageError for tokens that are not the model's, and for a loss that is not finite.
    """
    weights, palette = open_weights(model)
    weights.to("cuda" if torch.cuda.is_available() else "cpu")
    found: LabelledTokens | NDArray[np.integer]
    if tokens is not None and tokens.is_dir():
        store = TokenStore(tokens)
        store.check_for(palette, positions=weights.shape.n_ctx)
        place, found = tokens, LabelledTokens.of(store, classes=data_card(store.header.dataset).classes)
    elif tokens is not None:
        place, found = tokens, read_tokens(tokens)
    elif palette.digest != released_palette().digest:
        raise UsageError(f"{model} has other colours than the released tokens: give tokens of its palette (--tokens)")
    elif weights.shape.n_ctx != SIDE**2:
        raise UsageError(
            f"{model} takes {weights.shape.n_ctx:,} tokens an image, the released ones have {SIDE**2:,}: give others (--tokens)"
        )
    else:
        place = released_path("test")
        found = labelled_tokens("imagenet-tokens", "test", side=SIDE, palette=palette)
    count = min(images or max(len(found) // BATCH, 1) * BATCH, len(found))
    part = found.take(slice(count)) if isinstance(found, LabelledTokens) else found[:count]
    _check(part, weights.shape.n_ctx, weights.shape.n_vocab, place)
    with prepacked(weights), Bar("", " images") as report:
        nats = evaluate_loss(weights, part, at_once=BATCH, report=report)
    if not math.isfinite(nats):
        raise UsageError(
            f"the loss of {model} is {nats}, not a finite number, over {count:,} images of {place}: check its weights"
        )
    return f"{model}: {nats:.4f} nats per token, {nats / math.log(2):.4f} bits, over {count:,} images of {place}"


def _check(tokens: LabelledTokens | NDArray[np.integer], positions: int, colours: int, place: Path) -> None:
    """Refuse no tokens, and those of another shape or palette; a store and released tokens are checked by themselves."""
    if not len(tokens):
        raise UsageError(f"{place} has no tokens: give others")
    if not isinstance(tokens, np.ndarray):
        return
    if tokens.shape[1] != positions:
        raise UsageError(f"{place} has {tokens.shape[1]} tokens an image, the model {positions}: give others")
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < colours:
        raise UsageError(f"{place} has tokens from {tokens.min()} to {tokens.max()}, the model {colours} colours: give others")
