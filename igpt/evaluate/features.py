"""Features of every layer, averaged over positions (section 2.4), from frozen weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt.errors import UsageError
from igpt.evaluate.kept import Kept
from igpt.fast import prepacked
from igpt.model import ImageGPT, draw_mask
from igpt.shape import ModelShape
from igpt.train.runtime import Runtime

TRIED = 4096  # positions per timed pass, when two precisions are compared
FASTER = 1.2  # float32 is used where it is more than this many times as fast as bfloat16


def extract_features(
    model: ImageGPT, tokens: Tensor, *, mask_rate: float = 0.15, mask_seed: int = 0, batch: int = 256
) -> NDArray[np.float32]:
    """Features float32 (layers + 1, images, width) of int64 tokens (images, positions).

    BERT's inputs are masked as in training (section 4.6), with one mask per image from ``mask_seed``.

    >>> import torch
    >>> from igpt.model import ImageGPT
    >>> from igpt.shape import ModelShape
    >>> from igpt.train.runtime import Runtime
    >>> model = ImageGPT(ModelShape(n_layer=2, n_embd=16, n_head=2, n_vocab=8, n_ctx=9))
    >>> extract_features(model, torch.zeros(5, 9, dtype=torch.int64)).shape
    (3, 5, 16)
    """
    generator = torch.Generator().manual_seed(mask_seed)
    outputs = []
    with prepacked(model):
        for inputs in tokens.split(batch):
            features = masked_features(model, inputs.to(model.wte.device), generator=generator, mask_rate=mask_rate)
            outputs.append(torch.stack([features[layer] for layer in sorted(features)]).cpu())
    return torch.cat(outputs, dim=1).numpy()


def masked_features(
    model: ImageGPT,
    tokens: Tensor,
    *,
    generator: torch.Generator,
    layers: Iterable[int] | None = None,
    mask_rate: float = 0.15,
) -> dict[int, Tensor]:
    """Features of a batch by layer, float32 (B, width), with BERT's inputs masked by the generator.

    Raises UsageError for features that are NaN or infinite.
    """
    masked = None
    if model.shape.objective == "bert":
        masked = draw_mask(tokens, rate=mask_rate, generator=generator).to(tokens.device)
    by_layer = model.features(tokens, layers=layers, masked=masked)
    for layer, features in by_layer.items():
        if not features.isfinite().all():
            raise UsageError(f"the features of layer {layer} are not finite: check the weights, or compute them in float32")
    return by_layer


def features_dtype(shape: ModelShape, runtime: Runtime, *, folder: Path) -> torch.dtype:
    """The dtype to compute features in: bfloat16 where the runtime uses it, unless on a CPU that is slower in it.

    On a CPU both are timed with a model of two blocks, and ``folder`` stores the choice for resumed runs. (Images per second
    and core of iGPT-S: 0.36 in bfloat16 and 0.55 in float32 on a Xeon that hides its matrix units; 0.8 and 0.5 on an EPYC.)
    """
    if not runtime.bfloat16:
        return torch.float32
    slower = runtime.device == "cpu" and Kept(folder, {}).of("precision", lambda: _faster(shape)) == "float32"
    return torch.float32 if slower else torch.bfloat16


def _faster(shape: ModelShape) -> str:
    """The precision in which this CPU computes features faster; bfloat16 unless float32 is clearly faster."""
    small = replace(shape, n_layer=2)
    tokens = torch.zeros(max(TRIED // shape.n_ctx, 1), shape.n_ctx, dtype=torch.int64)
    models = {dtype: ImageGPT(small).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(models, math.inf)
    for _ in range(3):  # alternating; the first round warms up
        for dtype, model in models.items():
            with prepacked(model):
                start = time.perf_counter()
                model.features(tokens)
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    return "float32" if FASTER * best[torch.float32] < best[torch.bfloat16] else "bfloat16"


def concatenated_layers(best: int, *, last: int, count: int = 5) -> list[int]:
    """``count`` neighbouring layers centred at ``best``, moved inside 0 .. last (section 4.4).

    Adjacent layers are our interpretation: the paper only says five layers centred at the best.

    >>> concatenated_layers(20, last=24)
    [18, 19, 20, 21, 22]
    >>> concatenated_layers(24, last=24)
    [20, 21, 22, 23, 24]
    """
    first = min(max(best - count // 2, 0), max(last + 1 - count, 0))
    return list(range(first, min(first + count, last + 1)))
