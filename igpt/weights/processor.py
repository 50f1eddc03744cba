"""The configuration of transformers' image processor (``preprocessor_config.json``): a folder's colours and its filter.

The colours are its ``clusters``, in [-1, 1] as in `igpt.palette.Palette`.
"""

from __future__ import annotations

import json
from pathlib import Path
from reprlib import repr as shortly
from typing import Any

import numpy as np

from igpt.errors import UsageError
from igpt.files import write_text
from igpt.palette import Palette
from igpt.weights.check import read_fields
from igpt.weights.own import released_palette

# The processor's defaults for the settings, besides clusters, that turn bytes into values v / 127.5 - 1, and those into tokens.
_PROCESSOR: dict[str, Any] = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_color_quantize": True,
}
PROCESSOR = "preprocessor_config.json"
NESTED = "processor_config.json"  # of newer versions, for all kinds of input
BICUBIC = 3  # Pillow's number
_ROUNDED = 1e-5  # palettes that differ by less are equal but for rounding; a level of a pixel is 1 / 127.5


def read_colours(folder: Path) -> Palette | None:
    """The palette of a folder's tokens: its ``palette.npy`` or its processor's clusters; None if both are missing.

    If both exist, their colours must be equal; a grey palette's clusters repeat each level three times. Clusters that equal
    the released colours but for rounding are read as the released palette. Settings that change a pixel's value must be
    transformers' defaults.
    The processor's ``size``, resizing and cropping are ignored: the model's positions decide the size, and pictures are cut
    to the central square. Raises UsageError for two palettes that differ, for other settings, and for damaged files.
    """
    clusters = _clusters(*_read_processor(folder))
    if not (folder / "palette.npy").exists():
        released = released_palette()
        return released if clusters is not None and _same_colours(released, clusters) else clusters
    palette = Palette.load(folder / "palette.npy")
    if clusters is not None and not _same_colours(palette, clusters):
        raise UsageError(
            f"{folder} has two palettes that differ, palette.npy and the processor's clusters: keep the one that these"
            " weights were trained with, and move the other away"
        )
    return palette


def read_resample(folder: Path) -> int:
    """Pillow's number of the filter with which a folder's processor resizes pictures, bicubic by default.

    Raises UsageError for a number that Pillow does not have, and for damaged files.
    """
    path, processor = _read_processor(folder)
    resample = BICUBIC if processor.get("resample") is None else processor["resample"]
    if type(resample) is not int or not 0 <= resample <= 5:
        raise UsageError(f"{path} has resample {shortly(resample)}, and Pillow's filters are 0 to 5: copy it again")
    return resample


def write_processor(folder: Path, palette: Palette, *, side: int) -> None:
    """Write a palette as ``palette.npy`` and for transformers' processor of images of ``side`` by ``side`` pixels.

    The processor supports RGB only, so a grey level is written three times.
    """
    palette.save(folder / "palette.npy")
    clusters = np.broadcast_to(palette.centres, (len(palette), 3)).astype(float).tolist()
    processor = {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": clusters,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": BICUBIC,
        **_PROCESSOR,
    }
    write_text(folder / PROCESSOR, json.dumps(processor) + "\n")


def _read_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The path of the image processor's configuration, as transformers finds it, and its fields; empty if it is missing."""
    path, what = folder / NESTED, "an image processor"
    fields = read_fields(path, what).get("image_processor") if path.exists() else None
    if fields is None:
        path = folder / PROCESSOR
        fields = read_fields(path, what) if path.exists() else {}
    if not isinstance(fields, dict):
        raise UsageError(f"{path} does not describe {what} ({shortly(fields)}): copy it again")
    return path, fields


def _clusters(path: Path, processor: dict[str, Any]) -> Palette | None:
    """A processor's clusters. Raises UsageError for a processor whose tokens would differ from ours."""
    for key, ours in _PROCESSOR.items():
        theirs = processor.get(key)
        if theirs is not None and not _equal(theirs, ours):
            raise UsageError(f"{path} has {key} {shortly(theirs)}, and igpt supports {ours} only: choose other weights")
    if processor.get("clusters") is None:
        return None
    try:
        clusters = np.array(processor["clusters"])
        if clusters.dtype.kind not in "if":
            raise ValueError("its clusters are not numbers")
        if clusters.ndim != 2 or clusters.shape[1] != 3:
            raise ValueError(f"its clusters have the shape {clusters.shape}, not (colours, 3)")
        with np.errstate(over="ignore"):  # to infinity, which a palette refuses
            return Palette(clusters.astype(np.float32))
    except ValueError as error:
        raise UsageError(f"{path} does not hold a palette ({error}): copy it again") from None
    except UsageError as error:
        raise UsageError(f"the clusters of {path} are no palette: {error}") from None


def _equal(theirs: object, ours: object) -> bool:
    """Whether a setting equals ours but for rounding; a single number applies to three channels."""
    if isinstance(ours, bool):
        return theirs is ours
    try:
        return bool(np.allclose(np.asarray(theirs, dtype=float), np.asarray(ours), rtol=0, atol=1e-6))
    except (ValueError, TypeError, OverflowError):
        return False


def _same_colours(palette: Palette, clusters: Palette) -> bool:
    """Whether a palette, grey or RGB, equals clusters, (colours, 3), but for rounding."""
    if len(palette) != len(clusters) or palette.centres.shape[1] not in (1, 3):
        return False
    return bool(np.abs(palette.centres - clusters.centres).max() < _ROUNDED)
