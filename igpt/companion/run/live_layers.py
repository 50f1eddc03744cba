"""Which training images each layer's features find nearest to a few held-out ones: small, for the chapter on depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from igpt.companion.results.record import Record, usable_record
from igpt.companion.stage import Stage
from igpt.project import Project
from igpt.train.recipes import TINY, recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from igpt.model import ImageGPT
    from igpt.palette import Palette

IMAGES, NEAREST = 5, 6


def probe_record(project: Project, model: str) -> tuple[Path, Record] | None:
    """The published record of the same weights' probes, and where it is; none for a model whose data are not known."""
    if model not in TINY:
        return None
    path = project.records / "tiny" / f"{Stage.of('linear_probe', model=model, seed=0).name}.json"
    record = usable_record(path)
    return None if record is None else (path, record)


def find_neighbours(
    model: str, weights: ImageGPT, palette: Palette, found: tuple[Path, Record], project: Project
) -> dict[str, object]:
    """What the chapter shows: the first held-out images, and by layer their nearest training images.

    Nearest by Euclid, in features that are standardised over the training images, as the probe reads them.
    ``curve`` is the probe's accuracy by layer, out of its record.
    """
    import numpy as np

    from igpt.data import load_split, tokenize
    from igpt.evaluate.features import extract_features

    path, record = found
    plan = recipe(model)
    train, test = (load_split(plan.dataset, split, side=plan.side) for split in ("train", "test"))
    known = extract_features(weights, tokenize(train.images, palette))  # (layers, images, width)
    asked = extract_features(weights, tokenize(test.images[:IMAGES], palette))
    mean, deviation = known.mean(1, keepdims=True), known.std(1, keepdims=True) + 1e-6
    known, asked = (known - mean) / deviation, (asked - mean) / deviation
    nearest = np.stack([_nearest(k, a) for k, a in zip(known, asked, strict=True)])  # (layers, images, NEAREST)
    shown, place = np.unique(nearest, return_inverse=True)

    def pictures(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[dict[str, object]]:
        tokens = tokenize(images, palette)
        return [{"tokens": row.tolist(), "label": int(label)} for row, label in zip(tokens, labels, strict=True)]

    return {
        "model": model,
        "side": plan.side,
        "colours": palette.dequantize(np.arange(len(palette))).tolist(),
        "images": pictures(test.images[:IMAGES], test.labels[:IMAGES]),
        "shown": pictures(train.images[shown], train.labels[shown]),
        "neighbours": place.reshape(nearest.shape).tolist(),
        "curve": [{key: row[key] for key in ("layer", "accuracy", "low", "high")} for row in record.series["trained"]],
        "record": str(path.relative_to(project.records)),
    }


def _nearest(known: NDArray[np.float32], asked: NDArray[np.float32]) -> NDArray[np.int64]:
    """Indices (asked, NEAREST) of the nearest rows of ``known``, nearest first."""
    import numpy as np

    squared = np.square(known[None].astype(np.float64) - asked[:, None]).sum(-1)
    order: NDArray[np.int64] = squared.argsort(1, kind="stable")[:, :NEAREST]
    return order
