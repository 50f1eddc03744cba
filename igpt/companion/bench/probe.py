"""Probes: a path of several C, compared with scikit-learn's L-BFGS, and one layer of a probe of iGPT-L's 49 layers."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from igpt.companion.bench.work import Candidate, Task, Work
from igpt.evaluate.linear_probe import probe_layers
from igpt.evaluate.logistic import fit_path

CS = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 100.0)
CLASSES = 10
TIGHT = 1e-6  # tolerance on the gradient with which scikit-learn reaches our objective
HELD_OUT = 0.1


def _path(toy: bool) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[float, ...]]:
    """Features, labels and the path of C; at toy size without the largest, slow ones."""
    return (*_features(300, 16), CS[:4]) if toy else (*_features(50_000, 512), CS)


def _features(images: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (images, width) with decreasing variances, as those of a network, and noisy labels."""
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.normal(size=(width, width)))[0]
    along = generator.normal(size=(images, width)) / np.sqrt(np.arange(1, width + 1))
    readout = 3 * generator.normal(size=(CLASSES, width))
    labels = (along @ readout.T + 1.5 * generator.gumbel(size=(images, CLASSES))).argmax(1)
    return (along @ axes).astype(np.float32), labels


def _ours(toy: bool) -> Work:
    features, labels, path = _path(toy)

    def run() -> list[float]:
        return [fit.objective for fit in fit_path(features, labels, Cs=path)]

    return Work(run, run())


def _theirs(toy: bool, *, tolerance: float = TIGHT) -> Work:
    """scikit-learn; with its default tolerance it stops before the optimum for large C, so answers are not compared."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels, path = _path(toy)

    def run() -> list[float]:
        z = StandardScaler().fit_transform(features.astype(np.float64))
        objectives = []
        for C in path:
            fitted = LogisticRegression(C=C, tol=tolerance, max_iter=20_000).fit(z, labels)
            entropy = -log_softmax(z @ fitted.coef_.T + fitted.intercept_, axis=1)[np.arange(len(z)), labels].mean()
            objectives.append(float(entropy + (fitted.coef_**2).sum() / (2 * C * len(z))))
        return objectives

    return Work(run, run() if tolerance == TIGHT else [])


def _layer(toy: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of one of iGPT-L's layers, and labels."""
    return _features(600, 16) if toy else _features(50_000, 1536)


def _probe(toy: bool, *, dtype: type[np.floating] = np.float32) -> Work:
    """One layer, on a GPU if there is one; solving several side by side there takes no longer per layer."""
    features, labels = _layer(toy)
    features, last = features.astype(dtype), round(len(labels) * (1 - HELD_OUT))
    test = features[last:] + 1  # different from the validation images
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run() -> list[float]:
        result = probe_layers(([features[:last]], [features[last:]], [[test]]), (labels[:last], labels[last:]), device=device)
        return [result.best.validation, np.bincount(result.best.predictions[0], minlength=CLASSES).max() / len(test)]

    return Work(run, run())


def _reading(toy: bool) -> Work:
    """Reading the same features from disk, as float64."""
    directory = tempfile.TemporaryDirectory(prefix="igpt-bench-")
    path = Path(directory.name) / "layer-000.npy"
    np.save(path, _layer(toy)[0])

    def run() -> object:
        torch.from_numpy(np.lib.format.open_memmap(path, "c")).to(torch.float64, copy=True)
        return directory

    run()
    return Work(run, [])


TASKS = {
    "probe": Task(
        "A probe's path over 8 strengths on 50,000 x 512 features of 10 classes",
        (
            Candidate("igpt", _ours, tolerance=1e-4),
            Candidate("scikit-learn to the same objective", _theirs, tolerance=1e-4),
            Candidate("scikit-learn, default tolerance", partial(_theirs, tolerance=1e-4)),
        ),
    ),
    "probe_layers": Task(
        "A layer's share of a probe of 49 layers, 50,000 x 1,536 features of 10 classes",
        (
            Candidate("igpt", _probe),
            Candidate("igpt, features in half precision", partial(_probe, dtype=np.float16), tolerance=5e-3),
            Candidate("reading the layer's features", _reading),
        ),
    ),
}
