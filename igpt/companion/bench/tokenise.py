"""From pictures to tokens with the released palette: quantising compared with transformers, tokenising with Pillow."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from igpt.companion.bench.work import Candidate, Task, Work, both
from igpt.data.jpegs import Jpegs, decode
from igpt.data.resize import centre_crop
from igpt.data.store import shard_path
from igpt.data.tokens import TokenizeSettings, make_shard
from igpt.errors import UsageError
from igpt.palette import colour_table, nearest_centres
from igpt.weights.own import released_palette

SIZE = (500, 375)  # the most common size in ImageNet
SIDE = 32


def _images(toy: bool) -> NDArray[np.uint8]:
    """Random colours: the worst case of every method, since neighbouring pixels differ."""
    return np.random.default_rng(0).integers(0, 256, (100 if toy else 1000, 32, 32, 3), dtype=np.uint8)


def _ours(toy: bool) -> Work:
    """The table is built before the first round; `_with_table` includes building it."""
    palette, images = released_palette(), _images(toy)
    return Work(lambda: palette.quantize(images), _digest(palette.quantize(images)))


def _with_table(toy: bool) -> Work:
    palette, images = released_palette(), _images(toy)

    def run() -> NDArray[np.uint16]:
        colour_table.cache_clear()
        return palette.quantize(images)

    return Work(run, _digest(run()))


def _theirs(toy: bool) -> Work:
    try:
        from transformers import ImageGPTImageProcessorPil
    except ImportError:
        raise UsageError("the comparison is with transformers, which is not installed: pip install transformers") from None
    processor, images = ImageGPTImageProcessorPil(clusters=released_palette().centres.tolist()), list(_images(toy))

    def run() -> NDArray[np.int64]:
        tokens: NDArray[np.int64] = processor(images, do_resize=False, return_tensors="np")["input_ids"]
        return tokens

    return Work(run, _digest(run()))


def _brute(toy: bool) -> Work:
    """All squared distances in float64, timed on a tenth of the pixels: the exact answer."""
    palette, images = released_palette(), _images(toy)
    flat = images.reshape(-1, 3)
    tenth = flat[: len(flat) // 10]
    return Work(lambda: nearest_centres(tenth, palette.centres), _digest(nearest_centres(flat, palette.centres)), times=10)


def write_jpegs(count: int) -> tempfile.TemporaryDirectory[str]:
    """A directory of JPEG files of smooth random pictures, the same for every candidate; removed when garbage-collected."""
    directory = tempfile.TemporaryDirectory(prefix="igpt-bench-")
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
        noise = generator.normal(0, 6, (SIZE[1], SIZE[0], 3))  # without noise they would compress better than photographs
        pixels = (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(Path(directory.name) / f"{number:04d}.jpeg", quality=92)
    return directory


def _files(toy: bool) -> tuple[Jpegs, tempfile.TemporaryDirectory[str]]:
    """JPEG files, and their directory."""
    directory = write_jpegs(8 if toy else 400)
    folder = Path(directory.name)
    names = np.array([path.name.encode() for path in sorted(folder.glob("*.jpeg"))])
    zeros = np.zeros(len(names), np.int64)
    return Jpegs(folder, names, zeros, zeros - 1, zeros), directory


def _from_files(toy: bool) -> Work:
    (jpegs, directory), palette = _files(toy), released_palette()
    settings = TokenizeSettings("imagenet", "train", SIDE)

    def run() -> tempfile.TemporaryDirectory[str]:
        make_shard(0, jpegs, settings, palette, jpegs.folder)
        return directory

    run()
    return Work(run, _digest(np.load(shard_path(jpegs.folder, 0))))


def _pillow(toy: bool) -> Work:
    jpegs, directory = _files(toy)

    def run() -> list[NDArray[np.uint8]]:
        return [centre_crop(decode(path.read_bytes()), side=SIDE) for path in _paths(jpegs, directory)]

    return Work(run, _digest(released_palette().quantize(np.stack(run())).reshape(len(jpegs), -1)))


def _plain(toy: bool) -> Work:
    """Plain Pillow: open, resize the short side, crop, resize; the tokens differ slightly."""
    jpegs, directory = _files(toy)

    def run() -> list[Image.Image]:
        pictures = []
        for path in _paths(jpegs, directory):
            with Image.open(path) as file:
                picture = file.convert("RGB")
            width, height = picture.size
            scale = 224 / min(width, height)
            picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
            left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
            pictures.append(picture.crop((left, top, left + 224, top + 224)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        return pictures

    return Work(run, [])


def _paths(jpegs: Jpegs, kept: tempfile.TemporaryDirectory[str]) -> list[Path]:
    """The paths of the files; passing ``kept`` keeps their directory from being removed."""
    return [Path(kept.name) / name.decode() for name in jpegs.files]


def _digest(tokens: NDArray[np.integer]) -> list[float]:
    """A SHA-256 of the tokens, as a few numbers."""
    return [float(byte) for byte in hashlib.sha256(tokens.astype("<u2").tobytes()).digest()[:8]]


TASKS = {
    "quantise": Task(
        "Quantising 1,000 images of 32 x 32 random colours with the released palette",
        (
            *both("igpt", _ours),
            Candidate("igpt, table built anew", _with_table),
            *both("transformers", _theirs),
            Candidate("every distance in float64", _brute),
        ),
    ),
    "tokenise": Task(
        "Tokenising 400 JPEG files of 500 x 375 pixels at 32 x 32, one process",
        (
            Candidate("igpt", _from_files),
            Candidate("the same decoding and resizing, no tokens", _pillow),
            Candidate("Pillow, resized whole, then cropped", _plain),
        ),
    ),
}
