"""Weights by a name, a folder or a TensorFlow prefix: which of the three readers they need."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.weights.huggingface import is_huggingface, read_huggingface
from igpt.weights.own import load_weights
from igpt.weights.tensorflow import read_tensorflow

# Source: download.py of openai/image-gpt. The files' sizes and sums are not published beside them.
ADDRESS = "https://openaipublic.blob.core.windows.net/image-gpt/checkpoints"
LAST_STEP = 1_000_000


@dataclass(frozen=True)
class Released:
    """One released model: its folder's name, and in how many shards each of its checkpoints lies."""

    name: str
    shards: int


RELEASED = {
    f"{size}{objective}": Released(f"{size}{objective}", shards)
    for size, shards in (("igpt-s", 32), ("igpt-m", 32), ("igpt-l", 64))
    for objective in ("", "-bert")
}


def released_palette() -> Palette:
    """The 512 colours of the released weights, which this package carries."""
    with as_file(files("igpt.weights") / "released_palette.npy") as path:
        return Palette.load(path)


def weights_home() -> Path:
    """The folder in which released weights are looked for: ``IGPT_WEIGHTS``, else ``~/.cache/igpt/weights``."""
    return Path(os.environ.get("IGPT_WEIGHTS") or Path.home() / ".cache" / "igpt" / "weights")


def read_weights(where: str | Path) -> ImageGPT:
    """The model that ``where`` names, in evaluation mode on the CPU.

    where : a released model's name (``igpt-s``, ``igpt-s-bert`` ...), a folder of ours or of Hugging Face's, or
    the prefix of a TensorFlow checkpoint (the path without ``.index``)
    Raises UsageError when there is none, saying which files to put where, or when it is damaged.
    """
    path = Path(where)
    if path.is_dir():
        return read_huggingface(path) if is_huggingface(path) else load_weights(path)[0]
    if path.with_name(path.name + ".index").exists():
        return read_tensorflow(path)
    if str(where) in RELEASED:
        return _released(RELEASED[str(where)])
    raise UsageError(
        f"there are no weights at {where}: give a folder, the path of a TensorFlow checkpoint without .index, or one of"
        f" {', '.join(RELEASED)}"
    )


def _released(model: Released) -> ImageGPT:
    """A released model out of the weights' home."""
    prefix = weights_home() / model.name / f"model.ckpt-{LAST_STEP}"
    if not prefix.with_name(prefix.name + ".index").exists():
        raise UsageError(
            f"the weights of {model.name} are not here: put {prefix.name}.index and its {model.shards} files"
            f" {prefix.name}.data-* from {ADDRESS}/{model.name}/{LAST_STEP}/ into {prefix.parent}"
        )
    return read_tensorflow(prefix)
