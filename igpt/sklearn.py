"""Features of pictures as a transformer of scikit-learn, which is the package `sklearn`; this module is `igpt.sklearn`.

from igpt.sklearn import ImageGPTFeatures
classifier = make_pipeline(ImageGPTFeatures("igpt-s", layer=12), StandardScaler(), LogisticRegression())
classifier.fit(images, labels)  # arrays, PIL images or paths
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from igpt.data.folders import SKIP, PictureFiles, PictureTokens, read_picture
from igpt.data.resize import fitted
from igpt.errors import UsageError
from igpt.evaluate.feature_store import feature_batches
from igpt.fast import prepacked
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.pictures import Resize, from_array, upright
from igpt.pretrained import open_weights, resample_of
from igpt.weights.own import weights_digest

Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"
KINDS = "uint8 arrays (N, height, width) or (N, height, width, channels), or a list of PIL images or of paths"


class InvalidInput(UsageError, ValueError):
    """A UsageError that is a ValueError too, as scikit-learn's users and searches expect."""


class ImageGPTFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of one layer, averaged over positions, float32 (N, width): those of `igpt features` and the linear probe.

    model : name or path, as in `igpt.ImageGPT.from_pretrained`
    layer : 0 .. n_layer, numbered as the paper numbers them. None is the middle one, n_layer // 2: the best layers of the
    paper's models lie near the middle (figure 2). Small models may have better ones later: search for them, such as with
    GridSearchCV
    resize : how pictures of any size become square, see `igpt.data.resize.fitted`

    Pictures are uint8 arrays (N, height, width) or (N, height, width, channels) of 1, 3 or 4 channels, or a list of PIL images,
    of paths, or of arrays of different sizes. They are turned upright as EXIF says, and transparency is laid on white. Nothing
    is learned: `fit` checks its input and loads the weights. A pickle holds their name and digest, not the weights. On a GPU
    features are computed in bfloat16.
    Mistakes raise ValueError (which is an `igpt.errors.UsageError`): a layer that the model has not, other arrays, and pictures
    that cannot be read.

    >>> import numpy as np
    >>> from igpt.sklearn import ImageGPTFeatures
    >>> images = np.zeros((2, 40, 30, 3), np.uint8)
    >>> ImageGPTFeatures("laptop-l", layer=4).fit_transform(images).shape
    (2, 128)
    """

    def __init__(self, model: str | Path = "laptop-l", layer: int | None = None, *, resize: Resize = "crop") -> None:
        self.model = model
        self.layer = layer
        self.resize = resize

    def fit(self, X: Iterable[Picture], y: object = None) -> Self:
        """Check the pictures' types and load the weights; ``y`` is not used. No picture is opened.

        Sets ``layer_``, the layer's number, and ``digest_``, the SHA-256 of the weights.
        """
        with _as_value_error():
            _checked(X)
            self._opened = _open(str(self.model), self.layer, self.resize)
            self.layer_, self.digest_ = self._opened.layer, self._opened.digest
            self._n_features_out = self._opened.network.shape.n_embd
        return self

    def transform(self, X: Iterable[Picture]) -> NDArray[np.float32]:
        """Features float32 (N, width) of pictures."""
        with _as_value_error():
            pictures = _checked(X)
            opened = self._weights()
            network, how = opened.network, (self.resize, resample_of(str(self.model)))
            side = math.isqrt(network.shape.n_ctx)
            if all(isinstance(picture, str | os.PathLike) for picture in pictures):
                files = PictureFiles([Path(picture) for picture in pictures], [""] * len(pictures))
                source: PictureTokens | _InMemory = PictureTokens(files, opened.palette, side, *how)
            else:
                source = _InMemory(pictures, opened.palette, side, *how)
            features = np.empty((len(pictures), network.shape.n_embd), np.float32)
            done = 0
            with closing(source), prepacked(network):
                for averages in feature_batches(network, source, np.arange(len(pictures)), layers=[opened.layer]):
                    values = averages[opened.layer]
                    features[done : done + len(values)] = values
                    done += len(values)
        return features

    def _weights(self) -> _Opened:
        """The weights that `fit` loaded, in another process loaded again; without `fit`, loaded each time.

        Raises UsageError if they are others than those of `fit`.
        """
        if not hasattr(self, "digest_"):
            return _open(str(self.model), self.layer, self.resize)
        if not hasattr(self, "_opened"):
            opened = _open(str(self.model), self.layer_, self.resize)
            if opened.digest != self.digest_:
                raise UsageError(f"the weights of {self.model} have changed since `fit`: fit again, or put the earlier ones back")
            self._opened = opened
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: everything but the weights."""
        return {name: value for name, value in super().__getstate__().items() if name != "_opened"}

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's tools may expect: pictures in, no fit needed."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.string = False, True, True
        tags.transformer_tags.preserves_dtype = []
        return tags


@dataclass(frozen=True, eq=False)
class _Opened:
    """A network on its device, the palette of its tokens, a layer of it, and the digest of the weights."""

    network: ImageGPT
    palette: Palette
    layer: int
    digest: str


def _open(model: str, layer: int | None, resize: str) -> _Opened:
    """Load the weights. Raises UsageError for a layer that they have not, and for another ``resize``."""
    if resize not in get_args(Resize):
        raise UsageError(f"resize is {resize!r}: give {' or '.join(get_args(Resize))}")
    network, palette = open_weights(model)
    last = network.shape.n_layer
    if layer is not None and (not isinstance(layer, int | np.integer) or isinstance(layer, bool) or not 0 <= layer <= last):
        raise UsageError(f"layer is {layer!r}, and {model} has layers 0 to {last}: give one of these, or None for {last // 2}")
    digest = weights_digest(network)
    if torch.cuda.is_available():
        network.to("cuda", torch.bfloat16)
    return _Opened(network, palette, last // 2 if layer is None else int(layer), digest)


@dataclass(eq=False)
class _InMemory:
    """Tokens of pictures that are in memory, some perhaps paths, computed when they are asked for."""

    pictures: Any
    palette: Palette
    side: int
    resize: Resize
    resample: int

    def __len__(self) -> int:
        return len(self.pictures)

    def close(self) -> None:
        """Nothing to end."""

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Tokens uint16 (B, positions). Raises UsageError, which names the index, for a picture that cannot be read."""
        how: dict[str, Any] = {
            "side": self.side,
            "channels": self.palette.centres.shape[1],
            "resize": self.resize,
            "resample": self.resample,
        }
        pixels = np.empty((len(indices), self.side, self.side, how["channels"]), np.uint8)
        for row, index in enumerate(indices.tolist()):
            picture = self.pictures[index]
            if isinstance(picture, str | os.PathLike):
                pixels[row] = read_picture(Path(picture), **how)
                continue
            try:
                image = upright(picture) if isinstance(picture, Image.Image) else from_array(picture)
            except UsageError as error:
                raise UsageError(f"picture {index} {error}") from None
            pixels[row] = fitted(image, **how)
        return self.palette.quantize(pixels, expected=len(self) * self.side**2).reshape(len(indices), -1)


def _checked(X: Any) -> Any:
    """The pictures as a sequence. Raises UsageError for anything else, and for none."""
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OU":
        if X.ndim == 3 and X.shape[2] in (3, 4) and min(X.shape[:2]) > 4:
            raise UsageError(
                f"the pictures are {X.dtype} {X.shape}, which may be one in colour: give (1, height, width, channels)"
            )
        if X.dtype != np.uint8 or not (X.ndim == 3 or (X.ndim == 4 and X.shape[3] in (1, 3, 4))):
            raise UsageError(f"the pictures are {X.dtype} {X.shape}: give {KINDS}")
        pictures: Any = X
    else:
        if (
            isinstance(X, str | os.PathLike | Image.Image)
            or getattr(X, "ndim", 1) != 1
            or not isinstance(X, Iterable)
            or isinstance(X, Iterator)
        ):
            raise UsageError(f"the pictures are a {type(X).__name__}: give {KINDS}")
        pictures = list(X)
        for index, picture in enumerate(pictures):
            _check_picture(picture, index)
    if getattr(pictures, "size", len(pictures)) == 0:
        raise UsageError(f"there are no pictures (0 sample(s)): give {KINDS}")
    return pictures


def _check_picture(picture: object, index: int) -> None:
    """Raise UsageError for what is no picture."""
    if isinstance(picture, np.ndarray):
        if (
            picture.dtype == np.uint8
            and picture.size
            and (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (1, 3, 4)))
        ):
            return
        found = f"{picture.dtype} {picture.shape}"
    elif isinstance(picture, str | os.PathLike | Image.Image):
        return
    else:
        found = f"a {type(picture).__name__}"
    raise UsageError(f"picture {index} is {found}: give {KINDS}")


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Context manager: a UsageError of the block becomes one that is a ValueError too."""
    try:
        yield
    except UsageError as error:
        raise InvalidInput(str(error).removesuffix(f"; {SKIP}")) from None
