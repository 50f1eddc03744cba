"""Multinomial logistic regression: many problems side by side on a CPU or a GPU (layers, and several values of C for each).

The objective is scikit-learn's: C times the sum of the images' cross-entropies plus half the squared weights, the intercept
unpenalised. (With two classes both have weights here: C is scikit-learn's 2 C.) It is strictly convex except for a constant
added to all intercepts, so the optimum does not depend on the solver. scikit-learn's L-BFGS needs more iterations for larger
C and by default stops before the optimum; on features, whose variances span many orders of magnitude, that costs accuracy.
Here L-BFGS (`igpt.evaluate.lbfgs`) works along the principal axes of the features, each scaled by its curvature.

All is in float64, on a GPU too: in float32 the last decreases of the objective are lost to rounding, and in float64 a GPU
gives the same results as a CPU. An H100 multiplies matrices in float64 at its float32 rate; a consumer GPU at 1/64 of
it, still as fast as several cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from igpt.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from igpt.evaluate.lbfgs import Minima

ITERATIONS = 2000
TOLERANCE = 1e-11  # of the objective, see `igpt.evaluate.lbfgs.minimise`
CPU_BYTES = 2**30  # for problems side by side on a CPU, where larger batches are not faster
LOGITS = 2**24  # most logits computed at once
GPU_PART = 0.7  # of a GPU's free memory; the rest is for temporary results that are not counted

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Task = tuple[Features, Labels, Sequence[float]]  # features, labels and the values of C


@dataclass(frozen=True, eq=False)
class Classifier:
    """A fitted classifier: logits are ``(x - mean) / scale @ weights.T + intercept``, in float64 on the device of the fit."""

    mean: Tensor
    scale: Tensor
    weights: Tensor  # (classes, width), of the standardised features
    intercept: Tensor
    classes: Labels
    C: float
    objective: float  # mean cross-entropy, plus the penalty over C and the number of images
    converged: bool
    iterations: int

    def predict(self, features: Features) -> Labels:
        """The likeliest class, int64 (images,), of features (images, width)."""
        import torch

        x = torch.from_numpy(features).to(self.mean.device).to(torch.float64, copy=True)
        logits = torch.addmm(self.intercept, x.sub_(self.mean).div_(self.scale), self.weights.T)
        predicted: Labels = self.classes[logits.argmax(1).cpu().numpy()]
        return predicted


def fit_path(
    features: Features, labels: Labels, *, Cs: Sequence[float], device: str = "cpu", standardise: bool = True
) -> list[Classifier]:
    """One classifier per C, in their order.

    features : float32 (images, width); labels : int64 (images,); Cs : as scikit-learn's C
    standardise : scale each feature to mean 0 and variance 1 first, so that the penalty treats all features alike
    Raises UsageError for features that are NaN or infinite, a wrong number of labels, a single class, a C that is not
    positive and finite, and when the device's memory is too small.
    """
    return next(fit_paths([(features, labels, Cs)], device=device, standardise=standardise))


def fit_paths(tasks: Iterable[Task], *, device: str = "cpu", standardise: bool = True) -> Iterator[list[Classifier]]:
    """`fit_path` of each task, in their order; as many tasks as memory holds are read ahead and solved side by side."""
    batch: list[_Prepared] = []
    room = 0.0
    for task in tasks:
        features, labels, Cs = task
        classes = np.unique(labels)
        if len(labels) != len(features) or len(classes) < 2:
            count = f"{len(labels)} labels of {len(classes)} classes"
            raise UsageError(f"{len(features)} images have {count}: give one label an image, of two classes or more")
        if not all(0 < C < np.inf for C in Cs):
            raise UsageError(f"C is {', '.join(map(str, Cs))}: give numbers above 0")
        images, width = features.shape
        held, temporary = problem_bytes(images, width, len(classes), len(Cs))
        if batch and ((len(batch) + 1) * held + temporary > room or not batch[0].is_like(features, classes)):
            paths, batch = _solve(batch), []
            yield from paths
        if not batch:
            room = _room(device)
            if device != "cpu" and held + temporary > room:
                needed, available = ((held + temporary) / 2**30, room / 2**30)
                raise UsageError(
                    f"a probe of {images:,} images with {width:,} features takes {needed:.1f} GiB of the card, which has"
                    f" {available:.1f} to give: end what else runs there, or probe fewer images"
                )
        batch.append(_Prepared.of(task, classes, device=device, standardise=standardise))
    if batch:
        yield from _solve(batch)


def _room(device: str) -> float:
    """Bytes that problems side by side may take."""
    import torch

    if device == "cpu":
        return CPU_BYTES
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own free memory
    return GPU_PART * (torch.cuda.mem_get_info(device)[0] + cached)


def problem_bytes(images: int, width: int, classes: int, count: int) -> tuple[int, int]:
    """Bytes that each task with ``count`` values of C holds until it is solved, and temporary bytes of one task at a time."""
    from igpt.evaluate.lbfgs import MEMORY

    inner, outputs = min(images, width), count * classes
    # Features and axes; for each unknown the history of L-BFGS, twice while converged problems are removed, and a dozen vectors.
    held = images * inner + 2 * width * inner + outputs * (inner + 1) * (4 * MEMORY + 12)
    # During preparation, the features before and after rotation; then the logits.
    return 8 * held, 8 * 2 * (images * width + max(LOGITS, outputs))


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A task on its device, its features along their principal axes."""

    x: Tensor  # float64 (N, axes); as many axes as features, or as images where these are fewer
    moments: Tensor  # float64 (classes, axes + 1): mean over all images of each class's features, and its share of images
    variances: Tensor  # float64 (axes,)
    axes: Tensor  # float64 (width, axes)
    mean: Tensor
    scale: Tensor
    classes: Labels
    Cs: Sequence[float]

    @classmethod
    def of(cls, task: Task, classes: Labels, *, device: str, standardise: bool) -> _Prepared:
        """Centre, scale and rotate the task's features. Raises UsageError when they are NaN or infinite."""
        import torch

        features, labels, Cs = task
        x = torch.from_numpy(features).to(device).to(torch.float64, copy=True)
        if not x.isfinite().all():
            raise UsageError("the features hold values that are not finite: the weights have diverged, train them again")
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale[scale <= 1e-9 * mean.abs()] = 1  # a constant feature, up to rounding
        if not standardise:
            scale = torch.ones_like(scale)
        x.sub_(mean).div_(scale)  # centring alone changes nothing: the intercept is unpenalised
        basis = None
        if len(x) < x.shape[1]:  # the optimum is a sum of the images, so it lies in their span
            basis = torch.linalg.qr(x.T)[0]
            x = x @ basis
        variances, axes = torch.linalg.eigh(x.T @ x / len(x))
        x = x @ axes
        indices = torch.from_numpy(np.searchsorted(classes, labels)).to(device)
        moments = x.new_zeros(len(classes), x.shape[1] + 1)
        size = max(LOGITS // len(classes), 1)  # of a chunk of images, since one-hot labels of many classes exceed features
        for x_chunk, index_chunk in zip(x.split(size), indices.split(size), strict=True):
            shares = torch.nn.functional.one_hot(index_chunk, len(classes)).T.to(x.dtype) / len(x)  # (classes, n)
            moments += torch.cat([shares @ x_chunk, shares.sum(1, keepdim=True)], dim=1)
        axes = axes if basis is None else basis @ axes
        return cls(x, moments, variances.clamp(min=0), axes, mean, scale, classes, Cs)

    def is_like(self, features: Features, classes: Labels) -> bool:
        """Whether a task of these features and classes has as many unknowns per C, so that both can be solved side by side."""
        return min(features.shape) == self.x.shape[1] and len(classes) == len(self.classes)

    def penalties(self) -> Tensor:
        """Factors (Cs,) of half the squared weights, which are added to the mean cross-entropy."""
        import torch

        return 1 / (torch.tensor(self.Cs, dtype=self.x.dtype, device=self.x.device) * len(self.x))

    def units(self) -> Tensor:
        """The scale of L-BFGS's unknowns, (Cs, 1, axes + 1) with the intercept last.

        It uses half of a class's curvature where all classes are equally likely, so that L-BFGS starts near the identity.
        This affects the speed, not the optimum.
        """
        import torch

        half = 1 / (2 * len(self.classes))
        penalties = self.penalties()[:, None]
        curvature = torch.cat([half * self.variances + penalties, half * torch.ones_like(penalties)], dim=1)
        return curvature.rsqrt()[:, None]

    def value(self, given: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor]:
        """Objectives (k,), over C and the images, and gradients, for weights (k, classes, axes + 1) with the intercept last."""
        import torch

        weights, intercept = given[..., :-1], given[..., -1]
        # The mean logit of the labels is linear in the weights, with the moments as coefficients.
        entropy, gradient = -(given * self.moments).sum((1, 2)), -self.moments.repeat(len(given), 1, 1)
        for x in self.x.split(max(LOGITS // intercept.numel(), 1)):
            logits = torch.addmm(intercept.reshape(-1, 1), weights.flatten(0, 1), x.T)
            logits = logits.view(*intercept.shape, -1)  # (k, classes, n): sums over classes run along the images, which is fast
            top = logits.amax(1, keepdim=True)
            total = logits.sub_(top).exp_().sum(1, keepdim=True)
            entropy += (total.log() + top).sum((1, 2)) / len(self.x)
            likely = logits.div_(total)
            gradient[..., :-1] += (likely.flatten(0, 1) @ x).view(weights.shape) / len(self.x)
            gradient[..., -1] += likely.sum(2) / len(self.x)
        gradient[..., :-1] += penalties[:, None, None] * weights
        return entropy + penalties / 2 * weights.square().sum((1, 2)), gradient

    def classifiers(self, given: Tensor, minima: Minima) -> list[Classifier]:
        """One classifier per C, from weights (Cs, classes, axes + 1) along the axes."""
        outcomes = zip(minima.values.tolist(), minima.converged.tolist(), minima.iterations.tolist(), strict=True)
        return [
            Classifier(self.mean, self.scale, w[:, :-1] @ self.axes.T, w[:, -1], self.classes, C, *outcome)
            for C, w, outcome in zip(self.Cs, given, outcomes, strict=True)
        ]


def _solve(batch: Sequence[_Prepared]) -> list[list[Classifier]]:
    """The optima of a batch of tasks for all their C, by one batched L-BFGS; products are computed task by task."""
    import torch

    from igpt.evaluate.lbfgs import Minima, minimise

    owners = [index for index, task in enumerate(batch) for _ in task.Cs]
    units, penalties = torch.cat([task.units() for task in batch]), torch.cat([task.penalties() for task in batch])
    shape = (len(owners), *batch[0].moments.shape)

    def objective(points: Tensor, live: list[int]) -> tuple[Tensor, Tensor]:
        unit, penalty = units[live], penalties[live]
        current = points.view(-1, *shape[1:]) * unit
        values, gradients = torch.empty_like(penalty), torch.empty_like(current)
        for owner, problems in groupby(range(len(live)), key=lambda index: owners[live[index]]):
            first, *others = problems
            rows = slice(first, first + len(others) + 1)
            values[rows], gradients[rows] = batch[owner].value(current[rows], penalty[rows])
        return values, (gradients * unit).flatten(1)

    start = torch.zeros(shape, dtype=units.dtype, device=units.device).flatten(1)
    minima = minimise(objective, start, tolerance=TOLERANCE, iterations=ITERATIONS)
    weights = minima.points.view(shape) * units
    paths, done = [], 0
    for task in batch:
        rows = slice(done, done := done + len(task.Cs))
        paths.append(task.classifiers(weights[rows], Minima(*(t[rows] for t in vars(minima).values()))))
    return paths
