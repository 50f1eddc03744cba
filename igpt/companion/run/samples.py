"""The commands ``igpt sample``, ``igpt complete`` and ``igpt export``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from igpt.data import tokenize
from igpt.data.folders import read_picture
from igpt.errors import UsageError
from igpt.files import check_writable, write_folder
from igpt.palette import Palette
from igpt.pictures import LINE, Resize, check_not_given, check_png, write_grid
from igpt.pretrained import open_weights, resample_of
from igpt.progress import Bar
from igpt.sample import complete, sample
from igpt.weights.huggingface import write_huggingface
from igpt.weights.own import save_weights

MOST = 256  # images of a grid
HALVES = ("top", "left", "right", "bottom")
LOOKS_BACK = (
    "The model looks back only: a given pixel changes what is drawn after it, below or to the right, and nothing before it; there"
    " the drawing may not fit."
)


@dataclass(frozen=True)
class Draw:
    """The sampler's settings; see `igpt.sample.complete`."""

    n: int
    seed: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def write_samples(model: str, draw: Draw, *, out: Path) -> str:
    """Draw unconditional samples and write them as a grid, row by row; returns the line to print.

    Raises UsageError for more than `MOST`, before anything is opened.
    """
    if draw.n > MOST:
        raise UsageError(f"one PNG holds up to {MOST} images, not {draw.n}: give --format npz or png, or a smaller --n")
    check_png(out)
    check_writable(out)
    weights, palette = open_weights(model)
    with Bar(model, " tokens") as report:
        tokens = sample(weights, **vars(draw), report=report).numpy()
    columns = math.ceil(math.sqrt(draw.n))
    images = [as_image(palette, row) for row in tokens]
    write_grid(out, [images[start : start + columns] for start in range(0, draw.n, columns)], scale=_scale(len(tokens[0])))
    return f"{draw.n} samples of {model}, seed {draw.seed}: {out}"


def write_completions(model: str, paths: Sequence[Path], draw: Draw, *, keep: str, out: Path, resize: Resize = "crop") -> str:
    """Complete pictures and write a row per picture: the given part, completions, the original in palette colours.

    keep : top, left, right, bottom, a fraction from the top, or a mask's file; see `_mask_kept`
    resize : see `igpt.data.resize.fitted`
    Returns the line to print. Raises UsageError for another ``keep``, and as `_mask_kept`, `read_picture` and `complete` do.
    """
    check_png(out)
    check_writable(out)
    mask = _mask_file(keep)
    check_not_given(out, [*paths, mask] if mask else paths)
    if mask:
        read_picture(mask, side=1, channels=1)  # check it first: opening weights may train a model
    weights, palette = open_weights(model)
    side, channels = math.isqrt(weights.shape.n_ctx), palette.centres.shape[1]
    resample = resample_of(model)
    pictures = np.stack([read_picture(path, side=side, channels=channels, resize=resize, resample=resample) for path in paths])
    tokens = tokenize(pictures, palette)
    kept = _mask_kept(mask, side=side, resize=resize) if mask else _kept(keep, side=side)
    if kept.all():
        raise UsageError(f"--keep {keep} keeps all {side * side:,} pixels of a picture: leave some to draw")
    given = torch.where(torch.from_numpy(kept), tokens, -1)
    with Bar(model, " tokens") as report:
        completed = complete(weights, given, **vars(draw), report=report).numpy()
    rows = []
    for original, images in zip(tokens.numpy(), completed, strict=True):
        given_part = np.where(kept.reshape(side, side, 1), as_image(palette, original), np.uint8(LINE))
        rows.append([given_part, *(as_image(palette, image) for image in images), as_image(palette, original)])
    write_grid(out, rows, scale=_scale(side**2))
    line = f"{draw.n} completions each of {len(rows)} by {model}, seed {draw.seed}: {out}"
    return line if kept[: kept.sum()].all() else f"{line}\n{LOOKS_BACK}"


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


def _mask_file(keep: str) -> Path | None:
    """The mask's file that ``keep`` names; None for a half or a fraction. Raises UsageError for any other value."""
    if keep in HALVES:
        return None
    try:
        is_fraction = 0 <= float(keep) < 1
    except ValueError:
        is_fraction = False
    try:
        is_file = keep != "" and Path(keep).exists()
    except OSError:  # a name that is too long
        is_file = False
    if is_fraction and is_file:
        raise UsageError(f"--keep {keep} is a fraction and also a file here: give ./{keep} for the file, or move it away")
    if not is_fraction and not is_file:
        raise UsageError(
            f"--keep takes {', '.join(HALVES)}, a fraction from 0 up to but not 1, or a mask's file, and no file is called"
            f" {keep!r}: choose one of them"
        )
    return Path(keep) if is_file else None


def _kept(keep: str, *, side: int) -> NDArray[np.bool_]:
    """Which tokens are given, bool (side * side,), for a half (`HALVES`) or a fraction from the top."""
    positions = np.arange(side * side)
    if keep in ("left", "right"):
        columns = positions % side
        return np.asarray(columns < side // 2 if keep == "left" else columns >= side - side // 2)
    kept = positions < round((0.5 if keep in HALVES else float(keep)) * side * side)
    return kept[::-1].copy() if keep == "bottom" else kept  # torch takes no reversed array


def _mask_kept(path: Path, *, side: int, resize: Resize) -> NDArray[np.bool_]:
    """Which tokens are given, bool (side * side,), by a mask that is fitted as the pictures are, to the nearest pixels.

    Given is what is at least half white, with transparency as black. Raises UsageError when that is everything or nothing, and as
    `read_picture` does.
    """
    levels = read_picture(path, side=side, channels=1, resize=resize, resample=Image.Resampling.NEAREST, background=0)
    kept = levels.reshape(-1) >= 128
    if kept.all() or not kept.any():
        raise UsageError(
            f"{path} keeps {'everything' if kept.all() else 'nothing'} of a picture of {side} x {side} pixels: make white what is"
            " given, and black or transparent what is to be drawn"
        )
    return kept


def as_image(palette: Palette, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Tokens (side * side,) as an image (side, side, channels)."""
    side = math.isqrt(len(tokens))
    return palette.dequantize(tokens).reshape(side, side, -1)


def _scale(positions: int) -> int:
    """Screen pixels per image pixel, so that an image is about 100 pixels wide at every resolution."""
    return max(1, 96 // math.isqrt(positions))
