"""Multinomial logistic regression over a whole path of strengths, on a CPU or a GPU.

The objective is scikit-learn's: C times the sum of the images' cross-entropies plus half the squared weights, the
intercept left free. Its L-BFGS needs the more iterations the larger C is, and its default tolerance stops before the
optimum there; on features, whose variances span many orders of magnitude, that costs accuracy. Here the same L-BFGS
works in the coordinates in which the features' covariance is diagonal, each scaled by its curvature, and each
strength starts from the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

ITERATIONS = 2000
TOLERANCE = 1e-10  # of the objective between two iterations; relative where it is above 1

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Classifier:
    """A fitted one: logits are ``(x - mean) / scale @ weights.T + intercept``, all float64."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]  # (classes, width), of the standardised features
    intercept: NDArray[np.float64]
    classes: Labels
    strength: float
    objective: float  # mean cross-entropy plus the penalty over C and the images
    converged: bool

    def predict(self, features: Features) -> Labels:
        """The likeliest class, int64 (images,), of features (images, width)."""
        logits = (features.astype(np.float64) - self.mean) / self.scale @ self.weights.T + self.intercept
        predicted: Labels = self.classes[logits.argmax(1)]
        return predicted


def fit_path(
    features: Features, labels: Labels, *, strengths: Sequence[float], device: str = "cpu", standardise: bool = True
) -> list[Classifier]:
    """One classifier a strength, in their order.

    features : float32 (images, width); labels : int64 (images,); strengths : scikit-learn's C
    standardise : each feature to mean 0 and variance 1 first, which decides what the penalty weighs
    Raises UsageError for features that are not finite, other numbers of them and of labels, or a single class.
    """
    import torch

    if not np.isfinite(features).all():
        raise UsageError("the features hold values that are not finite: the weights have diverged, train them again")
    classes, places = np.unique(labels, return_inverse=True)
    if len(labels) != len(features) or len(classes) < 2:
        count = f"{len(labels)} of {len(classes)}"
        raise UsageError(f"{len(features)} features need as many labels, of two classes or more, not {count}")
    x = torch.from_numpy(features).to(device, torch.float64)
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale[scale <= 1e-9 * mean.abs()] = 1  # a constant feature says nothing, but for what rounding makes of it
    if not standardise:
        scale = torch.ones_like(scale)
    x = (x - mean) / scale  # a shift alone changes nothing: the intercept is free
    variances, axes = torch.linalg.eigh(x.T @ x / len(x))  # (width,), (width, width)
    problem = _Problem(x @ axes, torch.from_numpy(places).to(device), len(classes), variances.clamp(min=0))
    path: dict[float, Classifier] = {}
    start = torch.zeros(len(classes), x.shape[1] + 1, dtype=torch.float64, device=device)
    for strength in sorted(set(strengths)):
        start, objective, converged = problem.solve(strength, start)
        weights = start[:, :-1] @ axes.T
        path[strength] = Classifier(
            mean.cpu().numpy(),
            scale.cpu().numpy(),
            weights.cpu().numpy(),
            start[:, -1].cpu().numpy(),
            classes.astype(np.int64),
            strength,
            objective,
            converged,
        )
    return [path[strength] for strength in strengths]


@dataclass(frozen=True, eq=False)
class _Problem:
    """The features along their principal axes, float64 (N, width), with their variances; int64 (N,) classes."""

    x: Tensor
    classes: Tensor
    count: int
    variances: Tensor

    def solve(self, strength: float, start: Tensor) -> tuple[Tensor, float, bool]:
        """The optimum, (classes, width + 1) with the intercept last; its objective, and whether L-BFGS converged."""
        import torch
        from scipy.optimize import minimize

        penalty = 1 / (strength * len(self.x))
        # Half of what a class's curvature is where all are as likely, so that L-BFGS starts near the identity; this sets
        # the speed, not where it ends.
        curvature = torch.cat([self.variances / (2 * self.count) + penalty, self.variances.new_tensor([1 / (2 * self.count)])])
        unit = curvature.rsqrt()

        def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            given = torch.from_numpy(flat).to(self.x.device).view(self.count, -1) * unit
            value, slope = self._value(given, penalty)
            return value, (slope * unit).flatten().cpu().numpy()

        options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "maxcor": 20, "ftol": TOLERANCE, "gtol": 1e-9}
        first = (start / unit).flatten().cpu().numpy()
        result = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)  # type: ignore[call-overload]
        return torch.from_numpy(result.x).to(self.x.device).view(self.count, -1) * unit, float(result.fun), bool(result.success)

    def _value(self, given: Tensor, penalty: float) -> tuple[float, Tensor]:
        """Objective and gradient, both divided by C and the number of images."""
        import torch

        weights, intercept = given[:, :-1], given[:, -1]
        logits = torch.addmm(intercept, self.x, weights.T)  # (N, classes)
        logs = logits.log_softmax(1)
        value = -logs.gather(1, self.classes[:, None]).mean() + penalty / 2 * weights.square().sum()
        slope = logs.exp()
        slope[torch.arange(len(slope), device=slope.device), self.classes] -= 1
        slope /= len(slope)
        return float(value), torch.cat([slope.T @ self.x + penalty * weights, slope.sum(0)[:, None]], dim=1)
