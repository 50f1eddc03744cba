"""Weights by a name, a folder or a TensorFlow prefix: which of the three readers they need."""

from __future__ import annotations

from pathlib import Path

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.weights.check import check_shape
from igpt.weights.fetching import read_released
from igpt.weights.huggingface import is_huggingface, read_huggingface
from igpt.weights.own import load_weights
from igpt.weights.released import RELEASED, released_model
from igpt.weights.tensorflow import read_tensorflow


def read_weights(where: str | Path, shape: ModelShape | None = None) -> ImageGPT:
    """The model that ``where`` names, in evaluation mode on the CPU.

    where : a released model's name (``igpt-s``, ``igpt-s-bert`` ...; ``igpt-s@131000`` after so many steps), which is
    downloaded when it is not at hand, a folder of ours or of Hugging Face's, or the prefix of a TensorFlow checkpoint (the
    path without ``.index``)
    shape : what the model must have; that of the released one under a released name, in whatever form it lies there, and any
    otherwise, when None
    Raises UsageError when there is none, saying which files to put where, when it is damaged, and when it is another model.
    """
    found = _read(where)
    if shape is None and (named := released_model(str(where))):
        shape = named.shape
    if shape is not None:
        check_shape(str(where), found.shape, shape)
    return found


def _read(where: str | Path) -> ImageGPT:
    """The model of whatever size."""
    path = Path(where)
    if path.is_dir():
        return read_huggingface(path) if is_huggingface(path) else load_weights(path)[0]
    if path.name and path.with_name(path.name + ".index").exists():
        return read_tensorflow(path)
    if named := released_model(str(where)):
        return read_released(named)
    if path.is_file():
        raise UsageError(
            f"{where} is a file: give the folder that it lies in, with all its files, or a TensorFlow checkpoint's path"
            " without .index"
        )
    raise UsageError(
        f"there are no weights at {where}: give a folder, the path of a TensorFlow checkpoint without .index, or one of"
        f" {', '.join(RELEASED)}"
    )
