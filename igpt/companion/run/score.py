"""``igpt score``: how likely a model finds each of a user's pictures, the least likely first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from igpt.companion.run.per_picture import for_each_picture, rate_line, working_folder
from igpt.data.folders import PictureTokens, find_pictures
from igpt.errors import UsageError
from igpt.fast import prepacked
from igpt.files import check_writable, write_rows
from igpt.model import token_losses
from igpt.pictures import Resize
from igpt.pretrained import open_weights, resample_of
from igpt.shape import ModelShape
from igpt.text import counted
from igpt.weights.own import weights_digest

LOGITS = 2**26  # bytes of logits at once


def write_scores(model: str, paths: Sequence[Path], *, out: Path, resize: Resize, skip: bool) -> str:
    """Write a row for each picture in files and folders as CSV, the highest loss first; the line to print.

    The columns are file, label (if any picture has one), nats a token and bits a pixel. A token is a pixel, of palette colours.
    resize : see `igpt.data.resize.fitted`
    skip : whether to leave out pictures that cannot be read
    A stopped call is continued by the next one.
    Raises UsageError for another file, for weights of BERT or without an output matrix, as `find_pictures` and `open_weights` do,
    for a picture that cannot be read, for a loss that is not finite, and when the pictures changed meanwhile.
    """
    if out.suffix.lower() != ".csv":
        raise UsageError(f"scores are written as .csv, not as {out.name}: name a file that ends in .csv")
    check_writable(out)
    found = find_pictures(paths)
    network, palette = open_weights(model)
    shape = network.shape
    if shape.objective == "bert":
        raise UsageError(f"{model} was trained with BERT's objective, which gives no likelihood: choose autoregressive weights")
    network.logits(torch.zeros(1, shape.n_embd))  # raises for weights without an output matrix
    key = weights_digest(network)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)

    def compute(tokens: Tensor) -> list[float]:
        values: list[float] = token_losses(network(tokens), tokens).double().mean(1).tolist()
        if not all(map(math.isfinite, values)):
            raise UsageError(f"{model} gives a loss that is not a finite number: check its weights")
        return values

    with working_folder(out) as work, prepacked(network):
        pictures = PictureTokens(found, palette, math.isqrt(shape.n_ctx), resize, resample_of(model), skip, work)
        start = time.monotonic()
        results = for_each_picture(pictures, paths, compute, work=work, key=key, batch=_at_once(shape), device=device)
        seconds = time.monotonic() - start
        scored = [(value, row) for row, value in enumerate(results) if value is not None]
        scored.sort(key=lambda pair: (-pair[0], pair[1]))
        labels = found.labels if any(found.labels) else None
        if scored:
            _write_csv(out, [(found.paths[row], labels[row] if labels else None, nats) for nats, row in scored])
    pictures.tell()
    if not scored:
        raise UsageError(f"none of the {counted(len(found), 'picture')} can be read: nothing was written")
    return rate_line(len(scored), seconds, out, read=pictures.read)


def _at_once(shape: ModelShape) -> int:
    """Pictures per forward pass, by the memory of their logits."""
    return max(LOGITS // (4 * shape.n_ctx * max(shape.n_vocab, 4 * shape.n_embd)), 1)


def _write_csv(out: Path, rows: Sequence[tuple[Path, str | None, float]]) -> None:
    """Write file, label (unless it is None) and nats of each picture, atomically."""
    labelled = rows[0][1] is not None
    head = ["file", *(["label"] if labelled else []), "nats_per_token", "bits_per_pixel"]
    lines = ([path, *([label] if labelled else []), f"{nats:.7f}", f"{nats / math.log(2):.7f}"] for path, label, nats in rows)
    write_rows(out, [head, *lines])
