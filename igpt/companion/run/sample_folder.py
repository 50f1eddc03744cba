"""``igpt sample --format``: a folder of samples, as one npz or a PNG each; a command that was stopped continues.

While images are missing, ``plan.json`` says what the folder is to hold; when all are there, ``samples.json`` says what it holds.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from igpt.companion.run.samples import Draw, as_image
from igpt.data.npz import array_member
from igpt.data.store import map_array
from igpt.errors import UsageError
from igpt.fast import prepacked
from igpt.files import (
    cannot_read,
    check_writable,
    is_litter,
    read_json,
    remove_parts,
    wait_for_lock,
    write_array,
    write_atomically,
    write_text,
)
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.pretrained import open_weights
from igpt.progress import Bar
from igpt.sample import AT_ONCE, check_settings, sample
from igpt.text import counted, rounded, visible
from igpt.weights.own import weights_digest

Format: TypeAlias = Literal["npz", "png"]
PLAN, CARD, LOCK = "plan.json", "samples.json", ".lock"
ARRAY = "samples.npz"
MEMBER = "arr_0"  # numpy.savez's name, which guided-diffusion's evaluator reads
PARTS = ".parts"  # folder of the npz's parts, until all are drawn
AGAIN = "delete it, and the same command draws it again"
ELSEWHERE = "name another folder with --out"


class Card(BaseModel):
    """What a folder holds, or is to hold."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str  # as it was named; the digest decides
    weights_sha256: str
    seed: int = Field(ge=0, lt=2**32)
    temperature: float
    top_k: int | None = Field(ge=1, lt=2**31)
    top_p: float | None
    format: Format
    n: int = Field(ge=1, lt=2**31)


def write_sample_folder(model: str, draw: Draw, *, format: Format, out: Path) -> str:
    """Draw unconditional samples into a folder; returns the line to print.

    Images that are there are not drawn again, and ``draw.n`` may be larger than before. An image depends on seed and index alone.
    Raises UsageError for a folder that cannot be written, holds other files, or was begun with other weights or settings, and as
    `open_weights` and `sample` do.
    """
    _check_folder(out)
    weights, palette = open_weights(model)
    check_settings(weights, n=draw.n, temperature=draw.temperature, top_k=draw.top_k, top_p=draw.top_p)
    card = Card(
        model=model,
        weights_sha256=hashlib.sha256(f"{weights_digest(weights)} {palette.digest}".encode()).hexdigest(),
        format=format,
        **vars(draw),
    )
    _check_card(out, card)
    out.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(out / LOCK, f"{out} is being written by another process"):
        try:
            _check_card(out, card)  # another process may have begun the folder meanwhile
            remove_parts(out, ".*.part", *([] if (out / PLAN).exists() else [PARTS]))  # parts without a plan are of other images
            side = math.isqrt(weights.shape.n_ctx)
            shape = (side, side, palette.centres.shape[1])
            images = _Array(out, draw.n, shape) if format == "npz" else _Pngs(out, draw.n)
            drawn, seconds = _draw_missing(images, out, card, weights, palette)
            images.finish()
            write_text(out / CARD, card.model_dump_json(indent=1) + "\n")
            (out / PLAN).unlink(missing_ok=True)
        finally:
            (out / LOCK).unlink(missing_ok=True)
    rate = f"{counted(drawn, 'image')} drawn at {rounded(drawn / seconds, least=0.001)}/s" if drawn else "all there already"
    return f"{counted(draw.n, 'sample')} of {model}, seed {draw.seed}: {images.path}, {rate}"


def _check_folder(out: Path) -> None:
    """Raise UsageError for a path where no folder can be written, and for a folder of other files."""
    check_writable(out, is_folder=True)
    if out.suffix.lower() in (".png", ".npz") or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is a file, or named as one, and --format writes a folder: {ELSEWHERE}")
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{there} is not writable: {ELSEWHERE}")
    if not out.exists():
        return
    ours = rf"{PLAN}|{CARD}|{ARRAY}|\d{{5,}}\.png" if (out / PLAN).exists() or (out / CARD).exists() else ""
    names = sorted(path.name for path in out.iterdir() if not is_litter(path.name))
    if others := [name for name in names if not re.fullmatch(ours, name)]:
        raise UsageError(f"{out} holds other files, such as {others[0]}: name a folder that is new or empty with --out")


def _check_card(out: Path, card: Card) -> None:
    """Raise UsageError for a folder that was begun with another card; the number of images may be larger than there."""
    path = next((out / name for name in (PLAN, CARD) if (out / name).exists()), None)
    if path is None:
        return
    try:
        old = Card.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        raise cannot_read(path, error, "does not describe samples", advice=ELSEWHERE) from None
    if old.weights_sha256 != card.weights_sha256:
        raise UsageError(f"{out} holds samples of other weights, named {visible(old.model, limit=100)}: {ELSEWHERE}")
    for name in ("seed", "temperature", "top_k", "top_p", "format", "n"):
        before, now = getattr(old, name), getattr(card, name)
        if now != before and (name != "n" or now < before):
            option = f"--{name.replace('_', '-')}"
            was, given = (f"without {option}" if value is None else f"with {option} {value}" for value in (before, now))
            raise UsageError(f"{out} was begun {was}, not {given}: give the same settings, or {ELSEWHERE}")


def _draw_missing(images: _Array | _Pngs, out: Path, card: Card, weights: ImageGPT, palette: Palette) -> tuple[int, float]:
    """Draw the missing parts of `AT_ONCE` images; the number of images drawn, and the seconds this took."""
    positions, drawn, start = weights.shape.n_ctx, 0, time.monotonic()
    generator = torch.Generator().manual_seed(card.seed)
    with prepacked(weights), Bar(card.model, " tokens") as bar:
        for first in range(0, card.n, AT_ONCE):
            count = min(AT_ONCE, card.n - first)
            if images.has(first, count):
                torch.rand(AT_ONCE, positions, generator=generator, dtype=torch.float64)  # the numbers that `sample` takes
                continue

            def report(done: int, _: int, before: int = first * positions) -> None:
                bar(min(before + done, card.n * positions), card.n * positions)

            # Always as many at once: laptop-l's logits of 5 and of 16 images differ by 5e-6.
            tokens = sample(
                weights,
                n=AT_ONCE,
                seed=generator,
                temperature=card.temperature,
                top_k=card.top_k,
                top_p=card.top_p,
                report=report,
            )
            if not drawn:
                write_text(out / PLAN, card.model_dump_json(indent=1) + "\n")
                (out / CARD).unlink(missing_ok=True)
            images.add(first, np.stack([as_image(palette, row) for row in tokens.numpy()]))
            drawn += count
    return drawn, time.monotonic() - start


class _Pngs:
    """Images as ``00000.png`` and so on."""

    def __init__(self, out: Path, n: int) -> None:
        self.path, self._n = out, n

    def has(self, first: int, count: int) -> bool:
        """Whether ``count`` images are there, from the one with the index ``first`` on."""
        return all(self._file(index).exists() for index in range(first, first + count))

    def add(self, first: int, images: NDArray[np.uint8]) -> None:
        """Write images, uint8 (N, side, side, channels), except those beyond the last one."""
        for index, image in enumerate(images[: self._n - first], first):
            with write_atomically(self._file(index)) as stream:
                Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG")

    def finish(self) -> None:
        """Nothing is left to do when all images are there."""

    def _file(self, index: int) -> Path:
        return self.path / f"{index:05d}.png"


class _Array:
    """Images as the array of an npz, written when all are there; until then, each part is a file in a hidden folder.

    Raises UsageError for an npz that does not hold such images.
    """

    def __init__(self, out: Path, n: int, shape: tuple[int, int, int]) -> None:
        self.path, self._n, self._shape = out / ARRAY, n, shape
        self._earlier = sum(map(len, self._stored())) if self.path.exists() else 0

    def has(self, first: int, count: int) -> bool:
        """Whether ``count`` images are there, from the one with the index ``first`` on."""
        return first + count <= self._earlier or self._file(first).exists()

    def add(self, first: int, images: NDArray[np.uint8]) -> None:
        """Keep a part of `AT_ONCE` images, uint8 (N, side, side, channels), also those beyond the last one."""
        write_array(self._file(first), images)

    def finish(self) -> None:
        """Write the npz, a part at a time, and remove the parts."""
        if self._earlier < self._n:
            with (
                write_atomically(self.path) as stream,
                zipfile.ZipFile(stream, "w") as archive,  # not compressed, as numpy.savez does
                array_member(archive, MEMBER, np.dtype(np.uint8), (self._n, *self._shape)) as array,
            ):
                for images in self._parts():
                    array.write(images.tobytes())
        shutil.rmtree(self.path.with_name(PARTS), ignore_errors=True)

    def _parts(self) -> Iterator[NDArray[np.uint8]]:
        """All images, a part at a time: those of the earlier npz, as far as its parts are whole, then those drawn since."""
        whole = self._earlier // AT_ONCE
        yield from islice(self._stored(), whole)
        for first in range(whole * AT_ONCE, self._n, AT_ONCE):
            path = self._file(first)
            images = map_array(path, wrong="is damaged", advice=AGAIN)
            if images.shape != (AT_ONCE, *self._shape) or images.dtype != np.uint8:
                raise UsageError(f"{path} holds {images.dtype} {images.shape}: {AGAIN}")
            yield images[: self._n - first]

    def _stored(self) -> Iterator[NDArray[np.uint8]]:
        """The images of the earlier npz, a part at a time. Raises UsageError when it is damaged or of other images."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{MEMBER}.npy") as stream:
                np.lib.format.read_magic(stream)
                (n, *shape), is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
                if tuple(shape) != self._shape or is_fortran or dtype != np.uint8 or n > self._n:
                    raise ValueError(f"it holds {dtype} {(n, *shape)}")
                for first in range(0, n, AT_ONCE):
                    count = min(AT_ONCE, n - first)
                    content = stream.read(count * math.prod(shape))
                    yield np.frombuffer(content, np.uint8).reshape(count, *shape)
        except Exception as error:  # zipfile and numpy raise errors of many types
            reason = visible(str(error), limit=120)
            raise UsageError(f"{self.path} does not hold these samples, or is damaged ({reason}): {ELSEWHERE}") from None

    def _file(self, first: int) -> Path:
        return self.path.with_name(PARTS) / f"{first:05d}.npy"
