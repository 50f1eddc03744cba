"""The commands ``igpt sample``, ``igpt complete`` and ``igpt export``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from igpt.data import tokenize
from igpt.data.folders import read_picture
from igpt.errors import UsageError
from igpt.files import check_writable, write_folder
from igpt.palette import Palette
from igpt.pictures import LINE, check_png, write_grid
from igpt.pretrained import open_weights
from igpt.progress import Bar
from igpt.sample import complete, sample
from igpt.train.recipes import TRAINED
from igpt.weights.huggingface import is_huggingface, write_huggingface
from igpt.weights.own import save_weights
from igpt.weights.processor import BICUBIC, read_resample


@dataclass(frozen=True)
class Draw:
    """The sampler's settings; see `igpt.sample.complete`."""

    n: int
    seed: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def write_samples(model: str, draw: Draw, *, out: Path) -> str:
    """Draw unconditional samples and write them as a grid, row by row; returns the line to print."""
    check_png(out)
    check_writable(out)
    weights, palette = open_weights(model)
    with Bar(model, " tokens") as report:
        tokens = sample(weights, **vars(draw), report=report).numpy()
    columns = math.ceil(math.sqrt(draw.n))
    images = [_image(palette, row) for row in tokens]
    write_grid(out, [images[start : start + columns] for start in range(0, draw.n, columns)], scale=_scale(len(tokens[0])))
    return f"{draw.n} samples of {model}, seed {draw.seed}: {out}"


def write_completions(model: str, paths: Sequence[Path], draw: Draw, *, keep: str, out: Path) -> str:
    """Complete pictures and write a row per picture: the given part, completions, the original in palette colours.

    Returns the line to print.
    """
    check_png(out)
    check_writable(out)
    _kept(keep, side=2)  # check the value first: opening weights may train a model
    weights, palette = open_weights(model)
    side, channels = math.isqrt(weights.shape.n_ctx), palette.centres.shape[1]
    is_transformers = model not in TRAINED and is_huggingface(Path(model))  # such a folder defines its resize filter
    resample = read_resample(Path(model)) if is_transformers else BICUBIC
    pictures = np.stack([read_picture(path, side=side, channels=channels, resample=resample) for path in paths])
    tokens = tokenize(pictures, palette)
    kept = _kept(keep, side=side)
    given = torch.where(torch.from_numpy(kept), tokens, -1)
    with Bar(model, " tokens") as report:
        completed = complete(weights, given, **vars(draw), report=report).numpy()
    rows = []
    for original, images in zip(tokens.numpy(), completed, strict=True):
        given_part = np.where(kept.reshape(side, side, 1), _image(palette, original), np.uint8(LINE))
        rows.append([given_part, *(_image(palette, image) for image in images), _image(palette, original)])
    write_grid(out, rows, scale=_scale(side**2))
    return f"{draw.n} completions each of {len(rows)} by {model}, seed {draw.seed}: {out}"


def export_weights(model: str, folder: Path, *, to: str, half: bool = False) -> str:
    """Write weights in another format, atomically; returns the line to print.

    to : ours, huggingface or onnx
    half : ONNX's weights in float16; see `igpt.weights.onnx.write_onnx`
    Raises UsageError when the folder exists or another process is writing it, and for ``half`` without ONNX; OSError with the
    folder's name when writing fails.
    """
    if half and to != "onnx":
        raise UsageError(f"--half is for --to onnx, not for {to}: leave it out")
    if folder.exists():
        raise UsageError(f"{folder} is there already: name a folder that is not")
    check_writable(folder, is_folder=True)
    if to == "onnx":
        from igpt.weights.onnx import write_onnx  # onnx comes with an extra
    weights, palette = open_weights(model)
    with write_folder(folder) as part:
        if to == "ours":
            save_weights(part, weights, palette)
        elif to == "onnx":
            write_onnx(part, weights, palette, half=half)
        else:
            write_huggingface(part, weights, palette)
    return f"{model} as {to}: {folder}"


def _kept(keep: str, *, side: int) -> NDArray[np.bool_]:
    """Which tokens are given, bool (side * side,), for ``top``, ``left`` or a fraction from the top.

    Raises UsageError for any other value.
    """
    positions = np.arange(side * side)
    if keep == "left":
        return np.asarray(positions % side < side // 2)
    try:
        fraction = 0.5 if keep == "top" else float(keep)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction < 1:
        raise UsageError(f"--keep takes top, left, or a fraction from 0 up to but not 1, not {keep!r}")
    return positions < round(fraction * side * side)


def _image(palette: Palette, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Tokens (side * side,) as an image (side, side, channels)."""
    side = math.isqrt(len(tokens))
    return palette.dequantize(tokens).reshape(side, side, -1)


def _scale(positions: int) -> int:
    """Screen pixels per image pixel, so that an image is about 100 pixels wide at every resolution."""
    return max(1, 96 // math.isqrt(positions))
