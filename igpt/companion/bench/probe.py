"""A probe's whole path of strengths: ours, and scikit-learn's L-BFGS carried to the same objective."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from igpt.companion.bench.work import Candidate, Task, Work
from igpt.evaluate.logistic import fit_path

CS = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 100.0)
CLASSES = 10
TIGHT = 1e-6  # of the gradient: what scikit-learn needs for our objective


def some_features(images: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (images, width) whose variances fall as those of a network's do, and noisy labels."""
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.normal(size=(width, width)))[0]
    along = generator.normal(size=(images, width)) / np.sqrt(np.arange(1, width + 1))
    readout = 3 * generator.normal(size=(CLASSES, width))
    labels = (along @ readout.T + 1.5 * generator.gumbel(size=(images, CLASSES))).argmax(1)
    return (along @ axes).astype(np.float32), labels


def _data(toy: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return some_features(300, 16) if toy else some_features(50_000, 512)


def _strengths(toy: bool) -> tuple[float, ...]:
    """The path; its slow end is left out where speed is not the question."""
    return CS[:4] if toy else CS


def _ours(toy: bool) -> Work:
    features, labels = _data(toy)

    def run() -> list[float]:
        return [found.objective for found in fit_path(features, labels, Cs=_strengths(toy))]

    return Work(run, run())


def _theirs(toy: bool, tolerance: float = TIGHT) -> Work:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = _data(toy)

    def run() -> list[float]:
        z = StandardScaler().fit_transform(features.astype(np.float64))
        objectives = []
        for C in _strengths(toy):
            fitted = LogisticRegression(C=C, tol=tolerance, max_iter=20_000).fit(z, labels)
            entropy = -log_softmax(z @ fitted.coef_.T + fitted.intercept_, axis=1)[np.arange(len(z)), labels].mean()
            objectives.append(float(entropy + (fitted.coef_**2).sum() / (2 * C * len(z))))
        return objectives

    return Work(run, run() if tolerance == TIGHT else [])


def _theirs_by_default(toy: bool) -> Work:
    """Their default tolerance, which stops before the optimum where the strength is large: not the same work."""
    return _theirs(toy, tolerance=1e-4)


TASK = Task(
    "A probe's path over 8 strengths on 50,000 x 512 features of 10 classes",
    (
        Candidate("igpt", _ours, tolerance=1e-4),
        Candidate("scikit-learn to the same objective", _theirs, tolerance=1e-4),
        Candidate("scikit-learn, default tolerance", _theirs_by_default),
    ),
)
