"""A layer's share of a probe of iGPT-L's 49 layers: the choice of its strength and the fit on all; and reading its features."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from igpt.companion.bench.probe import CLASSES, some_features
from igpt.companion.bench.work import Candidate, Task, Work
from igpt.evaluate.feature_store import HEADER, FeatureStore
from igpt.evaluate.linear_probe import probe_layers

HELD_OUT = 0.1


def _probe(toy: bool, dtype: type[np.floating] = np.float32) -> Work:
    """One layer, on the card where there is one; of its card's memory more layers side by side take no longer a layer."""
    images, width = (600, 16) if toy else (50_000, 1536)
    features, labels = some_features(images, width)
    features, last = features.astype(dtype), round(images * (1 - HELD_OUT))
    test = features[last:] + 1  # others than those to choose by
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run() -> list[float]:
        result = probe_layers(([features[:last]], [features[last:]], [[test]]), (labels[:last], labels[last:]), device=device)
        return [result.best.validation, np.bincount(result.best.predictions[0], minlength=CLASSES).max() / len(test)]

    return Work(run, run())


def _half(toy: bool) -> Work:
    return _probe(toy, np.float16)


def _reading(toy: bool) -> Work:
    """The same features out of a store, every number of them, as float64."""
    images, width = (600, 16) if toy else (50_000, 1536)
    kept = tempfile.TemporaryDirectory(prefix="igpt-bench-")
    folder = Path(kept.name)
    np.save(folder / "layer-000.npy", some_features(images, width)[0])
    np.save(folder / "order.npy", np.arange(images))
    (folder / HEADER).write_text(json.dumps({"layers": [0], "key": {"dtype": "float32"}}))

    def run() -> object:
        torch.from_numpy(FeatureStore(folder).layer(0)).to(torch.float64, copy=True)
        return kept

    run()
    return Work(run, [])


TASK = Task(
    "A layer's share of a probe of 49 layers, 50,000 x 1,536 features of 10 classes",
    (
        Candidate("igpt", _probe),
        Candidate("igpt, features in half precision", _half, tolerance=5e-3),
        Candidate("reading the layer's features", _reading),
    ),
)
