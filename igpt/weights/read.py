"""Weights by a name, a folder or a TensorFlow prefix: which of the three readers they need, and which palette is theirs."""

from __future__ import annotations

import math
from pathlib import Path

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.check import check_shape
from igpt.weights.fetching import read_released
from igpt.weights.huggingface import huggingface_files, huggingface_shape, is_huggingface, read_huggingface
from igpt.weights.own import described, load_weights, released_palette
from igpt.weights.processor import NESTED, PROCESSOR, read_colours
from igpt.weights.released import RELEASED, released_model
from igpt.weights.tensorflow import index_path, needed_shards, read_index, read_tensorflow, shape_of


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


def weights_shape(place: Path) -> ModelShape:
    """The shape that a folder or a TensorFlow checkpoint says it has; its weights are not read. Raises as `read_weights` does."""
    if place.is_dir():
        return huggingface_shape(place / "config.json") if is_huggingface(place) else described(place)[0]
    if _is_checkpoint(place):
        return shape_of(read_index(place))
    raise _no_weights(place)


def weights_files(place: Path) -> list[Path]:
    """The files out of which the weights of a folder or a TensorFlow checkpoint, and their palette, are read.

    Raises UsageError for one that is missing.
    """
    beside = place if place.is_dir() else place.parent
    colours = [path for name in ("palette.npy", NESTED, PROCESSOR) if (path := beside / name).exists()]
    own = [place / name for name in ("config.json", "model.safetensors", "palette.npy")]
    if place.is_dir():
        files = huggingface_files(place) if is_huggingface(place) else own
    else:
        index = read_index(place)
        files = [index_path(place), *(index.shard(number) for number in needed_shards(index))]
    if missing := [path.name for path in files if not path.exists()]:
        raise UsageError(f"{place} lacks {len(missing)} of the files of its weights, {missing[0]} first: copy them too")
    return [*files, *(path for path in colours if path not in files)]


def read_palette(where: str | Path, shape: ModelShape) -> Palette:
    """The palette of weights of a shape: what lies beside them, else the released one.

    where : as `read_weights` takes it
    Raises UsageError for weights of an unknown palette or of another number of colours, and for those that make no picture.
    """
    place = Path(where)
    beside = place if place.is_dir() else place.parent  # a checkpoint of TensorFlow lies in a folder of any name
    own = read_colours(beside) if place.is_dir() or _is_checkpoint(place) else None
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
    """Whether a path is a TensorFlow checkpoint's, without ``.index``."""
    return bool(path.name) and index_path(path).exists()


def _read(where: str | Path) -> ImageGPT:
    """The model of whatever size."""
    path = Path(where)
    if path.is_dir():
        return read_huggingface(path) if is_huggingface(path) else load_weights(path)[0]
    if _is_checkpoint(path):
        return read_tensorflow(path)
    if named := released_model(str(where)):
        return read_released(named)
    raise _no_weights(where)


def _no_weights(where: str | Path) -> UsageError:
    """What to say where there are none."""
    if Path(where).is_file():
        return UsageError(
            f"{where} is a file: give the folder that it lies in, with all its files, or a TensorFlow checkpoint's path"
            " without .index"
        )
    return UsageError(
        f"there are no weights at {where}: give a folder, the path of a TensorFlow checkpoint without .index, or one of"
        f" {', '.join(RELEASED)}"
    )
