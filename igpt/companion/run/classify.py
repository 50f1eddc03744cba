"""``igpt classify``: the class of each picture, by a classifier that ``igpt fine-tune`` or transformers has written."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tabulate import tabulate
from torch import Tensor

from igpt.companion.run.per_picture import for_each_picture, rate_line, working_folder
from igpt.data.folders import PictureTokens, find_pictures, read_picture
from igpt.errors import UsageError
from igpt.evaluate.feature_store import images_at_once
from igpt.fast import prepacked
from igpt.files import check_writable, write_atomically, write_rows
from igpt.pictures import check_not_given
from igpt.text import counted, visible
from igpt.weights.classifier import class_logits, read_classifier
from igpt.weights.existing import content_digest, file_sums
from igpt.weights.processor import read_resample
from igpt.weights.read import weights_files

SHOWN, TILE, CAPTION = 100, 128, 18  # most pictures of a grid; pixels of a picture, and of the text under it


def classify(model: Path, paths: Sequence[Path], *, out: Path | None, skip: bool) -> str:
    """Classify pictures; the table, or the line to print when a file is written.

    model : a classifier's folder
    out : a ``.csv`` file, or a ``.png`` of at most `SHOWN` pictures with their classes; None prints the table
    Raises UsageError for a folder without a classifier, for pictures that cannot be read, unless they are skipped, and as
    `find_pictures` does.
    """
    if out is not None:
        if out.suffix.lower() not in (".csv", ".png"):
            raise UsageError(f"{out} is neither .csv nor .png: name a file that ends in one of these")
        check_writable(out)
    classifier = read_classifier(model)
    found = find_pictures(paths)
    if out is not None and out.suffix.lower() == ".png" and len(found) > SHOWN:
        raise UsageError(f"a PNG shows up to {SHOWN} pictures, not {len(found):,}: write a .csv, or give fewer")
    if out is not None:
        check_not_given(out, found.paths)
    side = math.isqrt(classifier.network.shape.n_ctx)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier.network.to(device)

    def compute(tokens: Tensor) -> list[list[float]]:
        likeliest, chosen = class_logits(classifier, tokens).softmax(1).max(1)
        return [[int(label), float(p)] for label, p in zip(chosen.tolist(), likeliest.tolist(), strict=True)]

    start = time.monotonic()
    with working_folder(out) if out else tempfile.TemporaryDirectory() as folder, prepacked(classifier.network):
        work = Path(folder)
        pictures = PictureTokens(found, classifier.palette, side, classifier.resize, read_resample(model), skip, work)
        results = for_each_picture(
            pictures,
            paths,
            compute,
            work=work,
            key=content_digest(file_sums(weights_files(model))),
            batch=images_at_once(classifier.network),
            device=device,
        )
        rows = [
            (path, classifier.names[int(result[0])], float(result[1]))
            for path, result in zip(found.paths, results, strict=True)
            if result is not None
        ]
        if rows and out:
            if out.suffix.lower() == ".png":
                _write_grid(out, rows)
            else:
                write_rows(out, [("file", "class", "probability"), *((path, name, f"{p:.6f}") for path, name, p in rows)])
    pictures.tell()
    if not rows:
        raise UsageError(f"none of the {counted(len(found), 'picture')} can be read: nothing is classified")
    if out is None:
        table = [(visible(str(path)), visible(name), f"{100 * p:.1f} %") for path, name, p in rows]
        return tabulate(table, ("File", "Class", "Probability"), disable_numparse=True)
    return rate_line(len(rows), time.monotonic() - start, out)


def _write_grid(out: Path, rows: Sequence[tuple[Path, str, float]]) -> None:
    """Write the pictures with class and probability under each as one PNG, atomically."""
    columns = math.ceil(math.sqrt(len(rows)))
    lines = math.ceil(len(rows) / columns)
    grid = Image.new("RGB", (columns * TILE, lines * (TILE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(11)
    for number, (path, name, p) in enumerate(rows):
        x, y = number % columns * TILE, number // columns * (TILE + CAPTION)
        grid.paste(Image.fromarray(_tile(path)), (x, y))
        percent = f" {100 * p:.0f} %"
        while draw.textlength(name + percent, font=font) > TILE - 4 and len(name) > 1:
            name = f"{name[:-2]}…" if len(name) > 2 else name[:1]
        draw.text((x + 2, y + TILE + 2), name + percent, "black", font=font)
    with write_atomically(out) as stream:
        grid.save(stream, "PNG")


def _tile(path: Path) -> NDArray[np.uint8]:
    """A picture's central square, uint8 (TILE, TILE, 3)."""
    return read_picture(path, side=TILE, channels=3)
