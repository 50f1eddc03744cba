"""Read weights, and their palette, by a name, a folder of weights or of a training, or a TensorFlow prefix."""

from __future__ import annotations

import math
from pathlib import Path

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.check import check_shape
from igpt.weights.fetching import read_released
from igpt.weights.huggingface import folder_shape, huggingface_files, is_huggingface, read_huggingface
from igpt.weights.own import load_weights, read_config, released_palette
from igpt.weights.processor import NESTED, PROCESSOR, read_colours
from igpt.weights.released import RELEASED, released_model
from igpt.weights.tensorflow import read_tensorflow, shape_of
from igpt.weights.tensorflow_index import index_path, read_index
from igpt.weights.training_run import is_training, read_training, training_files, training_palette, training_shape


def read_weights(where: str | Path, shape: ModelShape | None = None) -> ImageGPT:
    """The model that ``where`` names, in evaluation mode on the CPU.

    where : a released model's name (``igpt-s``, ``igpt-s-bert`` ...; ``igpt-s@131000`` after so many steps), which is
    downloaded if it is missing, a folder of our format or Hugging Face's, the folder of a training, whose newest weights are
    read, or the prefix of a TensorFlow checkpoint (the path without ``.index``)
    shape : the required shape; by default that of the released model of this name, and any for another name
    Raises UsageError when there are no weights, with the next step, when they are damaged, and for a different shape.
    """
    path, released = Path(where), released_model(str(where))
    if path.is_dir() and is_training(path):
        model = read_training(path)[0]
    elif path.is_dir():
        model = read_huggingface(path) if is_huggingface(path) else load_weights(path)[0]
    elif _is_checkpoint(path):
        model = read_tensorflow(path)
    elif released:
        model = read_released(released)
    else:
        raise _no_weights(where)
    if expected := shape or (released and released.shape):
        check_shape(str(where), model.shape, expected)
    return model


def weights_shape(path: Path) -> ModelShape:
    """The shape of a folder's or a TensorFlow checkpoint's model, of whose weights at most biases are read.

    Raises as `read_weights` does.
    """
    if path.is_dir() and is_training(path):
        return training_shape(path)
    if path.is_dir():
        return folder_shape(path)[0] if is_huggingface(path) else read_config(path)[0]
    if _is_checkpoint(path):
        return shape_of(read_index(path))
    raise _no_weights(path)


def weights_files(path: Path) -> list[Path]:
    """The files from which the weights of a folder or a TensorFlow checkpoint, and their palette, are read.

    Raises UsageError for one that is missing.
    """
    if path.is_dir() and is_training(path):
        return training_files(path)
    folder = path if path.is_dir() else path.parent
    if not path.is_dir():
        files = [index_path(path), *read_index(path).weight_shards.values()]
    elif is_huggingface(path):
        files = huggingface_files(path)
    else:
        files = [path / name for name in ("config.json", "model.safetensors", "palette.npy")]
    if missing := [file.name for file in files if not file.exists()]:
        raise UsageError(f"{path} lacks {len(missing)} of the files of its weights, {missing[0]} first: copy them too")
    colours = [folder / name for name in ("palette.npy", NESTED, PROCESSOR)]
    return [*files, *(file for file in colours if file.exists() and file not in files)]


def read_palette(where: str | Path, shape: ModelShape) -> Palette:
    """The palette of weights of a shape: the one beside them, else the released one.

    where : as in `read_weights`
    Raises UsageError for an unknown palette, for another number of colours, and for positions or channels that form no picture.
    """
    path = Path(where)
    folder = path if path.is_dir() else path.parent  # a TensorFlow checkpoint is in a folder of any name
    if path.is_dir() and is_training(path):
        own: Palette | None = training_palette(path)
    else:
        own = read_colours(folder) if path.is_dir() or _is_checkpoint(path) else None
    palette = released_palette() if own is None else own
    if shape.n_vocab != len(palette):
        raise UsageError(
            f"{where} has {shape.n_vocab} colours, and the palette beside it {len(palette)}: copy both from one place"
            if own is not None
            else f"{where} has {shape.n_vocab} colours and no palette beside it; only the {len(palette)} released"
            " ones are known: put its palette.npy there"
        )
    if math.isqrt(shape.n_ctx) ** 2 != shape.n_ctx or palette.centres.shape[1] not in (1, 3):
        raise UsageError(
            f"{where} has {shape.n_ctx} positions and colours of {palette.centres.shape[1]} channels, which make no square"
            " picture of grey or RGB: give other weights"
        )
    return palette


def _is_checkpoint(path: Path) -> bool:
    """Whether a path is the prefix of a TensorFlow checkpoint."""
    return bool(path.name) and index_path(path).exists()


def _no_weights(where: str | Path) -> UsageError:
    """The error for a name or path without weights."""
    if Path(where).is_file():
        return UsageError(
            f"{where} is a file: give the folder that it lies in, with all its files, or a TensorFlow checkpoint's path"
            " without .index"
        )
    return UsageError(
        f"there are no weights at {where}: give a folder, the path of a TensorFlow checkpoint without .index, or one of"
        f" {', '.join(RELEASED)}"
    )
