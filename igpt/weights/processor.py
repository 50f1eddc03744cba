"""The configuration of transformers' image processor (``preprocessor_config.json``): a folder's colours and its filter.

The colours stand there as ``clusters`` in [-1, 1], as in `igpt.palette.Palette`.
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

# What turns bytes into values beside the clusters, v / 127.5 - 1, and those into tokens: the processor's own defaults.
_PROCESSOR: dict[str, Any] = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_color_quantize": True,
}
PROCESSOR = "preprocessor_config.json"
NESTED = "processor_config.json"  # of newer versions, which describes the processors of all kinds of input
BICUBIC = 3  # Pillow's number
_ROUNDED = 1e-5  # two palettes that differ by less were written with fewer digits; a level of a pixel is 1 / 127.5


def read_colours(folder: Path) -> Palette | None:
    """The palette of a folder's tokens: its ``palette.npy`` or its processor's clusters; None where it has neither.

    Where both are there they must name the same colours, so that none is silently left aside; of a grey palette the
    clusters are its levels three times. Clusters that are the released colours but for rounding are those.
    Of the processor's other settings, those that decide which value a pixel has must be transformers' own. Its ``size``
    and whether it resizes or crops are not read: the side follows from the model's positions, and the central square is
    taken for weights of every make. For the filter see `read_resample`.
    Raises UsageError for two palettes that differ, for other settings, and for damaged files.
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
    """Pillow's number of the filter by which a folder's processor reduces pictures; bicubic where it names none.

    Raises UsageError for a number that Pillow does not have, and for damaged files.
    """
    path, processor = _read_processor(folder)
    found = processor.get("resample")
    if found is None:
        return BICUBIC
    if type(found) is not int or not 0 <= found <= 5:
        raise UsageError(f"{path} has resample {shortly(found)}, and Pillow's filters are 0 to 5: copy it again")
    return found


def write_processor(folder: Path, palette: Palette, *, side: int) -> None:
    """Write a palette as ``palette.npy`` and for transformers' processor of images of ``side`` by ``side`` pixels.

    Theirs sees RGB only: a grey level stands there three times.
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
    """The configuration of the image processor, where transformers looks for it, and its file; empty without one."""
    path = folder / NESTED
    nested = _read_json(path).get("image_processor")
    if nested is None:
        path = folder / PROCESSOR
        nested = _read_json(path)
    if not isinstance(nested, dict):
        raise UsageError(f"{path} does not describe an image processor ({shortly(nested)}): copy it again")
    return path, nested


def _read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is missing."""
    try:
        return read_fields(path, "an image processor")
    except FileNotFoundError:
        return {}


def _clusters(path: Path, processor: dict[str, Any]) -> Palette | None:
    """The clusters of a processor that makes tokens as we do."""
    for key, ours in _PROCESSOR.items():
        found = processor.get(key)
        if found is not None and not _equal(found, ours):
            raise UsageError(f"{path} has {key} {shortly(found)}, and igpt supports {ours} only: choose other weights")
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


def _equal(found: object, ours: object) -> bool:
    """Whether a setting is ours, written with however many digits; one number stands for three channels."""
    if isinstance(ours, bool):
        return found is ours
    try:
        return bool(np.allclose(np.asarray(found, dtype=float), np.asarray(ours), rtol=0, atol=1e-6))
    except (ValueError, TypeError, OverflowError):
        return False


def _same_colours(palette: Palette, clusters: Palette) -> bool:
    """Whether a palette, of grey or RGB, has these clusters, (colours, 3)."""
    if len(palette) != len(clusters) or palette.centres.shape[1] not in (1, 3):
        return False
    return bool(np.abs(palette.centres - clusters.centres).max() < _ROUNDED)
