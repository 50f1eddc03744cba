"""``igpt evaluate-loss``: the loss of any weights on any tokens."""

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

    tokens : a token store or an ``.npy`` file; ImageNet's test tokens as released when None
    images : the first so many; like the released code, those that fill whole steps when None
    Raises UsageError for tokens that do not fit the model, and for a loss that is NaN or infinite.
    """
    weights, palette = open_weights(model)
    weights.to("cuda" if torch.cuda.is_available() else "cpu")
    positions, colours = weights.shape.n_ctx, weights.shape.n_vocab
    path = tokens or released_path("test")
    every: LabelledTokens | NDArray[np.integer]
    if tokens is not None and path.is_dir():
        store = TokenStore(path)
        store.check_for(palette, positions=positions)
        every = LabelledTokens.of(store, classes=data_card(store.header.dataset).classes)
    elif tokens is not None:
        every = read_tokens(path)
        if len(every) and every.shape[1] != positions:
            raise UsageError(f"{path} has {every.shape[1]} tokens an image, the model {positions}: give others")
        if len(every) and not 0 <= int(every.min()) <= int(every.max()) < colours:
            raise UsageError(f"{path} has tokens from {every.min()} to {every.max()}, the model {colours} colours: give others")
    elif palette.digest != released_palette().digest:
        raise UsageError(f"{model} has other colours than the released tokens: give tokens of its palette (--tokens)")
    elif positions != SIDE**2:
        raise UsageError(
            f"{model} takes {positions:,} tokens an image, the released ones have {SIDE**2:,}: give others (--tokens)"
        )
    else:
        every = labelled_tokens("imagenet-tokens", "test", side=SIDE, palette=palette)
    count = min(images or max(len(every) // BATCH, 1) * BATCH, len(every))
    if not count:
        raise UsageError(f"{path} has no tokens: give others")
    first = every.take(slice(count)) if isinstance(every, LabelledTokens) else every[:count]
    over = f"{count:,} images of {path}"
    with prepacked(weights), Bar("", " images") as report:
        nats = evaluate_loss(weights, first, at_once=BATCH, report=report)
    if not math.isfinite(nats):
        raise UsageError(f"the loss of {model} is {nats}, not a finite number, over {over}: check its weights")
    return f"{model}: {nats:.4f} nats per token, {nats / math.log(2):.4f} bits, over {over}"
