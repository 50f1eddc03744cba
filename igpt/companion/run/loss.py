"""``igpt evaluate-loss``: the loss of a model on tokens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.data import LabelledTokens, labelled_tokens
from igpt.data.imagenet_tokens import SIDE, released_path
from igpt.data.store import TokenStore, read_tokens
from igpt.errors import UsageError
from igpt.fast import prepacked
from igpt.pretrained import open_weights
from igpt.progress import Bar
from igpt.train.loop import evaluate_loss
from igpt.weights.own import released_palette

BATCH = 64  # images; one step of the released code on eight GPUs


def loss_line(model: str, tokens: Path | None, images: int | None) -> str:
    """The loss of a model, in nats and bits per token, as a sentence.

    tokens : a token store or an ``.npy`` file; None for ImageNet's released test tokens
    images : use only the first so many images; None for whole batches, as in the released code

    Raises UsageError for tokens that do not fit the model, and for a loss that is NaN or infinite.
    """
    weights, palette = open_weights(model)
    weights.to("cuda" if torch.cuda.is_available() else "cpu")
    positions, colours = weights.shape.n_ctx, weights.shape.n_vocab
    path = tokens or released_path("test")
    all_tokens: LabelledTokens | NDArray[np.integer]
    if tokens is not None and path.is_dir():
        store = TokenStore(path)
        store.check_for(palette, positions=positions)
        all_tokens = LabelledTokens.of(store, classes=1)  # a loss needs no labels
    elif tokens is not None:
        all_tokens = read_tokens(path)
        if len(all_tokens) and all_tokens.shape[1] != positions:
            raise UsageError(f"{path} has {all_tokens.shape[1]} tokens an image, the model {positions}: give others")
        if len(all_tokens) and not 0 <= int(all_tokens.min()) <= int(all_tokens.max()) < colours:
            raise UsageError(
                f"{path} has tokens from {all_tokens.min()} to {all_tokens.max()}, the model {colours} colours: give others"
            )
    elif palette.digest != released_palette().digest:
        raise UsageError(f"{model} has other colours than the released tokens: give tokens of its palette (--tokens)")
    elif positions != SIDE**2:
        raise UsageError(
            f"{model} takes {positions:,} tokens an image, the released ones have {SIDE**2:,}: give others (--tokens)"
        )
    else:
        all_tokens = labelled_tokens("imagenet-tokens", "test", side=SIDE, palette=palette)
    count = min(images or max(len(all_tokens) // BATCH, 1) * BATCH, len(all_tokens))
    if not count:
        raise UsageError(f"{path} has no tokens: give others")
    first = all_tokens.take(slice(count)) if isinstance(all_tokens, LabelledTokens) else all_tokens[:count]
    source = f"{count:,} images of {path}"
    with prepacked(weights), Bar("", " images") as report:
        nats = evaluate_loss(weights, first, at_once=BATCH, report=report)
    if not math.isfinite(nats):
        raise UsageError(f"the loss of {model} is {nats}, not a finite number, over {source}: check its weights")
    return f"{model}: {nats:.4f} nats per token, {nats / math.log(2):.4f} bits, over {source}"
