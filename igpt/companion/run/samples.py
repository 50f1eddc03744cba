"""What ``igpt sample``, ``igpt complete`` and ``igpt export`` do: weights by name, images out, weights out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.companion.results.signature import Signer
from igpt.companion.run.bar import Bar
from igpt.companion.run.folder import finished_record, run_folder
from igpt.companion.run.local import ensure
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.files import check_writable, write_folder
from igpt.project import Project
from igpt.train.recipes import LAPTOP, PAPER, SMALL, TINY, recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from igpt.model import ImageGPT
    from igpt.palette import Palette
    from igpt.shape import ModelShape


OURS = (*TINY, *LAPTOP, *SMALL)  # recipes, which come before folders of the same name


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn; see `igpt.sample.complete`."""

    n: int
    seed: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def weights_place(where: str | Path) -> tuple[str | Path, ModelShape | None]:
    """Where the weights of a name lie, and the shape that the name promises, if it promises one.

    A recipe's name is the folder of its first seed: of what is published with the book, else of what was trained here. Any
    other word is as it was given, for `igpt.weights.read.read_weights`. Raises UsageError for a recipe without weights.
    """
    name = str(where)
    if name in OURS:
        return _published_or_trained(name), recipe(name).shape
    return where, recipe(name).shape if name in PAPER else None


def find_weights(model: str) -> tuple[ImageGPT, Palette]:
    """A model by its name or place, and the palette of its tokens; one of the tiny tier is trained when it has not been.

    Raises UsageError as `weights_place`, `igpt.weights.read.read_weights` and `igpt.weights.read.read_palette` do.
    """
    from igpt.weights.read import read_palette, read_weights

    if model in TINY and not _published(model).exists():
        ensure(Project.here(), [_first_seed(model)])
    place, shape = weights_place(model)
    found = read_weights(place, shape)
    return found, read_palette(place, found.shape)


def write_samples(model: str, draw: Draw, *, out: Path) -> str:
    """Images from nothing, as a grid in the order drawn; what to say of it."""
    from igpt.pictures import check_png, write_grid
    from igpt.sample import sample

    check_png(out)
    check_writable(out)
    weights, palette = find_weights(model)
    with Bar(model, " tokens") as report:
        tokens = sample(weights, **vars(draw), report=report).numpy()
    columns = math.ceil(math.sqrt(draw.n))
    images = [_image(palette, row) for row in tokens]
    write_grid(out, [images[start : start + columns] for start in range(0, draw.n, columns)], scale=_scale(weights))
    return f"{draw.n} samples of {model}, seed {draw.seed}: {out}"


def write_completions(model: str, paths: Sequence[Path], draw: Draw, *, keep: str, out: Path) -> str:
    """A row an image: what was given, its completions, and the original in palette colours; what to say of it."""
    import numpy as np
    import torch

    from igpt.data import tokenize
    from igpt.pictures import LINE, check_png, read_picture, write_grid
    from igpt.sample import complete

    check_png(out)
    check_writable(out)
    _kept(keep, side=2)  # a wrong word is said before anything is trained
    weights, palette = find_weights(model)
    side, channels = math.isqrt(weights.shape.n_ctx), palette.centres.shape[1]
    filter_ = _resample(model)
    pictures = np.stack([read_picture(path, side=side, channels=channels, resample=filter_) for path in paths])
    tokens = tokenize(pictures, palette)
    kept = _kept(keep, side=side)
    given = torch.where(torch.from_numpy(kept), tokens, -1)
    with Bar(model, " tokens") as report:
        completed = complete(weights, given, **vars(draw), report=report).numpy()
    rows = []
    for original, images in zip(tokens.numpy(), completed, strict=True):
        seen = np.where(kept.reshape(side, side, 1), _image(palette, original), np.uint8(LINE))
        rows.append([seen, *(_image(palette, image) for image in images), _image(palette, original)])
    write_grid(out, rows, scale=_scale(weights))
    return f"{draw.n} completions each of {len(rows)} by {model}, seed {draw.seed}: {out}"


def export_weights(model: str, folder: Path, *, to: str, half: bool = False) -> str:
    """Write weights in another make, the whole folder or none; what to say of it.

    half : ONNX's weights in float16; see `igpt.weights.onnx.write_onnx`

    Raises UsageError when the folder is there already or another process writes it, or for ``half`` of another make than
    ONNX; OSError with the folder's name when writing fails.
    """
    from igpt.weights.huggingface import write_huggingface
    from igpt.weights.own import save_weights

    if half and to != "onnx":
        raise UsageError(f"--half is for --to onnx, not for {to}: leave it out")
    if folder.exists():
        raise UsageError(f"{folder} is there already: name a folder that is not")
    check_writable(folder, is_folder=True)
    weights, palette = find_weights(model)
    with write_folder(folder) as part:
        if to == "ours":
            save_weights(part, weights, palette)
        elif to == "onnx":
            from igpt.weights.onnx import write_onnx

            write_onnx(part, weights, palette, half=half)
        else:
            write_huggingface(part, weights, palette)
    return f"{model} as {to}: {folder}"


def _resample(model: str) -> int:
    """Pillow's number of the filter by which a model's pictures are reduced: what a Hugging Face folder names, else bicubic."""
    from igpt.weights.huggingface import is_huggingface
    from igpt.weights.processor import BICUBIC, read_resample

    return read_resample(Path(model)) if model not in OURS and is_huggingface(Path(model)) else BICUBIC


def _published(model: str) -> Path:
    """What is there when a recipe's weights are published with the book."""
    return Project.here().models / model / "config.json"


def _first_seed(model: str) -> Stage:
    """The stage that trains a recipe's first seed."""
    project = Project.here()
    if not project.notebooks.is_dir():
        raise UsageError(
            f"{model} is published with the book and trained by its notebooks, and {project.root} has neither: set IGPT_ROOT to"
            " a checkout of igpt, or give a folder of weights"
        )
    return Signer(project.notebooks).canonical(Stage.of("pretrain", model=model, objective="autoregressive", seed=0))


def _published_or_trained(model: str) -> Path:
    """The folder of a recipe's weights."""
    from igpt.train.loop import weights_name

    project = Project.here()
    if _published(model).exists():
        return _published(model).parent
    stage = _first_seed(model)
    signature = Signer(project.notebooks).sign(stage)
    if finished_record(project, stage, signature) is None:
        time = "minutes" if model in TINY else "hours"
        raise UsageError(
            f"{model} has neither been published nor trained in {project.root}: igpt run {stage.name} trains it there, in {time};"
            " or set IGPT_ROOT to a checkout that has it"
        )
    return run_folder(project, stage, signature) / weights_name(recipe(model).steps)


def _kept(keep: str, *, side: int) -> NDArray[np.bool_]:
    """Which tokens are given, bool (side * side,), for ``top``, ``left`` or a fraction from the top."""
    import numpy as np

    place = np.arange(side * side)
    if keep == "left":
        kept: NDArray[np.bool_] = place % side < side // 2
        return kept
    try:
        fraction = 0.5 if keep == "top" else float(keep)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction < 1:
        raise UsageError(f"--keep takes top, left, or a fraction from 0 up to but not 1, not {keep!r}")
    return place < round(fraction * side * side)


def _image(palette: Palette, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Tokens (side * side,) as an image (side, side, channels)."""
    side = math.isqrt(len(tokens))
    return palette.dequantize(tokens).reshape(side, side, -1)


def _scale(weights: ImageGPT) -> int:
    """Screen pixels a side of a pixel, so that an image is some hundred wide at every resolution."""
    return max(1, 96 // math.isqrt(weights.shape.n_ctx))
