"""Features of a folder of JPEG files, which are decoded meanwhile, and of tokens that are stored already."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from igpt.companion.bench.models import TOY, S, our_model
from igpt.companion.bench.tokenise import write_jpegs
from igpt.companion.bench.work import Candidate, Task, Work
from igpt.data.folders import PictureTokens, find_pictures
from igpt.evaluate.feature_store import Tokens, feature_batches
from igpt.fast import prepacked
from igpt.files import write_array
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.weights.own import released_palette

IMAGES = 32


def _from_files(toy: bool) -> Work:
    """Files are found and decoded each time, as `igpt features` does it."""
    model, directory = our_model(TOY if toy else S), write_jpegs(IMAGES)

    def run() -> NDArray[np.float32]:
        return _features(model, _pictures(model, directory))

    return Work(run, _some_features(run()))


def _from_tokens(toy: bool) -> Work:
    """The same tokens, read from a file."""
    model, directory = our_model(TOY if toy else S), write_jpegs(IMAGES)
    path = Path(directory.name) / "tokens.npy"
    write_array(path, _pictures(model, directory)[np.arange(IMAGES)])

    def run() -> NDArray[np.float32]:
        assert directory.name  # kept as long as it is read
        return _features(model, np.load(path, mmap_mode="r"))

    return Work(run, _some_features(run()))


def _pictures(model: ImageGPT, directory: tempfile.TemporaryDirectory[str]) -> PictureTokens:
    """The directory's pictures as tokens of as many of the released colours as the model has."""
    palette = Palette(released_palette().centres[: model.shape.n_vocab])
    return PictureTokens(find_pictures([Path(directory.name)]), palette, math.isqrt(model.shape.n_ctx))


def _features(model: ImageGPT, tokens: Tokens) -> NDArray[np.float32]:
    """Features of all layers, (L + 1, images, width)."""
    layers = range(model.shape.n_layer + 1)
    with prepacked(model):
        batches = list(feature_batches(model, tokens, np.arange(len(tokens)), layers=layers))
    return np.stack([np.concatenate([batch[layer] for batch in batches]) for layer in layers])


def _some_features(features: NDArray[np.float32]) -> list[float]:
    """Some features of the first, a middle and the last layer, of float (L + 1, images, C)."""
    values: list[float] = features[[0, len(features) // 2, -1], 0, :4].ravel().tolist()
    return values


TASKS = {
    "pictures": Task(
        "Features of all layers of 32 JPEG files of 500 x 375 pixels, iGPT-S's shape",
        (Candidate("igpt, from the files", _from_files), Candidate("igpt, from stored tokens", _from_tokens)),
    ),
}
