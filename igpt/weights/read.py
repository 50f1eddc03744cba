"""Weights by a name, a folder or a TensorFlow prefix: which of the three readers they need."""

from __future__ import annotations

from pathlib import Path

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.weights.check import check_shape
from igpt.weights.huggingface import is_huggingface, read_huggingface
from igpt.weights.own import load_weights
from igpt.weights.released import RELEASED, fetch_weights
from igpt.weights.tensorflow import read_tensorflow


def read_weights(where: str | Path) -> ImageGPT:
    """The model that ``where`` names, in evaluation mode on the CPU.

    where : a released model's name (``igpt-s``, ``igpt-s-bert`` ...), which is downloaded when it is not at hand, a
    folder of ours or of Hugging Face's, or the prefix of a TensorFlow checkpoint (the path without ``.index``)
    Raises UsageError when there is none, saying which files to put where, when it is damaged, and when another model lies
    under a released one's name, in whatever form.
    """
    found = _read(where)
    if str(where) in RELEASED:
        check_shape(str(where), found.shape, RELEASED[str(where)].shape)
    return found


def _read(where: str | Path) -> ImageGPT:
    """The model of whatever size."""
    path = Path(where)
    if path.is_dir():
        return read_huggingface(path) if is_huggingface(path) else load_weights(path)[0]
    if path.with_name(path.name + ".index").exists():
        return read_tensorflow(path)
    if str(where) in RELEASED:
        return read_tensorflow(fetch_weights(RELEASED[str(where)]))
    raise UsageError(
        f"there are no weights at {where}: give a folder, the path of a TensorFlow checkpoint without .index, or one of"
        f" {', '.join(RELEASED)}"
    )
